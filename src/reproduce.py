"""Reproduction of a paper's claims: `python src/reproduce.py --help` shows the options and examples."""

from alexlab.cli.command import run_command

if __name__ == "__main__":
    run_command("reproduce")
