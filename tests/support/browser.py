"""Evaluation of JavaScript in pages, with a headless Chromium."""

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


def evaluate_script(page: Path, script: str, *, width: int = 1200) -> Any:
    """Return the result of a JavaScript function body in a page.

    Args:
        page: HTML file.
        script: function body, run after the page has loaded; `document` is that of the page.
        width: width of the window in CSS pixels.
    """
    # In a frame, because a window of Chromium cannot be as narrow as a phone.
    frame = page.with_name(f".frame_{page.name}")
    frame.write_text(
        f'<iframe width={width} height=800 srcdoc="{html.escape(page.read_text(encoding="utf-8"))}"></iframe><pre id=found></pre><script>\n'
        "document.querySelector('iframe').onload = event => {\n"
        "  const window = event.target.contentWindow, page = window.document;\n"
        f"  const found = (document => {{ {script} }})(page);\n"
        "  document.getElementById('found').textContent = JSON.stringify(found);\n"
        "};</script>"
    )
    return run_in_browser(frame.as_uri(), page.parent)


def run_in_browser(address: str, work_dir: Path) -> Any:
    """Return the JSON that the scripts of a page write to its element `found`.

    Args:
        address: URL of the page.
        work_dir: folder for the browser's files.
    """
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    profile = f"--user-data-dir={work_dir / '.chromium'}"
    command = [CHROMIUM, *options, profile, "--virtual-time-budget=20000", "--dump-dom", address]
    completed = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env={**os.environ, "HOME": str(work_dir)}
    )
    found = re.search(r"<pre id=\"found\">(.*?)</pre>", completed.stdout, re.DOTALL)
    assert found and found[1], completed.stderr[-2000:]
    return json.loads(html.unescape(found[1]))


FITS = "return document.documentElement.scrollWidth <= window.innerWidth;"
