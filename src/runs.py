"""List of all runs, their status and scores: `python src/runs.py --help` shows the filters."""

import sys

from alexlab.cli.runs import main

if __name__ == "__main__":
    main(sys.argv[1:])
