"""Interrupted runs and sweeps are resumed exactly, in their own folder, with their own config."""

import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from omegaconf import OmegaConf

from alexlab.cli.invocation import parse_invocation
from alexlab.cli.resume import find_resumption, is_longer
from alexlab.cli.resume_sweep import find_resumed_sweep
from alexlab.errors import ConfigError, DataError, RankError
from alexlab.output.numbers import counted
from alexlab.records.layout import LAST
from alexlab.records.record import RunRecord
from alexlab.sweeps.record import SweepRecord
from alexlab.tasks import rank
from alexlab.training.checkpoint_io import position
from support.commands import Command, run
from support.runs import TINY, plain, rows

pytestmark = pytest.mark.slow

Train = Callable[..., float | None]


class Stop(Callback):
    """Callback that aborts a run after some epochs, after its checkpoint is written."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == self.epochs:
            raise RuntimeError("the machine was switched off")


def stopped(train: Train, epochs: int, *overrides: str, run_dir: Path) -> None:
    made = rank.build_trainer

    def stopping(*args: Any, **options: Any) -> Any:
        trainer = made(*args, **options)
        trainer.callbacks.insert(0, Stop(epochs))
        return trainer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rank, "build_trainer", stopping)
        with pytest.raises((RuntimeError, RankError), match="switched off"):
            train(*overrides, run_dir=run_dir)


def settled(folder: Path) -> str:
    """Return the status of a run after the system has removed its killed processes."""
    deadline_s = time.monotonic() + 10
    while RunRecord(folder).read()["status"] == "running" and time.monotonic() < deadline_s:
        time.sleep(0.05)
    return str(RunRecord(folder).read()["status"])


def children(process: int) -> list[int]:
    """Return the children of a process."""
    return [int(number) for number in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def alive(process: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False


def weights(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "checkpoints/last.ckpt", weights_only=True)


@pytest.mark.parametrize(
    "overrides",
    [
        ("scheduler=cosine", "augmentation=mixup"),
        (
            "scheduler=plateau",
            "scheduler.patience=0",
            "scheduler.factor=0.5",
            "scheduler.warmup_epochs=1",
            "optimizer=sgd",
        ),
        ("callbacks=[default,ema]", "model.norm=batch", "trainer.accumulate_grad_batches=2"),
        ("callbacks=[default,finetune]", "callbacks.finetune.unfreeze_epoch=2", "optimizer=sgd"),
        ("callbacks=[default,early_stopping]", "scheduler=one_cycle", "data.num_workers=2"),
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one(train: Train, tmp_path: Path, overrides: tuple[str, ...]) -> None:
    """Compare weights, optimizer, learning rates and the table of epochs bit for bit."""
    overrides = (*overrides, "trainer.max_epochs=4")
    train(*overrides, run_dir=tmp_path / "whole")
    for epochs in (1, 2, 3):
        folder = tmp_path / f"stopped{epochs}"
        stopped(train, epochs, *overrides, run_dir=folder)
        assert RunRecord(folder).read()["status"] == "failed"
        train(*overrides, run_dir=folder, resumed=True)
        one, other = weights(tmp_path / "whole"), weights(folder)
        assert one["global_step"] == other["global_step"]
        for key, value in one["state_dict"].items():
            assert torch.equal(value, other["state_dict"][key]), key
        assert str(one["optimizer_states"]) == str(other["optimizer_states"])
        assert str(one["lr_schedulers"]) == str(other["lr_schedulers"])
        assert one["alexlab"]["best"] == other["alexlab"]["best"]
        tables = [rows(path / "metrics.csv") for path in (tmp_path / "whole", folder)]
        for row in (*tables[0], *tables[1]):
            del row["train/images_per_s"]
        assert tables[0] == tables[1]
        record = RunRecord(folder).read()
        assert record["status"] == "finished"
        assert len(record["attempts"]) == 2
        assert len(list(folder.glob("events.out.tfevents.*"))) == 2


@pytest.mark.parametrize("limits", [(1, -1, 3, -1), (4, -1, 2, -1), (-1, 4, -1, 7)])
@pytest.mark.parametrize("name", ["constant", "cosine", "one_cycle"])
def test_a_new_length_changes_the_learning_rate_immediately(
    train: Train, tmp_path: Path, name: str, limits: tuple[int, int, int, int]
) -> None:
    """The learning rate and momentum of the last step equal those of a run that always had that length."""
    before, after = (
        (f"trainer.max_epochs={epochs}", f"trainer.max_steps={steps}", f"scheduler={name}")
        for epochs, steps in zip(limits[::2], limits[1::2], strict=True)
    )
    folder = tmp_path / "run"
    if limits[0] == 4:
        stopped(train, 1, *before, run_dir=folder)
    else:
        train(*before, run_dir=folder)
    train(*after, run_dir=folder, resumed=True)
    train(*after, run_dir=tmp_path / "whole")
    resumed, whole = weights(folder), weights(tmp_path / "whole")
    assert resumed["global_step"] == whole["global_step"]
    for key in ("lr", "betas"):
        assert [group[key] for group in resumed["optimizer_states"][0]["param_groups"]] == [
            group[key] for group in whole["optimizer_states"][0]["param_groups"]
        ]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ((3, -1), (4, -1), True),
        ((3, -1), (3, -1), False),
        ((3, -1), (2, -1), False),
        ((-1, 10), (-1, 20), True),
        ((None, 10), (5, 10), False),
        ((3, 10), (None, 10), True),
        ((3, 10), (2, 20), False),
    ],
)
def test_is_longer(before: tuple, after: tuple, expected: bool) -> None:
    first, second = (dict(zip(("max_epochs", "max_steps"), limits, strict=True)) for limits in (before, after))
    assert is_longer(second, than=first) is expected


def test_two_ranks_resume(train: Train, tmp_path: Path) -> None:
    overrides = ("trainer.max_epochs=3", "trainer.devices=2", "scheduler=cosine")
    train(*overrides, run_dir=tmp_path / "whole")
    folder = tmp_path / "stopped"
    stopped(train, 2, *overrides, run_dir=folder)
    train(*overrides, run_dir=folder, resumed=True)
    one, other = weights(tmp_path / "whole"), weights(folder)
    assert all(torch.equal(value, other["state_dict"][key]) for key, value in one["state_dict"].items())


def test_without_a_checkpoint_training_starts_from_scratch(
    train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    stopped(train, 0, run_dir=tmp_path / "run")
    train(resumed=True)
    assert "no checkpoint found: training from the start" in caplog.text
    assert len(rows(tmp_path / "run/metrics.csv")) == 1


def test_a_trained_run_without_checkpoints_is_not_trained_over_its_results(train: Train, tmp_path: Path) -> None:
    train()
    shutil.rmtree(tmp_path / "run/checkpoints")
    for status in ("finished", "interrupted"):
        RunRecord(tmp_path / "run").update(status=status)
        before = (tmp_path / "run/run.json").read_bytes()
        with pytest.raises(
            ConfigError, match=r"a run of 1 epoch needs a checkpoint .*last\.ckpt is missing.*rerun="
        ) as caught:
            train("trainer.max_epochs=2", resumed=True)
        assert caught.value.refused and (tmp_path / "run/run.json").read_bytes() == before


def test_changeable_keys(train: Train, tmp_path: Path) -> None:
    train()
    run = tmp_path / "run"
    cache = f"data.cache_dir={tmp_path / 'cache'}"
    found = find_resumption([f"resume={run}", "trainer.max_epochs=5", "callbacks.checkpoint.every_n_epochs=2", cache])
    assert found is not None
    assert found.config["trainer"]["max_epochs"] == 5
    assert found.config["callbacks"]["checkpoint"]["every_n_epochs"] == 2
    assert found.arguments()[1:] == ["hydra.output_subdir=null", "~hydra.callbacks.run_dirs"]
    assert find_resumption(["trainer.max_epochs=5"]) is None
    assert find_resumption([f"resume={run}", "trainer.max_time=00:01:00:00", cache]) is not None, (
        "it may go on for longer"
    )
    for number in (1, 2):
        RunRecord(found.run_dir).store_attempt(found.config, found.changes)
        stored = run / f".hydra/resume_{number}"
        assert OmegaConf.load(stored / "config.yaml").trainer.max_epochs == 5
        assert list(OmegaConf.load(stored / "overrides.yaml")) == list(found.changes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], r"is finished with trainer.max_epochs=1; set a larger value to extend it"),
        (["trainer.max_epochs=1"], "is finished"),
        (["model=alexnet_half"], "a resumed run keeps its model, so model=alexnet_half is refused; start a new run for another model"),
        (["optimizer.lr=0.1"], r"a resumed run keeps its config, so optimizer.lr=0.1 needs a new run; .* can change only trainer.max_epochs"),
        (["+trainer.max_epochs=3"], "needs a new run"),
        (["trainer.devices=0,1"], r"trainer.devices=0,1 has several values; a list needs brackets: trainer.devices=\[0,1\]"),
        (["trainer.max_epochs=many"], "trainer.max_epochs must be an integer"),
        (["callbacks.chekpoint.every_n_epochs=2"], "unknown key callbacks.chekpoint.every_n_epochs; use callbacks.checkpoint.every_n_epochs=2"),
        (["trainer.max_epochs=[1"], "no viable alternative at input"),
    ],
)  # fmt: skip
def test_other_changes_are_rejected(train: Train, tmp_path: Path, arguments: list[str], message: str) -> None:
    train()
    with pytest.raises(ConfigError, match=message):
        find_resumption([f"resume={tmp_path / 'run'}", f"data.cache_dir={tmp_path / 'cache'}", *arguments])


def test_finding_the_run_to_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="resume=last needs a run in outputs/train"):
        find_resumption(["resume=last"])
    with pytest.raises(ConfigError, match=r"nowhere must be a run folder; it does not exist"):
        find_resumption(["resume=nowhere"])
    for number in (2, 1):
        folder = tmp_path / f"outputs/train/day/{number}"
        folder.mkdir(parents=True)
        record = {"status": "failed", "attempts": [{"start_s": number}], "config": plain(), "choices": {}}
        (folder / "run.json").write_text(json.dumps(record))
    found = find_resumption(["resume=last"])
    assert found is not None
    assert found.run_dir == Path("outputs/train/day/2")
    assert found.config["data"]["generate"] == "digits"
    moved = find_resumption(["resume=last", "data.root=digitz"])
    assert moved is not None and moved.config["data"]["generate"] is None, "a mistyped folder must not be filled"
    (found.run_dir / "run.json").write_text(json.dumps(record | {"attempts": [{"start_s": 2}], "last": {"epoch": 10}}))
    assert find_resumption(["resume=last", "trainer.max_epochs=10"]) is not None
    with pytest.raises(
        ConfigError, match=r"must be at least the 10 epochs that outputs/train/day/2 has trained; got 5"
    ):
        find_resumption(["resume=last", "trainer.max_epochs=5"])
    with pytest.raises(
        ConfigError, match=r"ckpt=last needs a run in outputs/train/\*/\* that has checkpoints/best\.ckpt"
    ):
        parse_invocation("evaluate", ["ckpt=last"])
    (tmp_path / "outputs/train/day/1/checkpoints").mkdir()
    (tmp_path / "outputs/train/day/1" / LAST).touch()
    for value in ("{}", "[{},at/last,last/one]", "[runs/a,{}]"):
        arguments = parse_invocation("evaluate", [f"ckpt={value.format('last')}"]).arguments
        assert f"ckpt={value.format('outputs/train/day/1')}" in arguments


def test_resume_last_resumes_a_killed_command(images: Path, tmp_path: Path) -> None:
    """End to end: kill -9, rejection while it runs, the same folder, its log and its config."""
    arguments = [
        *(override for override in TINY if "max_epochs" not in override),
        f"data.root={images}",
        "trainer.max_epochs=400",
    ]
    arguments.append("callbacks.checkpoint.every_n_steps=1")
    with Command("train", *arguments, cwd=tmp_path) as process:
        for line in process.stdout:
            if re.match(r"epoch +3/400", line):
                break
        refused = run("train", "resume=last", cwd=tmp_path)
        os.killpg(process.pid, signal.SIGKILL)
    assert refused.returncode == 1
    assert f"is still running as process {process.pid}; stop it before you resume it" in refused.stderr
    (folder,) = tmp_path.glob("outputs/train/*/*")
    assert settled(folder) == "interrupted"
    before = (folder / ".hydra/config.yaml").read_bytes()
    epochs, batches = position(weights(folder))
    resumed = run("train", "resume=last", f"trainer.max_epochs={epochs + 3}", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    inside = f", batch {batches} of epoch {epochs + 1}" if batches else ""
    assert f"resuming after {counted(epochs, 'epoch')}{inside}, step {3 * epochs + batches}" in resumed.stdout
    assert list(tmp_path.glob("outputs/train/*/*")) == [folder]
    assert (folder / ".hydra/config.yaml").read_bytes() == before
    assert OmegaConf.load(folder / ".hydra/resume_1/config.yaml").trainer.max_epochs == epochs + 3
    assert [int(row["epoch"]) for row in rows(folder / "metrics.csv")] == list(range(1, epochs + 4))
    record = RunRecord(folder).read()
    assert (record["status"], record["command"][0], record["command"][1]) == ("finished", "train.py", "resume=last")
    log = (folder / "train.log").read_text()
    assert log.index("epoch   1/400") < log.index("resuming after"), "one log for both attempts"


def test_a_killed_sweep_is_resumed(images: Path, tmp_path: Path) -> None:
    """Finished jobs are kept, interrupted jobs are resumed, failed jobs are reported; the numbers stay."""
    tiny = [override for override in TINY if "max_epochs" not in override and "batch_size" not in override]
    arguments = [
        "-m",
        *tiny,
        f"data.root={images}",
        "data.batch_size=8",
        "optimizer.lr=1e35,0.001",
        "seed=1,2",
        "trainer.max_epochs=60",
    ]
    arguments.append("hydra.sweep.dir=swept")

    with Command("train", *arguments, cwd=tmp_path) as process:
        for line in process.stdout:
            if re.match(r"epoch +5/60", line) and list(tmp_path.glob("swept/3_*/run.json")):
                break
        busy = run("train", "-m", "resume=swept", cwd=tmp_path)
        job = json.loads(next(tmp_path.glob("swept/3_*/run.json")).read_text())
        ranks = children(process.pid)
        assert ranks and job["pid"] == process.pid
        os.kill(process.pid, signal.SIGKILL)  # the parent alone: its ranks must not compute on
    deadline_s = time.monotonic() + 5
    while any(map(alive, ranks)) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert not any(map(alive, ranks)), "every rank has ended within 5 s"
    assert busy.returncode == 1, busy.stdout
    jobs = sorted(path for path in tmp_path.glob("swept/*_*") if path.is_dir())
    states = [settled(job) for job in jobs]
    assert states == ["failed", "failed", "finished", "interrupted"]
    before = [(job / "run.json").stat().st_mtime_ns for job in jobs]

    resumed = run("train", "-m", "resume=swept", "launcher=parallel", cwd=tmp_path)  # where jobs run may change
    printed = resumed.stdout
    assert resumed.returncode == 1, printed
    assert sorted(path for path in tmp_path.glob("swept/*_*") if path.is_dir()) == jobs
    assert [(job / "run.json").stat().st_mtime_ns for job in jobs][:3] == before[:3]
    assert "job 2: finished in an earlier attempt, " in printed
    assert "in an earlier attempt; launcher.retry_failed=true runs the job again" in printed
    record = RunRecord(jobs[3]).read()
    assert (record["status"], len(record["attempts"])) == ("finished", 2)
    assert [int(row["epoch"]) for row in rows(jobs[3] / "metrics.csv")] == list(range(1, 61))
    assert "4 jobs, 2 failed" in printed
    report = (tmp_path / "swept/report.md").read_text()
    assert "2 finished" in report
    assert "the loss must stay finite" in report

    repeated = run("train", *arguments, "launcher.retry_failed=true", cwd=tmp_path)
    assert "job 3: finished in an earlier attempt" in repeated.stdout
    assert (jobs[0] / ".earlier/1/run.json").is_file()
    other = [override.replace("seed=1,2", "seed=1,3") for override in arguments]
    assert run("train", *other, cwd=tmp_path).returncode == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-m", "resume=nothing"], "-m resume= needs the folder of a sweep; nothing has no sweep.json"),
        (["-m", "resume=swept", "seed=4"], "a resumed sweep keeps its jobs, so seed=4 is refused"),
        (
            ["-m", "resume=swept", "resume_on_changed_data=maybe"],
            "resume_on_changed_data must be true or false; got maybe",
        ),
    ],
)
def test_error_messages_of_resumed_sweeps(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "swept").mkdir()
    entries = [{"key": "seed", "choices": [1, 2]}, {"key": "data.cache_dir", "value": "/scratch"}]
    lost = ["+hydra.launcher.runner.slurm_constraint=a100"]
    search = {"num_trials": 12, "seed": 1}
    SweepRecord(entries, "parallel", {"jobs": 3}, "optuna", search, dropped=lost).write(tmp_path / "swept")

    def resumed(*more: str) -> list[str]:
        found = find_resumed_sweep(["-m", "resume=swept", *more])
        assert found is not None
        return found.arguments

    first = ["-m", "seed=1,2", "data.cache_dir='/scratch'", "hydra/sweeper=optuna"]
    search_words = ["hydra.sweeper.num_trials=12", "hydra.sweeper.seed=1"]
    launcher, place = ["launcher=parallel", "launcher.jobs=3"], "hydra.sweep.dir='swept'"
    assert resumed() == [*first, *search_words, *launcher, place]
    assert "type them again if you need them: +hydra.launcher.runner.slurm_constraint=a100" in caplog.text
    more = ["hydra.sweeper.num_trials=13", "launcher=sequential"]
    assert resumed(*more) == [*first, search_words[1], *more, place]
    repeated = find_resumed_sweep(["-m", "resume=swept", "data.cache_dir=/scratch", "resume_on_changed_data=true"])
    assert repeated is not None
    assert (repeated.confirmed, repeated.on_changed_data) == (["data.cache_dir"], True)
    assert repeated.arguments == resumed()
    assert find_resumed_sweep(["seed=1"]) is None
    with pytest.raises(ConfigError, match=message):
        find_resumed_sweep(arguments)
    with pytest.raises(ConfigError, match=r"is a sweep folder; use alexlab train -m resume=swept"):
        find_resumption(["resume=swept"])


def card_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return found


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: shutil.copy(root / "train/ant/000.png", root / "train/ant/new.png"), r"the number of images differs: train has 25 instead of 24"),
        (lambda root: (root / "val/bee/001.png").unlink(), r"the number of images differs: val has 10 instead of 11"),
        (lambda root: (root / "train/ant/000.png").rename(root / "train/ant/zzz.png"), "the paths, labels or sizes of images differ"),
        (lambda root: (root / "train/ant/000.png").rename(root / "train/bee/zzz.png"), "the paths, labels or sizes of images differ"),
        (lambda root: _swap_a_byte(root / "train/cat/003.png"), "the contents of images differ"),
    ],
)  # fmt: skip
def test_changed_images_are_rejected(
    train: Train, images: Path, tmp_path: Path, change: Callable[[Path], Any], message: str
) -> None:
    """The message names the difference, nothing is left of the rejected attempt, and the run can be resumed on its images."""
    train("trainer.max_epochs=1")
    run, other = tmp_path / "run", tmp_path / "other"
    shutil.copytree(images, other)
    change(other)
    before = files(run)
    arguments = [f"resume={run}", "trainer.max_epochs=2", f"data.root={other}", f"data.cache_dir={tmp_path / 'cache'}"]

    def resume(*more: str) -> float | None:
        from alexlab.tasks import train as task

        found = find_resumption([*arguments, *more])
        assert found is not None
        return task.main(found.to_run(run))

    with pytest.raises(DataError, match=message) as caught:
        resume()
    assert "add resume_on_changed_data=true" in str(caught.value)
    assert caught.value.refused
    assert files(run) == before
    if "contents" in message:
        return  # the changed file is no image any more
    assert resume("resume_on_changed_data=true") is not None
    assert card_of(run)["config"]["data"]["root"] == str(other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: [(root / split / "bee").rename(root / split / "dog") for split in ("train", "val", "test")], "class 1 is cat instead of bee"),
        (lambda root: [shutil.copytree(root / split / "bee", root / split / "zebra") for split in ("train", "val", "test")], "has 4 classes instead of 3: class 3 is zebra instead of absent"),
        (lambda root: [shutil.rmtree(root / split / "cat") for split in ("train", "val", "test")], "has 2 classes instead of 3: class 2 is absent instead of cat"),
    ],
)  # fmt: skip
def test_changed_classes_are_always_rejected(
    train: Train, images: Path, tmp_path: Path, change: Callable[[Path], Any], message: str
) -> None:
    from alexlab.tasks import train as task

    train("trainer.max_epochs=1")
    shutil.copytree(images, tmp_path / "other")
    change(tmp_path / "other")
    for anyway in ("true", "false"):
        found = find_resumption(
            [
                f"resume={tmp_path / 'run'}",
                "trainer.max_epochs=2",
                f"data.root={tmp_path / 'other'}",
                f"data.cache_dir={tmp_path / 'cache'}",
                f"resume_on_changed_data={anyway}",
            ]
        )
        assert found is not None
        with pytest.raises(DataError, match=message):
            task.main(found.to_run(tmp_path / "run"))


def _swap_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)


def test_a_run_is_named_by_its_folder_or_its_last_checkpoint(trained_run: Path) -> None:
    cache = f"data.cache_dir={trained_run.parent / 'cache'}"
    for given in (trained_run, trained_run / "checkpoints/last.ckpt", trained_run / "run.json", f"{trained_run}/"):
        found = find_resumption([f"resume={given}", "trainer.max_epochs=9", cache])
        assert found is not None
        assert found.run_dir == trained_run
    with pytest.raises(ConfigError, match=r"must be a run folder, or its checkpoints/last\.ckpt; got .*best\.ckpt"):
        find_resumption([f"resume={trained_run / 'checkpoints/best.ckpt'}"])
    with pytest.raises(ConfigError, match="resume_on_changed_data=true needs resume=RUN_DIR"):
        find_resumption(["resume_on_changed_data=true"])


def test_a_run_with_a_corrupt_record_is_resumed_from_its_checkpoint(
    trained_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    whole = (run / "run.json").read_text()
    (run / "run.json").write_text(whole[: len(whole) // 2])
    arguments = [f"resume={run}", f"data.cache_dir={trained_run.parent / 'cache'}"]
    found = find_resumption(arguments)
    assert found is not None
    assert found.config["model"] == json.loads(whole)["config"]["model"]
    assert found.recorded_images == {"class_names": ["ant", "bee", "cat"]}
    assert re.search(r"run\.json is corrupt: .*; using the config in .*last\.ckpt", caplog.text)
    (run / "checkpoints/last.ckpt").write_bytes(b"x")
    assert find_resumption(arguments) is not None, "from the best one"
    (run / "checkpoints/best.ckpt").unlink()
    with pytest.raises(ConfigError, match=r"run\.json is corrupt"):
        find_resumption(arguments)
