"""Refused commands leave nothing: no folder, also not those above it, and no line that names one."""

from pathlib import Path

import pytest

from support.commands import run
from support.runs import TINY

SLURM = ("launcher=submitit", "launcher.cluster=slurm")
COMMANDS: list[tuple[str, list[str], str]] = [
    ("train", ["trainer.accelerator=mps"], "needs a Mac with an Apple GPU"),
    ("train", ["hydra.run.dir=a/2026/c", "+augmentation.train.erase=RandomErasing"], "must have a _target_"),
    ("train", ["outputs=a/b", "trainer.precision=fp16"], "trainer.precision=fp16 cannot be used"),
    ("train", ["optimizer.lr=-1"], "Invalid learning rate"),
    ("train", ["data.root=nowhere"], "no such folder"),
    ("train", SLURM, "slurm refused the jobs: sbatch: error: no controller"),
    ("train", ["-m", *SLURM, "seed=1,2"], "slurm refused the jobs: sbatch: error: no controller"),
    ("train", ["-m", "hydra.sweep.dir=s/t", "optimizer.lr=0.1,-1"], "1 of 2 jobs cannot run"),
    ("train", ["-m", "hydra.sweeper.max_batch_size=2", "seed=1,2"], "hydra.sweeper.max_batch_size must be null"),
    ("train", ["-m", "sweep=optuna", "seed=1,2", "model.weights=nowhere"], "1 of 1 job cannot run"),
    ("train", ["-m", "sweep=optuna", "seed=1,2", "launcher=submitit"], "a search needs launcher.jobs=N"),
    ("evaluate", ["ckpt=nowhere"], "nowhere does not exist"),
    ("evaluate", ["-m", "ckpt=nowhere,images"], "ckpt must be a run folder or a file"),
    ("predict", ["ckpt=images", "input=images"], "has no checkpoints/best.ckpt"),
    ("export", ["ckpt=.env"], "cannot read the weights"),
    ("explain", ["ckpt=nowhere"], "nowhere does not exist"),
    ("report", ["images"], "no run found"),
    ("compare", ["images", "nowhere"], "no run found"),
    ("prepare", ["action=shard", "data.root=images"], "out must be given"),
    ("summary", ["data.image_size=16"], "is too small for this net"),
    ("benchmark", ["suite=step", "data.root=nowhere"], "no such folder"),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "arguments", "message"), COMMANDS, ids=[f"{name} {arguments[-1]}" for name, arguments, _ in COMMANDS]
)
def test_a_refused_command_leaves_nothing(command, arguments, message, images, tmp_path):
    (tmp_path / "images").symlink_to(images)
    (tmp_path / ".env").write_text("A=1\n")
    sbatch = tmp_path / "sbatch"
    sbatch.write_text("#!/bin/sh\necho 'sbatch: error: no controller' >&2; exit 1\n")
    sbatch.chmod(0o755)
    for name in ("squeue", "srun"):
        (tmp_path / name).symlink_to("/bin/true")
    before = {path.name for path in tmp_path.iterdir()}
    if command == "train":
        arguments = [*arguments[: arguments[0] == "-m"], *TINY, "data.root=images", *arguments[arguments[0] == "-m" :]]
    done = run(command, *arguments, cwd=tmp_path, PATH=f"{tmp_path}:/usr/bin:/bin")
    output = done.stdout + done.stderr
    assert message in output
    assert done.returncode in (1, 3), output
    assert "Traceback" not in output and "run folder: " not in output and "sweep folder: " not in output
    left = {path.name for path in tmp_path.iterdir()} - {"data"}  # data/cache, the listing of the images
    assert left == before
    assert Path(images).is_dir()
