"""Classifiers of timm, and their weights from a server that answers as the Hugging Face hub does."""

import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save

from alexlab.config import build
from alexlab.config.instantiate import make
from alexlab.data.splits import Split, Splits
from alexlab.errors import ConfigError
from support.runs import plain

timm = pytest.importorskip("timm")
constants = pytest.importorskip("huggingface_hub.constants")

NAME = "test_resnet"
FILE = "/timm/test_resnet.r160_in1k/resolve/main/model.safetensors"


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    with torch.random.fork_rng(devices=[]):
        return timm.create_model(NAME).state_dict()


@pytest.fixture
def hub(weights: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[http.server.HTTPServer]:
    """A server with the weights of NAME, instead of the hub, and an empty cache."""
    content = save(weights)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            if self.path != FILE:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("X-Repo-Commit", "a" * 40)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            if self.path == FILE:
                self.wfile.write(content)

        def log_message(self, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    yield server
    server.shutdown()
    server.server_close()


def pretrained(*overrides: str) -> tuple[torch.nn.Module, list[str]]:
    """Return a net with the weights of a config, and the lines that a run logs about them."""
    config = plain("model=timm", f"model.name={NAME}", *overrides)
    split = Split("", ["a", "b"], ["0", "1"], np.array([0, 1]))
    net = build.net(config, 2)
    found = build.pretrained(config, net, Splits(split, split))
    assert found is not None
    found.load_into(net)
    return net, list(found.lines())


def test_pretrained_weights_are_downloaded_once_and_fill_all_but_the_head(hub: Any, weights: Any) -> None:
    net, lines = pretrained("model.pretrained=true")
    state = net.state_dict()
    assert state["fc.weight"].shape[0] == 2
    assert all(torch.equal(state[name], value) for name, value in weights.items() if not name.startswith("fc."))
    assert any("images of 160 pixels with data.mean=[0.5,0.5,0.5] data.std=[0.5,0.5,0.5]" in line for line in lines)
    hub.shutdown()
    hub.server_close()
    again, _ = pretrained("model.pretrained=true")
    assert torch.equal(again.state_dict()["conv1.0.weight"], state["conv1.0.weight"])
    grey, _ = pretrained("model.pretrained=true", "model.in_channels=1")
    assert grey.state_dict()["conv1.0.weight"].shape[1] == 1
    assert not constants.HF_HUB_OFFLINE


def test_weights_that_cannot_be_downloaded_are_one_sentence(hub: Any) -> None:
    hub.shutdown()
    hub.server_close()
    message = (
        r"^model\.pretrained=true cannot read the weights of test_resnet from timm/test_resnet\.r160_in1k: .*; without a "
        r"connection, download them on another machine and use model\.weights=FILE$"
    )
    with pytest.raises(ConfigError, match=message):
        pretrained("model.pretrained=true")


def test_pretrained_and_weights_exclude_each_other() -> None:
    with pytest.raises(
        ConfigError, match=r"model\.pretrained must be false with model\.weights; got model\.weights=a\.pth"
    ):
        pretrained("model.pretrained=true", "model.weights=a.pth")


def test_a_net_without_weights_in_timm_is_named() -> None:
    with pytest.raises(ConfigError, match="needs weights in timm, which has none for botnet50ts_256"):
        pretrained("model.pretrained=true", "model.name=botnet50ts_256")


def test_an_unknown_name_is_answered_with_similar_ones() -> None:
    with pytest.raises(ConfigError, match=r"model\.name must be in timm\.list_models\(\); got 'resnet18x'"):
        make({"_target_": "alexlab.models.timm.timm_net", "name": "resnet18x"}, "model", 2)
