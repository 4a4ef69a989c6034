"""The real command, killed and told to stop."""

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

from chaos.harness import Figure, Place, same
from support.runs import ROOT, TINY, environment

CODES = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 75, signal.SIGINT: 130, signal.SIGUSR1: 75}


def killed(place: Place, tries: int, draw: random.Random) -> Figure:
    """`python src/train.py`, ended by a signal at a random step, and `resume=`: exit codes and final state."""
    words = [
        *TINY,
        f"data.root={place.folder / 'images'}",
        f"data.cache_dir={place.folder / 'cache'}",
        "data.batch_size=4",
        "trainer.max_epochs=20",
        "callbacks.checkpoint.every_n_steps=1",
        "trainer.devices=2",
    ]
    whole = place.new("command_whole")
    assert _end(_start(place, *words, f"hydra.run.dir={whole}")) == 0
    right, seen = 0, []
    for number in range(tries):
        run_dir, signum = place.new(f"command_{number}"), [*CODES][number % len(CODES)]
        process = _start(place, *words, f"hydra.run.dir={run_dir}")
        after = draw.randint(1, 110)
        while _step(run_dir) < after and process.poll() is None:
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.05))
        os.kill(process.pid, signum)
        code = _end(process)
        seen.append(f"{signal.Signals(signum).name} {code}")
        left = subprocess.run(["pgrep", "-f", re.escape(str(run_dir))], capture_output=True).returncode == 0
        resumed = _end(_start(place, f"resume={run_dir}"))
        right += code == CODES[signum] and not left and resumed == 0 and same(whole, run_dir)
    return Figure(
        "command",
        "the real command on two ranks, ended by a signal, and resume=: exit code right, nothing left, bit-identical",
        right,
        tries,
        ", ".join(sorted(set(seen))),
    )


def _start(place: Place, *words: str) -> Any:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "src/train.py"), *words],
        cwd=place.folder,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _end(process: Any) -> int:
    code: int = process.wait(240)
    return code


def _step(run_dir: Path) -> int:
    """Of the last checkpoint."""
    path = run_dir / "checkpoints/last.ckpt"
    return int(torch.load(path, weights_only=True)["global_step"]) if path.exists() else 0
