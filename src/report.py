"""Compares runs in one page: `python src/report.py FOLDER...`; `python src/report.py --help` tells more."""

from alexlab.cli.command import run_command

if __name__ == "__main__":
    run_command("report")
