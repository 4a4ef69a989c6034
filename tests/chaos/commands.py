"""The command `python src/train.py`, killed and signalled."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from alexlab.records.layout import LAST
from chaos.harness import Result, Workspace, identical
from support.runs import ROOT, TINY, environment

EXIT_CODES = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 75, signal.SIGINT: 130, signal.SIGUSR1: 75}


def command(workspace: Workspace, tries: int, rng: random.Random) -> Result:
    """Signal `python src/train.py` at a random step and resume it: exit codes and final state."""
    overrides = [
        *TINY,
        f"data.root={workspace.folder / 'images'}",
        f"data.cache_dir={workspace.folder / 'cache'}",
        "data.batch_size=4",
        "trainer.max_epochs=20",
        "callbacks.checkpoint.every_n_steps=1",
        "trainer.devices=2",
    ]
    expected = workspace.path("command_uninterrupted")
    assert _wait(_start(workspace, *overrides, f"hydra.run.dir={expected}")) == 0
    passed, exits = 0, []
    for number in range(tries):
        run_dir, signum = workspace.path(f"command_{number}"), [*EXIT_CODES][number % len(EXIT_CODES)]
        process = _start(workspace, *overrides, f"hydra.run.dir={run_dir}")
        step = rng.randint(1, 110)
        while _last_step(run_dir) < step and process.poll() is None:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.05))
        os.kill(process.pid, signum)
        code = _wait(process)
        exits.append(f"{signal.Signals(signum).name} {code}")
        orphans = subprocess.run(["pgrep", "-f", re.escape(str(run_dir))], capture_output=True).returncode == 0
        resumed = _wait(_start(workspace, f"resume={run_dir}"))
        passed += code == EXIT_CODES[signum] and not orphans and resumed == 0 and identical(expected, run_dir)
    return Result(
        "command",
        "the command on two ranks, signalled, then resumed: right exit code, no orphan process, bit-identical",
        passed,
        tries,
        ", ".join(sorted(set(exits))),
    )


def _start(workspace: Workspace, *arguments: str) -> Any:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "src/train.py"), *arguments],
        cwd=workspace.folder,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _wait(process: Any) -> int:
    code: int = process.wait(240)
    return code


def _last_step(run_dir: Path) -> int:
    """Return the step of the last checkpoint, 0 if there is none."""
    path = run_dir / LAST
    return int(torch.load(path, weights_only=True)["global_step"]) if path.exists() else 0
