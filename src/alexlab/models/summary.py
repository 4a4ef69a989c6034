"""Table of a net's layers, computed on the meta device without allocating memory."""

import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn

from alexlab.models.layers import WINDOWED
from alexlab.output.csv_files import write_csv
from alexlab.output.terminal import Terminal

ATTENTION = nn.MultiheadAttention  # a layer, although it has a child
OTHER = "other parameters"


@dataclass(frozen=True)
class Layer:
    """Properties of a layer, for a batch of one image.

    Args:
        name: name of the submodule.
        kind: class name.
        kernel, stride, padding: kernel size, stride and padding of a convolution or pooling, such as "11 x 11", "4" and "2".
        number: number of output channels or features.
        input, output: shapes without the batch dimension, such as "64 x 55 x 55".
        parameters: number of parameters, trainable or not; 0 for those that an earlier row has counted.
        multiply_adds: multiply-adds per image of a convolution, linear layer or `nn.MultiheadAttention`; 0 for other layers, and
            not counted in code outside layers, such as the window attention of torchvision's Swin.
        memory_mib: size of the output of one image in float32, in MiB.
    """

    name: str
    kind: str
    kernel: str
    number: int
    padding: str
    stride: str
    input: str
    output: str
    parameters: int
    multiply_adds: int
    memory_mib: float


def layer_rows(net: nn.Module, *, channels: int, size: int) -> list[Layer]:
    """Return the layers of a net in the order of the forward pass of an image (channels, size, size).

    Parameters that no layer holds or that the net uses without calling their layer are in a last row, OTHER.

    Args:
        net: net on the meta device.
        channels: channels of the image.
        size: height and width of the image.

    Raises:
        ValueError: if the image is too small for the net.
    """
    check_size = getattr(net, "check_image_size", None)
    if check_size is not None:
        check_size(size)
    rows: list[Layer] = []
    names = {layer: name for name, layer in net.named_modules()}
    sizes = {parameter: parameter.numel() for parameter in net.parameters()}  # of the parameters without a row

    def record(layer: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
        parameters = sum(sizes.pop(parameter, 0) for parameter in layer.parameters())
        rows.append(_row(names[layer], layer, _shape([inputs, keywords]), _shape(output), parameters))

    leaves = [layer for layer in net.modules() if not list(layer.children()) or isinstance(layer, ATTENTION)]
    hooks = [layer.register_forward_hook(record, with_kwargs=True) for layer in leaves]
    training = net.training
    net.eval()
    net(torch.empty(1, channels, size, size, device="meta"))
    net.train(training)
    for hook in hooks:
        hook.remove()
    if sizes:
        rows.append(Layer(OTHER, "", "", 0, "", "", "", "", sum(sizes.values()), 0, 0.0))
    return rows


def _shape(value: Any) -> tuple[int, ...]:
    """Return the shape, without the batch dimension, of the first tensor in nested values that has more; () without one."""
    if isinstance(value, Tensor):
        return tuple(value.shape[1:])
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return next(filter(None, map(_shape, parts)), ())


def _row(name: str, layer: nn.Module, input: tuple[int, ...], shape: tuple[int, ...], parameters: int) -> Layer:
    window: Any = layer if isinstance(layer, WINDOWED) else None
    return Layer(
        name=name,
        kind=type(layer).__name__,
        kernel=_pair(window.kernel_size) if window else "",
        number=shape[0] if shape else 0,
        padding=_single(window.padding) if window else "",
        stride=_single(window.stride) if window else "",
        input=_size(input),
        output=_size(shape),
        parameters=parameters,
        multiply_adds=_multiply_adds(layer, shape),
        memory_mib=math.prod(shape) * 4 / 2**20 if shape else 0.0,
    )


def print_layers(terminal: Terminal, rows: list[Layer], title: str) -> None:
    """Print a table of layers with the totals in its last row; a narrow terminal gets fewer columns."""
    table = Table(title=title)
    columns = ("layer", "kind", "kernel", "padding", "stride", "input", "output", "parameters", "multiply-adds")
    for column in (*columns, "output KiB"):
        table.add_column(column, justify="left" if column in ("layer", "kind") else "right")
    for row in rows:
        table.add_row(row.name, row.kind, row.kernel, row.padding, row.stride, row.input, row.output, *_sums([row]))
    table.add_section()
    table.add_row("all", *[""] * 6, *_sums(rows))
    terminal.print_table(
        table, optional=("output KiB", "padding", "input", "multiply-adds", "stride", "kernel", "kind")
    )


def _sums(rows: list[Layer]) -> tuple[str, str, str]:
    """Return parameters, multiply-adds and KiB of outputs."""
    memory_kib = 1024 * sum(row.memory_mib for row in rows)
    return (
        f"{sum(row.parameters for row in rows):,}",
        f"{sum(row.multiply_adds for row in rows):,}",
        f"{memory_kib:,.0f}" if memory_kib >= 10 else f"{memory_kib:.1f}",
    )


def write_rows(rows: list[Layer], path: Path) -> None:
    """Write the rows as CSV."""
    write_csv(path, [[column.name for column in fields(Layer)], *(asdict(row).values() for row in rows)])


def _multiply_adds(layer: nn.Module, shape: tuple[int, ...]) -> int:
    if isinstance(layer, nn.Conv2d | nn.Linear):
        return math.prod(shape) * layer.weight[0].numel()
    if isinstance(layer, ATTENTION):
        width = layer.embed_dim
        length = math.prod(shape) // width
        return length * width * (4 * width + 2 * length)  # four projections; the scores, and the sums that they weight
    return 0


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _single(value: int | tuple[int, ...] | str) -> str:
    return str(value[0]) if isinstance(value, tuple) else str(value)


def _pair(value: int | tuple[int, ...]) -> str:
    return _size(value) if isinstance(value, tuple) else f"{value} x {value}"
