"""Time alexlab next to baselines: `python src/benchmark.py --help`."""

from alexlab.cli.command import run_command

if __name__ == "__main__":
    run_command("benchmark")
