"""Task of `python src/report.py`: one page that compares runs."""

from pathlib import Path
from typing import Any

from alexlab.output.escape import print_line, unescape_markdown


def run(config: dict[str, Any], *, run_dir: Path, choices: dict[str, str], isolated: bool = False) -> None:
    """Write report.html, report.md, report.csv and plots, and print the table.

    Args:
        config: the composed config, plain data.
        run_dir: folder of the report if `out` is null.
        choices: the option chosen in each config group; unused.
        isolated: of no use here, where nothing is trained.

    Raises:
        ConfigError: if no run is found.
    """
    from alexlab.runs.compare import relative
    from alexlab.runs.report import write_report

    page = write_report([str(pattern) for pattern in config["runs"]], Path(config["out"] or run_dir))
    for line in page.with_name("report.md").read_text(encoding="utf-8").split("\n"):
        print_line(unescape_markdown(line))
    print_line(relative(page))
