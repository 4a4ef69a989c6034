"""Preparation of datasets for training: `python src/prepare.py --help` shows the datasets and examples."""

from alexlab.cli.command import run_command

if __name__ == "__main__":
    run_command("prepare")
