"""Store the records of finished runs for a section of docs/results.md: `python docs/collect.py NAME RUN...`.

It replaces `runs` in docs/data/results/NAME.json and keeps the title, text and notes, which are written by hand; a new file
gets its name as title. `make results` renders it.
"""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alexlab.records.find import find_runs
from alexlab.records.results import RunResult, read_runs

RESULTS = Path(__file__).resolve().parent / "data/results"
VERSIONS = ("torch", "torchvision", "lightning")
PRIVATE = ("outputs=", "data.cache_dir=", "data.num_workers=", "hydra.run.dir=")  # do not affect the result
ROOT = "data.root="


def collect(name: str, patterns: Sequence[str]) -> Path:
    """Write the runs that match the patterns to a section's file and return its path.

    Args:
        name: name of the file without its ending.
        patterns: run folders, folders that contain them, or globs.
    """
    path = RESULTS / f"{name}.json"
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"title": name}
    runs = [summary(run) for run in read_runs(find_runs(patterns)) if run.status == "finished"]
    runs.sort(key=lambda run: (run["command"], run["seed"]))
    path.write_text(json.dumps(content | {"runs": runs}, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def summary(run: RunResult) -> dict[str, Any]:
    """Return what the page shows of a run, without paths of the machine."""
    record = run.record
    return {
        "command": command(record["attempts"][0]["command"][1:]),  # that of a resumed run names only its folder
        "seed": run.seed,
        "date": time.strftime("%Y-%m-%d", time.gmtime(run.start_s)),
        "hardware": {name: record["hardware"][name] for name in ("cpu", "cores")},
        "versions": {name: record["versions"][name] for name in VERSIONS},
        "commit": record["code"]["commit"],
        "images": record["data"]["counts"],
        "parameters": record["parameters"],
        "epochs": run.max_epochs,
        "elapsed_s": run.elapsed_s,
        "scores": {name: value for name, value in record["scores"].items() if not name.endswith("/skipped")},
    }


def command(overrides: Sequence[str]) -> str:
    """Return the command of a run without its seed, with DIR for the folder of images."""
    kept = [override for override in overrides if not override.startswith(("seed=", *PRIVATE))]
    shown = [f"{ROOT}DIR" if override.startswith(ROOT) else override for override in kept]
    return " ".join(["python src/train.py", *shown])


if __name__ == "__main__":
    print(collect(sys.argv[1], sys.argv[2:]))
