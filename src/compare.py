"""Comparison of two nets image by image: `python src/compare.py --help` shows the options and examples."""

from alexlab.cli.command import run_command

if __name__ == "__main__":
    run_command("compare")
