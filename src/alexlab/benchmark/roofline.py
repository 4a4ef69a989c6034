"""What the machine can do at best: the ceilings that the rows are measured against."""

import copy
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from alexlab.benchmark.interleave import Contender, Figures, contest, repeated
from alexlab.benchmark.table import Row
from alexlab.config import build
from alexlab.config.instantiate import Config
from alexlab.distributed.hardware import cpu_has_bfloat16
from alexlab.models.summary import layer_rows

SIDE = 2048  # of the matrices that are multiplied
CEILING = "matrix products"  # as a contender
COPIED = 1 << 28  # bytes; more than any cache


def multiply(dtype: torch.dtype, device: str) -> Callable[[], Figures]:
    """Large matrix products, in GFLOP/s."""
    side = SIDE if device == "cpu" else 4 * SIDE
    first, second, product = (torch.randn(side, side, device=device).to(dtype) for _ in range(3))

    def work() -> Figures:
        elapsed_s = elapsed(lambda: [torch.mm(first, second, out=product) for _ in range(4)], device)
        return {"rate": 4 * 2 * side**3 / elapsed_s / 1e9}

    return work


def copying(device: str) -> Callable[[], Figures]:
    """Copies of a large block from memory to memory, in GB/s; a byte that is read and written counts once."""
    source = torch.ones(COPIED, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def work() -> Figures:
        return {"rate": 4 * COPIED / elapsed(lambda: [target.copy_(source) for _ in range(4)], device) / 1e9}

    return work


def elapsed(work: Callable[[], Any], device: str) -> float:
    """Seconds that some work takes, to its end on the device."""
    wait(device)
    start_s = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - start_s


def wait(device: str) -> None:
    """Until the device has done everything that was asked of it."""
    if device == "cuda":
        torch.cuda.synchronize()


def ceilings(device: str, *, rounds: int, log_dir: Path) -> list[Row]:
    """Matrix products and copies in memory, on all cores or on the GPU."""
    kinds = {"matrix products, float32": torch.float32}
    if device == "cuda" or cpu_has_bfloat16():
        kinds["matrix products, bfloat16"] = torch.bfloat16
    contenders = [Contender(name, repeated(multiply, kind, device)) for name, kind in kinds.items()]
    contenders.append(Contender("copies in memory", repeated(copying, device)))
    found = contest(contenders, rounds=rounds, log_dir=log_dir, title="the machine")
    rows = [Row("machine", name, rates(found[name]), "GFLOP/s") for name in kinds]
    return [*rows, Row("machine", "copies in memory", rates(found["copies in memory"]), "GB/s")]


def rates(figures: Sequence[Figures], name: str = "rate") -> list[float]:
    """One figure of each round."""
    return [each[name] for each in figures]


def share(figures: Sequence[Figures], operations: float, ceiling: Sequence[Figures], name: str = "rate") -> str:
    """How far from the machine's matrix products some images/s are, round by round.

    Args:
        figures: with the images/s.
        operations: floating-point operations of an image.
        ceiling: the matrix products of the same rounds.
        name: of the images/s among the figures.
    """
    shares = [
        value * operations / 1e9 / gflops for value, gflops in zip(rates(figures, name), rates(ceiling), strict=True)
    ]
    return f"{100 * statistics.median(shares):.0f} % of {CEILING}"


def train_flops(config: Config, num_classes: int) -> tuple[float, float]:
    """Floating-point operations of an image in a training step and in an evaluation.

    Forward, and as many again for the gradients of the inputs, of which conv1 needs none, and of the weights. Activations,
    poolings and norms are left out.
    """
    node: Config = {**copy.deepcopy(config), "model": {**config["model"], "weights": None}}
    with torch.device("meta"):
        net = build.net(node, num_classes)
    layers = layer_rows(net, channels=config["data"]["channels"], size=config["data"]["image_size"])
    counts = [2.0 * layer.multiply_adds for layer in layers if layer.multiply_adds]
    return 3 * sum(counts) - counts[0], sum(counts)
