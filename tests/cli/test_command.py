"""Real commands in subprocesses. Importing torch takes 10 s and more, so there are few tests, and each checks a lot."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from alexlab.cli.run_dirs import RunDirs
from alexlab.config.grammar import raw_overrides
from alexlab.output.numbers import counted
from alexlab.records.lock import lock_holder
from alexlab.sweeps.jobs import MULTIRUN
from support.commands import Command, run
from support.images import write_images
from support.runs import ROOT, composed, environment, names, rows, scalars

pytestmark = pytest.mark.slow

TINY_COMMAND = [
    "model.widths=[4,8,8,8,8]",
    "model.fc_widths=[16]",
    "data.batch_size=8",
    "data.num_workers=0",
    "data.image_size=64",
]


def command(*arguments: str, cwd: Path, forbid: str = "") -> subprocess.CompletedProcess[str]:
    """Run `python src/train.py`; with `forbid` in a new interpreter, in which importing that module is an error."""
    if not forbid:
        return run("train", *arguments, cwd=cwd)
    guard = f"import sys, runpy; sys.modules[{forbid!r}] = None; sys.argv = sys.argv[1:]; sys.path.insert(0, {str(ROOT / 'src')!r})"
    script = f"{guard}; runpy.run_path(sys.argv[0], run_name='__main__')"
    program = [sys.executable, "-c", script, str(ROOT / "src/train.py")]
    return subprocess.run(
        [*program, *arguments], cwd=cwd, env=environment(), capture_output=True, text=True, timeout=300
    )


def test_help_fits_a_page_and_does_not_import_torch(tmp_path: Path) -> None:
    result = command("--help", cwd=tmp_path, forbid="torch")
    assert result.returncode == 0, result.stderr
    for message in (
        "model",
        "alexnet_half",
        "trainer.devices",
        "data.root",
        "src/train.py -m",
        "callbacks=ema",
    ):
        assert message in result.stdout
    assert len(result.stdout.splitlines()) < 80
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["--cfg", "job"], "max_epochs: 20", 0),
        (["modle=x"], "unknown key modle; did you mean module or model?", 1),
        (["seed=(1"], "seed=(1 must be KEY=VALUE in Hydra's grammar", 1),
        (["trainer.max_epochs=x"], "trainer.max_epochs must be an integer", 1),
        (["data.root=/no where"], "got '/no where': no such folder", 3),
        (["data=folder"], "data.root is required: data.root=VALUE", 1),
        (
            ["hydra.run.dir=/dev/null/run"],
            "the output folder must be writable; cannot create /dev/null/run: Not a directory",
            1,
        ),
        (["hydra.run.dir=old"], "a new run needs a folder of its own; old already contains one", 1),
        (["-m", "trainer.max_epochs=1,x"], "trainer.max_epochs must be an integer", 1),
        (
            ["optimizer.lr=${nope}", "data.root=."],
            "optimizer.lr: cannot resolve the interpolation; Interpolation key 'nope'",
            1,
        ),
        (["hydra.run.dir=${nope}"], "hydra.run.dir: cannot resolve the interpolation", 1),
        (["-m", "seed=1,2", "hydra.sweep.subdir=${nope}"], "hydra.sweep.subdir: cannot resolve the interpolation", 1),
    ],
)
def test_error_messages_need_no_torch(tmp_path: Path, arguments: list[str], message: str, code: int) -> None:
    (tmp_path / "old/.hydra").mkdir(parents=True)
    result = command(*arguments, cwd=tmp_path, forbid="torch")
    assert message in result.stdout + result.stderr
    assert result.returncode == code
    assert "Traceback" not in result.stderr


def cpu_s(action: Callable[[], subprocess.CompletedProcess[str]]) -> float:
    """Processor time of a child process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "Traceback" not in action().stderr
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize(
    ("argument", "forbid"), [("--help", "numpy"), ("model=nope", "numpy"), ("data.root=/no", "torch")]
)
def test_help_and_mistakes_take_little_time(tmp_path: Path, argument: str, forbid: str) -> None:
    """In units of the time of `import hydra`, 0.25 s: they use at most 6; importing torch alone takes 8 or more."""
    unit = cpu_s(lambda: subprocess.run([sys.executable, "-c", "import hydra"], capture_output=True, text=True))
    assert cpu_s(lambda: command(argument, cwd=tmp_path, forbid=forbid)) < 12 * unit


UNUSED = (
    "matplotlib",
    "scipy.signal",
    "scipy.stats",
    "sklearn",
    "pandas",
    "optuna",
    "ray",
    "submitit",
    "onnx",
    "jinja2",
)
LIST_MODULES = """
import os, sys
from lightning.pytorch.callbacks import Callback
class ListModules(Callback):
    def on_train_batch_end(self, *args):
        print("imported", *sys.modules, flush=True)
        os._exit(0)
"""


def test_the_first_step_waits_for_no_unused_import(images: Path, tmp_path: Path) -> None:
    (tmp_path / "list_modules.py").write_text(LIST_MODULES)
    callback = ["trusted_targets=[list_modules]", "+callbacks.list._target_=list_modules.ListModules"]
    arguments = [sys.executable, str(ROOT / "src/train.py"), f"data.root={images}", *TINY_COMMAND, *callback]
    env = {**environment(), "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(arguments, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("imported "))
    imported = line.split()
    assert {"lightning", "torchmetrics", "torchvision"} <= set(imported)
    assert [name for name in UNUSED if name in imported] == []


def test_sweep_folders_are_created_regardless_of_interpolations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = RunDirs()

    def started(*more: str) -> Any:
        config = composed(*overrides, *more)
        OmegaConf.set_readonly(config.hydra, False)  # as Hydra has it at that moment
        folders.on_multirun_start(config)
        return config

    monkeypatch.chdir(tmp_path)
    overrides = ["hydra.sweep.subdir=${hydra.job.num}", "optimizer.weight_decay=${optimizer.lr}"]
    config = started()
    (folder,) = Path("outputs/sweeps").glob("*/*")
    assert folder.name.endswith("_weight_decay-optimizer.lr")
    assert raw_overrides(config.hydra.overrides.hydra) == [overrides[0], f"hydra.sweep.dir={folder}"]
    with folders.lock:
        assert lock_holder(folder) == str(os.getpid())

    (folder / MULTIRUN).write_text(OmegaConf.to_yaml(config))
    started(f"hydra.sweep.dir={folder}")
    with folders.lock:
        assert lock_holder(folder) == str(os.getpid())
    with pytest.raises(SystemExit):
        started(f"hydra.sweep.dir={folder}", "seed=${nope}")
    assert "optimizer.weight_decay='${optimizer.lr}'" in capsys.readouterr().err


def test_relative_paths_refer_to_the_working_directory(tmp_path: Path) -> None:
    write_images(tmp_path / "small", {"a": 3, "b": 3})
    for root, message in (("small", "train"), ("smll", f"no such folder (looked for {tmp_path}/smll)")):
        result = subprocess.run(
            [sys.executable, ROOT / "src/prepare.py", "action=split", f"data.root={root}", "hydra.job.chdir=true"],
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert (result.returncode, message in result.stdout + result.stderr) == (0 if root == "small" else 3, True)
    assert len(list((tmp_path / "small_split").rglob("*.png"))) == 6


def test_ranks_of_torchrun_share_one_folder(images: Path, tmp_path: Path) -> None:
    arguments = [
        f"data.root={images}",
        "trainer.devices=2",
        "trainer.max_epochs=1",
        "trainer.accelerator=cpu",
        *TINY_COMMAND,
    ]
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        str(ROOT / "src/train.py"),
    ]
    result = subprocess.run(
        [*torchrun, *arguments], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    (folder,) = (tmp_path / "outputs/train").glob("*/*")
    assert {name for name in names(folder) if "tfevents" not in name} == {
        ".hydra", "checkpoints", "curves.png", "layers.csv", "metrics.csv", "predictions", "train.log"
    }  # fmt: skip
    assert len(scalars(folder)["val/top1"]) == 1
    assert result.stdout.count("run folder") == 2
    assert (folder / "train.log").read_text().count("epoch 1/1") == 1
    assert (folder / ".hydra/overrides.yaml").read_text().count("trainer.devices=2") == 1


def test_a_sweep_with_a_failing_job_and_special_characters(tmp_path: Path) -> None:
    """Each job has its own folder, ranks and samples; a failed job does not stop the others; the exit code is 1."""
    root = write_images(
        tmp_path / "my cats, dogs & 学习", {f"{s}/{c}": 8 for s in ("train", "val") for c in ("cat", "dog")}
    )
    (root / "val/dog/007.png").unlink()
    result = command(
        "-m", f"data.root={root}", "trainer.devices=2,1", "optimizer.lr=0.001,1e35", "trainer.max_epochs=1",
        "data.batch_size=4", "trainer.accelerator=cpu", *(argument for argument in TINY_COMMAND if "batch_size" not in argument),
        cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 1, result.stderr
    (sweep,) = (tmp_path / "outputs/sweeps").glob("*/*")
    jobs = sorted(path for path in sweep.iterdir() if path.is_dir())
    assert [path.name[:2] for path in jobs] == ["0_", "1_", "2_", "3_"]
    assert not (tmp_path / "outputs/train").exists()
    for number, devices, batch in ((0, 2, 4), (2, 1, 4)):
        log = (jobs[number] / "train.log").read_text()
        assert f"batch: {batch} = {counted(devices, 'device')} x 1 accumulation step x {batch // devices} images" in log
        assert "images: train 16, val 15" in log
        assert len(rows(jobs[number] / "metrics.csv")) == 1
        assert len(scalars(jobs[number])["val/top1"]) == 1
    for number in (1, 3):
        assert "the loss must stay finite" in (jobs[number] / "train.log").read_text()
    table = result.stdout[result.stdout.index("4 jobs, 2 failed") :]
    assert table.count("NumericError") == 2
    assert (sweep / "report.md").read_text().count("| 1 finished |") == 2
    assert (jobs[0] / "layers.csv").is_file()
    assert "multiply adds" not in result.stdout, "no table of the layers for each job"


def test_errors_of_all_jobs_are_reported_before_the_first_starts(images: Path, tmp_path: Path) -> None:
    result = command("-m", f"data.root={images}", "model.width=1,-1", "data.batch_size=8,99", *(
        argument for argument in TINY_COMMAND if "batch_size" not in argument), cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 1
    assert "nothing was started, because 3 of 4 jobs cannot run:" in result.stderr
    assert re.search(
        r"job 1 \(.*data.batch_size=99.*\): data.batch_size must not exceed the 24 training images", result.stderr
    )
    assert re.search(r"job 2 \(.*model.width=-1.*\): .*model\.width must be positive", result.stderr)
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.glob("outputs/sweeps/*/*/*/"))


def test_optuna_gives_every_rank_the_same_values(images: Path, tmp_path: Path) -> None:
    result = command(
        "-m", "sweep=optuna", "hydra.sweeper.num_trials=3", f"data.root={images}", "trainer.devices=2", "trainer.max_epochs=1",
        "optimizer.lr=tag(log,interval(1e-4,1e-2))", "data.split_seed=range(0,3)", "model.norm=none,batch",
        "trainer.accelerator=cpu", *TINY_COMMAND, cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "3 jobs" in result.stdout and "failed" not in result.stdout
    assert re.search(r"best val/top1 \d\.\d+, job \d: optimizer\.lr=", result.stdout)
    (sweep,) = (tmp_path / "outputs/sweeps").glob("*/*")
    configs = sorted(sweep.glob("*/.hydra/overrides.yaml"))
    rates = {re.search(r"optimizer\.lr=(\S+)", path.read_text())[1] for path in configs}
    assert len(configs) == len(rates) == 3
    assert all(1e-4 <= float(rate) <= 1e-2 for rate in rates)


def test_a_closed_pipe_is_not_an_error(tmp_path: Path) -> None:
    """As with `... | head`: the other end of the pipe is closed before anything is printed."""
    folder = tmp_path / "runs/one"
    folder.mkdir(parents=True)
    record = {"status": "failed", "reason": "x", "seed": 1, "config": {"seed": 1}, "choices": {"model": "alexnet"}}
    (folder / "run.json").write_text(json.dumps(record))
    reader, writer = os.pipe()
    os.close(reader)
    script = [sys.executable, str(ROOT / "src/report.py"), "runs"]
    done = subprocess.run(
        script, cwd=tmp_path, env=environment(), stdout=writer, stderr=subprocess.PIPE, text=True, timeout=120
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")
    assert list(tmp_path.glob("outputs/report/*/*/report.html")), "the work is done all the same"


@pytest.mark.parametrize(
    ("overrides", "signum", "to_all", "code", "hint"),
    [
        (["trainer.devices=2"], signal.SIGINT, True, 130, "stopped by SIGINT; to resume:\npython "),
        (
            ["-m", "launcher=parallel", "launcher.jobs=2", "seed=1,2,3"],
            signal.SIGTERM,
            False,
            75,
            "to resume this sweep:\npython ",
        ),
    ],
)
def test_a_signal_stops_every_process_with_its_exit_code(
    images: Path, tmp_path: Path, overrides: list[str], signum: int, to_all: bool, code: int, hint: str
) -> None:
    """Ctrl-C reaches all processes of a terminal; a scheduler may signal the command only."""
    arguments = [*overrides, f"data.root={images}", "trainer.max_epochs=5000", "trainer.accelerator=cpu", *TINY_COMMAND]
    with Command("train", *arguments, cwd=tmp_path, merged=True) as process:
        ends_s = time.monotonic() + 120
        while len(list(tmp_path.glob("outputs/**/last.ckpt"))) < (2 if "-m" in overrides else 1):
            assert time.monotonic() < ends_s and process.poll() is None
            time.sleep(0.1)
        (os.killpg if to_all else os.kill)(process.pid, signum)
        output = process.stdout.read()
        assert process.wait(30) == code, output
    assert hint in output and "Traceback" not in output
    records = [json.loads(path.read_text()) for path in tmp_path.glob("outputs/**/run.json")]
    assert {(record["status"], record["exit_code"]) for record in records} == {("interrupted", code)}
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
