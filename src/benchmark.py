"""Measures this package beside others: `python src/benchmark.py`; `python src/benchmark.py --help` tells more."""

from alexlab.cli.command import run_command

if __name__ == "__main__":
    run_command("benchmark")
