"""Task of `python src/report.py`: one page that compares runs."""

from pathlib import Path

from alexlab.output.command_line import short_path
from alexlab.output.escape import print_line, unescape_markdown
from alexlab.records.run import Run


def main(run: Run) -> None:
    """Write report.html, report.md, report.csv and plots, and print the table.

    Raises:
        ConfigError: if no run is found.
    """
    from alexlab.records.report import write_report

    patterns = [str(pattern) for pattern in run.config["runs"]]
    page = write_report(patterns, Path(run.config["out"] or run.dir), tags=run.config["tags"] or ())
    for line in page.with_name("report.md").read_text(encoding="utf-8").split("\n"):
        print_line(unescape_markdown(line))
    print_line(short_path(page))
