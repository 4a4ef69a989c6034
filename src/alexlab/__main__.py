"""The command `alexlab NAME ...`, equal to `python src/NAME.py ...`; also `python -m alexlab NAME ...`."""

import difflib
import sys

import alexlab
from alexlab.output.escape import print_line

COMMANDS = {
    "train": "train a network on a folder of images",
    "evaluate": "evaluate a trained network on labelled images",
    "predict": "classify unlabelled images",
    "explain": "show mistakes, kernels, neighbours and the evidence for a prediction",
    "export": "write a network as safetensors, ONNX, torch.export or .pth",
    "prepare": "check, split, pack, shard or download a dataset",
    "report": "compare settings by their scores",
    "compare": "compare two networks image by image",
    "reproduce": "check the claims of a paper: train, measure, write one page",
    "summary": "list the layers of a network",
    "benchmark": "measure speed and memory",
    "demo": "serve a web page for trying a trained network",
}
WITHOUT_CONFIG = {
    "runs": "list all runs with status and score",
    "completion": "print shell code that completes commands and keys",
    "new": "create a folder for your own nets, datasets and experiments",
}


def main() -> None:
    """Run the command that the first argument names."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in COMMANDS:
        from alexlab.cli.command import run_command

        sys.argv = [f"{name}.py", *sys.argv[2:]]  # as in the records of runs
        run_command(name)
    if name == "runs":
        from alexlab.cli.runs import main as list_runs

        list_runs(sys.argv[2:])
    if name == "completion":
        from alexlab.cli.completion import completion_script

        sys.stdout.write(completion_script([*COMMANDS, *WITHOUT_CONFIG]))
        sys.exit(0)
    if name == "new":
        from alexlab.cli.exits import exit_on_error
        from alexlab.cli.new import write_folder

        with exit_on_error():
            write_folder(sys.argv[2:])
        sys.exit(0)
    if name in ("-h", "--help", "help"):
        rows = (f"  {command:10}  {text}" for command, text in (COMMANDS | WITHOUT_CONFIG).items())
        for line in ("usage: alexlab COMMAND [KEY=VALUE ...]", *rows, "`alexlab COMMAND --help` lists the options"):
            print_line(line)
        sys.exit(0)
    if name == "--version":
        print_line(f"alexlab {alexlab.__version__}")
        sys.exit(0)
    near = difflib.get_close_matches(name, [*COMMANDS, *WITHOUT_CONFIG], n=1)
    hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join([*COMMANDS, *WITHOUT_CONFIG])}"
    print_line(f"unknown command {name}; {hint}", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    main()
