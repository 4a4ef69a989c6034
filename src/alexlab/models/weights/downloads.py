"""Files of weights from a server, kept on this machine and verified each time that they are read."""

import hashlib
import http.client
import logging
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import torch

from alexlab.distributed.transfer import file_digest
from alexlab.errors import AlexlabError, ConfigError
from alexlab.runs.atomic import write_atomic

log = logging.getLogger(__name__)

TIMEOUT_S = 60.0  # without a byte from the server
CHUNK = 1 << 20  # bytes
HASH = re.compile(r"-([0-9a-f]{8,64})\.[^.]+$")  # in the names of torchvision's files: where their SHA-256 begins


def cache_dir() -> Path:
    """Return torch.hub's folder of downloaded weights, which other programs use as well."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def download_torchvision(url: str) -> Path:
    """Return torchvision's file at a URL, from torch.hub's folder if it is there and its hash is that in its name.

    Raises:
        ConfigError: if it cannot be downloaded, or is not what its name says.
        DiskError: if it cannot be written.
    """
    path = cache_dir() / urlsplit(url).path.rsplit("/", 1)[-1]
    match = HASH.search(path.name)
    expected = match[1] if match else ""
    if path.is_file():
        if file_digest(path).startswith(expected):
            return path
        log.warning("%s is corrupt: its SHA-256 does not begin with %s; downloading it again", path, expected)
    hint = f"download it on another machine and put it at {path}"
    content = _download(url, path, hint)
    if not content.startswith(expected):
        path.unlink()
        raise ConfigError(
            f"{url} must have a SHA-256 that begins with {expected}; the server sent a file with {content[:16]}...: {hint}"
        )
    return path


def download_url(url: str) -> Path:
    """Return a file at a URL. It is downloaded once, and kept under the hashes of the whole URL and of its content.

    Raises:
        ConfigError: if it cannot be downloaded.
        DiskError: if it cannot be written.
    """
    folder = cache_dir() / "alexlab" / hashlib.sha256(url.encode()).hexdigest()[:16]
    suffix = Path(urlsplit(url).path).suffix
    for path in sorted(folder.glob("[0-9a-f]*")):
        if file_digest(path) == path.stem:
            return path
        log.warning("%s is corrupt, its SHA-256 is not that in its name; downloading %s again", path, url)
        path.unlink()
    unverified = folder / f".download.{os.getpid()}{suffix}"
    content = _download(url, unverified, "download it on another machine and name the file: model.weights=FILE")
    return unverified.replace(folder / f"{content}{suffix}")


def _download(url: str, path: Path, hint: str) -> str:
    """Write what a server sends to a file, whole or not at all; return its SHA-256."""
    log.info("downloading %s", url)
    request = urllib.request.Request(url, headers={"User-Agent": "alexlab"})
    hasher = hashlib.sha256()
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            size = int(answer.headers.get("Content-Length") or 0)
            write_atomic(
                path, partial(_copy, answer, hasher, size, lambda reason: _failed(url, reason, hint)), size=size
            )
    except AlexlabError:
        raise
    except urllib.error.HTTPError as error:
        error.close()
        raise _failed(url, f"HTTP status {error.code}, {error.reason}", hint) from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise _failed(url, getattr(error, "reason", None) or error, hint) from error
    return hasher.hexdigest()


def _failed(url: str, reason: Any, hint: str) -> ConfigError:
    return ConfigError(f"cannot download {url}: {' '.join(str(reason).split())}; {hint}")


def _copy(answer: Any, hasher: Any, size: int, failed: Callable[[str], ConfigError], file: BinaryIO) -> None:
    """Copy an answer into a file.

    Raises:
        ConfigError: if the connection ends too early.
    """
    count = 0
    while True:
        try:
            part = answer.read(CHUNK)
        except (OSError, http.client.HTTPException) as error:  # an OSError of the file is another one
            raise failed(f"the connection was lost after {count:,} bytes ({error})") from error
        if not part:
            break
        file.write(part)
        hasher.update(part)
        count += len(part)
    if count < size:  # http.client ends such an answer without an error
        raise failed(f"the connection was lost after {count:,} of {size:,} bytes")
