"""Suite `gpu` at toy size on the CPU, so that nothing in it first runs on a GPU; its runner and its verdicts."""

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from alexlab.benchmark.gpu import callbacks, commands
from alexlab.benchmark.gpu.checks import largest_error, total_error
from alexlab.benchmark.gpu.config import GpuConfig
from alexlab.benchmark.gpu.context import GpuContext
from alexlab.benchmark.gpu.results import FAILED, MET, MISSED, NEEDS_CUDA, PASSED, Check, Results, equal, goal, within
from alexlab.benchmark.gpu.runner import Part, run_parts
from alexlab.benchmark.gpu.steps import OURS, StepMeter, describe
from alexlab.benchmark.step import capture
from alexlab.benchmark.table import Row
from alexlab.errors import ConfigError
from alexlab.records.run import Run
from alexlab.tasks.benchmark import main, suites
from support.commands import run
from support.runs import TINY, plain

TOY = (
    *(override for override in TINY if not override.startswith(("scheduler", "trainer.precision", "data=folder"))),
    "suite=gpu",
    "data=photographs",
    "compile.backend=aot_eager",
    "gpu.total_s=900",
    "gpu.limit_scale=4",
    *(f"gpu.nets.{net}.widths=[4,8,8,8,8]" for net in ("alexnet", "alexnet_half")),
    *(f"gpu.nets.{net}.fc_widths=[16]" for net in ("alexnet", "alexnet_half")),
    "gpu.batch_sizes=[4,8]",
    "gpu.rounds=2",
    "gpu.round_s=0.01",
    "gpu.steps=2",
    "gpu.photographs=12",
    "gpu.check_images=64",
    "gpu.digits_epochs=1",
    "gpu.jpeg_images=32",
    "gpu.packed_images=48",
    "gpu.val_images=8",
)
CHOICES = {"model": "alexnet", "data": "photographs", "augmentation": "inception", "optimizer": "sgd"}
ABOUT = {"hardware": {"cores": 2}, "versions": {"torch": "2.15"}}
# All but `commands`, which has its own test: it starts commands faster.
PARTS = (
    *("machine", "photographs", "one_step", "crops", "resume", "synchronization", "nan_stop"),
    *("epochs", "steps_alexnet", "steps_alexnet_half", "compile", "decoding"),
)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The results of the parts by name, all of gpu.json as `content`, and gpu.md as `text`."""
    folder = tmp_path_factory.mktemp("gpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALEXLAB_CORES", "1")  # threads that wait for a busy core are slower than one
        config = plain(*TOY, f"gpu.parts=[{','.join(PARTS)}]", name="benchmark")
        main(Run(config=config, dir=folder, choices=CHOICES))
    content = json.loads((folder / "gpu.json").read_text())
    parts = {part["name"]: part for part in content["parts"]}
    return {"text": (folder / "gpu.md").read_text(), "content": content, **parts}


def outcomes(part: dict[str, Any]) -> dict[str, str]:
    return {check["what"]: check["outcome"] for check in part["checks"]}


@pytest.mark.slow
def test_every_part_finishes(toy: dict[str, Any]) -> None:
    found = {part["name"]: part["outcome"] for part in toy["content"]["parts"]}
    assert found == dict.fromkeys(PARTS, "finished")
    assert toy["content"]["hardware"]["device"] == "cpu"


@pytest.mark.slow
def test_checks_pass_on_the_cpu_or_need_cuda(toy: dict[str, Any]) -> None:
    precision = "one step with trainer.precision={}: error of the gradients"
    assert outcomes(toy["one_step"]) == {
        f"{precision.format('32-true')}, tanh and no max pooling": PASSED,
        precision.format("32-true"): PASSED,
        precision.format("bf16-mixed"): PASSED,
        precision.format("16-mixed"): NEEDS_CUDA,
    }
    (synchronization,) = toy["synchronization"]["checks"]
    assert synchronization["outcome"] == NEEDS_CUDA
    assert "0 in 9 steps" in synchronization["measured"]
    for name, count in (("crops", 4), ("resume", 2), ("nan_stop", 2), ("compile", 1)):
        assert list(outcomes(toy[name]).values()) == [PASSED] * count, toy[name]


@pytest.mark.slow
def test_steps_are_measured_in_every_variant(toy: dict[str, Any]) -> None:
    for net in ("alexnet", "alexnet_half"):
        part = toy[f"steps_{net}"]
        whats = [row["what"] for row in part["rows"]]
        everywhere = ("bfloat16, channels last, fused, eager", "TF32", "NCHW", "torchvision's reference, --amp")
        once = ("float32", "float16 with gradient scaling", "optimizer foreach", "compiled, reduce-overhead")
        assert {f"{net}, batch {size}: {name}" for size in (4, 8) for name in everywhere} < set(whats)
        assert {f"{net}, batch 8: {name}" for name in once} < set(whats)
        assert all(
            row["limit"].split(" % of matrix products in ")[1] in ("float32", "TF32", "bfloat16")
            for row in part["rows"]
        )
        checks = outcomes(part)
        for size in (4, 8):
            assert checks[f"{net}, batch {size}: CUDA graph of the step"] == NEEDS_CUDA
            assert checks[f"{net}, batch {size}: our step / torchvision's reference, --amp"] in (MET, MISSED)


@pytest.mark.slow
def test_epochs_are_compared_with_other_loops_and_the_step(toy: dict[str, Any]) -> None:
    part = toy["epochs"]
    assert len(part["rows"]) == 1 + 3 * 5
    assert set(outcomes(part)) == {
        "training: ours, data.cache=device / the step on a fixed batch",
        "training: ours, packed / the step on a fixed batch",
        "whole epochs: ours, packed / torchvision's reference, --amp",
        "whole epochs: ours, data.cache=device / torchvision's reference, --amp",
    }
    row = next(row for row in part["rows"] if row["what"] == "alexnet, batch 8: training: ours, packed")
    assert row["baseline"] == "torchvision's reference, --amp"
    assert row["ratio"] > 0


@pytest.mark.slow
def test_the_page_lists_parts_checks_and_measurements(toy: dict[str, Any]) -> None:
    assert "| nan_stop | finished |" in toy["text"]
    assert "| the last checkpoint before NaN | step 4 | step 4, finite weights | passed |" in toy["text"]
    assert "torchvision.io.decode_jpeg on cpu" in toy["text"]


@pytest.mark.slow
def test_commands_give_the_same_scores_on_both_devices_and_from_exported_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exit_code(script: str, overrides: list[str]) -> int:
        return run(script.removesuffix(".py"), *overrides, cwd=tmp_path).returncode

    monkeypatch.setattr(commands, "exit_code", exit_code)
    config = plain(*TOY, name="benchmark")
    checks = list(commands.check_commands(gpu_context(config, tmp_path)))
    assert [check.outcome for check in checks] == [PASSED] * 12, checks
    assert checks[1].what == "evaluate.py device=cpu"
    assert len(commands.read_predictions(tmp_path / "work/commands/predict_cpu")) == 1797


def gpu_context(config: dict[str, Any], folder: Path) -> GpuContext:
    return GpuContext(
        config=config,
        choices=CHOICES,
        settings=GpuConfig(**config["gpu"]),
        device="cpu",
        out_dir=folder,
        work_dir=folder / "work",
        train=lambda run: None,
    )


def yielding(*items: Any) -> Iterator[Any]:
    yield from items


def hanging(pid_path: Path) -> Iterator[Any]:
    yield goal("before", 2.0, 1.0)
    pid_path.write_text(str(os.getpid()))
    while True:
        time.sleep(1)


def crashing() -> Iterator[Any]:
    yield equal("before", 1, 1, "things")
    os.kill(os.getpid(), signal.SIGKILL)


def failing() -> Iterator[Any]:
    yield within("before", 1.0, 2.0)
    raise ValueError("first line\nsecond line")


def test_a_part_that_hangs_crashes_or_fails_costs_only_itself(tmp_path: Path) -> None:
    results = Results(dict(ABOUT), tmp_path)
    pid_path = tmp_path / "pid"
    parts = [
        Part("hangs", partial(hanging, pid_path), 1.0),
        Part("crashes", crashing, 60),
        Part("fails", failing, 60),
        Part("works", partial(yielding, Row("step", "x", (1.0,), "images/s"), {"gpu": "H100"}), 60),
    ]
    run_parts(parts, results, total_s=120)
    content = json.loads((tmp_path / "gpu.json").read_text())
    assert [part["outcome"] for part in content["parts"]] == [
        "killed after 1 s; log: hangs.log",
        "exited with code -9; log: crashes.log",
        "ValueError: first line; log: fails.log",
        "finished",
    ]
    assert [len(part["checks"]) for part in content["parts"]] == [1, 1, 1, 0]
    assert content["parts"][3]["rows"][0]["median"] == 1.0
    assert content["hardware"]["gpu"] == "H100"
    assert "second line" in (tmp_path / "logs/fails.log").read_text()
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_path.read_text()), 0)
    assert [line.split(":")[0] for line in results.problems] == ["hangs", "crashes", "fails"]


def test_no_part_runs_longer_than_all_may(tmp_path: Path) -> None:
    results = Results(dict(ABOUT), tmp_path)
    run_parts([Part(name, partial(hanging, tmp_path / "pid"), 60) for name in "ab"], results, total_s=0.5)
    assert [part.outcome for part in results.parts] == [
        "killed after 0 s; log: a.log",
        "not run: the limit of 0.5 s was reached",
    ]


def test_results_are_on_disk_while_a_part_runs(tmp_path: Path) -> None:
    def look() -> Iterator[Any]:
        yield goal("first", 0.5, 1.0)
        time.sleep(0.5)
        (part,) = json.loads((tmp_path / "gpu.json").read_text())["parts"]
        assert (part["outcome"], part["checks"][0]["outcome"]) == ("running", MISSED)

    results = Results(dict(ABOUT), tmp_path)
    run_parts([Part("looks", look, 60)], results, total_s=60)
    assert results.parts[0].outcome == "finished"
    assert results.problems == []


def test_verdicts() -> None:
    assert within("x", 1e-4, 1e-4).outcome == PASSED
    assert within("x", 1.1e-4, 1e-4).outcome == FAILED
    assert within("x", float("nan"), 1.0).outcome == FAILED
    assert equal("x", 3, 3, "tensors").outcome == PASSED
    assert equal("x", 0, 0, "tensors").outcome == FAILED
    assert (goal("x", 0.95, 0.95).outcome, goal("x", 0.94, 0.95).outcome) == (MET, MISSED)


def test_the_largest_relative_error_is_that_of_the_worst_layer() -> None:
    expected = {"a.weight": torch.tensor([3.0, 4.0]), "a.bias": torch.zeros(1), "b.weight": torch.ones(2)}
    found = {**expected, "a.weight": torch.tensor([3.0, 4.4]), "a.bias": torch.tensor([0.3])}
    assert largest_error(found, expected) == pytest.approx(0.1)
    assert total_error(found, expected) == pytest.approx(0.5 / 27**0.5)
    assert largest_error(expected, expected) == total_error(expected, expected) == 0
    missing = {name: value for name, value in expected.items() if name != "b.weight"}
    assert not largest_error(missing, expected) <= 1e9, "a missing tensor is no agreement"
    assert not total_error(missing, expected) <= 1e9
    not_finite = {**expected, "a.bias": torch.tensor([float("nan")])}
    assert not largest_error(not_finite, expected) <= 1e9


def test_calls_are_counted_within_the_window_only() -> None:
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as profiler:
        torch.ones(3).sum().item()
        with torch.profiler.record_function(callbacks.WINDOW):
            torch.ones(3).sum().item()
            torch.ones(3).mean()
    found = callbacks.count_calls(profiler.events(), ["aten::item", "aten::mean", "cudaStreamSynchronize"])
    assert found["calls"] == {"aten::item in no operator": 1, "aten::mean in no operator": 1} or found["calls"] == {
        f"aten::item in {callbacks.WINDOW}": 1,
        f"aten::mean in {callbacks.WINDOW}": 1,
    }
    assert found["events"] > 4


def test_the_winners_are_combined_from_variants_that_differ_in_one_respect() -> None:
    from dataclasses import replace

    meter = object.__new__(StepMeter)
    meter.variants = {
        "ours": OURS,
        "NCHW": replace(OURS, channels_last=False),
        "graph": replace(OURS, graph=True),
        "compiled": replace(OURS, compiled=True),
        "float16": replace(OURS, bfloat16=False, float16=True),
        "failed": replace(OURS, optimizer={"fused": False, "foreach": True}),
    }
    meter.rates = {"ours": [100.0], "NCHW": [90.0], "graph": [120.0], "compiled": [130.0], "float16": [900.0]}
    assert meter.combination() == replace(OURS, compiled=True)
    assert describe(meter.combination()) == "bfloat16, channels last, fused, compiled"
    meter.rates["NCHW"] = [101.0]
    assert describe(meter.combination()) == "bfloat16, NCHW, fused, compiled"


def test_a_step_is_captured_after_steps_on_another_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """With stand-ins for the CUDA API: what a real device replays is measured there."""
    events: list[str] = []

    class Stream:
        def __init__(self, name: str = "side") -> None:
            self.name = name

        def wait_stream(self, other: "Stream") -> None:
            events.append(f"{self.name} waits for {other.name}")

    class Graph:
        def replay(self) -> None:
            events.append("replay")

    @contextmanager
    def scope(name: str) -> Iterator[None]:
        events.append(f"begin {name}")
        yield
        events.append(f"end {name}")

    main_stream = Stream("main")
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: main_stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: scope(stream.name))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: scope("capture"))
    replay = capture(lambda: events.append("step"), num_warmup=2)
    replay()
    replay()
    assert events == [
        *("side waits for main", "begin side", "step", "step", "end side", "main waits for side"),
        *("begin capture", "step", "end capture", "replay", "replay"),
    ]


def test_invalid_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"gpu\.steps must be at least 1; got 0"):
        GpuConfig(steps=0)
    with pytest.raises(ConfigError, match=r"gpu\.check_images must be divisible by 32; got 48"):
        GpuConfig(check_images=48)
    with pytest.raises(ConfigError, match=r"gpu\.nets and gpu\.batch_sizes must not be empty"):
        GpuConfig(batch_sizes=[])
    assert suites("gpu") == suites(["gpu"]) == ["gpu"]
    with pytest.raises(ConfigError, match=r"one or several of loader, .*, memory, or gpu; got \['gpu', 'step'\]"):
        suites(["gpu", "step"])


def test_unknown_parts_are_refused(tmp_path: Path) -> None:
    config = plain(*TOY, "gpu.parts=[nets]", name="benchmark")
    with pytest.raises(
        ConfigError, match=r"gpu\.parts must be null or a list of machine, photographs, .*; got \['nets'\]"
    ):
        main(Run(config=config, dir=tmp_path, choices=CHOICES))


def test_a_machine_without_gpu_is_refused(tmp_path: Path) -> None:
    config = plain(*TOY, "trainer.accelerator=auto", name="benchmark")
    with pytest.raises(
        ConfigError, match=r"suite=gpu needs a CUDA device, and none was found; to try the suite on the CPU, add"
    ):
        main(Run(config=config, dir=tmp_path, choices=CHOICES))


def test_a_failed_check_is_the_exit_code(tmp_path: Path) -> None:
    from alexlab.benchmark.gpu.suite import raise_problems
    from alexlab.errors import FindingsError

    results = Results(dict(ABOUT), tmp_path)
    run_parts([Part("bad", partial(yielding, Check("x is y", "z", "y", FAILED)), 60)], results, total_s=60)
    with pytest.raises(FindingsError, match=r"see gpu\.md; these did not: x is y"):
        raise_problems(results)
