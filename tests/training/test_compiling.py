"""`compile.enabled`, and defaults of the trainer that depend on the hardware."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from alexlab.config import build, resolve
from alexlab.config.data import data_config
from alexlab.config.resolve import resolve_auto
from alexlab.records.safe_load import load_file
from support.runs import TINY, plain

Train = Callable[..., float | None]


def test_a_compiled_net_has_the_same_weights_and_names_as_an_eager_one(train: Train, tmp_path: Path) -> None:
    """The backend `eager` traces the frames but needs no C++ compiler."""
    overrides = ("trainer.max_epochs=2", "optimizer=sgd")
    train(*overrides, run_dir=tmp_path / "plain")
    train(*overrides, "compile.enabled=true", "compile.backend=eager", run_dir=tmp_path / "compiled")
    torch._dynamo.reset()
    one, other = (load_file(tmp_path / name / "checkpoints/last.ckpt")["state_dict"] for name in ("plain", "compiled"))
    assert list(one) == list(other)
    for name, value in one.items():
        assert torch.equal(other[name], value), name


def test_the_net_is_compiled_only_if_enabled(images: Path) -> None:
    for enabled in (False, True):
        config = plain(*TINY, f"data.root={images}", f"compile.enabled={enabled}")
        module = build.classifier(config, data_config(config).find_splits())
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
def test_auto_settings_depend_on_the_hardware(
    monkeypatch: pytest.MonkeyPatch, gpus: int, bfloat16: bool, deterministic: bool, precision: str, benchmark: bool
) -> None:
    monkeypatch.setattr(resolve, "requested_gpus", lambda **keywords: gpus)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bfloat16)
    monkeypatch.setattr(resolve, "cpu_has_bfloat16", lambda: bfloat16)
    node = plain(f"trainer.deterministic={deterministic}")["trainer"]
    found = resolve_auto(node)
    assert (found["precision"], found["benchmark"]) == (precision, benchmark)
    chosen = resolve_auto({**node, "precision": "64-true", "benchmark": False})
    assert (chosen["precision"], chosen["benchmark"]) == ("64-true", False)
