"""Shell completion in bash, of `alexlab` and of the scripts."""

import os
import shutil
import subprocess
import sys

import pytest

from alexlab.cli.completion import completion_script
from support.runs import ROOT


@pytest.fixture
def complete(tmp_path):
    """A function that returns what bash offers for a command line whose last word is incomplete."""
    (tmp_path / "alexlab").write_text(f'#!/bin/sh\nexec {sys.executable} -m alexlab "$@"\n')
    (tmp_path / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    for path in tmp_path.iterdir():
        path.chmod(0o755)
    variables = {**os.environ, "PATH": f"{tmp_path}:/usr/bin:/bin", "PYTHONPATH": str(ROOT / "src")}

    def call(install: str, function: str, line: str) -> list[str]:
        words = line.split(" ")
        code = f"""eval "$({install})"; COMP_LINE='{line}' COMP_POINT={len(line)} COMP_CWORD={len(words) - 1} COMP_WORDS=({" ".join(f"'{word}'" for word in words)})
        {function}; printf '%s\\n' "${{COMPREPLY[@]}}" """
        done = subprocess.run(
            ["bash", "-c", code], cwd=ROOT, env=variables, capture_output=True, text=True, timeout=100
        )
        return done.stdout.split()

    return call


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_commands_groups_and_options_are_completed(complete):
    assert complete("alexlab completion", "_alexlab", "alexlab ev") == ["evaluate"]
    assert complete("alexlab completion", "_alexlab", "alexlab train model=alexnet_h") == ["model=alexnet_half"]
    assert complete("alexlab completion", "_alexlab", "alexlab train seed=1 trainer.max_e") == ["trainer.max_epochs="]
    script = "python src/train.py -sc install=bash"
    assert complete(script, "hydra_bash_completion", "python src/train.py model=alexnet_h") == ["model=alexnet_half"]


def test_the_script_has_every_command():
    assert 'choices="train runs"' in completion_script(["train", "runs"])
