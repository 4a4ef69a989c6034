"""Downloaded weight files, cached and verified at each use."""

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
from alexlab.records.atomic import write_atomic

log = logging.getLogger(__name__)

TIMEOUT_S = 60.0  # maximum time without data from the server
CHUNK = 1 << 20  # bytes
HASH = re.compile(r"-([0-9a-f]{8,64})\.[^.]+$")  # beginning of the SHA-256 in torchvision's file names


def cache_dir() -> Path:
    """Return torch.hub's folder of downloaded weights, which is shared with other programs."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def download_torchvision(url: str) -> Path:
    """Return the path of a torchvision file, downloading it unless torch.hub's folder has it with the hash of its name.

    Raises:
        ConfigError: if it cannot be downloaded, or its hash does not match its name.
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
    """Return the path of a file at a URL, downloaded once and cached by the hashes of the URL and of the content.

    Raises:
        ConfigError: if it cannot be downloaded.
        DiskError: if it cannot be written.
    """
    folder = cache_dir() / "alexlab" / hashlib.sha256(url.encode()).hexdigest()[:16]
    suffix = Path(urlsplit(url).path).suffix
    for path in sorted(folder.glob("[0-9a-f]*")):
        if file_digest(path) == path.stem:
            return path
        log.warning("%s is corrupt: its SHA-256 does not match its name; downloading %s again", path, url)
        path.unlink()
    unverified = folder / f".download.{os.getpid()}{suffix}"
    content = _download(url, unverified, "download it on another machine and use model.weights=FILE")
    return unverified.replace(folder / f"{content}{suffix}")


def _download(url: str, path: Path, hint: str) -> str:
    """Download a URL to a file atomically; return its SHA-256."""
    log.info("downloading %s", url)
    request = urllib.request.Request(url, headers={"User-Agent": "alexlab"})
    hasher = hashlib.sha256()
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
            size = int(response.headers.get("Content-Length") or 0)
            write_atomic(
                path, partial(_copy, response, hasher, size, lambda reason: _failed(url, reason, hint)), size=size
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


def _copy(response: Any, hasher: Any, size: int, failed: Callable[[str], ConfigError], file: BinaryIO) -> None:
    """Copy a response to a file.

    Raises:
        ConfigError: if the connection is lost.
    """
    count = 0
    while True:
        try:
            chunk = response.read(CHUNK)
        except (OSError, http.client.HTTPException) as error:  # an OSError of the file is handled by the caller
            raise failed(f"the connection was lost after {count:,} bytes ({error})") from error
        if not chunk:
            break
        file.write(chunk)
        hasher.update(chunk)
        count += len(chunk)
    if count < size:  # http.client does not report a truncated response
        raise failed(f"the connection was lost after {count:,} of {size:,} bytes")
