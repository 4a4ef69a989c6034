"""Every private name that alexlab uses still exists and still means the same."""

import copy
import inspect
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.demos.boring_classes import BoringModel
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets

from alexlab import compat
from support.runs import ROOT

FUNCTIONS = [function for name, function in inspect.getmembers(compat, inspect.isfunction) if not name.startswith("_")]


def trainer(folder: Path, *callbacks: Callback, **options: Any) -> lightning.Trainer:
    """Return a Trainer of BoringModel, which has 64 batches in each epoch."""
    return lightning.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        **{"max_epochs": 1, "limit_train_batches": 4, "limit_val_batches": 3, "num_sanity_val_steps": 0, **options},
    )


def test_compat_imports_no_heavy_library() -> None:
    code = (
        "import sys, alexlab.compat; print(sorted({'torch', 'lightning', 'hydra', 'optuna', 'ray'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "src", capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_every_function_states_what_it_works_around_and_is_tested(function: Any) -> None:
    text = inspect.getdoc(function) or ""
    assert "Works around: " in text
    assert re.search(r"Checked\s+with\s+\w+\s+\d\.", text)
    assert f"compat.{function.__name__}(" in Path(__file__).read_text()


# Python


def test_python3_name() -> None:
    assert compat.python3_name("__builtin__", "set") == ("builtins", "set")
    assert compat.python3_name("copy_reg", "_reconstructor") == ("copyreg", "_reconstructor")
    assert compat.python3_name("torch", "FloatStorage") == ("torch", "FloatStorage")


# PyTorch


def test_foreach_norms() -> None:
    tensors = [torch.tensor([3.0, 4.0]), torch.ones(2, 2), torch.tensor([float("nan")])]
    norms = compat.foreach_norms(tensors)
    assert norms.shape == (3,)
    assert norms[:2].tolist() == [5.0, 2.0]
    assert norms[2].isnan()


def test_shut_down_workers() -> None:
    loader: Any = DataLoader(
        range(8),  # type: ignore[arg-type]
        num_workers=2,
        persistent_workers=True,
        multiprocessing_context="fork",
    )
    compat.shut_down_workers(loader)  # none has been started
    before = {process.pid for process in multiprocessing.active_children()}
    assert len([*loader]) == 8
    workers = [process for process in multiprocessing.active_children() if process.pid not in before]
    assert len(workers) == 2
    compat.shut_down_workers(loader)
    assert not any(process.is_alive() for process in workers)
    assert len([*loader]) == 8  # with new ones
    compat.shut_down_workers(loader)


def test_pickled_module() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    module.register_buffer("transient", torch.zeros(1), persistent=False)

    def names(node: Any, prefix: str = "") -> list[str]:
        found = compat.pickled_module(node)
        assert found is not None
        tensors, children = found
        below = [name for key, child in children.items() for name in names(child, f"{prefix}{key}.")]
        return [prefix + name for name, value in tensors.items() if value is not None] + below

    placeholder = SimpleNamespace(**vars(module))
    assert sorted(names(placeholder)) == sorted(module.state_dict())
    assert compat.pickled_module({"_modules": {}}) is None


def test_summary_writer(tmp_path: Path) -> None:
    events: list[Any] = []
    file = SimpleNamespace(
        add_event=events.append, get_logdir=lambda: str(tmp_path), flush=lambda: None, close=lambda: None
    )
    before = threading.active_count()
    writer = compat.summary_writer(str(tmp_path), lambda folder: file, purge_step=7)
    writer.add_scalar("loss", 0.5, global_step=8)
    writer.file_writer.add_summary(events[-1].summary)
    writer.close()
    assert threading.active_count() == before
    assert not any(tmp_path.iterdir())
    assert [event.step for event in events[:3]] == [7, 7, 8]
    assert events[1].session_log.status == events[1].session_log.START
    assert [event.summary.value[0].tag for event in events[2:]] == ["loss", "loss"]


# torchvision


def test_pet_item(tmp_path: Path) -> None:
    folder = tmp_path / "oxford-iiit-pet"
    for name in ("images", "annotations"):
        (folder / name).mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(folder / "images/Birman_1.jpg")
    (folder / "annotations/trainval.txt").write_text("Birman_1 8 1 3\n")
    dataset = datasets.OxfordIIITPet(str(tmp_path))
    assert compat.pet_item(dataset, 0) == (folder / "images/Birman_1.jpg", dataset[0][1])


# torchmetrics

PLOTS = """
import torch, torchmetrics.classification as metrics
from torchmetrics.utilities import plot
for metric in (metrics.MulticlassConfusionMatrix(3), metrics.MulticlassAccuracy(3, average=None)):
    metric.update(torch.tensor([0, 1, 2]), torch.tensor([0, 1, 1]))
    figure, axes = metric.plot()
    figure.canvas.draw()
    print(hash(bytes(figure.canvas.buffer_rgba())))
import matplotlib.pyplot, scipy.signal
print(type(axes).__name__, isinstance(axes, plot._AX_TYPE), isinstance(3, plot._AX_TYPE), scipy.signal.windows.hann(3))
"""


@pytest.mark.slow
def test_light_torchmetrics() -> None:
    """Plots are those of torchmetrics imported as a whole, although matplotlib is imported only when they are drawn."""
    imports = """
from alexlab import compat
with compat.light_torchmetrics():
    import torchmetrics
print(sorted({name.partition(".")[0] for name in sys.modules} & {"matplotlib", "scipy"}), "scipy.signal" in sys.modules)
"""
    outputs = [
        subprocess.run(
            [sys.executable, "-c", f"import os, sys; os.environ['MPLBACKEND'] = 'agg'; {first}\n{PLOTS}"],
            cwd=ROOT / "src",
            env={**os.environ, "PYTHONHASHSEED": "0"},
            capture_output=True,
            text=True,
            timeout=300,
        ).stdout.splitlines()
        for first in (imports, "import torchmetrics")
    ]
    assert outputs[0] == ["['scipy'] False", *outputs[1]]
    assert outputs[1][-1] == "Axes True False [0. 1. 0.]"


# Lightning


class Handlers(Callback):
    """Record the handler of SIGTERM during the fit."""

    def __init__(self, disable: bool) -> None:
        self.disable = disable
        self.handler: Any = None

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        if self.disable:
            compat.disable_signal_handlers(trainer)

    def on_train_batch_end(self, trainer: lightning.Trainer, *args: Any) -> None:
        self.handler = signal.getsignal(signal.SIGTERM)


def test_disable_signal_handlers(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    for disable in (True, False):
        recorder = Handlers(disable)
        trainer(tmp_path, recorder, limit_val_batches=0).fit(BoringModel())
        assert (recorder.handler == before) == disable
    loop = trainer(tmp_path).fit_loop.epoch_loop
    assert "self._broadcast_sigterm_tensor()" in inspect.getsource(type(loop).advance)


class Due(Callback):
    """Record in which batches a validation was announced, and in which it began."""

    def __init__(self) -> None:
        self.announced: list[int] = []
        self.begun: list[int] = []

    def on_train_batch_end(self, trainer: lightning.Trainer, *args: Any) -> None:
        if compat.validation_is_due(trainer):
            self.announced.append(trainer.fit_loop.total_batch_idx)

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.begun.append(trainer.fit_loop.total_batch_idx)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"val_check_interval": 2}, [1, 3, 5, 7]),
        ({}, [3, 7]),
        ({"check_val_every_n_epoch": 2}, [7]),
        ({"limit_val_batches": 0}, []),
    ],
)
def test_validation_is_due(tmp_path: Path, options: dict[str, Any], expected: list[int]) -> None:
    due = Due()
    trainer(tmp_path, due, max_epochs=2, **options).fit(BoringModel())
    assert due.begun == expected
    if options.get("limit_val_batches") != 0:
        assert due.announced == expected


@pytest.mark.parametrize(
    ("options", "alone", "finished"),
    [
        ({"val_check_interval": 3}, [2, 5], [3, 5]),
        ({"val_check_interval": 5}, [4], [5]),
        ({"val_check_interval": 4}, [3], [3]),
        ({}, [6], [6]),
        ({"val_check_interval": 3, "check_val_every_n_epoch": None, "max_epochs": 2}, [2, 5, 8, 11], [3, 5, 8, 12]),
        ({"val_check_interval": 2, "limit_val_batches": 0}, [], []),
    ],
)
def test_finish_steps(tmp_path: Path, options: dict[str, Any], alone: list[int], finished: list[int]) -> None:
    """An epoch of seven batches has steps of two batches, and a last step of one."""
    for finish, expected in ((False, alone), (True, finished)):
        due = Due()
        fitted = trainer(tmp_path, due, **{"accumulate_grad_batches": 2, "limit_train_batches": 7, **options})
        if finish:
            compat.finish_steps(fitted)
        fitted.fit(BoringModel())
        assert due.begun == expected


@pytest.mark.parametrize(("stop_after", "expected"), [(1, 1), (2, 3), (6, 6)])
def test_finish_steps_before_a_stop(tmp_path: Path, stop_after: int, expected: int) -> None:
    due, stop = Due(), Scheduled(stop_after)
    fitted = trainer(tmp_path, stop, due, accumulate_grad_batches=2, limit_train_batches=7)
    compat.finish_steps(fitted)
    fitted.fit(BoringModel())
    assert due.begun == [expected] and fitted.fit_loop.total_batch_idx == expected


class Scheduled(Callback):
    """Stop the fit after a batch, and record whether the validations were scheduled."""

    def __init__(self, stop_after: int) -> None:
        self.stop_after = stop_after
        self.scheduled: list[bool] = []

    def on_train_batch_end(self, trainer: lightning.Trainer, *args: Any) -> None:
        trainer.should_stop |= trainer.fit_loop.total_batch_idx == self.stop_after

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        stops = trainer.should_stop
        self.scheduled.append(compat.validation_is_scheduled(trainer))
        assert trainer.should_stop == stops


@pytest.mark.parametrize(("stop_after", "expected"), [(2, [True, False]), (3, [True, True])])
def test_validation_is_scheduled(tmp_path: Path, stop_after: int, expected: list[bool]) -> None:
    scheduled = Scheduled(stop_after)
    trainer(tmp_path, scheduled, val_check_interval=2).fit(BoringModel())
    assert scheduled.scheduled == expected


class StopInValidation(Callback):
    """Save a checkpoint of the state before the first validation, and end the fit."""

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.progress = copy.deepcopy(trainer.fit_loop.epoch_loop.val_loop.batch_progress)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        trainer.fit_loop.epoch_loop.val_loop.batch_progress = self.progress
        trainer.save_checkpoint(Path(trainer.default_root_dir) / "stopped.ckpt")
        raise RuntimeError("stopped")


class Batches(Callback):
    """Record the batches of a fit: t for training, v for validation."""

    def __init__(self, repeat: bool) -> None:
        self.repeat = repeat
        self.kinds = ""

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if self.repeat:
            compat.repeat_validation(trainer)

    def on_train_batch_start(self, *args: Any) -> None:
        self.kinds += "t"

    def on_validation_batch_start(self, *args: Any) -> None:
        self.kinds += "v"


@pytest.mark.filterwarnings(
    "ignore:You.re resuming from a checkpoint that ended before the epoch ended"
)  # BoringModel's data
def test_repeat_validation_and_loop_progress(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="stopped"):
        trainer(tmp_path, StopInValidation(), val_check_interval=2).fit(BoringModel())
    path = tmp_path / "stopped.ckpt"
    epochs, batches = compat.loop_progress(torch.load(path, weights_only=True))
    assert (epochs["current"]["ready"], epochs["current"]["processed"]) == (1, 0)
    assert batches["current"]["ready"] == batches["total"]["ready"] == 2
    for repeat, expected in ((True, "vvvttvvv"), (False, "ttvvv")):
        recorder = Batches(repeat)
        trainer(tmp_path, recorder, val_check_interval=2).fit(BoringModel(), ckpt_path=path)
        assert recorder.kinds == expected


class Pending(Batches):
    """Record the batches of a fit that waits for a validation."""

    pending = True

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        compat.await_validation(trainer, lambda: self.pending)

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.pending = False


@pytest.mark.filterwarnings("ignore:You.re resuming from a checkpoint that ended before the epoch ended")
def test_await_validation(tmp_path: Path) -> None:
    """The only steps of the fit are done, so Lightning alone ends it without the validation."""
    options: dict[str, Any] = {"val_check_interval": 2, "max_steps": 2}
    with pytest.raises(RuntimeError, match="stopped"):
        trainer(tmp_path, StopInValidation(), **options).fit(BoringModel())
    for recorder, expected in ((Batches(True), ""), (Pending(True), "vvv")):
        trainer(tmp_path, recorder, **options).fit(BoringModel(), ckpt_path=tmp_path / "stopped.ckpt")
        assert recorder.kinds == expected


class SaveAtEpochEnd(Callback):
    """Save a checkpoint at the end of each epoch, and resume by epochs if that is wanted."""

    def __init__(self, by_epochs: bool) -> None:
        self.by_epochs = by_epochs

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        if self.by_epochs:
            compat.resume_by_epochs(trainer)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        trainer.save_checkpoint(Path(trainer.default_root_dir) / f"epoch{trainer.current_epoch}.ckpt")


def test_resume_by_epochs(tmp_path: Path) -> None:
    """An epoch of four batches has ended, and one is left; Lightning alone counts the ended one twice."""
    trainer(tmp_path, SaveAtEpochEnd(True), max_steps=8, max_epochs=10).fit(BoringModel())
    for by_epochs, expected in ((True, 2), (False, 3)):
        resumed = trainer(tmp_path / "resumed", SaveAtEpochEnd(by_epochs), max_steps=8, max_epochs=10)
        resumed.fit(BoringModel(), ckpt_path=tmp_path / "epoch0.ckpt")
        assert (resumed.global_step, resumed.fit_loop.epoch_progress.current.processed) == (8, expected)


@pytest.mark.filterwarnings("ignore:You.re resuming from a checkpoint that ended before the epoch ended")
def test_reopen_batch(tmp_path: Path) -> None:
    """An epoch of four batches was cut short after a validation; Lightning alone counts five steps."""
    trainer(tmp_path, SaveAtEpochEnd(True), max_steps=2, val_check_interval=2).fit(BoringModel())
    path = tmp_path / "epoch0.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    for counts in compat.loop_progress(checkpoint)[0].values():
        counts["processed"] = counts["completed"] = 0
    for expected in (5, 4):
        if expected == 4:
            compat.reopen_batch(checkpoint)
        torch.save(checkpoint, path)
        resumed = trainer(tmp_path / "resumed", SaveAtEpochEnd(True), max_epochs=1, val_check_interval=2)
        resumed.fit(BoringModel(), ckpt_path=path)
        saved = torch.load(tmp_path / "resumed/epoch0.ckpt", weights_only=True)["loops"]["fit_loop"]
        assert saved["epoch_loop.state_dict"] == {"_batches_that_stepped": expected}


# Hydra


@pytest.fixture
def _restored_hooks() -> Iterator[None]:
    yield
    from alexlab.cli import composition

    composition.install()


@pytest.mark.usefixtures("_restored_hooks")
def test_hook_hydra_config_file_and_load_default(tmp_path: Path) -> None:
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    (tmp_path / "model").mkdir()
    (tmp_path / "app.yaml").write_text("defaults: [model: small, _self_]\nseed: 1\n")
    (tmp_path / "model/small.yaml").write_text("width: 2\n")
    calls: list[str] = []
    files: dict[str, Path | None] = {}
    contents: list[Any] = []

    def load_config(original: Any, repository: Any, config_path: str) -> Any:
        calls.append("load_config")
        files[config_path] = compat.config_file(repository, config_path)
        return original(repository, config_path)

    def load_configuration(original: Any, loader: Any, config_name: str, overrides: list[str], **options: Any) -> Any:
        calls.append("load_configuration")
        return original(loader, config_name, overrides, **options)

    def compose_files(original: Any, loader: Any, defaults: Any, repo: Any) -> Any:
        calls.append("compose_files")
        contents.extend(OmegaConf.to_container(compat.load_default(loader, default, repo)) for default in defaults)
        return original(loader, defaults=defaults, repo=repo)

    def apply_overrides(original: Any, overrides: Any, config: Any) -> None:
        calls.append("apply_overrides")
        assert [override.key_or_group for override in overrides] == ["seed"]
        original(overrides, config)

    for _ in range(2):  # the second call replaces the hooks
        compat.hook_hydra(
            load_config=load_config,
            load_configuration=load_configuration,
            compose_files=compose_files,
            apply_overrides=apply_overrides,
        )
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        config = compose("app", overrides=["seed=2"])
    assert config == {"model": {"width": 2}, "seed": 2}
    for name in ("load_configuration", "compose_files", "apply_overrides"):
        assert calls.count(name) == 1
    assert "load_config" in calls
    assert files["app"] == tmp_path / "app.yaml"
    assert files["model/small"] == tmp_path / "model/small.yaml"
    assert files["hydra/config"] is None  # a structured config
    assert {"model": {"width": 2}} in contents
    assert {"seed": 1} in contents


def test_job_error(capsys: pytest.CaptureFixture[str]) -> None:
    from hydra.core.utils import JobReturn, JobStatus

    result = JobReturn(status=JobStatus.FAILED)
    result.return_value = ValueError("no")
    assert str(compat.job_error(result)) == "no"
    assert capsys.readouterr().err == ""
    with pytest.raises(ValueError, match="no"):
        _ = result.return_value


# Optuna


def test_reopen_trial() -> None:
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study()
    study.ask()
    asked = study.ask()
    compat.reopen_trial(study, study.get_trials()[1]).report(0.5, step=3)
    assert study.get_trials()[asked.number].intermediate_values == {3: 0.5}


# Ray


def test_local_ray_options(tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    source = inspect.getsource(ray.init)
    for name in compat.local_ray_options(str(tmp_path)):
        assert f'kwargs.pop("{name}"' in source  # ray.init raises for any other name


def test_offline_if_unreachable_lasts_for_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    with compat.offline_if_unreachable(1.0):
        assert constants.is_offline_mode()
    assert not constants.is_offline_mode()
