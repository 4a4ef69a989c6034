"""Web page to try a trained network: `python src/demo.py --help` shows the options and an example."""

from alexlab.cli.command import run_command

if __name__ == "__main__":
    run_command("demo")
