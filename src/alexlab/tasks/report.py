"""`python src/report.py`: several runs in one page. Imports no torch at its top."""

from pathlib import Path
from typing import Any

from alexlab.output.escape import print_line, without_markdown


def run(config: dict[str, Any], *, run_dir: Path, choices: dict[str, str], isolated: bool = False) -> None:
    """Writes report.html, report.md, report.csv and pictures.

    Args:
        config: the composed config, plain data.
        run_dir: where they are written unless `out` says otherwise.
        choices: the option chosen in each config group; there is none here.
        isolated: of no use here, where nothing is trained.

    Raises:
        ConfigError: when there are no runs.
    """
    from alexlab.runs.compare import relative
    from alexlab.runs.report import write_report

    page = write_report([str(word) for word in config["runs"]], Path(config["out"] or run_dir))
    for line in page.with_name("report.md").read_text(encoding="utf-8").split("\n"):
        print_line(without_markdown(line))
    print_line(relative(page))
