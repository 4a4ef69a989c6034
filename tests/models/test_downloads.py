"""Downloaded weights: cached by URL and content, verified at each use."""

import hashlib
import http.server
import io
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision import models

from alexlab.errors import ConfigError
from alexlab.models.alexnet import AlexNet
from alexlab.models.nin import NiN
from alexlab.models.weights.pretrained import read_source

pytestmark = pytest.mark.scenario(name="downloads")

ENTRY = models.AlexNet_Weights.IMAGENET1K_V1


class Server:
    """Local HTTP server for files in memory, which records the requested paths."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.requests: list[str] = []
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.requests.append(self.path)
                path = self.path.partition("?")[0]
                if path.startswith("/moved/"):
                    self.send_response(302)
                    self.send_header("Location", self.path.removeprefix("/moved"))
                    self.end_headers()
                elif path == "/loop":
                    self.send_response(302)
                    self.send_header("Location", "/loop")
                    self.end_headers()
                elif path not in server.files:
                    self.send_error(404)
                else:
                    content = server.files[path]
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(content) * (2 if path.startswith("/short/") else 1)))
                    self.end_headers()
                    self.wfile.write(content)

            def log_message(self, *args: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()
    yield found
    found.close()


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub/checkpoints"


def net() -> AlexNet:
    return AlexNet(2, widths=[2] * 5, fc_widths=[2])


def weights(value: float) -> bytes:
    content = io.BytesIO()
    torch.save({name: torch.full_like(tensor, value) for name, tensor in net().state_dict().items()}, content)
    return content.getvalue()


def value(name: str) -> float:
    return read_source(name, net()).state["features.conv1.bias"][0].item()


def cached_files(hub: Path) -> list[Path]:
    return [path for path in hub.rglob("*") if path.is_file()]


def test_files_of_the_same_name_from_different_urls_do_not_clash(server: Server, hub: Path) -> None:
    server.files = {"/a/weights.pth": weights(1.0), "/b/weights.pth": weights(2.0)}
    names = [f"{server.url}/a/weights.pth", f"{server.url}/b/weights.pth", f"{server.url}/a/weights.pth?version=2"]
    assert [value(name) for name in names] == [1.0, 2.0, 1.0]
    assert [value(name) for name in names] == [1.0, 2.0, 1.0]
    assert server.requests == ["/a/weights.pth", "/b/weights.pth", "/a/weights.pth?version=2"], (
        "each is downloaded once"
    )


def test_a_corrupt_copy_is_downloaded_again(server: Server, hub: Path, caplog: pytest.LogCaptureFixture) -> None:
    server.files["/w.pth"] = weights(1.0)
    assert value(f"{server.url}/w.pth") == 1.0
    (copy,) = cached_files(hub)
    copy.write_bytes(weights(3.0))
    assert value(f"{server.url}/w.pth") == 1.0
    assert f"{copy} is corrupt" in caplog.text and len(server.requests) == 2


def test_a_url_cannot_replace_a_torchvision_file_of_the_same_name(
    server: Server, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = weights(1.0)
    name = f"alexnet-owt-{hashlib.sha256(genuine).hexdigest()[:8]}.pth"
    monkeypatch.setattr(ENTRY.value, "url", f"{server.url}/models/{name}")
    server.files = {f"/models/{name}": genuine, f"/evil/{name}": weights(2.0)}
    assert value(f"{server.url}/evil/{name}") == 2.0
    for alias in ("IMAGENET1K_V1", "DEFAULT", "AlexNet_Weights.IMAGENET1K_V1"):
        assert value(alias) == 1.0
    assert (hub / name).read_bytes() == genuine
    assert server.requests == [f"/evil/{name}", f"/models/{name}"]


def test_a_cached_torchvision_file_is_verified(
    server: Server, hub: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    genuine = weights(1.0)
    name = f"alexnet-owt-{hashlib.sha256(genuine).hexdigest()[:8]}.pth"
    monkeypatch.setattr(ENTRY.value, "url", f"{server.url}/{name}")
    server.files[f"/{name}"] = genuine
    hub.mkdir(parents=True)
    (hub / name).write_bytes(weights(2.0))
    assert value("IMAGENET1K_V1") == 1.0
    assert "is corrupt: its SHA-256 does not begin with" in caplog.text
    (hub / name).write_bytes(weights(2.0))
    server.files[f"/{name}"] = weights(3.0)
    with pytest.raises(ConfigError, match=rf"must have a SHA-256 that begins with .*put it at .*{name}"):
        value("IMAGENET1K_V1")
    assert not cached_files(hub)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/missing.pth", r"cannot download http.*/missing\.pth: HTTP status 404, Not Found; download it on another machine"),
        ("/short/w.pth", r"the connection was lost after [\d,]+ of [\d,]+ bytes"),
        ("/loop", r"cannot download .*infinite loop"),
        ("/page.pth", r"cannot read the weights in http.*/page\.pth: it is an HTML page"),
        ("/pointer.pth", r"cannot read the weights in http.*/pointer\.pth: it is a Git LFS pointer"),
        ("/empty.pth", r"cannot read the weights in http.*/empty\.pth: it is empty"),
    ],
)  # fmt: skip
def test_a_failed_download_leaves_no_file(path: str, message: str, server: Server, hub: Path) -> None:
    server.files = {
        "/short/w.pth": weights(1.0),
        "/page.pth": b"<!DOCTYPE html><title>Sign in</title>",
        "/pointer.pth": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        "/empty.pth": b"",
    }
    with pytest.raises(ConfigError, match=message) as caught:
        value(f"{server.url}{path}")
    assert "\n" not in str(caught.value)
    assert not cached_files(hub)


def test_a_redirect_is_followed(server: Server) -> None:
    server.files["/w.pth"] = weights(1.0)
    assert value(f"{server.url}/moved/w.pth") == 1.0


def test_an_unreachable_server_is_an_error(server: Server, hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.close()
    with pytest.raises(
        ConfigError, match=r"cannot download .*/w\.pth: .*refused; download it on another machine and use"
    ):
        value(f"{server.url}/w.pth")
    monkeypatch.setattr(ENTRY.value, "url", f"{server.url}/alexnet-owt-7be5be79.pth")
    with pytest.raises(ConfigError, match=r"refused; download it on another machine and put it at .*owt-7be5be79\.pth"):
        value("IMAGENET1K_V1")


@pytest.mark.parametrize("url", ["s3://bucket/w.pth", "ftp://host/w.pth"])
def test_other_schemes_are_rejected(url: str) -> None:
    with pytest.raises(ConfigError, match="with http:// or https://"):
        read_source(url, NiN(2, width=0.1))
