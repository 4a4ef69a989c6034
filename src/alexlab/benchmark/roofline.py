"""Upper limits of the machine that other results are compared with: matrix products and copies in memory."""

import copy
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from alexlab.benchmark.interleave import Candidate, Figures, interleave, loop
from alexlab.benchmark.table import Row
from alexlab.config import build
from alexlab.config.instantiate import Config
from alexlab.distributed.hardware import cpu_has_bfloat16
from alexlab.models.summary import layer_rows

MATRIX_SIZE = 2048  # rows and columns on the CPU; four times as many on a GPU
CEILING = "matrix products"  # name of the candidate
COPY_BYTES = 1 << 28  # more than any cache


def matrix_products(dtype: torch.dtype, device: str) -> Callable[[], Figures]:
    """Return a function that multiplies large matrices, measured in GFLOP/s."""
    size = MATRIX_SIZE if device == "cpu" else 4 * MATRIX_SIZE
    first, second, product = (torch.randn(size, size, device=device).to(dtype) for _ in range(3))

    def work() -> Figures:
        elapsed_s = time_on_device(lambda: [torch.mm(first, second, out=product) for _ in range(4)], device)
        return {"rate": 4 * 2 * size**3 / elapsed_s / 1e9}

    return work


def memory_copies(device: str) -> Callable[[], Figures]:
    """Return a function that copies a large block of memory, measured in GB/s; a byte that is read and written counts once."""
    source = torch.ones(COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def work() -> Figures:
        elapsed_s = time_on_device(lambda: [target.copy_(source) for _ in range(4)], device)
        return {"rate": 4 * COPY_BYTES / elapsed_s / 1e9}

    return work


def time_on_device(work: Callable[[], Any], device: str) -> float:
    """Return the seconds until the device has finished a call."""
    synchronize(device)
    start_s = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start_s


def set_tf32(allowed: bool | None) -> None:
    """Allow or forbid TensorFloat-32 in convolutions and matrix products of float32 tensors; None allows it in convolutions only.

    The latter is PyTorch's default.

    Not through the newer `fp32_precision`: after it has been set to `tf32`, Lightning's query of the matrix precision raises.
    """
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed is not False


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def measure_ceilings(device: str, *, num_rounds: int, log_dir: Path) -> list[Row]:
    """Measure matrix products and copies in memory, on all cores or on the GPU."""
    dtypes = {"matrix products, float32": torch.float32}
    if device == "cuda" or cpu_has_bfloat16():
        dtypes["matrix products, bfloat16"] = torch.bfloat16
    candidates = [Candidate(name, loop(matrix_products, dtype, device)) for name, dtype in dtypes.items()]
    candidates.append(Candidate("copies in memory", loop(memory_copies, device)))
    results = interleave(candidates, num_rounds=num_rounds, log_dir=log_dir, title="machine")
    rows = [Row("machine", name, per_round(results[name]), "GFLOP/s") for name in dtypes]
    return [*rows, Row("machine", "copies in memory", per_round(results["copies in memory"]), "GB/s")]


def per_round(figures: Sequence[Figures], name: str = "rate") -> list[float]:
    """Return one figure of each round."""
    return [each[name] for each in figures]


def share_of_ceiling(
    figures: Sequence[Figures], operations: float, ceiling: Sequence[Figures], name: str = "rate"
) -> str:
    """Return images/s in percent of the matrix products of the same rounds, the median over the rounds.

    Args:
        figures: figures that contain the images/s.
        operations: floating-point operations per image.
        ceiling: figures of the candidate CEILING.
        name: key of the images/s.
    """
    shares = [
        rate * operations / 1e9 / gflops
        for rate, gflops in zip(per_round(figures, name), per_round(ceiling), strict=True)
    ]
    return f"{100 * statistics.median(shares):.0f} % of {CEILING}"


def train_flops(config: Config, num_classes: int) -> tuple[float, float]:
    """Return the floating-point operations per image of a training step and of an evaluation.

    A training step is the forward pass, and as much again for the gradients of the weights and of the inputs; conv1 needs none of
    its input. Activations, pooling layers and norms are not counted.
    """
    node: Config = {**copy.deepcopy(config), "model": {**config["model"], "weights": None}}
    with torch.device("meta"):
        net = build.net(node, num_classes)
    layers = layer_rows(net, channels=config["data"]["channels"], size=config["data"]["image_size"])
    counts = [2.0 * layer.multiply_adds for layer in layers if layer.multiply_adds]
    return 3 * sum(counts) - counts[0], sum(counts)
