"""Plans, results and pages of reproductions, from run folders written by the tests."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from alexlab.config import CONFIG_DIR, build
from alexlab.config.data import find_splits
from alexlab.config.default import run_config
from alexlab.data.fingerprint import describe_images
from alexlab.distributed import devices, hardware
from alexlab.distributed.signals import Interrupted
from alexlab.errors import AlexlabError, ConfigError
from alexlab.papers import training
from alexlab.papers.page import measure_claims, write_results
from alexlab.papers.paper import SCALES, make_paper, planned_run
from alexlab.papers.reproduction import Reproduction
from alexlab.records.run import Run
from alexlab.records.saved_predictions import SavedPredictions
from alexlab.sweeps.job_list import JOBS, ListedJob, read_jobs, write_jobs
from alexlab.tasks.reproduce import launcher_overrides, main, make_reproduction
from support.runs import plain, write_record

ROOTS = {"data": "/images", "cifar10": "/cifar10"}


def reproduction(folder: Path, *overrides: str, paper: str = "alexnet2012") -> Reproduction:
    return make_reproduction(as_run(folder, *overrides, paper=paper))


def as_run(folder: Path, *overrides: str, paper: str = "alexnet2012") -> Run:
    config = plain(f"paper={paper}", f"out={folder / 'out'}", *overrides, name="reproduce")
    return Run(config=config, dir=folder, choices={"paper": paper, "launcher": "parallel"})


def finish(found: Reproduction, name: str, seed: int, *, rate: float | None = None, **values: Any) -> Path:
    """Write the folder of a finished run: its best top-1, its scores, and its errors while training or its validations."""
    planned = found.plan(seed, name, rate)
    folder = found.runs_dir / planned.name
    errors, top1 = values.get("errors", [0.5]), values.get("top1", 0.5)
    write_record(
        folder,
        top1=top1,
        seed=seed,
        config={"seed": seed, "optimizer": {} if rate is None else {"lr": rate}},
        scores={"best/top1": top1, **values.get("scores", {})},
        data={"counts": {"val": 1000}},
    )
    rows = [f"{epoch},{1 - error},{1 - error}" for epoch, error in enumerate(errors, 1)]
    (folder / "metrics.csv").write_text("\n".join(["epoch,train/top1,val/top1", *rows]) + "\n")
    return folder


def set_status(found: Reproduction, name: str, seed: int, status: str, *, rate: float | None = None) -> None:
    path = found.runs_dir / found.plan(seed, name, rate).name / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"status": status}))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", sorted(path.stem for path in (CONFIG_DIR / "paper").glob("*.yaml")))
def test_every_setting_of_every_paper_composes_and_builds(name: str, scale: str) -> None:
    paper = make_paper(plain(f"paper={name}", name="reproduce")["paper"])
    for setting in paper.settings:
        run = planned_run(paper, setting, scale, ROOTS, seed=2, rate=0.5)
        config = plain(*run.overrides)
        assert (config["seed"], config["optimizer"]["lr"]) == (2, 0.5)
        assert config["data"]["root"] == ROOTS[paper.recipes[paper.settings[setting].recipe].root]
        size, channels = config["data"]["image_size"], config["model"]["in_channels"]
        with torch.device("meta"):
            assert build.net(config, 10)(torch.empty(2, channels, size, size)).shape == (2, 10)


def test_seeds_follow_the_rate_with_which_the_first_seed_is_fastest(tmp_path: Path) -> None:
    (tmp_path / "cifar").mkdir()
    found = reproduction(tmp_path, f"cifar10.root={tmp_path / 'cifar'}", "claims=[relu]", "seeds=2")
    rates = {name: found.paper.settings[name].rates for name in ("relu", "tanh")}
    assert [run.name for run in found.first_runs()] == [
        f"{name}_lr-{rate:g}_seed-1" for name in rates for rate in rates[name]
    ]
    assert found.later_runs() == []
    for name in rates:
        for number, rate in enumerate(rates[name]):
            finish(found, name, 1, rate=rate, errors=[0.5, 0.2 if number == 1 else 0.24])
    assert [run.name for run in found.later_runs()] == [f"{name}_lr-{rates[name][1]:g}_seed-2" for name in rates]


def train_fake(found: Reproduction, **top1: float) -> "Callable[..., int]":
    """Return a function in place of `training.train`: each run that is not finished gets the score of its setting."""

    def train(runs: Any, runs_dir: Path, launcher: Any) -> int:
        write_jobs(runs_dir, [run.job() for run in runs])
        for run in runs:
            if not (runs_dir / run.name).exists() and run.setting in top1:
                finish(found, run.setting, run.seed, top1=top1[run.setting] + run.seed / 1000)
        return 0

    return train


def test_a_second_call_trains_only_what_is_missing_and_renews_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "images").mkdir()
    overrides = [f"data.root={tmp_path / 'images'}", "claims=[relu,lrn,pooling]", "seeds=2"]
    found = reproduction(tmp_path, *overrides)
    monkeypatch.setattr(training, "train", train_fake(found, baseline=0.6, no_lrn=0.5))
    main(as_run(tmp_path, *overrides))
    output = capsys.readouterr().out
    assert "6 runs, 6 not started" in output
    result = json.loads((found.folder / "result.json").read_text())
    verdicts = {claim["claim"]: claim["verdict"] for claim in result["claims"]}
    assert verdicts == {"relu": "skipped", "lrn": "agrees", "pooling": "not run yet"}
    lrn = next(claim for claim in result["claims"] if claim["claim"] == "lrn")
    assert lrn["value"] == pytest.approx(0.1)
    assert (lrn["paper"], lrn["ours"][:12], result["seeds"]) == ("+1.4 points", "+10.0 points", [1, 2])
    page = (found.folder / "reproduce.html").read_text()
    assert page.startswith("<!doctype html>") and "Set cifar10.root=DIR" in page and "<svg" in page
    assert "no_overlap 0 of 2" in page
    main(as_run(tmp_path, *overrides))
    assert "6 runs, 4 finished, 2 not started; about 2 min left" in capsys.readouterr().out
    monkeypatch.setattr(training, "train", train_fake(found, no_overlap=0.7))
    main(as_run(tmp_path, *overrides))
    monkeypatch.setattr(training, "train", None)  # nothing is left to train
    main(as_run(tmp_path, *overrides))
    assert "differs" in (found.folder / "claims.csv").read_text()


def test_an_interrupted_training_is_resumed_by_the_same_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = as_run(tmp_path, f"data.root={tmp_path}", "claims=[lrn]")
    monkeypatch.setattr(training, "train", lambda *args: 130)
    with pytest.raises(Interrupted):
        main(run)
    assert "repeat the command to resume and to update the page" in capsys.readouterr().out
    monkeypatch.setattr(training, "train", lambda *args: 3)
    with pytest.raises(AlexlabError, match="no run could be started") as caught:
        main(replace(run, overrides=["launcher.jobs=null"]))  # which only some launchers accept
    assert caught.value.exit_code == 3


def test_a_folder_with_other_settings_or_data_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    found = reproduction(tmp_path, f"data.root={tmp_path / 'a'}", "claims=[lrn]", "seeds=1")
    found.record(found.first_runs())
    other = reproduction(tmp_path, f"data.root={tmp_path / 'b'}", "claims=[lrn]", "seeds=1")
    other.record(other.first_runs())  # nothing was trained yet
    finish(other, "baseline", 1)
    with pytest.raises(
        ConfigError, match=r"baseline_seed-1 was trained with data.root=\S+b instead of data.root=\S+a; set out=DIR"
    ):
        found.record(found.first_runs())
    with pytest.raises(ConfigError, match="set out=DIR"):
        main(as_run(tmp_path, f"data.root={tmp_path / 'a'}", "claims=[lrn]", "seeds=1", "train=false"))
    more = reproduction(tmp_path, f"data.root={tmp_path / 'b'}", "claims=[lrn,dropout]", "seeds=3")
    more.record(more.first_runs())


def test_runs_of_a_recipe_that_has_changed_are_not_mixed_with_new_ones(tmp_path: Path) -> None:
    found = reproduction(tmp_path, f"data.root={tmp_path}", f"cifar10.root={tmp_path}", "claims=[lrn,relu]", "seeds=2")
    finish(found, "no_lrn", 2)
    finish(found, "relu", 1, rate=0.003)
    composed = {"seed": 1, "optimizer": {"lr": 0.003, "new": 1}, "data": {"num_workers": 4}}
    found.check_recipes(lambda overrides: composed)
    found.check_recipes(run_config)
    with pytest.raises(ConfigError) as caught:
        found.check_recipes(lambda overrides: composed | {"optimizer": {"lr": 0.1}})
    assert str(caught.value) == (
        "relu_lr-0.003_seed-1 must have been trained with the settings of its recipe; it has optimizer.lr=0.003, and the recipe now "
        "has optimizer.lr=0.1: restore the recipe, or set out=DIR to a new folder"
    )


def test_as_many_runs_at_a_time_as_fit_into_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "describe_hardware", lambda: {"memory_gb": 10.0})
    monkeypatch.setattr(hardware, "num_cores", lambda: 64)
    monkeypatch.setattr(devices, "num_gpus", lambda: 0)
    for paper, scale, jobs in (("alexnet2012", "small", 6), ("alexnet2012", "full", 2), ("d2l", "small", 3)):
        run = as_run(tmp_path, f"data.root={tmp_path}", f"scale={scale}", paper=paper)
        assert launcher_overrides(run, make_reproduction(run).memory_gb) == [
            "launcher=parallel",
            f"launcher.jobs={jobs}",
        ]


def test_figure_1_is_the_ratio_of_epochs_paired_by_seed(tmp_path: Path) -> None:
    found = reproduction(tmp_path, f"cifar10.root={tmp_path}", "claims=[relu]", "seeds=2")
    for name, rates in (("relu", (0.001, 0.003)), ("tanh", (0.003, 0.01))):
        for seed in (1, 2):
            for rate in rates if seed == 1 else rates[1:]:
                # Epochs until the error is 25 %, with the higher rate; the geometric mean of those with tanh is 16.
                steps = 4.0 if name == "relu" else 15.0 if seed == 1 else 256 / 15
                errors = [
                    1 - 0.75 * (epoch + 0.5) / (steps * (1 if rate == rates[1] else 2))
                    for epoch in range(round(2 * steps))
                ]
                finish(found, name, seed, rate=rate, errors=errors)
    (claim,) = found.claims.values()
    measured = found.measure(claim)
    assert measured is not None and measured.verdict == "agrees"
    assert measured.estimate.value == pytest.approx(4.0)
    assert "relu 4.0 epochs at the rate 0.003; tanh 16.0 epochs at the rate 0.01" in measured.detail
    finish(found, "tanh", 2, rate=0.01, errors=[0.9] * 30)
    bound = found.measure(claim)
    assert bound is not None and "1 run ended above 25%, so the ratio is a lower bound." in bound.detail
    finish(found, "relu", 2, rate=0.003, errors=[0.9] * 30)
    unknown = found.measure(claim)
    assert unknown is not None and unknown.verdict == "inconclusive" and "so no ratio is known" in unknown.detail
    for name, rate, seed in (("relu", 0.003, 1), ("tanh", 0.01, 2)):
        set_status(found, name, seed, "running", rate=rate)
    assert found.measure(claim) is None, "no seed has finished with both"


def test_the_average_has_as_many_nets_as_the_claim(tmp_path: Path) -> None:
    found = reproduction(tmp_path, f"data.root={tmp_path}", "claims=[average,lrn]", "seeds=2")
    names = [run.name for run in found.first_runs()]
    assert names == [*(f"baseline_seed-{seed}" for seed in range(1, 6)), "no_lrn_seed-1", "no_lrn_seed-2"]


def test_finished_runs_without_predictions_are_not_called_unfinished(tmp_path: Path) -> None:
    found = reproduction(tmp_path, f"data.root={tmp_path}", "claims=[average]")
    for seed in range(1, 6):
        finish(found, "baseline", seed)
    write_results(found)
    (claim,) = json.loads((found.folder / "result.json").read_text())["claims"]
    assert claim["verdict"] == "inconclusive"
    assert claim["note"] == "Finished runs: baseline 5 of 5. They lack what it is measured on."


def test_an_average_of_nets_is_compared_with_its_nets_by_image(tmp_path: Path) -> None:
    found = reproduction(tmp_path, f"data.root={tmp_path}", "claims=[average,crops]", "seeds=3")
    found = replace(found, claims={name: replace(claim, min_seeds=0) for name, claim in found.claims.items()})
    rights = np.array([[1, 1, 0], [1, 0, 1], [0, 1, 1]])  # each image is right in two nets, and so in the average
    for seed, right in enumerate(rights, 1):
        folder = finish(found, "baseline", seed, top1=2 / 3, scores={"ten_crop/top1": 2 / 3 + seed / 100})
        probs = np.where(right[:, None], [0.9, 0.1], [0.4, 0.6]).astype(np.float16)
        top = np.argsort(-probs, 1)
        SavedPredictions(
            np.array(["a", "b", "c"]), np.array(["x", "y"]), np.zeros(3, np.int64), top,
            np.take_along_axis(probs, top, 1).astype(np.float32), probs[:, 0].astype(np.float32), probs,
        ).write(folder, "val")  # fmt: skip
    write_results(found)
    claims = {claim["claim"]: claim for claim in json.loads((found.folder / "result.json").read_text())["claims"]}
    assert claims["average"]["value"] == pytest.approx(1 / 3)
    two = replace(found.claims["average"], min_seeds=2)
    measured = found.measure(two)
    assert measured is not None and measured.detail.startswith("Top-1 accuracy: average of 2 nets ")
    assert claims["crops"]["value"] == pytest.approx(0.02)
    assert claims["crops"]["low"] == pytest.approx(0.02 - 4.3027 * 0.01 / 3**0.5, abs=1e-5)


def test_failed_runs_are_reported_and_do_not_decide(tmp_path: Path) -> None:
    overrides = [f"data.root={tmp_path}", "claims=[lrn,crops]", "seeds=2", "train=false"]
    found = reproduction(tmp_path, *overrides)
    found = replace(found, claims={name: replace(claim, min_seeds=2) for name, claim in found.claims.items()})
    for seed in (1, 2):
        finish(found, "baseline", seed, scores={"ten_crop/top1": 0.6 + seed / 1000})
    finish(found, "no_lrn", 1)
    finish(found, "no_lrn", 2)
    set_status(found, "no_lrn", 2, "failed")
    rows = {row.name: row for row in measure_claims(found)}
    assert rows["lrn"].verdict == "inconclusive" and rows["crops"].verdict == "agrees"
    assert rows["lrn"].note.endswith(
        "Finished runs: baseline 2 of 2, no_lrn 1 of 2. 1 run failed; launcher.retry_failed=true retries them."
    )
    with pytest.raises(
        AlexlabError, match=r"1 run failed: no_lrn_seed-2; repeat the command with launcher.retry_failed"
    ):
        main(as_run(tmp_path, *overrides))
    assert (found.folder / "reproduce.html").exists()


def test_a_learning_rate_that_fails_is_not_chosen(tmp_path: Path) -> None:
    found = reproduction(tmp_path, f"cifar10.root={tmp_path}", "claims=[relu]", "seeds=1")
    for name, rates in (("relu", (0.001, 0.003)), ("tanh", (0.003, 0.01))):
        for rate in rates:
            finish(found, name, 1, rate=rate, errors=[0.5, 0.2])
    set_status(found, "tanh", 1, "failed", rate=0.01)
    assert found.best_rate("tanh") == 0.003 and found.failed() == []


def test_a_claim_that_cannot_be_measured_leaves_the_others(tmp_path: Path) -> None:
    found = reproduction(tmp_path, f"data.root={tmp_path}", "claims=[lrn,kernels]", "seeds=2")
    for seed in (1, 2):
        for name in ("baseline", "no_lrn"):
            finish(found, name, seed)
    rows = {row.name: row for row in measure_claims(found)}
    assert rows["lrn"].found is not None
    assert rows["kernels"].verdict == "inconclusive" and rows["kernels"].note.startswith("It cannot be measured: ")


def test_runs_on_changed_images_are_not_continued(tmp_path: Path, images: Path) -> None:
    found = reproduction(tmp_path, f"data.root={images}", "claims=[lrn]", "seeds=1")
    folder = finish(found, "baseline", 1)
    config = plain("data=folder", f"data.root={images}")
    recorded = {"config": config, "data": describe_images(find_splits(config))}
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(record | recorded))
    found.check_images()
    recorded["data"]["fingerprint"] = "0"
    (folder / "run.json").write_text(json.dumps(record | recorded))
    with pytest.raises(ConfigError, match="must be those of baseline_seed-1, but they have changed since; set out=DIR"):
        found.check_images()


def test_a_score_is_compared_with_the_published_one_of_the_same_epoch(tmp_path: Path) -> None:
    found = reproduction(tmp_path, f"data.root={tmp_path}", "claims=[vgg,nin,alexnet]", "seeds=1", paper="d2l")
    for name in ("vgg", "alexnet"):
        finish(found, name, 1, errors=[0.1])
    record = finish(found, "nin", 1, errors=[0.1, 0.1, 0.1, 0.1, 0.4]) / "run.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"diagnosis": "after epoch 1, an output is dead"}))
    write_results(found)
    assert "2 agree, 1 differs." in (found.folder / "reproduce.html").read_text()
    _, vgg, nin = json.loads((found.folder / "result.json").read_text())["claims"]
    assert (vgg["verdict"], nin["verdict"]) == ("agrees", "differs")
    assert (vgg["published"], nin["published"]) == (0.859, 0.831)
    assert "After 1 epoch: published 0.859" in vgg["note"] and "After 5 epochs: published 0.831" in nin["note"]
    assert nin["note"].endswith("Diagnosis of nin_seed-1: after epoch 1, an output is dead.")
    assert "Diagnosis" not in vgg["note"]
    metrics = finish(found, "nin", 1) / "metrics.csv"
    metrics.write_text("epoch,train/top1,val/top1\n1,0.5,\n2,0.5,0.8\n3,0.5,\n")
    measured = found.measure(found.claims["nin"])
    assert measured is not None and "After 2 epochs: published 0.754" in measured.detail
    metrics.write_text("epoch,train/top1\n1,0.5\n")
    assert found.measure(found.claims["nin"]) is None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.root=."], None),
        ([], r"the claims need images: set cifar10.root=DIR or data.root=DIR"),
        (["data.root=missing"], r"data.root must be a folder of images; missing does not exist"),
        (["data.root=.", "scale=tiny"], r"scale must be one of small, full; got tiny"),
        (["data.root=.", "seeds=0"], r"seeds must be the number of runs per setting, at least 1; got 0"),
        (["data.root=.", "claims=[lnr]"], r"claims must be one of relu, towers, .*; got lnr"),
        (["data.root=.", "claims=lnr"], r"claims must be one of relu, towers, .*; got lnr"),
        (["data.root=.", "claims=[]"], r"claims must name at least one of relu"),
        (["data.root=.", "claims=5"], r"claims must be null, for all, or one or several of relu, towers, .*; got 5"),
        (
            ["data.root=.", "paper.claims.lrn.kind=diference"],
            r"paper.claims.lrn.kind must be one of difference, .*; got diference",
        ),
        (
            ["data.root=.", "paper.claims.lrn.settings=[no_lrn]"],
            r"paper.claims.lrn.settings must name 2 settings for the kind difference; got \['no_lrn'\]",
        ),
        (
            ["data.root=.", "paper.claims.crops.kind=score"],
            r"paper.claims.crops.published must be a list of scores, one per epoch; got 0.015",
        ),
        (
            ["data.root=.", "paper.recipes.imagenet.memory_gb.small=0"],
            r"paper.recipes.imagenet.memory_gb must have a positive number for small and for full; got",
        ),
        (
            ["data.root=.", "paper.claims.lrn.settings=[x]"],
            r"paper.claims.lrn.settings must be one of baseline, .*; got x",
        ),
        (
            ["data.root=.", "+paper.claims.lrn.kid=x"],
            r"unknown key paper.claims.lrn.kid; did you mean paper.claims.lrn.kind",
        ),
    ],
)
def test_bad_input_is_refused_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str], message: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    if message is None:
        assert reproduction(tmp_path, *overrides).folder == tmp_path / "out"
        return
    with pytest.raises(ConfigError, match=message):
        reproduction(tmp_path, *overrides)


def test_a_published_number_must_be_a_number(tmp_path: Path) -> None:
    node = plain(name="reproduce")["paper"]
    node["claims"]["lrn"]["published"] = [0.1]
    with pytest.raises(
        ConfigError, match=r"lrn.published must be null or a number for the kind difference; got \[0.1\]"
    ):
        make_paper(node)


def test_a_list_of_jobs_is_read_back_and_must_be_plain(tmp_path: Path) -> None:
    jobs = [ListedJob("a_seed-1", ["seed=1", "ablation=[no_lrn]", "data.root='/x y'"]), ListedJob("b", ["seed=2"])]
    write_jobs(tmp_path, jobs)
    assert read_jobs(tmp_path) == jobs
    for broken, message in (
        ([{"name": "../a", "overrides": []}], "a name must consist of letters"),
        ([{"name": "a", "overrides": ["seed=${oc.env:HOME}"]}], "must not call a resolver"),
        ([{"name": "a", "overrides": ["hydra.run.dir=x"]}], "is not a key of a job's config"),
        ([{"name": "a", "overrides": []}] * 2, "two jobs have the same name"),
        ([{"nam": "a"}], "unexpected keyword"),
        ("[", "not a list of jobs"),
    ):
        (tmp_path / JOBS).write_text(broken if isinstance(broken, str) else json.dumps(broken))
        with pytest.raises(ConfigError, match=message):
            read_jobs(tmp_path)
    with pytest.raises(ConfigError, match=r"needs hydra.sweep.dir=DIR with jobs.json"):
        read_jobs(tmp_path / "missing")
