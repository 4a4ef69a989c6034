"""Loggers of other packages: missing keys and unreachable servers are reported before the first step."""

import os
import time
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import DummyLogger

from alexlab.errors import ConfigError
from alexlab.records.optimized import OptimizedMetric
from alexlab.training.console import print_end
from alexlab.training.loggers import EpochCSV, MLflow, TensorBoard, Wandb, check_wandb, logger_errors, open_loggers
from support.runs import names

KEY = "0123456789" * 4
SCORES = {"train_s": 1.0, "best/epoch": 1.0, "best/top1": 0.5, "best/top5": 1.0, "best/loss": 0.7, "best/count": 4.0}


@pytest.fixture(autouse=True)
def _no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_") or name == "NETRC"]:
        monkeypatch.delenv(name)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("node", [{}, {"offline": False}, {"mode": "online"}, {"project": "x"}])
def test_wandb_without_a_key_is_an_error(node: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"logger\.wandb needs an API key: .*wandb login.* WANDB_MODE=offline"):
        check_wandb(node, "logger.wandb")


def test_a_missing_key_is_reported_before_any_work(train: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"logger\.wandb needs an API key"):
        train("logger=wandb")
    assert names(tmp_path / "run") == set()


@pytest.mark.parametrize("node", [{"offline": True}, {"mode": "disabled"}])
def test_wandb_offline_needs_no_key(node: dict[str, Any]) -> None:
    check_wandb(node, "logger.wandb")


@pytest.mark.parametrize(
    ("name", "value"),
    [("WANDB_API_KEY", KEY), ("WANDB_IDENTITY_TOKEN_FILE", "x"), ("WANDB_MODE", "offline"), ("WANDB_MODE", "disabled")],
)
def test_the_environment_may_provide_the_key_or_the_mode(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    check_wandb({}, "logger.wandb")


@pytest.mark.parametrize(
    ("host", "base_url", "fits"),
    [
        ("api.wandb.ai", None, True),
        ("github.com", None, False),
        ("wandb.lab:8080", "https://wandb.lab:8080", True),
        ("wandb.lab", "https://other.lab", False),
    ],
)
def test_a_netrc_file_may_provide_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str, base_url: str | None, fits: bool
) -> None:
    path = tmp_path / "home/.netrc"
    path.write_text(f"machine {host}\n  login user\n  password {KEY}\n")
    path.chmod(0o600)
    if base_url:
        monkeypatch.setenv("WANDB_BASE_URL", base_url)
    if fits:
        check_wandb({}, "logger.wandb")
        return
    with pytest.raises(ConfigError, match="needs an API key"):
        check_wandb({}, "logger.wandb")


def test_a_logger_that_cannot_be_opened_is_a_config_error(tmp_path: Path) -> None:
    class Broken(DummyLogger):
        @property
        def experiment(self) -> Any:
            raise RuntimeError("no such\nserver")

    with pytest.raises(ConfigError, match=r"^logger Broken cannot be opened: no such server$"):
        open_loggers([EpochCSV(str(tmp_path)), Broken()])
    with pytest.raises(ConfigError, match=r"^mine$"), logger_errors("logger.x"):
        raise ConfigError("mine")


def test_an_unreachable_mlflow_server_fails_fast() -> None:
    start_s = time.monotonic()
    with pytest.raises(ConfigError, match=r"logger MLFlowLogger cannot be opened: .*127\.0\.0\.1"):
        open_loggers([MLFlowLogger(tracking_uri="http://127.0.0.1:9")])
    assert time.monotonic() - start_s < 30
    assert "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ


def test_the_table_shows_whether_the_best_checkpoint_was_saved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    print_end(SCORES, tmp_path, OptimizedMetric())
    printed = capsys.readouterr().out
    assert "best, not saved, epoch 1" in printed
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/best.ckpt").touch()
    print_end(SCORES, tmp_path, OptimizedMetric())
    assert "best, epoch 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("own", "base"), [(Wandb, WandbLogger), (MLflow, MLFlowLogger), (TensorBoard, TensorBoardLogger)]
)
def test_every_logger_counts_epochs_from_1(own: Any, base: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    logged = []
    monkeypatch.setattr(base, "log_metrics", lambda self, metrics, step: logged.append((metrics, step)))
    logger = own.__new__(own)
    logger.log_metrics({"val/top1": 0.5, "epoch": 0}, 9)
    logger.log_metrics({"test/top1": 0.5, "epoch": 3}, 9)
    assert logged == [({"val/top1": 0.5, "epoch": 1}, 9), ({"test/top1": 0.5}, 9)]
