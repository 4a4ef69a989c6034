"""Preparation of data sets for training: `python src/prepare.py --help` shows the data sets and examples."""

from alexlab.cli.command import run_command

if __name__ == "__main__":
    run_command("prepare")
