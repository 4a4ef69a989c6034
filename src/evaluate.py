"""Metrics of a trained network on labelled images: `python src/evaluate.py --help` shows the options and examples."""

from alexlab.cli.command import run_command

if __name__ == "__main__":
    run_command("evaluate")
