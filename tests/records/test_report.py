"""Reports of run folders written by the tests, so that every number is known."""

import csv
import html
import json
import math
import re
import statistics
import urllib.parse
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from alexlab.cli.arguments import collect_runs
from alexlab.errors import ConfigError
from alexlab.output.command_line import short_path
from alexlab.records.find import find_runs
from alexlab.records.lock import RunLock
from alexlab.records.optimized import OptimizedMetric
from alexlab.records.plots import curve_panels, sheet
from alexlab.records.ranking import rank_groups, verdict
from alexlab.records.ranking_notes import notes
from alexlab.records.report import write_report
from alexlab.records.report_page import repeat_command, title
from alexlab.records.results import RunResult, best_run, read_run
from alexlab.records.run import Run
from alexlab.records.run_groups import RunGroup, group_seeds, mean_interval
from alexlab.records.setting_plots import axis_scale, effect_panels, size_panels
from alexlab.records.settings import differing_keys, value_id
from alexlab.tasks.report import main as report
from support.browser import FITS, PHONE, evaluate_script
from support.runs import plain

SCORES = {("0.5", "sgd"): (0.80, 0.82, 0.84), ("0.5", "adam"): (0.90, 0.91, 0.92), ("1.0", "sgd"): (0.905, 0.915, 0.92)}


def write_run(folder: Path, *, width: float = 1.0, optimizer: str = "sgd", seed: int = 1, top1: float | None = 0.9, **record: Any) -> Path:  # fmt: skip
    folder.mkdir(parents=True)
    config = {
        "model": {"width": width, "norm": "none"},
        "optimizer": {"_target_": f"torch.optim.{optimizer}", "lr": 0.1},
        "data": {"root": "x", "cache_dir": f"c{seed}"},
        "callbacks": {"progress": {"refresh_s": seed}},
        "seed": seed,
    }
    best = None if top1 is None else {"top1": top1, "top5": 1.0, "loss": 1 - top1, "epoch": 2, "count": 1000}
    content = {
        "status": "finished",
        "reason": None,
        "seed": seed,
        "config": config,
        "choices": {"model": "alexnet", "optimizer": optimizer},
        "data": {"counts": {"train": 2000, "val": 1000}},
        "best": best,
        "scores": {"train_s": 10.0 * seed} | ({} if top1 is None else {"best/top1": top1}),
        "images_per_s": 100.0,
        "parameters": int(1e6 * width),
        **record,
    }
    (folder / "run.json").write_text(json.dumps(content))
    if top1 is not None:
        rows = [f"{epoch},{1 - top1 / 2},{top1 / 2},{1 - top1},{top1}" for epoch in (1, 2)]
        (folder / "metrics.csv").write_text("epoch,train/loss,train/top1,val/loss,val/top1\n" + "\n".join(rows) + "\n")
    return folder


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    for (width, optimizer), scores in SCORES.items():
        for seed, top1 in enumerate(scores, start=1):
            number = len(list((tmp_path / "sweep").glob("*")))
            write_run(tmp_path / f"sweep/{number}_x", width=float(width), optimizer=optimizer, seed=seed, top1=top1)
    return tmp_path / "sweep"


def test_seeds_are_averaged_and_only_differing_keys_are_columns(sweep: Path) -> None:
    runs = [read_run(folder) for folder in find_runs([str(sweep)])]
    assert differing_keys(runs) == ["optimizer", "model.width"]
    groups = group_seeds(runs, differing_keys(runs))
    assert [(group.keys["model.width"], group.keys["optimizer"], len(group.runs)) for group in groups] == [
        (0.5, "sgd", 3),
        (0.5, "adam", 3),
        (1.0, "sgd", 3),
    ]
    assert groups[0].mean() == pytest.approx(0.82)
    assert groups[0].std() == pytest.approx(statistics.stdev([0.80, 0.82, 0.84]))


def test_a_folder_is_taken_literally_before_it_is_a_glob(tmp_path: Path) -> None:
    for name in ("exp[1]", "exp1"):
        write_run(tmp_path / name / "run", seed=1)
    assert find_runs([str(tmp_path / "exp[1]")]) == [tmp_path / "exp[1]/run"]
    assert find_runs([str(tmp_path / "exp[12]")]) == [tmp_path / "exp1/run"]


def test_equal_numbers_of_other_types_are_the_same_setting(tmp_path: Path) -> None:
    for seed, decay in ((1, 0), (2, 0.0)):
        change(write_run(tmp_path / str(seed), seed=seed), optimizer={"weight_decay": decay})
    runs = [read_run(folder) for folder in find_runs([str(tmp_path)])]
    assert differing_keys(runs) == []
    assert len(group_seeds(runs, ["optimizer.weight_decay"])) == 1
    assert value_id(True) != value_id(1) and value_id([0, 1]) == value_id([0.0, 1])


def change(folder: Path, *, choices: dict[str, str] | None = None, **nodes: Any) -> None:
    """Change nodes of the config of a recorded run."""
    record = json.loads((folder / "run.json").read_text())
    record["config"] |= nodes
    record["choices"] |= choices or {}
    (folder / "run.json").write_text(json.dumps(record))


def test_callbacks_that_affect_the_result_are_compared_and_the_launcher_is_not(tmp_path: Path) -> None:
    for number, decay in enumerate((None, 0.9, 0.99)):
        for seed in (1, 2):
            folder = write_run(tmp_path / f"{number}_{seed}", seed=seed)
            nodes = {} if decay is None else {"ema": {"_target_": "EMA", "decay": decay}}
            change(folder, callbacks=nodes, choices={"launcher": ("sequential", "parallel")[seed - 1]})
    runs = [read_run(folder) for folder in find_runs([str(tmp_path)])]
    keys = differing_keys(runs)
    assert keys == ["callbacks", "callbacks.ema.decay"]
    assert [len(group.runs) for group in group_seeds(runs, keys)] == [2, 2, 2]


def test_folds_on_two_datasets_are_pooled(tmp_path: Path) -> None:
    for number in range(4):
        folder = write_run(tmp_path / str(number))
        data = {"root": "ab"[number // 2], "folds": 2, "fold": number % 2}
        change(folder, data=data, choices={"data": ("digits", "folder")[number // 2]})
    runs = [read_run(folder) for folder in find_runs([str(tmp_path)])]
    assert differing_keys(runs) == ["data"]
    assert "data" in write_report([str(tmp_path)], tmp_path / "out").read_text()


def test_a_score_that_is_not_a_number_does_not_prevent_the_report(tmp_path: Path) -> None:
    for seed, top1 in ((1, math.nan), (2, 0.9), (3, 0.8)):
        write_run(tmp_path / str(seed), seed=seed, top1=top1)
    runs = [read_run(folder) for folder in find_runs([str(tmp_path)])]
    (group,) = group_seeds(runs, differing_keys(runs))
    assert (group.mean(), len(group.values())) == (pytest.approx(0.85), 2)
    assert write_report([str(tmp_path)], tmp_path / "out").is_file()


def test_out_must_be_a_folder(sweep: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(ConfigError, match=r"out must be a folder; .* cannot be one"):
            write_report([str(sweep)], out)


def test_a_key_that_differs_within_an_option_is_a_column(tmp_path: Path) -> None:
    for number, (optimizer, lr) in enumerate((("sgd", 0.1), ("sgd", 0.2), ("adam", 0.1))):
        folder = write_run(tmp_path / str(number), optimizer=optimizer)
        record = json.loads((folder / "run.json").read_text())
        record["config"]["optimizer"]["lr"] = lr
        (folder / "run.json").write_text(json.dumps(record))
    runs = [read_run(folder) for folder in find_runs([str(tmp_path)])]
    assert differing_keys(runs) == ["optimizer", "optimizer.lr"]


def test_an_experiment_and_an_ablation_hide_what_they_decide(tmp_path: Path) -> None:
    settings = [
        ("small", "none", "sgd", 1.0, 0.1),
        ("small", "wide", "sgd", 2.0, 0.1),
        ("large", "none", "adam", 4.0, 0.1),
        ("large", "none", "adam", 4.0, 0.2),
    ]
    for number, (experiment, ablation, optimizer, width, lr) in enumerate(settings):
        folder = write_run(tmp_path / str(number), optimizer=optimizer, width=width)
        record = json.loads((folder / "run.json").read_text())
        record["choices"] |= {"experiment": experiment, "ablation": ablation}
        record["config"]["optimizer"]["lr"] = lr
        (folder / "run.json").write_text(json.dumps(record))
    runs = [read_run(folder) for folder in find_runs([str(tmp_path)])]
    assert differing_keys(runs) == ["experiment", "ablation", "optimizer.lr"]
    assert differing_keys(runs[:2]) == ["ablation"]
    assert differing_keys(runs[2:]) == ["optimizer.lr"]
    del runs[3].record["choices"]["ablation"]  # as in a run of an earlier version
    assert "ablation" not in differing_keys(runs) and "model.width" in differing_keys(runs)
    assert differing_keys(runs[2:]) == differing_keys(runs[:1:-1]) == ["optimizer.lr"]


def test_runs_with_different_classes_are_not_ranked(tmp_path: Path) -> None:
    for number, names in enumerate((["cat", "dog"], ["cat", "dog"], ["car", "cat", "dog"])):
        data = {"counts": {"val": 1000}, "class_names": names}
        folder = write_run(tmp_path / f"runs/{number}", width=1.0 + number, top1=0.9 - number / 100, data=data)
        record = json.loads((folder / "run.json").read_text())
        record["config"]["data"]["root"] = "/images/pets" if len(names) == 2 else "/images/street"
        (folder / "run.json").write_text(json.dumps(record))
    runs = [read_run(folder) for folder in find_runs([str(tmp_path / "runs")])]
    assert best_run(runs) is None and best_run(runs[:2]) is runs[0]
    page = write_report([str(tmp_path / "runs")], tmp_path / "out").read_text()
    assert "Not ranked: these runs have different classes, those of pets, street." in page
    assert '<tr class="best' not in page


def test_the_best_is_clear_only_if_the_difference_is_significant(sweep: Path, tmp_path: Path) -> None:
    runs = [read_run(folder) for folder in find_runs([str(sweep)])]
    ranking = rank_groups(group_seeds(runs, differing_keys(runs)))
    assert [group.mean() for group in ranking.groups] == pytest.approx([0.9133333, 0.91, 0.82])
    assert not ranking.is_clear, "0.9133 and 0.9100 have standard deviations of .008 and .010 over three seeds"
    for seed, top1 in enumerate((0.950, 0.951, 0.952), start=1):
        write_run(sweep / f"{90 + seed}", width=2.0, seed=seed, top1=top1)
    runs = [read_run(folder) for folder in find_runs([str(sweep)])]
    ranking = rank_groups(group_seeds(runs, differing_keys(runs)))
    assert ranking.groups[0].keys["model.width"] == 2.0
    assert ranking.is_clear
    # For single runs the sample is the validation images: a difference of .05 of 1000 is significant, .01 is not.
    for name, scores, clear in (("far", (0.95, 0.90), True), ("near", (0.91, 0.90), False)):
        for width, top1 in enumerate(scores, start=1):
            write_run(tmp_path / name / str(width), width=float(width), top1=top1)
        runs = [read_run(folder) for folder in find_runs([str(tmp_path / name)])]
        assert rank_groups(group_seeds(runs, differing_keys(runs))).is_clear is clear


def test_the_page_markdown_and_csv(sweep: Path, tmp_path: Path) -> None:
    write_run(sweep / "20_failed", width=4.0, top1=None, status="failed", reason="DataError: <b>no</b> image")
    for name in ("train.log", "slurm.log"):
        (sweep / "20_failed" / name).write_text("a log")
    write_run(sweep / "21_killed", width=5.0, seed=2, top1=0.5, status="running")
    page = write_report([str(sweep)], tmp_path / "out").read_text()
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {
        "report.html", "report.md", "report.csv", "curves.png", "effects.png", "scatter.png"
    }  # fmt: skip
    assert not re.search(r"(src|href)='?\"?https?:", page), "the page works offline"
    # Every run is linked by a short name. The failed run has two logs; its row and its entry under Failures link to both.
    links = [(urllib.parse.unquote(href), name) for href, name in re.findall('<a href="([^"]+)">([^<]+)<', page)]
    assert {("../sweep/0_x/", "0_x"), ("../sweep/20_failed/", "20_failed")} <= {*links} and links[0][0] == "../sweep/"
    logs = [href for href, name in links if name.endswith(".log")]
    assert logs == 2 * ["../sweep/20_failed/train.log", "../sweep/20_failed/slurm.log"]
    assert all((out / log).read_text() == "a log" for log in logs)
    assert "&lt;b&gt;no&lt;/b&gt; image" in page
    assert "No clear winner among 2 of 3 settings: optimizer=sgd, model.width=1.0 (0.9133), " in page
    assert "the process was killed before it could record its status" in page
    text = (out / "report.md").read_text()
    row = "| sgd | 1.0 | 3 | 0.9133 | 0.8944 to 0.9323 | 0.0076 | - | - | 0.0867 | 2 | 20.0 | 100.0 | 1,000,000 | 3 finished |"
    assert row in text, "top-5 is 1 everywhere and left out"
    assert "failed: DataError: \\<b\\>no\\</b\\> image" in text
    with (out / "report.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 11
    assert [float(row["top1"]) for row in rows[:9]] == [top1 for scores in SCORES.values() for top1 in scores]
    assert (rows[9]["status"], rows[9]["top1"], rows[9]["reason"]) == ("failed", "", "DataError: <b>no</b> image")
    assert rows[10]["status"] == "interrupted"


def test_the_clear_best_row_is_marked(sweep: Path, tmp_path: Path) -> None:
    assert '<tr class="best' not in write_report([str(sweep)], tmp_path / "tie").read_text()
    for seed in (1, 2, 3):
        write_run(sweep / f"{90 + seed}", width=2.0, seed=seed, top1=0.95 + seed / 1000)
    page = write_report([str(sweep)], tmp_path / "clear").read_text()
    assert page.count('<tr class="best') == 1
    assert "optimizer=sgd, model.width=2.0 is best (val top-1 0.9520): each of the " in page


def test_one_run_and_no_finished_run(tmp_path: Path) -> None:
    write_run(tmp_path / "one/a")
    page = write_report([str(tmp_path / "one")], tmp_path / "out1").read_text()
    assert "all runs: val top-1 0.9000." in page
    write_run(tmp_path / "none/a", top1=None, status="failed", reason="x")
    assert "No run has finished yet." in write_report([str(tmp_path / "none")], tmp_path / "out2").read_text()


def test_run_folders_and_globs(
    sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "sweep/10_x", seed=9)
    assert [path.name for path in find_runs(["sweep"])] == [f"{number}_x" for number in range(11) if number != 9]
    assert len(find_runs(["sweep/[0-2]_x", "sweep/0_x"])) == 3
    with pytest.raises(ConfigError, match=r"no run found: there is no run.json in or below nowhere"):
        find_runs(["nowhere"])
    assert collect_runs(["sweep/0_x", "--cfg", "job"]) == ["--cfg", "job", "runs=['sweep/0_x']"]
    assert collect_runs(["-cjob", "sweep/0_x"]) == ["-cjob", "runs=['sweep/0_x']"]
    overrides = collect_runs(["sweep/0_x", "sweep/1 x,y", "out=here", "--cfg"])
    assert overrides == ["out=here", "--cfg", "runs=['sweep/0_x','sweep/1 x,y']"]
    config = plain(*collect_runs([str(sweep)]), f"out={tmp_path / 'here'}", name="report")
    report(Run(config=config, dir=tmp_path))
    assert "| optimizer | model.width | Runs | Top-1 |" in capsys.readouterr().out
    assert (tmp_path / "here/report.html").is_file()
    with pytest.raises(ConfigError, match="in or below nothing"):
        report(Run(config=plain(name="report"), dir=tmp_path))


def test_running_and_pruned_runs(sweep: Path, tmp_path: Path) -> None:
    write_run(sweep / "30_busy", width=6.0, top1=0.99, status="running")
    write_run(sweep / "31_behind", width=7.0, top1=0.3, status="pruned", reason="after epoch 3 it fell behind")
    with RunLock(sweep / "30_busy"):
        page = write_report([str(sweep)], tmp_path / "out").read_text()
    assert "0.9133" in page.split("<table>")[0], "only finished runs are ranked"
    assert re.search(r'<tr class="running">.*6\.0.*1 running', page)
    assert "1 pruned" in page
    assert "Failures" not in page
    with (tmp_path / "out/report.csv").open() as file:
        states = {row["model.width"]: row["status"] for row in csv.DictReader(file)}
    assert (states["6.0"], states["7.0"]) == ("running", "pruned")


def test_tags_and_notes_are_columns_and_tags_select_runs(tmp_path: Path) -> None:
    for number, tags in enumerate((["paper", "a"], ["paper"], [])):
        folder = write_run(tmp_path / f"runs/{number}", width=1.0 + number)
        record = json.loads((folder / "run.json").read_text())
        record["config"] |= {"tags": tags, "note": "50 % better" if tags else None}
        (folder / "run.json").write_text(json.dumps(record))
    runs = [read_run(folder) for folder in find_runs([str(tmp_path / "runs")])]
    assert differing_keys(runs) == ["model.width"]
    page = write_report([str(tmp_path / "runs")], tmp_path / "all").read_text()
    assert re.search(r"<th[^>]*>Tags</th>", page)
    assert "50 % better" in page
    for tags, expected in (["paper"], ["paper, a", "paper"]), (["a", "paper"], ["paper, a"]):
        write_report([str(tmp_path / "runs")], tmp_path / "some", tags=tags)
        with (tmp_path / "some/report.csv").open() as file:
            assert [row["tags"] for row in csv.DictReader(file)] == expected
    with pytest.raises(ConfigError, match="no run has the tags b; the tags of the 3 runs are a, paper"):
        write_report([str(tmp_path / "runs")], tmp_path / "none", tags=["b"])


def test_numbers_get_a_scale_and_categories_get_rows() -> None:
    assert axis_scale(["0.0001", "0.1"]) == "log"
    assert axis_scale(["1", "2", "8"]) == "linear"
    assert axis_scale(["0", "0.0001", "0.1"]) is None, "a logarithmic axis has no zero"
    assert axis_scale(["1", "none"]) is axis_scale(["1", "nan"]) is None
    effects = {"optimizer.lr": {f"{10 ** -(1 + number / 3):.5f}": [0.5 + number / 100] for number in range(10)}}
    effects |= {"few": {"0.001": [0.5, 0.6], "0.1": [0.7]}, "model.norm": {"none": [0.5], "batch": [0.6, 0.7]}}
    many, few, norm = (panel.figure().axes[0] for panel in effect_panels(effects, OptimizedMetric()))
    assert many.get_xscale() == few.get_xscale() == "log"
    labels = [tick.get_text() for tick in many.get_xticklabels()]
    assert labels and not any("10^" in label for label in labels), labels
    assert [tick.get_text() for tick in few.get_xticklabels()] == ["0.001", "0.1"]
    assert [tick.get_text() for tick in norm.get_yticklabels()] == ["none", "batch"], "the best is at the top"
    lines = [line for line in norm.lines if line.get_linestyle() == "-"]
    assert not lines, "no line connects categories"
    bars = norm.collections[0].get_segments()
    assert bars[0][:, 0] == pytest.approx([0.65 - statistics.stdev([0.6, 0.7]), 0.65 + statistics.stdev([0.6, 0.7])])
    assert norm.get_xlim() == many.get_ylim(), "accuracies have one scale"


def _group(*epochs: dict[str, float], folder: str = "x", parameters: int = 1, seconds: float = 1.0) -> RunGroup:
    record = {
        "status": "finished",
        "seed": 1,
        "best": {"top1": 0.5},
        "parameters": parameters,
        "scores": {"train_s": seconds},
    }
    return RunGroup({"lr": folder}, [RunResult(Path(folder), record, epochs)])


@pytest.mark.parametrize("num_epochs", [1, 2, 40])
def test_curves_of_few_epochs_are_visible(num_epochs: int) -> None:
    rows = [{"epoch": epoch, "train/loss": 2.0, "val/loss": 1.0, "val/top1": 0.5} for epoch in range(1, num_epochs + 1)]
    loss, top1 = curve_panels([_group(*rows)])
    axes = loss.figure().axes[0]
    assert len(axes.lines) == 2 and len(top1.figure().axes[0].lines) == 1
    assert all((line.get_marker() == "o") == (num_epochs < 40) for line in axes.lines)
    assert all(tick == round(tick) for tick in axes.get_xticks())
    assert ("dots" in loss.caption) == (num_epochs == 1)
    assert curve_panels([_group()]) == []


def test_an_outlier_in_the_first_epoch_does_not_rule_the_axis_of_the_loss() -> None:
    losses = [17.5, 2.3, 2.1, 1.9]
    rows = [{"epoch": epoch, "val/loss": loss} for epoch, loss in enumerate(losses, start=1)]
    other = [{"epoch": epoch, "val/loss": loss} for epoch, loss in enumerate([2.3, 2.2, float("nan"), 9e9], start=1)]
    (panel,) = curve_panels([_group(*rows), _group(*other, folder="y")])
    assert panel.figure().axes[0].get_ylim()[1] == pytest.approx(1.15 * 2.3)
    assert "Cut off at 2.6; the largest value is 9e+09." in panel.caption
    (usual,) = curve_panels([_group(*[{"epoch": epoch, "val/loss": 2.3 / epoch} for epoch in range(1, 6)])])
    assert usual.figure().axes[0].get_ylim()[1] > 2.3 and "Cut off" not in usual.caption


def test_equal_sizes_are_not_plotted_and_the_legend_is_never_empty() -> None:
    equal = [_group(folder="x", seconds=1), _group(folder="y", seconds=30)]
    assert [panel.name for panel in size_panels(equal)] == ["Accuracy against training time"]
    both = size_panels([_group(folder="x"), _group(folder="y", parameters=60_000_000, seconds=9)])
    assert [panel.figure().axes[0].get_xscale() for panel in both] == ["log", "linear"]
    assert size_panels([_group(folder="x"), _group(folder="y")]) == size_panels([]) == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = sheet(both, equal)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["lr=x", "lr=y"]


def test_the_optimized_metric_ranks_the_runs_and_different_ones_are_not_ranked(tmp_path: Path) -> None:
    """The loss prefers the run with the lower accuracy. A single run has no interval of its loss; three seeds have one."""
    scores = {1.0: (0.9, 0.5), 2.0: (0.8, 0.3)}
    optimized = {"name": "val/loss", "mode": "min"}
    for width, (top1, loss) in scores.items():
        for seed in (1, 2, 3):
            best = {"top1": top1, "top5": 1.0, "loss": loss + seed / 1000, "epoch": 2, "f1": 0.1}
            name = "one" if seed == 1 else "more"
            write_run(tmp_path / f"{name}/{width}_{seed}", width=width, seed=seed, best=best, optimized=optimized)
    page = write_report([str(tmp_path / "one")], tmp_path / "out").read_text()
    assert "model.width=2.0 is lowest (val loss 0.3010), then model.width=1.0 (0.5010); a test of their" in page
    lines = (tmp_path / "out/report.md").read_text().splitlines()
    assert "| model.width | Runs | Loss | Top-1 | Best epoch |" in lines[4] and lines[6].startswith(
        "| 2.0 | 1 | 0.3010 | 0.8000 | 2 |"
    )
    assert "Loss against size" in page and "Top-1 accuracy" not in page.split("Loss against size")[1].split("<table")[0]
    more = [read_run(folder) for folder in find_runs([str(tmp_path / "one"), str(tmp_path / "more")])]
    ranking = rank_groups(group_seeds(more, differing_keys(more)))
    assert ranking.groups[0].keys == {"model.width": 2.0} and mean_interval(ranking.groups[0])
    assert ranking.differences == [None, None], "without predictions the images may differ"
    assert "model.width=2.0 is lowest (val loss 0.3020)" in verdict(ranking)
    assert (best_run(more) or more[0]).score("loss") == 0.301
    write_run(tmp_path / "one/f1", width=3.0, best=best, optimized={"name": "val/f1", "mode": "max"})
    page = write_report([str(tmp_path / "one")], tmp_path / "mixed").read_text()
    assert "Not ranked: these runs have different optimized metrics, val/f1, val/loss." in page
    assert '<tr class="best' not in page and '<tr class="first' not in page and "Effect of" not in page
    with (tmp_path / "mixed/report.csv").open() as file:
        assert [row["f1"] for row in csv.DictReader(file)] == ["0.1"] * 3
    (tmp_path / "one/f1/run.json").write_text(
        json.dumps({"status": "finished", "config": {}, "optimized": {"name": "a"}})
    )
    with pytest.raises(
        ConfigError, match="optimized must be a metric of the validation split with its mode, max or min"
    ):
        read_run(tmp_path / "one/f1")


def test_the_command_repeats_the_best_run(sweep: Path, tmp_path: Path) -> None:
    run = read_run(sweep / "8_x")
    assert repeat_command(run) == f"python src/train.py rerun={short_path(run.folder)}", "it has no overrides on disk"
    (sweep / "8_x/.hydra").mkdir()
    overrides = "- data.root='/data/a'\n- model=alexnet\n- launcher=slurm\n- 'note=\"a b\"'\n"
    (sweep / "8_x/.hydra/overrides.yaml").write_text(overrides)
    expected = "python src/train.py data.root=/data/a model=alexnet 'note=\"a b\"'"
    assert repeat_command(run) == expected
    page = write_report([str(sweep)], tmp_path / "out").read_text()
    assert html.escape(expected).replace("&quot;", "&#34;").replace("&#x27;", "&#39;") in page
    typed = ["train.py", "--config-dir", "my", "model=alexnet", "trusted_targets=[a]"]
    own = replace(run, record={**run.record, "command": typed})
    assert repeat_command(own).startswith("python src/train.py 'trusted_targets=[a]' --config-dir=my data.root=/data/a")
    (sweep / "8_x/.hydra/resume_1").mkdir()
    assert "rerun=" in repeat_command(run)
    (sweep / "8_x/.hydra/overrides.yaml").write_text("{a: [")
    assert "rerun=" in repeat_command(run)


def test_the_title_says_what_is_compared(sweep: Path) -> None:
    runs = [read_run(folder) for folder in find_runs([str(sweep)])]
    assert title(runs, differing_keys(runs)) == "Comparison of optimizer and model.width on x: 9 runs"
    assert title(runs, ["a", "b", "c", "d"]) == "Comparison of 4 settings on x: 9 runs"
    assert title(runs, []) == "alexnet on x: 9 runs"
    assert title(runs[:1], []) == "alexnet on x"


def test_intervals_of_seeds_and_of_a_single_run() -> None:
    groups = [_group(), _group()]
    groups[0].runs[0].record["data"] = {"counts": {"val": 100}}
    assert mean_interval(groups[0]) == pytest.approx((0.4038, 0.5962), abs=1e-4), "Wilson's, 50 of 100"
    groups[1].runs.append(RunResult(Path("y"), {"status": "finished", "seed": 2, "best": {"top1": 0.52}}, []))
    assert mean_interval(groups[1]) == pytest.approx((0.51 - 12.7062 * 0.01, 0.51 + 12.7062 * 0.01), abs=1e-4), "t of 1"
    assert mean_interval(RunGroup({}, [RunResult(Path("z"), {"status": "failed"}, [])])) is None


def test_a_repeated_seed_is_no_further_sample(tmp_path: Path) -> None:
    """The same seed gives the same or, on a GPU, almost the same training; the newest run counts."""
    for number, (lr, seed, top1) in enumerate([(1.0, 1, 0.8), (1.0, 1, 0.9), (1.0, 2, 0.7), (0.5, 1, 0.5)]):
        start = [{"start_s": 1e9 + number}]
        write_run(tmp_path / f"runs/{number}", width=lr, seed=seed, top1=top1, attempts=start)
    (tmp_path / "runs/link").symlink_to("3")
    runs = [read_run(folder) for folder in find_runs([str(tmp_path / "runs"), str(tmp_path / "runs/*")])]
    assert len(runs) == 4, "a link to a run is no further run"
    groups = group_seeds(runs, differing_keys(runs))
    assert groups[0].values() == [0.9, 0.7] and groups[0].mean() == pytest.approx(0.8)
    assert [*groups[0].training_scores().items()] == [(1, 0.9), (2, 0.7)]
    found = notes(rank_groups(groups))
    assert "1 run with the seed of a newer run of the same setting is not counted." in found
    only = rank_groups([RunGroup({}, [runs[0], runs[1]])])
    assert not any("seeds of each setting" in note for note in notes(only)), "one seed has no spread"


def test_folds_with_measured_statistics_are_one_setting(tmp_path: Path) -> None:
    """Each fold measures its own mean and colours; a mean that is given is a setting of its own."""
    for fold in range(3):
        for name, given in (("measured", None), ("given", [0.5, 0.5, 0.5])):
            folder = write_run(tmp_path / f"runs/{name}_{fold}")
            mean, axes = [0.4 + fold / 100, 0.4, 0.4], [[1, 0, 0], [0, 1, 0], [0, 0, 1 - fold]]
            (folder / "statistics.json").write_text(json.dumps({"mean": mean, "std": mean, "eigenvectors": axes}))
            record = json.loads((folder / "run.json").read_text())
            record["config"]["data"] |= {"folds": 3, "fold": fold, "mean": given or mean, "std": [0.2] * 3}
            record["config"]["augmentation"] = {"train": {"pca": {"eigenvectors": axes, "mean": mean}}}
            (folder / "run.json").write_text(json.dumps(record))
    runs = [read_run(folder) for folder in find_runs([str(tmp_path / "runs")])]
    keys = differing_keys(runs)
    assert keys == ["data.mean"]
    groups = group_seeds(runs, keys)
    assert [(group.keys["data.mean"], len(group.runs)) for group in groups] == [([0.5, 0.5, 0.5], 3), ("measured", 3)]


def test_folds_of_several_seeds_are_no_independent_samples_of_a_loss(tmp_path: Path) -> None:
    losses = {1: [0.5, 0.7], 2: [0.6, 0.8], 3: [0.4, 0.7]}
    for seed, values in losses.items():
        for fold, loss in enumerate(values):
            folder = write_run(tmp_path / f"runs/{seed}_{fold}", seed=seed, top1=1 - loss)
            record = json.loads((folder / "run.json").read_text())
            record["config"]["data"] |= {"folds": 2, "fold": fold}
            record |= {"optimized": {"name": "val/loss", "mode": "min"}}
            record["best"]["count"] = 100
            (folder / "run.json").write_text(json.dumps(record))
    runs = [read_run(folder) for folder in find_runs([str(tmp_path / "runs")])]
    by_seed = [statistics.fmean(values) for values in losses.values()]
    (group,) = group_seeds(runs, [])
    half = 4.302653 * statistics.stdev(by_seed) / 3**0.5  # Student's t with 2 degrees of freedom
    mean = statistics.fmean(by_seed)
    assert mean_interval(group) == pytest.approx((mean - half, mean + half), abs=1e-6)
    assert group.samples() == pytest.approx(by_seed)
    (single,) = group_seeds([run for run in runs if run.seed == 1], [])
    assert single.samples() == losses[1], "of one seed, its folds"


def test_a_failed_first_seed_hides_no_parameters(tmp_path: Path) -> None:
    failed = write_run(tmp_path / "runs/0", seed=1)
    record = json.loads((failed / "run.json").read_text())
    (failed / "run.json").write_text(json.dumps({**record, "status": "failed", "parameters": None}))
    write_run(tmp_path / "runs/1", seed=2)
    (group,) = group_seeds([read_run(folder) for folder in find_runs([str(tmp_path / "runs")])], [])
    assert group.parameters == record["parameters"]


def test_tensorboard_hparams_agree_with_the_report(train: Callable[..., float | None], tmp_path: Path) -> None:
    """The HParams tab has the settings and scores of the report's row for each run."""
    for seed, lr in ((1, 0.001), (2, 0.01)):
        run_dir = tmp_path / f"runs/{seed}"
        run_dir.mkdir(parents=True)
        train(f"seed={seed}", f"optimizer.lr={lr}", "trainer.max_epochs=3", run_dir=run_dir)
    write_report([str(tmp_path / "runs")], tmp_path / "out")
    with (tmp_path / "out/report.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        events = EventAccumulator(str(tmp_path / "runs" / row["seed"]))
        events.Reload()
        content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
        settings = HParamsPluginData.FromString(content).session_start_info.hparams
        assert settings["lr"].number_value == float(row["optimizer.lr"])
        assert settings["seed"].number_value == float(row["seed"])
        experiment = events.SummaryMetadata("_hparams_/experiment").plugin_data.content
        tags = [info.name.tag for info in HParamsPluginData.FromString(experiment).experiment.metric_infos]
        assert tags == [f"{split}/{name}" for split in ("best", "test") for name in ("top1", "top5", "loss")]
        for tag in tags[:3]:
            assert events.Scalars(tag)[-1].value == pytest.approx(float(row[tag.removeprefix("best/")]), abs=1e-7)


def test_tables_sort_and_the_page_fits_a_phone(sweep: Path, tmp_path: Path) -> None:
    """Clicking a column head sorts by it, clicking again reverses the order; the page does not scroll sideways on a phone."""
    page = write_report([str(sweep)], tmp_path / "out")
    column = "[...document.querySelector('tbody').rows].map(row => row.cells[3].textContent)"
    head = "document.querySelectorAll('th')[3].click();"
    orders = evaluate_script(
        page, f"const before = {column}; {head} const up = {column}; {head} return [before, up, {column}];"
    )
    down = ["0.9133", "0.9100", "0.8200"]
    assert orders == [down, down[::-1], down]
    assert evaluate_script(page, FITS, width=PHONE) is True


def test_folds_are_pooled_and_nested_with_seeds(tmp_path: Path) -> None:
    """The score of a cross-validation counts each image once per seed; its interval is over all images."""
    counts, top1 = [400, 300, 300], {1: [0.9, 0.8, 0.7], 2: [0.92, 0.8, 0.7]}
    for seed, scores in top1.items():
        for fold, (count, score) in enumerate(zip(counts, scores, strict=True)):
            folder = write_run(tmp_path / f"folds/{seed}_{fold}", seed=seed, top1=score)
            record = json.loads((folder / "run.json").read_text())
            record["config"]["data"] |= {"folds": 3, "fold": fold}
            record["best"]["count"] = count
            (folder / "run.json").write_text(json.dumps(record))
    runs = [read_run(folder) for folder in find_runs([str(tmp_path / "folds")])]
    assert differing_keys(runs) == []
    (group,) = group_seeds(runs, [])
    pooled = sum(count * score for scores in top1.values() for count, score in zip(counts, scores, strict=True)) / 2000
    assert group.mean() == pytest.approx(pooled)
    by_seed = [sum(count * score for count, score in zip(counts, top1[seed], strict=True)) / 1000 for seed in top1]
    assert group.std() == pytest.approx(statistics.stdev(by_seed)), "over the seeds"
    assert group.num_images == 1000
    z, n, correct = 1.959964, 1000, round(1000 * pooled)  # Wilson's interval, written out
    center, half = (correct + z**2 / 2) / (n + z**2), z / (n + z**2) * (correct * (n - correct) / n + z**2 / 4) ** 0.5
    assert mean_interval(group) == pytest.approx((center - half, center + half), abs=1e-5)
    page = write_report([str(tmp_path / "folds")], tmp_path / "report").read_text()
    assert "6 of 6 folds" in page
    with (tmp_path / "report/report.csv").open() as file:
        table = [*csv.DictReader(file)]
    assert [(row["data.fold"], row["seed"]) for row in table] == [
        (str(fold), seed) for seed in "12" for fold in range(3)
    ]
    (tmp_path / "folds/2_1/run.json").unlink()
    assert "3 of 6 folds" in write_report([str(tmp_path / "folds")], tmp_path / "report").read_text()
