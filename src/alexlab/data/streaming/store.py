"""Client of a folder or object store whose files are fetched by name, in a separate fetcher process."""

import contextlib
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from alexlab.data.streaming import fetcher
from alexlab.errors import DataError
from alexlab.output.escape import shown

EXIT_TIMEOUT_S = 5.0  # for the fetcher process to exit before it is killed
SCHEMES = ("s3", "gs", "az", "https", "http")


def is_url(location: str) -> bool:
    """Return whether a location is in an object store rather than a folder."""
    return "://" in location


def check_location(location: str, key: str) -> None:
    """Raise DataError for a URL with an unsupported scheme."""
    if is_url(location) and location.partition("://")[0] not in SCHEMES:
        known = ", ".join(f"{scheme}://" for scheme in SCHEMES)
        raise DataError(f"{key} must be a folder or start with {known}; got {location}")


class Store:
    """Files of one location, copied to this machine on demand. All processes of the machine share the copies.

    Args:
        url: URL in an object store (s3://bucket/prefix, gs://, az://, https://), or a folder, whose files are only checked.
        cache_dir: folder of the cached copies of all stores.
        limit: total size of the copies in bytes.
    """

    def __init__(self, url: str, cache_dir: Path, limit: int) -> None:
        self.process: subprocess.Popen[str] | None = None
        self.url = url.rstrip("/") if is_url(url) else os.path.abspath(url)
        name = re.sub(r"[^A-Za-z0-9_.-]+", "-", self.url.rsplit("/", 1)[-1])
        digest = hashlib.blake2b(os.fsencode(self.url), digest_size=6).hexdigest()
        self.folder = (cache_dir / f"{name}-{digest}" / "objects").absolute()
        self.limit = limit
        self.lock = threading.Lock()
        self.owner_pid = 0
        self.last_request = 0

    def location(self, name: str) -> str:
        """Return the URL or path of a file, for messages."""
        return f"{self.url}/{name}"

    def get(self, name: str, target: str, size: int | None = None, sha256: str | None = None) -> Path:
        """Fetch a file unless it is cached, and return the path of the copy.

        Args:
            name: name of the file in the store.
            target: name of the copy.
            size: expected size in bytes; None if unknown.
            sha256: expected SHA-256, hexadecimal; None if unknown.

        Raises:
            DataError: if the file is missing or corrupt.
        """
        self._request("get", name=name, target=target, size=size, sha256=sha256)
        return self.folder / target

    def prefetch(self, files: Iterable[tuple[str, str, int, str]]) -> None:
        """Start to fetch files (name, target, size, sha256) that are not cached, without waiting for them."""
        for name, target, size, sha256 in files:
            if not fetcher.is_cached(self.folder / target, size):
                with self.lock:
                    self._send(None, "get", name=name, target=target, size=size, sha256=sha256)

    def put(self, source: Path, name: str) -> None:
        """Upload a local file.

        Raises:
            DataError: if the upload fails.
        """
        self._request("put", name=name, source=str(source))

    def sizes(self) -> dict[str, int]:
        """Return the size in bytes of each file in the store.

        Raises:
            DataError: if the store cannot be listed.
        """
        if is_url(self.url):
            return dict(self._request("sizes"))
        with os.scandir(self.url) as entries:
            return {entry.name: entry.stat().st_size for entry in entries}

    def close(self) -> None:
        """Stop the fetcher process if this process has started it."""
        process, self.process = self.process, None
        if process is None:
            return
        if self.owner_pid != os.getpid():
            process.returncode = 0  # the process that started it waits for it
            return
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it has exited already
            process.stdin.close()
        try:
            process.wait(EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()

    def __del__(self) -> None:
        self.close()

    def _request(self, action: str, **arguments: Any) -> Any:
        """Send a request to the fetcher and return its result."""
        with self.lock:
            self.last_request += 1
            self._send(self.last_request, action, **arguments)
            assert self.process is not None and self.process.stdout is not None
            for line in self.process.stdout:
                number, reason, value = json.loads(line)
                if number == self.last_request:
                    break
            else:
                self.close()
                reason, value = "the fetcher process exited; its error is printed above", None
        if reason is not None:
            verb = "write" if action == "put" else "read"
            raise DataError(f"cannot {verb} {shown(self.location(arguments.get('name', '')))}: {reason}")
        return value

    def _send(self, number: int | None, action: str, **arguments: Any) -> None:
        if self.owner_pid != os.getpid():
            self.close()
        if self.process is None:
            job = {"url": self.url, "folder": str(self.folder), "limit": self.limit, "parent": os.getpid()}
            self.owner_pid = os.getpid()
            self.process = subprocess.Popen(
                [sys.executable, "-P", fetcher.__file__, json.dumps(job)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,  # keeps Ctrl-C away from it
            )
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps({"number": number, "action": action, **arguments}) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError as error:
            self.close()
            raise DataError(f"the fetcher process of {self.url} exited; its error is printed above") from error
