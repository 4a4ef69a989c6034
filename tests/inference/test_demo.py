"""The demo page over HTTP and in a browser."""

import base64
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import HTMLResponse
from starlette.routing import Route

from alexlab.data.image_file import REASONS
from alexlab.errors import ConfigError
from alexlab.tasks.demo import create_server
from support.browser import run_in_browser
from support.runs import plain


@pytest.fixture
def server(trained_run: Path) -> Iterator[Any]:
    """Run the server of the tiny network, which accepts images of at most 100 kB; it has its address as an attribute."""
    running, listener = create_server(plain(f"ckpt='{trained_run}'", "port=0", "max_mb=0.1", name="demo"))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
    thread.start()
    while not running.started:
        time.sleep(0.01)
    running.address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    yield running
    running.should_exit = True
    thread.join(20)
    assert not thread.is_alive()


def request(address: str, content: bytes | None = None, **headers: str) -> tuple[int, Any, Any]:
    prepared = urllib.request.Request(address, data=content, headers=headers)
    try:
        with urllib.request.urlopen(prepared, timeout=60) as response:
            return response.status, response.read(), response.headers
    except urllib.error.HTTPError as error:
        return error.code, error.read(), error.headers


def test_predictions_and_errors(server: Any, images: Path) -> None:
    photo = (images / "val/cat/000.png").read_bytes()
    status, content, _ = request(f"{server.address}/predict", photo)
    result = json.loads(content)
    assert status == 200
    assert {entry["class"] for entry in result["predictions"]} == {"ant", "bee", "cat"}
    assert sum(entry["prob"] for entry in result["predictions"]) == pytest.approx(1)
    assert all(base64.b64decode(url.split(",")[1])[:4] == b"\x89PNG" for _, url in result["images"])
    status, content, _ = request(f"{server.address}/predict", b"not an image")
    assert (status, json.loads(content)["error"]) == (
        400,
        f"cannot read the image: {REASONS['unknown_format']}",
    )
    status, content, _ = request(f"{server.address}/predict", bytes(100_001))
    assert (status, json.loads(content)["error"]) == (413, "the image must be at most 0.1 MB")
    assert request(server.address, Host="evil.example")[0] == 400, "DNS rebinding is rejected"
    status, page, headers = request(server.address)
    assert status == 200 and b"alexnet, 3 classes" in page
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert b"http" not in page, "the page loads nothing from other hosts"


def test_an_image_is_dropped_in_a_browser(server: Any, images: Path, tmp_path: Path) -> None:
    photo = base64.b64encode((images / "val/cat/000.png").read_bytes()).decode()
    script = """<iframe src='/' width=390 height=900></iframe><pre id=found></pre><script>
    const frame = document.querySelector('iframe'), wait = ms => new Promise(done => setTimeout(done, ms));
    frame.onload = async () => {
      const page = frame.contentDocument, bytes = Uint8Array.from(atob('PHOTO'), c => c.charCodeAt(0));
      const drop = async content => {
        const data = new DataTransfer(); data.items.add(new File([content], 'x.png'));
        page.getElementById('drop').dispatchEvent(new DragEvent('drop', {dataTransfer: data}));
        for (let n = 0; n < 100 && !page.querySelector('.bar') && !page.getElementById('error').textContent; n++) await wait(100);
      };
      await drop(bytes);
      const bars = [...page.querySelectorAll('.bar')].map(bar => bar.innerText.split('\\n').filter(Boolean));
      const images = [...page.querySelectorAll('.images img')].map(image => image.naturalWidth);
      const fits = page.documentElement.scrollWidth <= frame.contentWindow.innerWidth;
      await drop(new Uint8Array(200000));
      document.getElementById('found').textContent = JSON.stringify(
        {bars, images, fits, error: page.getElementById('error').textContent});
    };</script>"""
    test_page = HTMLResponse(script.replace("PHOTO", photo))
    server.config.app.router.routes.append(Route("/test", lambda _: test_page))  # the same origin as the demo
    result = run_in_browser(f"{server.address}/test", tmp_path)
    assert len(result["bars"]) == 3 and result["fits"] is True
    assert result["images"] == [320, 320]
    assert {bar[0] for bar in result["bars"]} == {"ant", "bee", "cat"}
    assert result["error"] == "the image must be at most 0.1 MB"


def test_error_messages(trained_run: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1, port {port}: "):
            create_server(plain(f"ckpt='{trained_run}'", f"port={port}", name="demo"))
    with pytest.raises(ConfigError, match=r"port must be an integer of at least 0; got null"):
        create_server(plain(f"ckpt='{trained_run}'", "port=null", name="demo"))
    with pytest.raises(ConfigError, match=r"max_mb must be positive; got 0.0"):
        create_server(plain(f"ckpt='{trained_run}'", "max_mb=0.0", name="demo"))


def test_other_machines_have_access_only_on_request(trained_run: Path, caplog: pytest.LogCaptureFixture) -> None:
    _, listener = create_server(plain(f"ckpt='{trained_run}'", "port=0", name="demo"))
    assert listener.getsockname()[0] == "127.0.0.1"
    listener.close()
    assert "anyone" not in caplog.text
    _, listener = create_server(plain(f"ckpt='{trained_run}'", "port=0", "host=0.0.0.0", name="demo"))
    listener.close()
    assert "listening on 0.0.0.0: anyone who can reach this machine can use the page" in caplog.text
