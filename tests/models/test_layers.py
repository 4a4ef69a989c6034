"""Layers whose gradients are deterministic where PyTorch is asked for it."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from alexlab.models.alexnet import AlexNet
from alexlab.models.layers import AdaptiveAvgPool2d, CeilConv2d, MapNorm, ResponseNorm
from alexlab.models.vgg import VGG

# Operators whose CUDA kernels raise with deterministic algorithms (torch 2.11), among those that a net may use.
RANDOM_ORDER = {
    "aten._adaptive_avg_pool2d_backward.default",
    "aten.avg_pool3d_backward.default",
    "aten.max_pool3d_with_indices_backward.default",
    "aten.adaptive_max_pool2d_backward.default",
    "aten.cumsum.default",
    "aten.upsample_bilinear2d_backward.default",
}


class Recorder(TorchDispatchMode):
    """Names of all operators that are called, also in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.names.add(str(function))
        return function(*args, **(kwargs or {}))


@pytest.fixture
def _deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def operators(net: torch.nn.Module, size: int) -> set[str]:
    with Recorder() as recorder:
        F.cross_entropy(net(torch.rand(2, 3, size, size)), torch.tensor([0, 1])).backward()
    return recorder.names


@pytest.mark.usefixtures("_deterministic")
@pytest.mark.parametrize("norm", ["none", "lrn", "batch"])
def test_alexnet_has_no_operator_that_adds_in_random_order(norm: str) -> None:
    places = {"spatial_layers": (2,), "pool_kinds": ("max", "max", "avg"), "pool_ceil": True, "conv_ceil": True}
    net = AlexNet(2, widths=(4, 8, 8, 8, 8), fc_widths=(8,), groups=(1, 2, 1, 2, 2), norm=norm, **places)
    names = operators(net, 96)
    assert "aten.convolution_backward.default" in names
    assert not names & RANDOM_ORDER


@pytest.mark.usefixtures("_deterministic")
def test_vgg_has_no_operator_that_adds_in_random_order() -> None:
    assert not operators(VGG(2, width=1 / 32), 64) & RANDOM_ORDER


def test_the_recorder_finds_such_operators() -> None:
    net = AlexNet(2, widths=(4, 8, 8, 8, 8), fc_widths=(8,), norm="lrn")
    assert len(operators(net, 96) & RANDOM_ORDER) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    ("height", "width", "size"), [(6, 6, 6), (1, 1, 6), (13, 13, 6), (7, 5, 3), (12, 4, 2), (5, 5, 1)]
)
def test_deterministic_pooling_equals_that_of_pytorch(height: int, width: int, size: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    images = torch.rand(2, 3, height, width, dtype=dtype, requires_grad=True)
    upstream = torch.rand(2, 3, size, size, dtype=dtype)
    expected = F.adaptive_avg_pool2d(images, size)
    (expected_gradient,) = torch.autograd.grad(expected, images, upstream)
    torch.use_deterministic_algorithms(True)
    try:
        found = AdaptiveAvgPool2d(size)(images)
        (gradient,) = torch.autograd.grad(found, images, upstream)
    finally:
        torch.use_deterministic_algorithms(False)
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradient, expected_gradient)


def test_pooling_to_the_size_of_the_input_changes_no_bit() -> None:
    images = torch.rand(2, 3, 6, 6)
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.equal(AdaptiveAvgPool2d(6)(images), images)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("groups", [1, 2])
def test_deterministic_response_norm_equals_that_of_pytorch(groups: int) -> None:
    torch.manual_seed(0)
    images = torch.rand(2, 8, 5, 7).to(memory_format=torch.channels_last).requires_grad_()
    layer = ResponseNorm(groups)
    expected = layer(images)
    (expected_gradient,) = torch.autograd.grad(expected.square().sum(), images)
    torch.use_deterministic_algorithms(True)
    try:
        found = layer(images)
        (gradient,) = torch.autograd.grad(found.square().sum(), images)
    finally:
        torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradient, expected_gradient)


def test_map_norm_equals_a_loop_over_all_cells() -> None:
    """cnorm2 of the authors' code: b = a / (1 + .001 / 25 * sum over 5 x 5 cells of a^2) ^ .75; no cells outside count."""
    a = torch.rand(1, 2, 6, 7, dtype=torch.float64) * 300
    expected = torch.empty_like(a)
    for channel in range(2):
        for row in range(6):
            for column in range(7):
                total = 0.0
                for y in range(max(0, row - 2), min(6, row + 3)):
                    for x in range(max(0, column - 2), min(7, column + 3)):
                        total += float(a[0, channel, y, x]) ** 2
                expected[0, channel, row, column] = a[0, channel, row, column] / (1 + 0.001 / 25 * total) ** 0.75
    torch.testing.assert_close(MapNorm(5, 1e-3)(a), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "size"), [(11, 4, 0, 14), (3, 2, 1, 6), (3, 1, 1, 5), (2, 3, 0, 9)]
)
def test_ceil_convolution_equals_a_loop_over_windows_that_may_leave_the_image(
    kernel: int, stride: int, padding: int, size: int
) -> None:
    torch.manual_seed(0)
    layer = CeilConv2d(1, 1, kernel, stride, padding).double()
    image = torch.rand(1, 1, size, size, dtype=torch.float64)
    count = -(-(size + 2 * padding - kernel) // stride) + 1
    expected = torch.empty(1, 1, count, count, dtype=torch.float64)
    for row in range(count):
        for column in range(count):
            total = layer.bias.item()
            for y in range(kernel):
                for x in range(kernel):
                    i, j = row * stride - padding + y, column * stride - padding + x
                    if 0 <= i < size and 0 <= j < size:
                        total += float(image[0, 0, i, j]) * layer.weight[0, 0, y, x].item()
            expected[0, 0, row, column] = total
    torch.testing.assert_close(layer(image), expected)


def test_average_pooling_that_rounds_up_divides_by_the_cells_inside_of_the_image() -> None:
    """As Caffe and cuda-convnet do: the last window of 4 cells with kernel 3 and stride 2 has 2 x 2 cells."""
    net = AlexNet(2, widths=[1], kernels=[1], strides=[1], paddings=[0], groups=[1], pool_layers=[1], pool_kinds=["avg"],
                  pool_kernels=[3], pool_strides=[2], pool_ceil=True, pool_size=2, fc_widths=[])  # fmt: skip
    image = torch.arange(16.0).view(1, 1, 4, 4)
    assert net.features.pool1(image).flatten().tolist() == [5.0, 6.5, 11.0, 12.5]


@pytest.mark.parametrize("layer", [ResponseNorm(2), MapNorm(5, 1e-3)])
def test_norms_of_float16_do_not_overflow(layer: torch.nn.Module) -> None:
    images = torch.rand(1, 8, 5, 5) * 2000
    torch.testing.assert_close(layer(images.half()).float(), layer(images), rtol=2e-3, atol=0)
