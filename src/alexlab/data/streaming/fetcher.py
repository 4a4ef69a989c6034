"""A program of its own that copies objects of a store to this machine and back: `python fetcher.py JOB`, JOB being JSON.

The library that speaks with the stores runs threads, which no process may have that is forked afterwards; loader processes
are. Hence this program: it needs nothing of this package, takes requests as lines of JSON from its standard input, does four
at a time, answers those that ask for it, and ends with the process that has started it.
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

AT_ONCE = 4
PART = 4 << 20  # bytes
TRIES = 3
WAIT_S = 1.0  # before the second try, twice as long before the third
NUM_LOCKS = 64
UNFINISHED = ".unfinished"


class CorruptObjectError(Exception):
    """An object is not what the index says."""


class Fetcher:
    """Does requests.

    Args:
        url: of a store and a prefix in it, or a folder.
        folder: where copies are kept.
        limit: of the bytes of all copies together.
    """

    def __init__(self, url: str, folder: str, limit: int) -> None:
        self.url, self.folder, self.limit = url, Path(folder), limit
        self.locks = self.folder.parent / "locks"
        for place in (self.folder, self.locks):
            place.mkdir(parents=True, exist_ok=True)
        self._store: Any = None
        self.opening = threading.Lock()

    @property
    def store(self) -> Any:
        """The store; made when it is first needed."""
        with self.opening:
            if self._store is None:
                self._store = opened(self.url)
        return self._store

    def get(self, name: str, target: str, size: int | None, sha256: str | None) -> None:
        """Has an object under a name of the folder, checked; nothing to do where it is there.

        Args:
            name: of the object.
            target: its name here.
            size: in bytes; None where nobody knows, then it is copied anew.
            sha256: which it must have; None where nobody knows.
        """
        place = self.folder / target
        with self._locked(f"{zlib.crc32(target.encode()) % NUM_LOCKS}"):
            if size is not None and is_cached(place, size):
                return
            if "://" not in self.url:
                return self._link(Path(self.url, name), place, size, sha256)
            for number in range(TRIES):
                try:
                    return self._copy(name, place, size, sha256)
                except (FileNotFoundError, PermissionError):
                    raise
                except Exception as error:
                    if number == TRIES - 1 or getattr(error, "errno", None) == errno.ENOSPC:
                        raise
                    time.sleep(WAIT_S * 2**number)

    def put(self, name: str, source: str) -> None:
        """Copies a file into the store."""
        self.store.put(name, Path(source))

    def sizes(self) -> dict[str, int]:
        """The bytes of each object there, by name."""
        return {str(each["path"]): int(each["size"]) for part in self.store.list() for each in part}

    def _copy(self, name: str, place: Path, size: int | None, sha256: str | None) -> None:
        answer = self.store.get(name)
        found = int(answer.meta["size"])
        if size not in (None, found):
            raise CorruptObjectError(f"it has {found:,} bytes, not the {size:,} of the index")
        unfinished = place.with_name(f"{place.name}.{socket.gethostname()}.{os.getpid()}{UNFINISHED}")
        try:
            with self._room(found), unfinished.open("wb") as file:
                file.truncate(found)  # so that others count it
            digest = hashlib.sha256()
            with unfinished.open("r+b") as file:
                for part in answer.stream(min_chunk_size=PART):
                    digest.update(part)
                    file.write(part)
            if sha256 not in (None, digest.hexdigest()):
                raise CorruptObjectError("its content is not that of the index (SHA-256)")
            os.replace(unfinished, place)
        finally:
            unfinished.unlink(missing_ok=True)

    def _link(self, path: Path, place: Path, size: int | None, sha256: str | None) -> None:
        """A link with the time of the file that it leads to: nobody has changed that since it was checked."""
        status = path.stat()
        if size not in (None, status.st_size):
            raise CorruptObjectError(f"it has {status.st_size:,} bytes, not the {size:,} of the index")
        if sha256 is not None:
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                    raise CorruptObjectError("its content is not that of the index (SHA-256)")
        unfinished = place.with_name(f"{place.name}.{socket.gethostname()}.{os.getpid()}{UNFINISHED}")
        unfinished.unlink(missing_ok=True)
        unfinished.symlink_to(path.resolve())
        os.utime(unfinished, ns=(status.st_mtime_ns, status.st_mtime_ns), follow_symlinks=False)
        os.replace(unfinished, place)

    @contextlib.contextmanager
    def _room(self, size: int) -> Iterator[None]:
        """Removes what was not used for longest until there is room for so many bytes, and holds it until they are taken."""
        with self._locked("room"):
            known = []
            for place in self.folder.iterdir():
                with contextlib.suppress(FileNotFoundError):
                    status = place.lstat()
                    if place.name.endswith(UNFINISHED) and is_stale(place):
                        place.unlink()
                    else:
                        known.append((status.st_mtime_ns, status.st_size, place))
            taken = sum(each[1] for each in known)
            for _, bytes_of_it, place in sorted(known):
                if taken + size <= self.limit:
                    break
                if place.name.endswith(UNFINISHED):
                    continue
                with contextlib.suppress(FileNotFoundError):
                    place.unlink()
                taken -= bytes_of_it
            free = shutil.disk_usage(self.folder).free
            if size > free:
                raise OSError(errno.ENOSPC, f"no room for {size:,} bytes in {self.folder}, {free:,} are free")
            yield

    @contextlib.contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        """Keeps others that fetch into this folder, threads and processes, from doing the same at the same time."""
        with (self.locks / name).open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # the system gives it back when the file is closed
            yield


def is_cached(place: Path, size: int) -> bool:
    """Whether a whole copy is there, or a link to a file that was not changed since it was checked."""
    try:
        found = place.stat()
        return found.st_size == size and place.lstat().st_mtime_ns == found.st_mtime_ns
    except OSError:
        return False


def is_stale(place: Path) -> bool:
    """Whether the process of this machine that was writing a file has ended."""
    _, _, rest = place.name.removesuffix(UNFINISHED).partition(f".{socket.gethostname()}.")
    try:
        os.kill(int(rest), 0)
    except ValueError:
        return False
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def opened(url: str) -> Any:
    """The store of a URL such as s3://bucket/prefix, with what the environment says of keys, region and endpoint."""
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
        if not known and importlib.util.find_spec("boto3"):  # which reads ~/.aws, profiles and single sign-on
            from obstore.auth.boto3 import Boto3CredentialProvider

            try:
                keywords["credential_provider"] = Boto3CredentialProvider()
            except ValueError as error:  # its session has none
                words = "no keys are set: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile in ~/.aws, or "
                raise PermissionError(words + "AWS_SKIP_SIGNATURE=true for a public bucket") from error
    if address.startswith("http://"):  # somebody has typed it
        keywords["client_options"] = {"allow_http": True}
    return from_url(url, **keywords)


def reason_of(error: BaseException) -> str:
    """What went wrong, as the rest of a sentence."""
    if isinstance(error, CorruptObjectError):
        return str(error)
    if isinstance(error, FileNotFoundError):
        return "it is not there"
    if isinstance(error, ModuleNotFoundError):
        return f"it needs the package {error.name}: pip install -e '.[streaming]'"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def ends_with(parent: int) -> None:
    """Ends this process when the one that has started it is gone, though another may hold the pipe."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(0)


def main(job: dict[str, Any]) -> None:
    """Reads requests until there are no more."""
    threading.Thread(target=ends_with, args=(job["parent"],), daemon=True).start()
    fetcher, pool = Fetcher(job["url"], job["folder"], job["limit"]), ThreadPoolExecutor(AT_ONCE)
    begun: dict[str, Future[Any]] = {}
    speaking = threading.Lock()

    def answer(number: int, done: Future[Any]) -> None:
        error = done.exception()
        words = [number, None, done.result()] if error is None else [number, reason_of(error), None]
        with speaking:
            print(json.dumps(words), flush=True)

    for line in sys.stdin:
        request = json.loads(line)
        number, action, key = request.pop("number"), request.pop("action"), json.dumps(request)
        if key not in begun or begun[key].done():
            begun[key] = pool.submit(getattr(fetcher, action), **request)
        if number is not None:
            begun[key].add_done_callback(lambda done, number=number: answer(number, done))  # type: ignore[misc]
        begun = {key: future for key, future in begun.items() if not future.done()}
    os._exit(0)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
