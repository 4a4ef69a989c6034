"""Check of the commands: a network that a device has trained gives the same scores there, on the CPU and from exported files."""

import json
import subprocess
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from alexlab.benchmark.commands import script_command
from alexlab.benchmark.gpu.context import GpuContext
from alexlab.benchmark.gpu.results import FAILED, PASSED, Check, equal, within

# Convolutions on a GPU use TensorFloat-32 by default, whose 11 significant bits change a probability in the third place.
PROBABILITY_TOLERANCE = 5e-3
TRAIN = ("data=digits", "data.root={digits}", "model=alexnet_quarter", "trainer.max_epochs={epochs}")


def check_commands(context: GpuContext) -> Iterator[Check]:
    """Train on the digits with `train.py`, then evaluate, predict and export, on the device and on the CPU."""
    work_dir = context.work_dir / "commands"
    run_dir = work_dir / "train"
    accelerator = context.config["trainer"]["accelerator"]
    values = {"digits": work_dir / "digits", "epochs": context.settings.digits_epochs}
    train = [override.format(**values) for override in TRAIN]
    yield from _run(work_dir, {"train": ("train.py", [*train, f"trainer.accelerator={accelerator}"])})
    exported = work_dir / "net.safetensors"
    on_cpu, on_device = "device=cpu", f"device={context.device}"
    images = f"input={work_dir / 'digits'}"
    yield from _run(
        work_dir,
        {
            "evaluate_cpu": ("evaluate.py", [f"ckpt={run_dir}", on_cpu]),
            "evaluate_device": ("evaluate.py", [f"ckpt={run_dir}", on_device]),
            "predict_cpu": ("predict.py", [f"ckpt={run_dir}", images, on_cpu]),
            "predict_device": ("predict.py", [f"ckpt={run_dir}", images, on_device]),
            "export": ("export.py", [f"ckpt={run_dir}", f"out={exported}"]),
            "export_program": ("export.py", [f"ckpt={run_dir}", "format=torch_export", f"out={work_dir / 'net.pt2'}"]),
        },
    )
    yield from _run(work_dir, {"evaluate_exported": ("evaluate.py", [f"ckpt={exported}", on_device])})
    scores = {
        name: json.loads((work_dir / f"evaluate_{name}/scores.json").read_text())
        for name in ("cpu", "device", "exported")
    }
    for name in ("device", "exported"):
        measured = f"{scores[name]['top1']:.4f} and {scores['cpu']['top1']:.4f}"
        outcome = PASSED if scores[name]["top1"] == scores["cpu"]["top1"] else FAILED
        what = "evaluate.py" if name == "device" else "evaluate.py of the exported file"
        yield Check(f"top-1 of {what} on the device and on the CPU", measured, "equal", outcome)
    yield from _compare_predictions(work_dir)


def _run(work_dir: Path, commands: Mapping[str, tuple[str, list[str]]]) -> Iterator[Check]:
    """Run commands at the same time; yield whether each has succeeded."""

    def call(name: str) -> int:
        script, overrides = commands[name]
        return exit_code(script, [*overrides, f"hydra.run.dir={work_dir / name}"])

    with ThreadPoolExecutor(len(commands)) as pool:
        codes = dict(zip(commands, pool.map(call, commands), strict=True))
    for name, (script, overrides) in commands.items():
        what = f"{script} {' '.join(each for each in overrides if str(work_dir) not in each)}".strip()
        yield Check(what, f"exit code {codes[name]}", "0", PASSED if codes[name] == 0 else FAILED)


def exit_code(script: str, overrides: list[str]) -> int:
    """Run one of our scripts to its end and return its exit code."""
    return subprocess.run(script_command(script, overrides), stdin=subprocess.DEVNULL).returncode


def _compare_predictions(work_dir: Path) -> Iterator[Check]:
    """Compare the predictions of `predict.py` on the device with those on the CPU."""
    on_cpu, on_device = (read_predictions(work_dir / f"predict_{name}") for name in ("cpu", "device"))
    same = [path for path, probs in on_cpu.items() if _most_probable(probs) == _most_probable(on_device.get(path))]
    yield equal("predict.py on the device and on the CPU", len(same), len(on_cpu), "predicted classes")
    differences = [
        abs(prob - on_device[path][name])
        for path, probs in on_cpu.items()
        for name, prob in probs.items()
        if name in on_device.get(path, {})
    ]
    yield within("predict.py: difference of a probability", max(differences), PROBABILITY_TOLERANCE)


def _most_probable(probs: Mapping[str, float] | None) -> str | None:
    return max(probs, key=lambda name: probs[name]) if probs else None


def read_predictions(run_dir: Path) -> dict[str, dict[str, float]]:
    """Return the probabilities of the most probable classes of each image."""
    rows = map(json.loads, (run_dir / "predictions.jsonl").read_text(encoding="utf-8").splitlines())
    return {row["path"]: {each["class"]: each["prob"] for each in row["predictions"]} for row in rows}
