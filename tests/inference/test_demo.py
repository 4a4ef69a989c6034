"""The page, over HTTP and in a browser."""

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
from support.browser import dumped
from support.runs import plain


@pytest.fixture
def server(trained_run: Path) -> Iterator[Any]:
    """The running server of the tiny net, which takes pictures of at most 100 kB, and its address."""
    running, listening = create_server(plain(f"ckpt='{trained_run}'", "port=0", "max_mb=0.1", name="demo"))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
    thread.start()
    while not running.started:
        time.sleep(0.01)
    running.address = f"http://127.0.0.1:{listening.getsockname()[1]}"
    yield running
    running.should_exit = True
    thread.join(20)
    assert not thread.is_alive()


def ask(address: str, content: bytes | None = None, **headers: str) -> tuple[int, Any, Any]:
    request = urllib.request.Request(address, data=content, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read(), answer.headers
    except urllib.error.HTTPError as error:
        return error.code, error.read(), error.headers


def test_answers_and_refusals(server: Any, images: Path) -> None:
    photo = (images / "val/cat/000.png").read_bytes()
    status, content, _ = ask(f"{server.address}/predict", photo)
    found = json.loads(content)
    assert status == 200
    assert {each["class"] for each in found["predictions"]} == {"ant", "bee", "cat"}
    assert sum(each["prob"] for each in found["predictions"]) == pytest.approx(1)
    assert all(base64.b64decode(found[name].split(",")[1])[:4] == b"\x89PNG" for name in ("input", "cam"))
    status, content, _ = ask(f"{server.address}/predict", b"no picture")
    assert (status, json.loads(content)["error"]) == (
        400,
        f"cannot read the image: {REASONS['unknown_format']}",
    )
    status, content, _ = ask(f"{server.address}/predict", bytes(100_001))
    assert (status, json.loads(content)["error"]) == (413, "the image must have at most 0.1 MB")
    assert ask(server.address, Host="evil.example")[0] == 400, "no other site can give it a name of its own"
    status, page, headers = ask(server.address)
    assert status == 200 and b"alexnet, 3 classes" in page
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert b"http" not in page, "nothing comes from elsewhere"


def test_a_picture_is_dropped_in_a_browser(server: Any, images: Path, tmp_path: Path) -> None:
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
      const pictures = [...page.querySelectorAll('.images img')].map(image => image.naturalWidth);
      const fits = page.documentElement.scrollWidth <= frame.contentWindow.innerWidth;
      await drop(new Uint8Array(200000));
      document.getElementById('found').textContent = JSON.stringify(
        {bars, pictures, fits, error: page.getElementById('error').textContent});
    };</script>"""
    beside = HTMLResponse(script.replace("PHOTO", photo))
    server.config.app.router.routes.append(Route("/test", lambda request: beside))  # a page of the same origin
    found = dumped(f"{server.address}/test", tmp_path)
    assert len(found["bars"]) == 3 and found["fits"] is True
    assert found["pictures"] == [320, 320]
    assert {bar[0] for bar in found["bars"]} == {"ant", "bee", "cat"}
    assert found["error"] == "the image must have at most 0.1 MB"


def test_words(trained_run: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"host and port must be free to listen on; got 127.0.0.1 and {port}: "):
            create_server(plain(f"ckpt='{trained_run}'", f"port={port}", name="demo"))
    with pytest.raises(ConfigError, match=r"max_mb must be positive; got 0.0"):
        create_server(plain(f"ckpt='{trained_run}'", "max_mb=0.0", name="demo"))


def test_other_machines_are_let_in_only_when_asked(trained_run: Path, caplog: pytest.LogCaptureFixture) -> None:
    _, listening = create_server(plain(f"ckpt='{trained_run}'", "port=0", name="demo"))
    assert listening.getsockname()[0] == "127.0.0.1"
    listening.close()
    assert "anyone" not in caplog.text
    _, listening = create_server(plain(f"ckpt='{trained_run}'", "port=0", "host=0.0.0.0", name="demo"))
    listening.close()
    assert "listening on 0.0.0.0: anyone who can reach this machine can use the page" in caplog.text
