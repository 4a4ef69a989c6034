"""`compile.enabled` and what the trainer leaves to the machine."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from alexlab.config import build
from alexlab.runs.safe_load import load_file
from support.runs import TINY, plain

Train = Callable[..., float | None]


def test_a_compiled_net_trains_as_the_other_and_keeps_its_names(train: Train, tmp_path: Path) -> None:
    """With the backend that compiles nothing: the frames are traced all the same, and no C++ compiler is needed."""
    words = ("trainer.max_epochs=2", "optimizer=sgd")
    train(*words, run_dir=tmp_path / "plain")
    train(*words, "compile.enabled=true", "compile.backend=eager", run_dir=tmp_path / "compiled")
    torch._dynamo.reset()
    one, other = (load_file(tmp_path / name / "checkpoints/last.ckpt")["state_dict"] for name in ("plain", "compiled"))
    assert list(one) == list(other)
    for name, value in one.items():
        assert torch.equal(other[name], value), name


def test_the_net_is_compiled_only_where_it_is_asked_for(images: Path) -> None:
    for enabled in (False, True):
        config = plain(*TINY, f"data.root={images}", f"compile.enabled={enabled}")
        module = build.classifier(config, build.data(config).find_splits())
        assert (module.net._compiled_call_impl is not None) == enabled


@pytest.mark.parametrize(
    ("gpus", "bfloat16", "deterministic", "precision", "benchmark"),
    [
        (0, True, False, "bf16-mixed", None),
        (0, False, False, "32-true", None),
        (1, True, False, "bf16-mixed", True),
        (1, False, False, "32-true", True),
        (1, True, True, "bf16-mixed", False),
    ],
)
def test_what_is_left_to_the_machine(
    monkeypatch: pytest.MonkeyPatch, gpus: int, bfloat16: bool, deterministic: bool, precision: str, benchmark: bool
) -> None:
    monkeypatch.setattr(build, "requested_gpus", lambda **keywords: gpus)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bfloat16)
    monkeypatch.setattr(build, "cpu_has_bfloat16", lambda: bfloat16)
    node = plain(f"trainer.deterministic={deterministic}")["trainer"]
    found = build.fastest(node)
    assert (found["precision"], found["benchmark"]) == (precision, benchmark)
    chosen = build.fastest({**node, "precision": "64-true", "benchmark": False})
    assert (chosen["precision"], chosen["benchmark"]) == ("64-true", False)
