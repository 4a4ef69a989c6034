"""Results of a reproduction: a table in the terminal, a page that works offline, `claims.csv` and `result.json`."""

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alexlab.errors import AlexlabError
from alexlab.output.csv_files import write_csv
from alexlab.output.numbers import counted
from alexlab.pages.plots import svg
from alexlab.pages.render import file_links, render
from alexlab.papers.estimates import AGREES, DIFFERS, MARGIN, UNDECIDED
from alexlab.papers.measurement import Measurement
from alexlab.papers.paper import Claim, missing_root
from alexlab.papers.reproduction import Reproduction
from alexlab.records.atomic import write_atomic
from alexlab.records.results import RunResult

NOT_RUN, SKIPPED = "not run yet", "skipped"
PAGE, TABLE, RESULT = "reproduce.html", "claims.csv", "result.json"
COLUMNS = ["Claim", "Paper", "Ours (95 % interval)", "Verdict"]
VERSIONS = ("torch", "torchvision", "lightning")
CLASSES = {AGREES: "good", DIFFERS: "bad", NOT_RUN: "running", SKIPPED: "running"}
RULES = (
    "A claim about a difference agrees if the 95 % interval of the difference lies on the side that the paper states, differs if "
    "it lies on the other side, and is inconclusive if it includes zero, or 1 for a ratio. The paper's number is shown but not "
    "used for the verdict, because images and nets can differ from the paper's.",
    "Differences of settings have Student's interval over the seeds, with the variance pooled over all settings of the recipe. "
    "Their scores are those of the epoch with the best validation, in float32.",
    "A score that is compared with a published one is that of the last epoch, in the precision of the training. It agrees if the "
    f"lower end of its 95 % interval is at least the published score minus {MARGIN:g}, and differs if the upper end is below "
    "that.",
    "Ten crops are compared with the centre crop of the same run. Epochs are compared between runs of the same seed, with the "
    "interval of the logarithm of their ratio. The intervals of an average of nets and of neighbours are over the images, that "
    "of the kernels over the nets.",
)


@dataclass(frozen=True)
class ClaimResult:
    """A claim and its result.

    Args:
        name: name of the claim.
        claim: the claim.
        found: its result; None without one.
        verdict: agrees, differs, inconclusive, not run yet or skipped.
        note: a sentence about the result, or why there is none.
    """

    name: str
    claim: Claim
    found: Measurement | None
    verdict: str
    note: str

    @property
    def published(self) -> str:
        """The number of the paper as text: points, a ratio, or the score after the last or the measured epoch."""
        number = self.claim.published
        if isinstance(number, Sequence):
            found = self.found and self.found.published
            return f"{found or number[-1]:.3f}"
        if number is None:
            return "-"
        return f"{number:g} times" if self.claim.kind == "epochs_to_error" else f"{100 * number:+.1f} points"

    @property
    def ours(self) -> str:
        return "-" if self.found is None else self.found.ours


def measure_claims(reproduction: Reproduction) -> list[ClaimResult]:
    """Return the result of each claim."""
    rows = []
    for name, claim in reproduction.claims.items():
        missing = missing_root(reproduction.paper, claim, reproduction.roots)
        try:
            found = reproduction.measure(claim)
        except AlexlabError as error:
            rows.append(ClaimResult(name, claim, None, UNDECIDED, f"It cannot be measured: {error}"))
            continue
        if missing is not None:
            rows.append(ClaimResult(name, claim, None, SKIPPED, f"Set {missing}=DIR to the folder of its images."))
        elif found is None and not _incomplete(reproduction, claim):
            rows.append(
                ClaimResult(
                    name, claim, None, UNDECIDED, f"{_counts(reproduction, claim)} They lack what it is measured on."
                )
            )
        elif found is None:
            rows.append(ClaimResult(name, claim, None, NOT_RUN, _counts(reproduction, claim)))
        else:
            few = any(len(reproduction.finished(setting)) < claim.min_seeds for setting in claim.settings)
            verdict = UNDECIDED if few else found.verdict
            notes = (found.detail, _incomplete(reproduction, claim), _diagnoses(reproduction, claim))
            rows.append(ClaimResult(name, claim, found, verdict, " ".join(filter(None, notes))))
    return rows


def _counts(reproduction: Reproduction, claim: Claim) -> str:
    counts = (
        f"{name} {len(reproduction.finished(name))} of {len(reproduction.seeds_of(name))}" for name in claim.settings
    )
    failed = sum(run.setting in claim.settings for run in reproduction.failed())
    hint = f" {counted(failed, 'run')} failed; launcher.retry_failed=true retries them." if failed else ""
    return f"Finished runs: {', '.join(counts)}.{hint}"


def _incomplete(reproduction: Reproduction, claim: Claim) -> str:
    complete = all(len(reproduction.finished(name)) == len(reproduction.seeds_of(name)) for name in claim.settings)
    return "" if complete else _counts(reproduction, claim)


def _diagnoses(reproduction: Reproduction, claim: Claim) -> str:
    """Return the problems that the runs of a claim found in their own training; empty without any."""
    runs = [run for setting in claim.settings for run in reproduction.finished(setting)]
    return " ".join(
        f"Diagnosis of {run.folder.name}: {run.record['diagnosis']}." for run in runs if run.record.get("diagnosis")
    )


def write_results(reproduction: Reproduction) -> Path:
    """Measure the claims, print them, and write the files; return the path of the page."""
    from rich.table import Table

    from alexlab.output.terminal import Terminal

    rows = measure_claims(reproduction)
    runs = reproduction.all_finished()
    table = Table(*COLUMNS)
    for row in rows:
        table.add_row(row.claim.title, row.published, row.ours, row.verdict)
    Terminal().print_table(table)
    folder = reproduction.folder
    folder.mkdir(parents=True, exist_ok=True)
    values = [_values(row) for row in rows]
    write_csv(folder / TABLE, [list(values[0]), *([*each.values()] for each in values)])
    content = {
        "paper": reproduction.paper.title,
        "scale": reproduction.scale,
        "seeds": [*range(1, reproduction.num_seeds + 1)],
        "date": time.strftime("%Y-%m-%d", time.localtime(max((run.start_s for run in runs), default=time.time()))),
        **_machine(runs),
        "claims": values,
    }
    write_atomic(folder / RESULT, (json.dumps(content, indent=1) + "\n").encode())
    page = folder / PAGE
    write_atomic(page, render_reproduction(reproduction, rows, runs).encode())
    return page


def _values(row: ClaimResult) -> dict[str, Any]:
    estimate = None if row.found is None else row.found.estimate
    return {
        "claim": row.name,
        "title": row.claim.title,
        "place": row.claim.place,
        "paper": row.published,
        "ours": row.ours,
        "published": row.claim.published if row.found is None else row.found.published or row.claim.published,
        "value": estimate and estimate.value,
        "low": estimate and estimate.low,
        "high": estimate and estimate.high,
        "verdict": row.verdict,
        "note": row.note,
    }


def _machine(runs: Sequence[RunResult]) -> dict[str, Any]:
    """Return hardware and versions of the first run, and the time of all runs in seconds."""
    if not runs:
        return {}
    record = runs[0].record
    return {
        "hardware": {
            "cpu": record["hardware"]["cpu"],
            "cores": record["hardware"]["cores"],
            "gpu": ", ".join(record.get("gpus") or []),
        },
        "versions": {name: record["versions"][name] for name in VERSIONS if name in record["versions"]},
        "train_s": round(sum(run.elapsed_s or 0 for run in runs)),
    }


def render_reproduction(reproduction: Reproduction, rows: Sequence[ClaimResult], runs: Sequence[RunResult]) -> str:
    """Return the page of a reproduction.

    Args:
        reproduction: the reproduction.
        rows: its claims and their results.
        runs: its finished runs, also at learning rates that were not chosen.
    """
    counts = Counter(row.verdict for row in rows)
    order = [name for name in (AGREES, DIFFERS, UNDECIDED, NOT_RUN, SKIPPED) if counts[name]]
    paper = reproduction.paper
    facts = {
        "Source": paper.source,
        "Scale": reproduction.scale,
        "Seeds": reproduction.num_seeds,
        **{f"{key}.root": root for key, root in reproduction.roots.items() if root},
        "Runs": f"{len(runs)} finished",
        "Folder": file_links([reproduction.runs_dir], reproduction.folder),
    }
    if machine := _machine(runs):
        hardware = machine["hardware"]
        names = ", ".join(filter(None, [hardware["gpu"], hardware["cpu"]]))
        facts["Computer"] = f"{names}, cores per run: {hardware['cores']}"
        facts["Time of the runs"] = f"{machine['train_s'] / 3600:.1f} h"
    sentence = f"{', '.join(_counted(counts[name], name) for name in order)}."
    return render(
        "reproduce.html",
        title=paper.title,
        kind="Reproduction",
        score=(str(counts[AGREES]), f"of {len(rows)}", "claims agree"),
        sentence=f"{sentence} {paper.reduction}" if reproduction.scale == "small" else sentence,
        facts=facts,
        columns=COLUMNS,
        rows=[[row.claim.title, row.published, row.ours, row.verdict] for row in rows],
        classes=[CLASSES.get(row.verdict, "") for row in rows],
        claims=[_section(row) for row in rows],
        rules=RULES,
    )


def _counted(count: int, verdict: str) -> str:
    """Return a number of claims with their verdict: `3 agree`, `1 differs`, `2 inconclusive`."""
    return f"{count} {verdict.removesuffix('s') if count > 1 and verdict in (AGREES, DIFFERS) else verdict}"


def _section(row: ClaimResult) -> dict[str, Any]:
    """Return the variables of the section of a claim."""
    panels = row.found.panels if row.found else []
    return {
        "row": row,
        "class": CLASSES.get(row.verdict, ""),
        "plots": [
            (panel.name, panel.caption, svg(panel.figure(), f"{row.claim.title}: {panel.name}")) for panel in panels
        ],
        "grids": row.found.grids if row.found else [],
    }
