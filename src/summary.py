"""Table of the layers of a network, without data or memory for its weights: `python src/summary.py --help`."""

from alexlab.cli.command import run_command

if __name__ == "__main__":
    run_command("summary")
