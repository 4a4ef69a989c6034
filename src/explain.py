"""Visual explanations of a trained network: `python src/explain.py --help` shows the options and examples."""

from alexlab.cli.command import run_command

if __name__ == "__main__":
    run_command("explain")
