"""Two machines in one: network namespaces joined by a cable that can be cut. Needs root and the command `ip`."""

import ctypes
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWNET = 0x00020000, 0x04000000, 0x40000000  # <linux/sched.h>
MS_BIND, MS_REC, MS_PRIVATE = 1 << 12, 1 << 14, 1 << 18  # <linux/mount.h>
FIRST = "10.77.0.1"
PORT = 29571


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@dataclass
class Network:
    """Two namespaces, `first` and `other`, with the addresses 10.77.0.1 and 10.77.0.2.

    Args:
        tag: of the names, so that two of them do not meet.
    """

    tag: str

    def name(self, node: str) -> str:
        return f"{self.tag}_{node}"

    def make(self) -> None:
        ends = {"first": f"{self.tag}a", "other": f"{self.tag}b"}
        for node in ends:
            ip("netns", "add", self.name(node))
        ip("link", "add", ends["first"], "type", "veth", "peer", "name", ends["other"])
        for number, (node, end) in enumerate(ends.items(), 1):
            ip("link", "set", end, "netns", self.name(node))
            ip("-n", self.name(node), "link", "set", end, "name", "cable")
            ip("-n", self.name(node), "addr", "add", f"10.77.0.{number}/24", "dev", "cable")
            ip("-n", self.name(node), "link", "set", "lo", "up")
            ip("-n", self.name(node), "link", "set", "cable", "up")

    def remove(self) -> None:
        for node in ("first", "other"):
            subprocess.run(["ip", "netns", "del", self.name(node)], capture_output=True)

    def cut(self) -> None:
        """Pulls the cable: packets vanish, connections stay."""
        ip("-n", self.name("other"), "link", "set", "cable", "down")

    def restore(self) -> None:
        ip("-n", self.name("other"), "link", "set", "cable", "up")

    def enter(self, node: str) -> None:
        """Moves this process into a namespace."""
        with open(f"/run/netns/{self.name(node)}") as file:
            if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")


@contextmanager
def network() -> Iterator[Network]:
    """Makes the namespaces and removes them; skips the test, with the reason, where that may not be."""
    made = Network(f"al{os.getpid() % 100_000}")
    try:
        made.make()
    except (OSError, subprocess.CalledProcessError) as error:
        made.remove()
        pytest.skip(f"network namespaces cannot be made here: {getattr(error, 'stderr', None) or error}")
    try:
        yield made
    finally:
        made.remove()


def become(node: str, folder: Path, hidden: Path | None) -> None:
    """Give this process, and no other, a host name, and names for both machines as Debian has them.

    A machine's own name leads to 127.0.1.1, that of the other one to its address.

    Args:
        node: `first` or `other`.
        folder: an existing one, for a file.
        hidden: a directory that appears empty.
    """
    library = ctypes.CDLL(None, use_errno=True)
    hosts = folder / "hosts"
    others = {"first": "10.77.0.2 other", "other": "10.77.0.1 first"}
    hosts.write_text(f"127.0.0.1 localhost\n127.0.1.1 {node}\n{others[node]}\n")
    steps = [
        lambda: library.unshare(CLONE_NEWNS | CLONE_NEWUTS),
        lambda: library.sethostname(os.fsencode(node), len(node)),
        lambda: library.mount(None, b"/", None, MS_REC | MS_PRIVATE, None),
        lambda: library.mount(os.fsencode(hosts), b"/etc/hosts", None, MS_BIND, None),
    ]
    if hidden is not None:
        hidden.mkdir(exist_ok=True)
        steps.append(lambda: library.mount(b"none", os.fsencode(hidden), b"tmpfs", 0, None))
    for step in steps:
        if step():
            raise OSError(ctypes.get_errno(), "become")


class Machine:
    """A process in a namespace, with a working directory of its own, which is its disk.

    Args:
        net: the network.
        node: `first` or `other`.
        disk: the directory; what the process prints is in a log there, appended.
        command: what it does; its return value is the exit code.
        hidden: a directory that this machine does not see.
    """

    def __init__(
        self, net: Network, node: str, disk: Path, command: Callable[[], int | None], *, hidden: Path | None = None
    ) -> None:
        disk.mkdir(exist_ok=True)
        self.log = disk / f"{node}.log"

        def body() -> None:
            os.setsid()
            net.enter(node)
            become(node, disk, hidden)
            os.chdir(disk)
            output = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            for descriptor in (1, 2):
                os.dup2(output, descriptor)
            sys.stdout = sys.stderr = os.fdopen(output, "w", buffering=1)  # in the place of pytest's
            logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout, force=True)
            code = command()
            sys.stdout.flush()
            os._exit(code or 0)

        self.process = multiprocessing.get_context("fork").Process(target=body)
        self.process.start()

    def wait(self, within_s: float = 120.0) -> int:
        """The exit code."""
        self.process.join(within_s)
        if self.process.exitcode is None:
            self.kill()
            pytest.fail(f"still running after {within_s:g} s; it has said:\n{self.said()}")
        return self.process.exitcode

    def kill(self) -> None:
        """Ends the launcher and all its processes at once, as a power failure does."""
        assert self.process.pid is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.join()

    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def says(self, words: str, within_s: float = 90.0) -> None:
        """Waits until it has printed some words."""
        deadline_s = time.monotonic() + within_s
        while words not in self.said():
            if time.monotonic() > deadline_s or not self.process.is_alive():
                pytest.fail(f"{words!r} was not said; but this:\n{self.said()[-4000:]}")
            time.sleep(0.05)
