"""Screenshots of pages for the documentation, taken with a headless Chromium.

    python docs/screenshots.py report=SWEEP/report.html check=CHECK/check.html

writes docs/images/report.png and docs/images/check.png.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

IMAGES = Path(__file__).parent / "images"
SIZE = "1150,1000"  # CSS pixels; the pictures have twice as many
HIDDEN = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--force-device-scale-factor=2")
LIGHT = "--blink-settings=preferredColorScheme=1"


def take(page: Path, picture: Path) -> None:
    """Write the top of a page as PNG, in light colours."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        sys.exit("screenshots need Chromium; it is not installed")
    with tempfile.TemporaryDirectory() as profile:
        options = [*HIDDEN, LIGHT, f"--user-data-dir={profile}", f"--window-size={SIZE}", f"--screenshot={picture}"]
        subprocess.run([browser, *options, page.resolve().as_uri()], check=True, capture_output=True, timeout=60)


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        name, _, path = argument.partition("=")
        if not Path(path).is_file():
            sys.exit(f"NAME=PAGE must name an HTML file; got {argument}")
        take(Path(path), IMAGES / f"{name}.png")
        print(f"docs/images/{name}.png")
