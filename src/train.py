"""Training of a net on a folder of images: `python src/train.py --help` shows the groups, the options and examples."""

from alexlab.cli.command import run_command

if __name__ == "__main__":
    run_command("train")
