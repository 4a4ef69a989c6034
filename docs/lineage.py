"""Write the table of nets in docs/models.md and their family tree in docs/images from docs/data/nets.json: `make results`.

Depth, parameters and multiply-adds are computed from the nets, built without memory; years, published errors and sources are
data.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir

from alexlab.config import CONFIG_DIR, build
from alexlab.models.summary import layer_rows

DOCS = Path(__file__).resolve().parent
BEGIN, END = "<!-- written by docs/lineage.py -->\n", "<!-- end -->\n"
COLUMNS = (
    "`model=`",
    "net",
    "year",
    "depth",
    "parameters",
    "multiply-adds",
    "image, outputs",
    "published error",
    "source",
)
WEIGHTED = ("ConvolutionBackward0", "AddmmBackward0")  # nodes of autograd's graph of convolutions and linear layers


@dataclass(frozen=True)
class Net:
    """Entry of nets.json with what is computed from the net."""

    entry: dict[str, Any]
    depth: int
    parameters: int
    multiply_adds: int


def nets() -> list[Net]:
    """Return all nets by year, those of no year last."""
    entries = json.loads((DOCS / "data/nets.json").read_text(encoding="utf-8"))
    return [measured(entry) for entry in sorted(entries, key=lambda entry: entry.get("year", 9999))]


def measured(entry: dict[str, Any]) -> Net:
    """Build the net of an entry on the meta device and count its layers, parameters and multiply-adds."""
    channels, size = entry["channels"], entry["size"]
    overrides = [f"model={entry['model']}", f"model.in_channels={channels}"]
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        config = compose("train", overrides)
    with torch.device("meta"):
        net = build.net({"model": dict(config["model"])}, entry["outputs"])
        depth = longest_path(net(torch.empty(2, channels, size, size)))
    multiply_adds = sum(row.multiply_adds for row in layer_rows(net, channels=channels, size=size))
    return Net(entry, depth, sum(parameter.numel() for parameter in net.parameters()), multiply_adds)


def longest_path(output: torch.Tensor) -> int:
    """Return the number of convolutions and linear layers on the longest path to an output."""

    @cache
    def length(node: Any) -> int:
        own = type(node).__name__ in WEIGHTED
        return own + max((length(before) for before, _ in node.next_functions if before is not None), default=0)

    return length(output.grad_fn)


def table() -> str:
    """Return the Markdown table of all nets."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + " --- |" * len(COLUMNS)]
    for net in nets():
        entry = net.entry
        image = f"{entry['channels']} x {entry['size']} x {entry['size']}, {entry['outputs']}"
        cells = [f"`{entry['model']}`", entry["net"], entry.get("year", ""), net.depth, f"{net.parameters:,}"]
        cells += [
            f"{net.multiply_adds / 1e6:,.3g} M" if net.multiply_adds < 1e9 else f"{net.multiply_adds / 1e9:.2f} G"
        ]
        cells += [image, entry.get("error", ""), entry.get("source", "")]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def page(text: str) -> str:
    """Return docs/models.md with its table replaced."""
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + "\n" + table() + "\n" + END + rest.partition(END)[2]


def draw(path: Path) -> None:
    """Draw the family tree: years, multiply-adds, parameters as areas, an arrow from each net to those derived from it."""
    from matplotlib.figure import Figure

    found = [net for net in nets() if "year" in net.entry]
    years = sorted({net.entry["year"] for net in found})
    places = {net.entry["model"]: (column, net.multiply_adds / 1e6) for column, net in enumerate(found)}
    figure = Figure(figsize=(13, 7), layout="constrained")
    axes = figure.subplots()
    for net in found:
        x, y = places[net.entry["model"]]
        color = "C0" if net.entry["outputs"] == 1000 else "C1"
        axes.scatter(x, y, s=net.parameters / 2e5 + 12, color=color, alpha=0.8, zorder=3)
        offset = {"xytext": (2, -6 - (net.parameters / 8e5) ** 0.5), "textcoords": "offset points"}
        axes.annotate(net.entry["model"], (x, y), **offset, rotation=-60, rotation_mode="anchor", va="top", fontsize=9)
        if parent := net.entry.get("parent"):
            style = {"arrowstyle": "->", "color": "grey", "alpha": 0.6, "connectionstyle": "arc3,rad=-0.15"}
            axes.annotate("", (x, y), places[parent], arrowprops=style)
    firsts = [next(i for i, net in enumerate(found) if net.entry["year"] == year) for year in years]
    axes.set_xticks(firsts, [str(year) for year in years])
    axes.set(yscale="log", ylabel="multiply-adds per image (millions)", xlim=(-1, len(found) + 1), ylim=(0.1, 2e4))
    axes.set_title("Nets of the family: areas are parameters; blue for 1000 classes, orange for 10")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    draw(DOCS / "images/lineage.png")
    models = DOCS / "models.md"
    models.write_text(page(models.read_text(encoding="utf-8")), encoding="utf-8")
    print("docs/models.md")
