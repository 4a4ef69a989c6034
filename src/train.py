"""Trains a net on a folder of images.

    python src/train.py                                     the default run, on handwritten digits
    python src/train.py model=alexnet_half data.root=DIR    on your own images, one folder per class
    python src/train.py --help                              groups, options, examples
"""

from alexlab.command import run_command

if __name__ == "__main__":
    run_command("train")
