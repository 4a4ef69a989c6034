"""Standalone program that copies objects between a store and this machine: `python fetcher.py JOB`, where JOB is JSON.

The library that talks to object stores runs threads, and a process with threads must not be forked, which loader workers are.
Hence this program, which imports nothing of the package. It reads requests as lines of JSON from its standard input, serves
four at a time, replies to those that have a number, and exits with the process that has started it.
"""

import contextlib
import errno
import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import socket
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

NUM_THREADS = 4
CHUNK_BYTES = 4 << 20
MAX_ATTEMPTS = 3
RETRY_DELAY_S = 1.0  # before the second attempt; doubled before the third
NUM_LOCKS = 64
PARTIAL = ".partial"


class CorruptObjectError(Exception):
    """Size or SHA-256 of an object differ from those in the index."""


class Fetcher:
    """Server of requests. Its public methods are the actions.

    Args:
        url: URL of a store with a prefix, or a folder.
        folder: folder of the copies.
        limit: total size of the copies in bytes.
    """

    def __init__(self, url: str, folder: str, limit: int) -> None:
        self.url, self.folder, self.limit = url, Path(folder), limit
        self.locks = self.folder.parent / "locks"
        for path in (self.folder, self.locks):
            path.mkdir(parents=True, exist_ok=True)
        self._store: Any = None
        self.opening = threading.Lock()

    @property
    def store(self) -> Any:
        """The store, opened on first use."""
        with self.opening:
            if self._store is None:
                self._store = open_store(self.url)
        return self._store

    def get(self, name: str, target: str, size: int | None, sha256: str | None) -> None:
        """Copy an object to a file in the folder and verify it, unless it is cached.

        Args:
            name: name of the object.
            target: name of the copy.
            size: expected size in bytes; None if unknown, which always copies.
            sha256: expected SHA-256, hexadecimal; None if unknown.
        """
        path = self.folder / target
        with self._locked(f"{zlib.crc32(target.encode()) % NUM_LOCKS}"):
            if size is not None and is_cached(path, size):
                return
            if "://" not in self.url:
                return self._link(Path(self.url, name), path, size, sha256)
            for attempt in range(MAX_ATTEMPTS):
                try:
                    return self._copy(name, path, size, sha256)
                except (FileNotFoundError, PermissionError):
                    raise
                except Exception as error:
                    if attempt == MAX_ATTEMPTS - 1 or getattr(error, "errno", None) == errno.ENOSPC:
                        raise
                    time.sleep(RETRY_DELAY_S * 2**attempt)

    def put(self, name: str, source: str) -> None:
        """Upload a file."""
        self.store.put(name, Path(source))

    def sizes(self) -> dict[str, int]:
        """Return the size in bytes of each object."""
        return {str(entry["path"]): int(entry["size"]) for page in self.store.list() for entry in page}

    def _copy(self, name: str, path: Path, size: int | None, sha256: str | None) -> None:
        response = self.store.get(name)
        actual = int(response.meta["size"])
        _check_size(actual, size)
        with _atomic(path) as partial:
            with self._reserved(actual), partial.open("wb") as file:
                file.truncate(actual)  # so that other processes count it
            digest = hashlib.sha256()
            with partial.open("r+b") as file:
                for chunk in response.stream(min_chunk_size=CHUNK_BYTES):
                    digest.update(chunk)
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())  # `is_cached` trusts the size, which the file had from the start
            _check_hash(digest.hexdigest(), sha256)

    def _link(self, source: Path, path: Path, size: int | None, sha256: str | None) -> None:
        """Create a verified link. Its modification time is that of the file, which shows later changes of the file."""
        status = source.stat()
        _check_size(status.st_size, size)
        if sha256 is not None:
            with source.open("rb") as file:
                _check_hash(hashlib.file_digest(file, "sha256").hexdigest(), sha256)
        with _atomic(path) as partial:
            partial.unlink(missing_ok=True)
            partial.symlink_to(source.resolve())
            os.utime(partial, ns=(status.st_mtime_ns, status.st_mtime_ns), follow_symlinks=False)

    @contextlib.contextmanager
    def _reserved(self, size: int) -> Iterator[None]:
        """Evict the least recently used copies until `size` bytes fit, and hold the lock until they are allocated."""
        with self._locked("room"):
            copies = []
            for path in self.folder.iterdir():
                with contextlib.suppress(FileNotFoundError):
                    status = path.lstat()
                    if path.name.endswith(PARTIAL) and is_stale(path):
                        path.unlink()
                    else:
                        copies.append((status.st_mtime_ns, status.st_size, path))
            total = sum(copy_size for _, copy_size, _ in copies)
            for _, copy_size, path in sorted(copies):
                if total + size <= self.limit:
                    break
                if path.name.endswith(PARTIAL):
                    continue
                with contextlib.suppress(FileNotFoundError):
                    path.unlink()
                total -= copy_size
            free = shutil.disk_usage(self.folder).free
            if size > free:
                raise OSError(errno.ENOSPC, f"no room for {size:,} bytes in {self.folder}, {free:,} are free")
            yield

    @contextlib.contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        """Hold a lock among all threads and processes that fetch into this folder."""
        with (self.locks / name).open("w") as file:
            with contextlib.suppress(OSError):  # a file system without locks: files may be fetched twice
                fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed
            yield


@contextlib.contextmanager
def _atomic(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file, which replaces `path` on success and is removed on failure."""
    partial = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}{PARTIAL}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _check_size(actual: int, expected: int | None) -> None:
    if expected not in (None, actual):
        raise CorruptObjectError(f"it has {actual:,} bytes; the index lists {expected:,}")


def _check_hash(actual: str, expected: str | None) -> None:
    if expected not in (None, actual):
        raise CorruptObjectError("its SHA-256 differs from the one in the index")


def is_cached(path: Path, size: int) -> bool:
    """Return whether a complete copy exists, or a link to a file that has not changed since it was verified."""
    try:
        status = path.stat()
        return status.st_size == size and path.lstat().st_mtime_ns == status.st_mtime_ns
    except OSError:
        return False


def is_stale(path: Path) -> bool:
    """Return whether a partial file was left by a process of this machine that has exited."""
    _, _, pid = path.name.removesuffix(PARTIAL).partition(f".{socket.gethostname()}.")
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except (ValueError, PermissionError):  # of another machine, or of another user
        return False
    return False


def open_store(url: str) -> Any:
    """Open the store of a URL such as s3://bucket/prefix, with credentials, region and endpoint from the environment."""
    from obstore.store import from_url

    keywords: dict[str, Any] = {}
    address = url
    if url.startswith("s3://"):
        address = os.environ.get("AWS_ENDPOINT_URL", os.environ.get("AWS_ENDPOINT", ""))
        known = {
            "AWS_ACCESS_KEY_ID",
            "AWS_SKIP_SIGNATURE",
            "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        } & os.environ.keys()
        if not known and importlib.util.find_spec("boto3"):  # reads ~/.aws, profiles and single sign-on
            from obstore.auth.boto3 import Boto3CredentialProvider

            try:
                keywords["credential_provider"] = Boto3CredentialProvider()
            except ValueError as error:  # boto3 has found no credentials
                raise PermissionError(
                    "no credentials are set: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile in ~/.aws, or "
                    "AWS_SKIP_SIGNATURE=true for a public bucket"
                ) from error
    if address.startswith("http://"):  # explicitly requested
        keywords["client_options"] = {"allow_http": True}
    return from_url(url, **keywords)


def error_reason(error: BaseException) -> str:
    """Return the cause of an error as the end of a sentence."""
    if isinstance(error, CorruptObjectError):
        return str(error)
    if isinstance(error, FileNotFoundError):
        return "it does not exist"
    if isinstance(error, ModuleNotFoundError):
        return f"it needs the package {error.name}: run pip install -e '.[streaming]' in the repository"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def exit_with_parent(parent_pid: int) -> None:
    """Exit when the parent process has exited, even if another process keeps the pipe open."""
    while os.getppid() == parent_pid:
        time.sleep(1)
    os._exit(0)


def main(job: dict[str, Any]) -> None:
    """Serve requests until the standard input is closed."""
    threading.Thread(target=exit_with_parent, args=(job["parent"],), daemon=True).start()
    fetcher, pool = Fetcher(job["url"], job["folder"], job["limit"]), ThreadPoolExecutor(NUM_THREADS)
    running: dict[str, Future[Any]] = {}
    printing = threading.Lock()

    def reply(number: int, done: Future[Any]) -> None:
        error = done.exception()
        response = [number, None, done.result()] if error is None else [number, error_reason(error), None]
        with printing:
            print(json.dumps(response), flush=True)

    for line in sys.stdin:
        request = json.loads(line)
        number, action, key = request.pop("number"), request.pop("action"), json.dumps(request)
        if key not in running or running[key].done():
            running[key] = pool.submit(getattr(fetcher, action), **request)
        if number is not None:
            running[key].add_done_callback(lambda done, number=number: reply(number, done))  # type: ignore[misc]
        running = {key: future for key, future in running.items() if not future.done()}
    os._exit(0)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
