"""Shows a net layer by layer, without data and without memory for its weights: `python src/summary.py --help`."""

from alexlab.cli.command import run_command

if __name__ == "__main__":
    run_command("summary")
