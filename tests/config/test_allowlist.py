"""Untrusted configs and checkpoints: nothing that they name is imported or called."""

import json
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from alexlab.config import CONFIG_DIR, allowlist, instantiate
from alexlab.config.allowlist import check_targets, pop_trusted_targets
from alexlab.errors import ConfigError
from alexlab.inference.checkpoint import load_checkpoint
from alexlab.output import command_line
from support.commands import run
from support.runs import TINY, plain

pytestmark = pytest.mark.slow

# Where, and what: calls that write, run or download, many of which Hydra's own list lets pass.
MALICIOUS = [
    ("model", "os.system"),
    ("model", "subprocess.run"),
    ("model", "builtins.eval"),
    ("model", "builtins.exec"),
    ("model", "torch.hub.load"),
    ("model", "torch.load"),
    ("model", "numpy.load"),
    ("model", "pathlib.Path.write_text"),
    ("model", "shutil.copy"),
    ("model", "shutil.rmtree"),
    ("model", "torch.utils.cpp_extension.load"),
    ("model", "torchvision.datasets.utils.download_url"),
    ("model", "antigravity.fly"),
    ("model", "alexlab.models.alexnet.os.system"),
    ("model", "alexlab.models.weights.pretrained._downloaded"),
    ("model", "alexlab.models.weights.pretrained.torch.hub.load"),
    ("model", "alexlab.modelsevil.Net"),
    ("model", "alexlab.distributed.launch.launch"),
    ("optimizer", "torch.optim.sys.exit"),
    ("optimizer", "torch.optim.lr_scheduler.warnings.warn"),
    ("optimizer", "torch.serialization.load"),
    ("scheduler", "alexlab.training.schedules.math.exp"),
    ("scheduler", "importlib.import_module"),
    ("loss", "pickle.loads"),
    ("loss", "alexlab.training.losses.torch.load"),
    ("augmentation.train.crop", "torchvision.io.read_file"),
    ("augmentation.train.crop", "torchvision.transforms.v2.functional.resize"),
    ("augmentation.eval.center", "ctypes.CDLL"),
    ("callbacks.checkpoint", "alexlab.training.callbacks.curves.draw_curves"),
    ("callbacks.checkpoint", "alexlab.training.callbacks.checkpoint.write_atomic"),
    ("callbacks.checkpoint", "lightning.pytorch.callbacks.__builtins__.eval"),
    ("callbacks.mine", "runpy.run_path"),
    ("logger.csv", "urllib.request.urlretrieve"),
    ("trainer.profiler", "socket.create_connection"),
    ("trainer.plugins", "lightning.pytorch.utilities.os.system"),
    ("data.pack", "os.remove"),
    ("elsewhere", "torch.optim.SGD"),
    ("model", "system"),
    ("model", "alexlab.models..alexnet"),
    ("model", 7),
]


@pytest.fixture(autouse=True)
def _trusting_nobody() -> Iterator[None]:
    yield
    allowlist._trusted.set(())


def with_target(config: dict[str, Any], where: str, target: Any) -> dict[str, Any]:
    node = config
    for name in where.split("."):
        if not isinstance(node.get(name), dict):
            node[name] = {}
        node = node[name]
    node["_target_"] = target
    return config


def refused(config: dict[str, Any], where: str) -> None:
    """Check that a config is rejected, by its name before any import, or by the type of the object."""
    check_targets(config)
    node = config
    for name in where.split("."):
        node = node[name]
    instantiate.locate(node["_target_"], where)


@pytest.mark.parametrize(("where", "target"), MALICIOUS)
@pytest.mark.scenario(name="targets")
def test_malicious_configs_are_rejected(where: str, target: Any) -> None:
    config = with_target(plain(*TINY, "data.root=x"), where, target)
    before = set(sys.modules)
    with pytest.raises(ConfigError, match=rf"{where}\._target_ must ") as caught:
        refused(config, where)
    assert "\n" not in str(caught.value)
    new = set(sys.modules) - before
    assert not {name for name in new if not name.startswith(("lightning", "torch", "alexlab"))}, (
        "nothing of it was imported"
    )


def test_enough_malicious_targets_are_tried() -> None:
    assert len(MALICIOUS) >= 30


@pytest.mark.scenario(name="targets")
def test_nested_targets_are_rejected() -> None:
    config = plain(*TINY, "data.root=x")
    config["callbacks"]["checkpoint"]["monitor"] = [{"deeper": {"_target_": "os.system"}}]
    with pytest.raises(ConfigError, match=r"callbacks\.checkpoint\.monitor\.0\.deeper\._target_ must not be set"):
        check_targets(config)


def test_every_option_is_allowed() -> None:
    """Also classes that users add from PyTorch, torchvision and Lightning."""
    from support.configs import OPTIONS

    for group in ("model", "optimizer", "scheduler", "loss", "augmentation", "callbacks", "logger"):
        for option in OPTIONS[group]:
            value = f"[default,{option}]" if group in ("callbacks", "logger") and option != "default" else option
            value = value.replace("default,", "tensorboard,") if group == "logger" else value
            more = (
                ["optimizer._target_=torch.optim.RMSprop", "scheduler._target_=torch.optim.lr_scheduler.StepLR"][
                    group == "scheduler" :
                ][:1]
                if option == "any"
                else []
            )
            check_targets(plain("data=folder", "data.root=x", f"{group}={value}", *more))
    assert (CONFIG_DIR / "model").is_dir()
    for where, target in (("optimizer", "torch.optim.lr_scheduler.LambdaLR"), ("optimizer", "torch.nn.Linear")):
        with pytest.raises(ConfigError):
            instantiate.locate(target, where)
    assert instantiate.locate("lightning.pytorch.callbacks.Timer", "callbacks.mine").__name__ == "Timer"


@pytest.mark.scenario(name="targets")
def test_only_the_command_line_can_trust_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    code = "from lightning.pytorch.callbacks import Callback\nclass Mine(Callback):\n    pass\n"
    (tmp_path / "mypackage.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=r"for an installed package add trusted_targets=\[mypackage\]"):
        instantiate.locate("mypackage.Mine", "callbacks.mine")
    repeated = command_line._repeated.set(())
    assert pop_trusted_targets(["trusted_targets=[mypackage,other]", "seed=1"]) == ["seed=1"]
    command_line._repeated.reset(repeated)
    assert instantiate.locate("mypackage.Mine", "callbacks.mine").__name__ == "Mine"
    with pytest.raises(ConfigError, match="must be in"):
        instantiate.locate("mypackagetoo.Mine", "callbacks.mine")
    for message in ("trusted_targets=mypackage", "trusted_targets=[1]", "trusted_targets=[["):
        with pytest.raises(ConfigError, match="trusted_targets must be a list of packages"):
            pop_trusted_targets([message])
    loaded = {"trusted_targets": ["evil"], "model": {"_target_": "evil.Net"}}
    with pytest.raises(ConfigError, match=r"model._target_ must be in"):
        check_targets(loaded)


@pytest.mark.parametrize(
    ("where", "target"),
    [entry for entry in MALICIOUS if entry[0] in ("model", "loss", "augmentation.eval.center")],
)
@pytest.mark.scenario(name="targets")
def test_malicious_checkpoints_call_nothing(where: str, target: Any, trained_run: Path, tmp_path: Path) -> None:
    """Try the nodes that are built when a checkpoint is loaded."""
    found = torch.load(trained_run / "checkpoints/best.ckpt", weights_only=True)
    with_target(found["alexlab"]["config"], where, target)
    torch.save(found, tmp_path / "theirs.ckpt")
    with pytest.raises(ConfigError, match=rf"{where}\._target_ must "):
        load_checkpoint(str(tmp_path / "theirs.ckpt"))


@pytest.mark.scenario(name="corrupt_files")
def test_truncated_checkpoints_are_rejected(trained_run: Path, tmp_path: Path) -> None:
    content = (trained_run / "checkpoints/best.ckpt").read_bytes()
    for percent in range(100):
        (tmp_path / "cut.ckpt").write_bytes(content[: len(content) * percent // 100])
        with pytest.raises(ConfigError, match=r"cannot read the weights in .*cut.ckpt: ") as caught:
            load_checkpoint(str(tmp_path / "cut.ckpt"))
        assert "\n" not in str(caught.value)


@pytest.mark.scenario(name="corrupt_files")
def test_decompression_bombs_are_rejected(trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few kilobytes that expand to gigabytes: compressed records, shared lists, tensors without storage."""
    whole = trained_run / "checkpoints/best.ckpt"
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(tmp_path / "bomb.ckpt", "w", zipfile.ZIP_DEFLATED) as bomb:
        for entry in source.infolist():
            bomb.writestr(entry.filename, source.read(entry))
        bomb.writestr("archive/data/more", bytes(500_000_000))
    assert (tmp_path / "bomb.ckpt").stat().st_size < 1_000_000
    with pytest.raises(
        ConfigError, match=r"cannot read the weights in .*bomb\.ckpt: it unpacks to 5\d\d MB from 0\.\d MB"
    ):
        load_checkpoint(str(tmp_path / "bomb.ckpt"))

    found = torch.load(whole, weights_only=True)
    laughs: list[Any] = ["ha"]
    for _ in range(40):
        laughs = [laughs, laughs]
    torch.save({**found, "alexlab": found["alexlab"] | {"config": {"model": laughs}}}, tmp_path / "laughs.ckpt")
    with pytest.raises(ConfigError, match="a config must have at most 20,000 entries"):
        load_checkpoint(str(tmp_path / "laughs.ckpt"))

    name, weight = next(iter(found["state_dict"].items()))
    found["state_dict"][name] = weight.flatten()[:1].expand(2**50)
    torch.save(found, tmp_path / "wide.ckpt")
    with pytest.raises(ConfigError):
        load_checkpoint(str(tmp_path / "wide.ckpt"))

    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(ConfigError, match="TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD must not be set"):
        load_checkpoint(str(whole))


@pytest.mark.scenario(name="targets")
def test_resuming_a_malicious_run_folder_calls_nothing(images: Path, tmp_path: Path) -> None:
    """Resume an untrusted run folder with the real command."""
    folder = tmp_path / "theirs"
    (folder / "checkpoints").mkdir(parents=True)
    config = with_target(plain(*TINY, f"data.root={images}"), "callbacks.mine", "pathlib.Path.touch")
    record = {"status": "failed", "attempts": [{"start_s": 0.0}], "config": config, "choices": {"model": "alexnet"}}
    (folder / "run.json").write_text(json.dumps(record))
    done = run("train", f"resume={folder}", cwd=tmp_path)
    assert done.returncode == 1
    assert "callbacks.mine._target_ must be in lightning.pytorch.callbacks" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
