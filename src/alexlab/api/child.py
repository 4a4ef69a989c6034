"""Program that runs a command for `alexlab.train` and reports the folder of the run or sweep.

Arguments: a file, to which the folder is written; the command; its arguments.
"""

import os
import sys
from pathlib import Path

from alexlab.cli.command import run_command


def main() -> None:
    """Run the command, write the folder if there is one, and exit with the command's exit code."""
    result, name = Path(sys.argv[1]), sys.argv[2]
    sys.argv = [f"{name}.py", *sys.argv[3:]]
    run_command(name, on_end=lambda folder: result.write_bytes(os.fsencode(folder.absolute())))


if __name__ == "__main__":
    main()
