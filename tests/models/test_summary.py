import re
from pathlib import Path

import pytest
import torch
from torch import nn

from alexlab.config import build
from alexlab.errors import ConfigError
from alexlab.models.summary import OTHER, layer_rows
from alexlab.records.run import Run
from alexlab.tasks.summary import main
from support.runs import plain, rows


def on_meta(*overrides: str) -> torch.nn.Module:
    with torch.device("meta"):
        return build.net(plain(*overrides, name="summary"), 1000)


def test_rows_match_the_docstring_table() -> None:
    found = {row.name: row for row in layer_rows(on_meta("model=alexnet"), channels=3, size=224)}
    conv2 = found["features.conv2"]
    assert (conv2.kernel, conv2.number, conv2.padding, conv2.stride) == ("5 x 5", 192, "2", "1")
    assert (conv2.input, conv2.output, conv2.parameters) == ("64 x 27 x 27", "192 x 27 x 27", 307_392)
    assert conv2.multiply_adds == 192 * 27 * 27 * 64 * 25
    assert conv2.memory_mib == pytest.approx(192 * 27 * 27 * 4 / 2**20)
    assert sum(row.parameters for row in found.values()) == 61_100_840


@pytest.mark.parametrize(("model", "millions"), [("alexnet", 714.2), ("alexnet_half", 311.2)])
def test_multiply_adds_match_a_manual_count(model: str, millions: float) -> None:
    found = layer_rows(on_meta(f"model={model}"), channels=3, size=224)
    assert sum(row.multiply_adds for row in found) / 1e6 == pytest.approx(millions, rel=0.005)


def test_two_groups_halve_the_multiply_adds() -> None:
    two, one = (
        {
            row.name: row.multiply_adds
            for row in layer_rows(on_meta("model=alexnet_two_tower", *options), channels=3, size=224)
        }
        for options in ((), ("model.groups=[1,1,1,1,1]",))
    )
    assert [one[f"features.conv{n}"] / two[f"features.conv{n}"] for n in range(1, 6)] == [1, 2, 1, 2, 2]


@pytest.mark.parametrize(
    ("name", "other", "giga"),
    # torchvision counts 17.564 G, 4.491 G with the window attention of swin_t, 4.456 G and 1.814 G.
    [
        ("vit_b_16", 152_064, 17.56),
        ("swin_t", 8_667_162, 2.963),
        ("convnext_tiny", 6_624, 4.456),
        ("resnet18", 0, 1.814),
    ],
)
def test_all_parameters_are_in_the_table(name: str, other: int, giga: float) -> None:
    net = on_meta("model=torchvision", f"model.name={name}")
    found = layer_rows(net, channels=3, size=224)
    assert sum(row.parameters for row in found) == sum(parameter.numel() for parameter in net.parameters())
    assert sum(row.parameters for row in found if row.name == OTHER) == other
    assert sum(row.multiply_adds for row in found) / 1e9 == pytest.approx(giga, rel=1e-3)


def test_shared_parameters_are_counted_once() -> None:
    with torch.device("meta"):
        layer = torch.nn.Conv2d(3, 3, 1)
    found = layer_rows(torch.nn.Sequential(layer, layer), channels=3, size=8)
    assert [(row.parameters, row.multiply_adds) for row in found] == [(12, 576), (0, 576)]


class Join(nn.Module):
    def forward(self, parts: list[torch.Tensor], *, scale: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"joined": torch.cat(parts, 1) * scale}


class Bias(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self) -> torch.Tensor:
        return self.bias


class Odd(nn.Module):
    """Net with layers that take lists, keywords or nothing, and return a dict or a number."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.join, self.bias = nn.Conv2d(3, 2, 1), Join(), Bias()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.conv(images)
        found: torch.Tensor = self.join([maps, maps], scale=self.bias())["joined"]
        return found


def test_layers_may_take_and_return_anything() -> None:
    with torch.device("meta"):
        net = Odd()
    found = [(row.name, row.input, row.output, row.parameters) for row in layer_rows(net, channels=3, size=8)]
    assert found == [("conv", "3 x 8 x 8", "2 x 8 x 8", 8), ("bias", "", "", 1), ("join", "2 x 8 x 8", "4 x 8 x 8", 0)]


def test_the_command_prints_and_writes_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = plain("model=alexnet_d2l", "model.in_channels=1", "model.num_classes=10", name="summary")
    main(Run(config=config, dir=tmp_path, choices={"model": "alexnet_d2l"}))
    printed = capsys.readouterr().out
    assert "model=alexnet_d2l: 1 channels, 224 x 224, 10 outputs" in printed
    assert re.search(r"all\b.*29,983,434", printed)
    assert sum(int(row["parameters"]) for row in rows(tmp_path / "summary.csv")) == 29_983_434


def test_a_small_image_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.image_size=30 is too small for this net: pool2 maps"):
        main(Run(config=plain("data.image_size=30", name="summary"), dir=tmp_path, choices={"model": "alexnet"}))
    for name, size in (("vit_b_16", 64), ("vgg11", 16)):
        config = plain("model=torchvision", f"model.name={name}", f"data.image_size={size}", name="summary")
        with pytest.raises(ConfigError, match=rf"^data\.image_size={size} does not fit the net: "):
            main(Run(config=config, dir=tmp_path, choices={"model": "torchvision"}))
