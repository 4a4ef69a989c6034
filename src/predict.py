"""Predictions of a trained network for images: `python src/predict.py --help` shows the options and examples."""

from alexlab.cli.command import run_command

if __name__ == "__main__":
    run_command("predict")
