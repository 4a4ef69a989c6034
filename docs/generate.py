"""Render docs/results.md, docs/benchmarks.md and the chart of the benchmarks from docs/data: `make results`.

Each JSON file of a page's folder is one section, in the order of the file names. Five forms are understood: benchmark.json as
`src/benchmark.py` writes it (rows that are objects), outputs/chaos.json as `make chaos` writes it (scenarios), result.json as
`src/reproduce.py` writes it (claims), records of runs as docs/collect.py writes them (runs), and plain tables (columns and
rows). The benchmarks end with docs/data/gpu.json as `make gpu` writes it, if it exists.
Title, text and notes are added by hand.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alexlab.inference.metrics import wilson_interval

DOCS = Path(__file__).resolve().parent
PAGES = {
    "results": """# Results

Accuracies measured with this code. Every table gives its command, date, hardware and seeds; `RUN` is a run folder and `DIR`
a folder of images. The tables of cats and dogs, CIFAR-10, the two papers and Imagenette come from the records of the runs; the
others were entered by hand from the output. Nothing was measured on a GPU or on the full ImageNet.

| images | source | splits |
| --- | --- | --- |
| cats and dogs | Kaggle's "Dogs vs. Cats" (2013) | of each class the files 1 to 1000 for train, 4001 to 4500 for val |
| CIFAR-10 | the training images, converted to JPEG of quality about 75 | a tenth held out by alexlab: 45,000 train, 5,000 val |
| Imagenette | ten classes of ImageNet, 224 x 224 | 250 train and 100 val of each class, a part of `dataset=imagenette` |
| Fashion-MNIST | the original images, 28 x 28, grey | 60,000 train, 10,000 test |
| handwritten digits | scikit-learn's, 8 x 8 | 1,257 train, 270 val, 270 test, by alexlab |

`python src/prepare.py dataset=cifar10` and `dataset=imagenette` download all original images of the second and third, which give
different scores.
""",
    "benchmarks": """# Benchmarks

Speed, memory and reliability. Timings compare alexlab with a baseline in interleaved rounds, so that a machine that slows
down affects both. Ratios above 1 mean that alexlab is better, and are followed by their smallest and largest value. A ratio is
the median of the ratios of the rounds, so it can differ from that of the two medians. GPU checks are in the
[last section](#on-a-gpu).

```sh
make bench
make chaos
python src/benchmark.py 'suite=[loader,step]' data.cache=packed
python src/benchmark.py suite=epochs peer='python other/train.py --data {root} --epochs {epochs}'
```

`make bench` runs all suites (40 minutes on 2 cores) and writes `benchmark.json`, `benchmark.md` and `benchmark.png`:
`loader`, `step`, `epochs` (whole epochs compared with a bare PyTorch loop, stock Lightning and torchvision's reference loop),
`startup`, `scaling` and `memory`. It also measures the machine's limits in matrix products and copies. Without `data.root=`
it generates photographs. `peer=` times the whole command of another program, interleaved with ours. `make chaos` injects
faults and writes `outputs/chaos.json`.

![Every comparison below as a bar: the ratio to its baseline](images/benchmark.png)
""",
}
GPU = """## On a GPU

`make gpu` checks on a CUDA device that steps, crops, resumed runs and exported nets equal those of the CPU and that no step
waits for the device, and measures steps and whole epochs, in at most 9 minutes. Each part has its own process and time limit,
and `gpu.json` and `gpu.md` are written after each. It also measures torchvision's JPEG decoder on the device, which no option
uses: torchvision 0.29 deprecates it. For a machine with PyTorch and Lightning on Python 3.12, but without
network, `make gpu-wheels` packs the other packages into the checkout.

```sh
make gpu-wheels
make gpu OUT=FOLDER
python src/benchmark.py suite=gpu 'gpu.parts=[photographs,crops]'
```
"""
NOT_MEASURED = """
Nothing has been measured on a GPU yet: `gpu.json` goes to `docs/data`, and `make results` renders it here.
"""
FOOTER = "\n*This page is generated from `docs/data/{page}/*.json` by `make results`.*\n"


def render(page: str) -> str:
    """Return the Markdown of a page.

    Args:
        page: a key of `PAGES`.
    """
    paths = sorted((DOCS / "data" / page).glob("*.json"))
    sections = [section(json.loads(path.read_text(encoding="utf-8"))) for path in paths]
    if page == "benchmarks":
        path = DOCS / "data/gpu.json"
        sections.append(gpu_section(json.loads(path.read_text(encoding="utf-8")) if path.exists() else None))
    return "\n".join([PAGES[page], *sections]) + FOOTER.format(page=page)


def gpu_section(content: Mapping[str, Any] | None) -> str:
    """Return the section of gpu.json, or a sentence if there is none: parts that did not finish, checks, measurements."""
    if content is None:
        return GPU + NOT_MEASURED
    unfinished = [[part["name"], part["outcome"]] for part in content["parts"] if part["outcome"] != "finished"]
    checks = [list(check.values()) for part in content["parts"] for check in part["checks"]]
    rows = [row for part in content["parts"] for row in part["rows"]]
    tables = [
        table(["part", "outcome"], unfinished) if unfinished else "",
        table(["check or goal", "measured", "required", "outcome"], checks) if checks else "",
        table(*cells({"rows": rows})) if rows else "",
        provenance(content),
    ]
    return "\n\n".join([GPU.rstrip(), *filter(None, tables)]) + "\n"


def section(content: Mapping[str, Any]) -> str:
    """Return one measurement: heading, text, commands, table, provenance and notes."""
    parts = [f"## {content['title']}", content.get("text", "")]
    commands = [content["command"]] if "command" in content else content.get("commands", [])
    if commands:
        parts.append("\n".join(["```sh", *commands, "```"]))
    parts += [table(*cells(content)), provenance(content), *content.get("notes", [])]
    if image := content.get("image"):
        parts.append(f"![{image['text']}]({image['path']})")
    return "\n\n".join(part for part in parts if part) + "\n"


def cells(content: Mapping[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """Return the columns and rows of a measurement in any of the forms."""
    if "scenarios" in content:
        columns = ["fault and expected outcome", "as expected", "stock Lightning", "remarks"]
        return columns, [
            [row["what"], f"{row['passed']} of {row['tries']}", row["stock"], row["remarks"]]
            for row in content["scenarios"]
        ]
    if "runs" in content:
        return run_cells(content["runs"])
    if "claims" in content:
        names = ("title", "paper", "ours", "verdict")
        columns = ["claim", "paper", "ours (95 % interval)", "verdict"]
        return columns, [[claim[name] for name in names] for claim in content["claims"]]
    if "columns" in content:
        return content["columns"], content["rows"]
    rows = [benchmark_row(row) for row in content["rows"]]
    columns = ["what", "measured", "compared with", "measured", "ratio", "limited by"]
    shown = [i for i in range(len(columns)) if any(row[i] for row in rows)]
    return [columns[i] for i in shown], [[row[i] for i in shown] for row in rows]


def run_cells(runs: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """Return a row per command: scores with their 95 % interval, of several seeds with the standard deviation."""
    by_command: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        by_command.setdefault(run["command"], []).append(run)
    rows = []
    for command, same in by_command.items():
        counts, best = same[0]["images"], statistics.median_low(run["scores"]["best/epoch"] for run in same)
        rows.append(
            [
                f"`{command}`",
                f"{same[0]['parameters']:,}",
                ", ".join(f"{count:,} {split}" for split, count in counts.items()),
                score(same, "best/top1", counts["val"]),
                f"{best:g} of {same[0]['epochs']}",
                score(same, "test/top1", counts.get("test", 0)),
                duration(statistics.median(run["elapsed_s"] for run in same)),
            ]
        )
    columns = ["command", "parameters", "images", "val/top1", "best epoch", "test/top1", "time"]
    shown = [i for i in range(len(columns)) if any(row[i] for row in rows)]
    return [columns[i] for i in shown], [[row[i] for i in shown] for row in rows]


def score(runs: Sequence[Mapping[str, Any]], name: str, count: int) -> str:
    """Return an accuracy with its Wilson interval over the images or, of several seeds, its standard deviation over them."""
    values = [run["scores"][name] for run in runs if name in run["scores"]]
    if not values:
        return ""
    if len(values) > 1:
        return f"{statistics.fmean(values):.3f} ± {statistics.stdev(values):.3f}"
    low, high = wilson_interval(round(values[0] * count), count)
    return f"{values[0]:.3f} ({low:.3f} to {high:.3f})"


def duration(seconds: float) -> str:
    """Return a duration as `2 h 05 min` or `3 min 20 s`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min {rest:02} s"


def benchmark_row(row: Mapping[str, Any]) -> list[str]:
    """Return the cells of a row of benchmark.json; one without the values of each round holds the ratios' range."""
    unit, ratio = row["unit"], ""
    if "ratio" in row:
        low, high = row["ratio_range"] if "ratio_range" in row else ratio_range(row)
        ratio = f"{row['ratio']:.2f} ({low:.2f} to {high:.2f})"
    other = f"{number(row['baseline_median'])} {unit}" if "baseline_median" in row else ""
    return [row["what"], f"{number(row['median'])} {unit}", row.get("baseline", ""), other, ratio, row.get("limit", "")]


def ratio_range(row: Mapping[str, Any]) -> tuple[float, float]:
    """Return the smallest and the largest ratio of the rounds; above 1 is better."""
    pairs = zip(row["values"], row["baseline_values"], strict=True)
    ratios = [base / value if row["unit"] in ("s", "ms", "MB") else value / base for value, base in pairs]
    return min(ratios), max(ratios)


def provenance(content: Mapping[str, Any]) -> str:
    """Return date, hardware, versions and seeds in one line."""
    if runs := content.get("runs"):
        first, last = min(run["date"] for run in runs), max(run["date"] for run in runs)
        date, seeds = first if first == last else f"{first} to {last}", sorted({run["seed"] for run in runs})
        content = {**runs[-1], "date": date, "seeds": seeds}
    hardware, seeds = content["hardware"], content.get("seeds") or [content["seed"]]
    versions = [f"{name} {version}" for name, version in content["versions"].items()]
    numbers, gpu = ", ".join(map(str, seeds)), hardware.get("gpu") or "no GPU"
    parts = [content["date"], f"{hardware['cores']} cores ({hardware['cpu']}), {gpu}", *versions]
    parts += [f"seed{'s' if len(seeds) > 1 else ''} {numbers}"]
    parts += [f"`{content['settings']}`"] if "settings" in content else []
    return f"*{', '.join(parts)}.*"


def number(value: float) -> str:
    """Return three significant digits."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a Markdown table; None is an empty cell."""
    texts = [[str("" if cell is None else cell).replace("|", "\\|") for cell in row] for row in rows]
    lines = [f"| {' | '.join(columns)} |", "|" + " --- |" * len(columns)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in texts)])


def draw(path: Path) -> None:
    """Draw every ratio of the benchmarks, with its range, as one bar chart."""
    from matplotlib.figure import Figure

    contents = [
        json.loads(path.read_text(encoding="utf-8")) for path in sorted((DOCS / "data/benchmarks").glob("*.json"))
    ]
    rows = [row for content in contents for row in content.get("rows", []) if "ratio" in row]
    figure = Figure(figsize=(10, 1 + 0.28 * len(rows)), layout="constrained")
    axes = figure.subplots()
    suites = list(dict.fromkeys(row["suite"] for row in rows))
    ratios = [row["ratio"] for row in rows]
    ranges = [row["ratio_range"] if "ratio_range" in row else ratio_range(row) for row in rows]
    errors = list(
        zip(*((ratio - low, high - ratio) for ratio, (low, high) in zip(ratios, ranges, strict=True)), strict=True)
    )
    colors = [f"C{suites.index(row['suite'])}" for row in rows]
    axes.barh(range(len(rows)), ratios, xerr=errors, color=colors, capsize=2, height=0.7)
    labels = [f"{row['what']}, compared with {row['baseline']}".replace("`", "") for row in rows]
    axes.set_yticks(range(len(rows)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set(xlabel="ratio to the baseline, above 1 is better (median, min, max)", xscale="log")
    axes.set_xticks([0.7, 1, 2, 5, 10, 20], ["0.7", "1", "2", "5", "10", "20"])
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    draw(DOCS / "images/benchmark.png")
    for name in PAGES:
        (DOCS / f"{name}.md").write_text(render(name), encoding="utf-8")
        print(f"docs/{name}.md")
