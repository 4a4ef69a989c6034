"""A folder, or a prefix of an object store, whose files this process asks for by name. Imports no torch."""

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

END_S = 5.0  # for which the program that fetches may take to end
SCHEMES = ("s3", "gs", "az", "https", "http")


def is_url(place: str) -> bool:
    """Whether a place is one of an object store, not a folder."""
    return "://" in place


def check_location(place: str, key: str) -> None:
    """Raises DataError for a URL of another kind than those that are understood."""
    if is_url(place) and place.partition("://")[0] not in SCHEMES:
        known = ", ".join(f"{scheme}://" for scheme in SCHEMES)
        raise DataError(f"{key} must be a folder, or begin with {known}; got {place}")


class Store:
    """Files of one place, copied to this machine when they are asked for; all its processes share the copies.

    Args:
        url: of an object store (s3://bucket/prefix, gs://, az://, https://), or a folder, whose files are only checked.
        cache_dir: where copies are kept, below it.
        limit: of the bytes of all copies together.
    """

    def __init__(self, url: str, cache_dir: Path, limit: int) -> None:
        self.process: subprocess.Popen[str] | None = None
        self.url = url.rstrip("/") if is_url(url) else os.path.abspath(url)
        name = re.sub(r"[^A-Za-z0-9_.-]+", "-", self.url.rsplit("/", 1)[-1])
        digest = hashlib.blake2b(os.fsencode(self.url), digest_size=6).hexdigest()
        self.folder = (cache_dir / f"{name}-{digest}" / "objects").absolute()
        self.limit = limit
        self.asking = threading.Lock()
        self.owner = 0
        self.number = 0

    def place(self, name: str) -> str:
        """Where a file is, for people."""
        return f"{self.url}/{name}"

    def get(self, name: str, target: str, size: int | None = None, sha256: str | None = None) -> Path:
        """The copy of a file; waits for it.

        Args:
            name: of the file.
            target: of the copy.
            size, sha256: which it must have; None where nobody knows.

        Raises:
            DataError: when it is missing, or not what it must be.
        """
        self._ask("get", name=name, target=target, size=size, sha256=sha256)
        return self.folder / target

    def prefetch(self, files: Iterable[tuple[str, str, int, str]]) -> None:
        """Begins to fetch files (name, target, size, sha256) that are not here yet, without waiting for them."""
        for name, target, size, sha256 in files:
            if not fetcher.is_cached(self.folder / target, size):
                with self.asking:
                    self._send(None, "get", name=name, target=target, size=size, sha256=sha256)

    def put(self, source: Path, name: str) -> None:
        """Copies a file of this machine there.

        Raises:
            DataError: when the store does not take it.
        """
        self._ask("put", name=name, source=str(source))

    def sizes(self) -> dict[str, int]:
        """The bytes of each file that is there, by name.

        Raises:
            DataError: when the store does not tell.
        """
        if is_url(self.url):
            return dict(self._ask("sizes"))
        with os.scandir(self.url) as entries:
            return {entry.name: entry.stat().st_size for entry in entries}

    def close(self) -> None:
        """Ends the program that fetches, if this process has started it."""
        process, self.process = self.process, None
        if process is None:
            return
        if self.owner != os.getpid():
            process.returncode = 0  # another process waits for it
            return
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended already
            process.stdin.close()
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()

    def __del__(self) -> None:
        self.close()

    def _ask(self, action: str, **request: Any) -> Any:
        with self.asking:
            self.number += 1
            self._send(self.number, action, **request)
            assert self.process is not None and self.process.stdout is not None
            for line in self.process.stdout:
                number, reason, value = json.loads(line)
                if number == self.number:
                    break
            else:
                self.close()
                reason, value = "the program that fetches has ended; what it said stands above", None
        if reason is not None:
            what = "write" if action == "put" else "read"
            raise DataError(f"cannot {what} {shown(self.place(request.get('name', '')))}: {reason}")
        return value

    def _send(self, number: int | None, action: str, **request: Any) -> None:
        if self.owner != os.getpid():
            self.close()
        if self.process is None:
            job = {"url": self.url, "folder": str(self.folder), "limit": self.limit, "parent": os.getpid()}
            self.owner = os.getpid()
            self.process = subprocess.Popen(
                [sys.executable, "-P", fetcher.__file__, json.dumps(job)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,  # a Ctrl-C is for those that have started it
            )
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps({"number": number, "action": action, **request}) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError as error:
            self.close()
            raise DataError(f"the program that fetches from {self.url} has ended; what it said stands above") from error
