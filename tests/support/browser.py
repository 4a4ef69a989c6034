"""Pages, looked at with a headless Chromium of a given width."""

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PHONE = 390  # CSS pixels


def look(page: Path, script: str, *, width: int = 1200) -> Any:
    """What a JavaScript function body returns in a page.

    Args:
        page: an HTML file.
        script: is run when the page has loaded; `document` is that of the page.
        width: of the window, in CSS pixels.
    """
    # Inside a frame, since a window of Chromium is never as narrow as a phone.
    frame = page.with_name(f".frame_{page.name}")
    frame.write_text(
        f'<iframe width={width} height=800 srcdoc="{html.escape(page.read_text())}"></iframe><pre id=found></pre><script>\n'
        "document.querySelector('iframe').onload = event => {\n"
        "  const window = event.target.contentWindow, page = window.document;\n"
        f"  const found = (document => {{ {script} }})(page);\n"
        "  document.getElementById('found').textContent = JSON.stringify(found);\n"
        "};</script>"
    )
    return dumped(frame.as_uri(), page.parent)


def dumped(address: str, folder: Path) -> Any:
    """The JSON that the scripts of a page have put into its element `found`.

    Args:
        address: of the page.
        folder: for the browser's files.
    """
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / '.chromium'}"]
    command = [CHROMIUM, *options, "--virtual-time-budget=20000", "--dump-dom", address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, "HOME": str(folder)})
    found = re.search(r"<pre id=\"found\">(.*?)</pre>", done.stdout, re.DOTALL)
    assert found and found[1], done.stderr[-2000:]
    return json.loads(html.unescape(found[1]))


FITS = "return document.documentElement.scrollWidth <= window.innerWidth;"
