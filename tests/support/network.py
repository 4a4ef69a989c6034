"""Two simulated machines: network namespaces connected by a virtual cable that can be cut. Needs root and the command `ip`."""

import ctypes
import faulthandler
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import pytest

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWNET = 0x00020000, 0x04000000, 0x40000000  # <linux/sched.h>
MS_BIND, MS_REC, MS_PRIVATE = 1 << 12, 1 << 14, 1 << 18  # <linux/mount.h>
FIRST = "10.77.0.1"
PORT = 29571


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@dataclass
class Network:
    """Two namespaces, `first` and `other`, with the addresses 10.77.0.1 and 10.77.0.2.

    Args:
        tag: prefix of the names, so that two networks do not collide.
        machines: the machines started in it.
    """

    tag: str
    machines: "list[Machine]" = field(default_factory=list)

    def name(self, node: str) -> str:
        return f"{self.tag}_{node}"

    def create(self) -> None:
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
        """Take the link down: packets are dropped, connections stay open."""
        ip("-n", self.name("other"), "link", "set", "cable", "down")

    def restore(self) -> None:
        ip("-n", self.name("other"), "link", "set", "cable", "up")

    def enter(self, node: str) -> None:
        """Move this process into a namespace."""
        with open(f"/run/netns/{self.name(node)}") as file:
            if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")


@contextmanager
def network() -> Iterator[Network]:
    """Create the namespaces; in the end kill the machines and remove the namespaces.

    Skip the test with the reason if namespaces are not permitted.
    """
    made = Network(f"al{os.getpid() % 100_000}")
    try:
        made.create()
    except (OSError, subprocess.CalledProcessError) as error:
        made.remove()
        pytest.skip(f"network namespaces cannot be created here: {getattr(error, 'stderr', None) or error}")
    try:
        yield made
    finally:
        for machine in made.machines:
            machine.kill()
        made.remove()


def isolate(node: str, folder: Path, hidden: Path | None) -> None:
    """Give this process its own host name, a hosts file as Debian writes it, and no name server.

    The machine's own name resolves to 127.0.1.1, that of the other one to its address.

    Args:
        node: `first` or `other`.
        folder: existing folder for the hosts file and resolv.conf.
        hidden: directory that appears empty to this process.
    """
    library = ctypes.CDLL(None, use_errno=True)
    hosts, resolver = folder / "hosts", folder / "resolv.conf"
    others = {"first": "10.77.0.2 other", "other": "10.77.0.1 first"}
    hosts.write_text(f"127.0.0.1 localhost\n127.0.1.1 {node}\n{others[node]}\n")
    resolver.write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")  # answers at once: port 53 is closed
    steps = [
        lambda: library.unshare(CLONE_NEWNS | CLONE_NEWUTS),
        lambda: library.sethostname(os.fsencode(node), len(node)),
        lambda: library.mount(None, b"/", None, MS_REC | MS_PRIVATE, None),
        lambda: library.mount(os.fsencode(hosts), b"/etc/hosts", None, MS_BIND, None),
        lambda: library.mount(
            os.fsencode(resolver), os.fsencode(Path("/etc/resolv.conf").resolve()), None, MS_BIND, None
        ),
    ]
    if hidden is not None:
        hidden.mkdir(exist_ok=True)
        steps.append(lambda: library.mount(b"none", os.fsencode(hidden), b"tmpfs", 0, None))
    for step in steps:
        if step():
            raise OSError(ctypes.get_errno(), "isolate")


class Machine:
    """A process in a namespace, with its own working directory as its disk.

    Args:
        net: the network.
        node: `first` or `other`.
        disk: working directory; the output is appended to a log there.
        command: function to run; its return value is the exit code.
        hidden: directory that this machine does not see.
    """

    def __init__(
        self, net: Network, node: str, disk: Path, command: Callable[[], int | None], *, hidden: Path | None = None
    ) -> None:
        disk.mkdir(exist_ok=True)
        self.net, self.log = net, disk / f"{node}.log"
        net.machines.append(self)

        def body() -> None:
            os.setsid()
            net.enter(node)
            isolate(node, disk, hidden)
            os.chdir(disk)
            output = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            for descriptor in (1, 2):
                os.dup2(output, descriptor)
            sys.stdout = sys.stderr = os.fdopen(output, "w", buffering=1)  # instead of pytest's
            logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout, force=True)
            faulthandler.register(signal.SIGUSR2, output)  # inherited by the ranks
            code = command()
            sys.stdout.flush()
            os._exit(code or 0)

        self.process = multiprocessing.get_context("fork").Process(target=body)
        self.process.start()

    def wait(self, within_s: float = 300.0) -> int:
        """Return the exit code."""
        self.process.join(within_s)
        if self.process.exitcode is None:
            self.fail(f"still running after {within_s:g} s")
        return self.process.exitcode

    def wait_for(self, text: str, within_s: float = 240.0) -> None:
        """Wait until the output contains a text."""
        deadline_s = time.monotonic() + within_s
        while text not in self.output():
            if not self.process.is_alive() or time.monotonic() > deadline_s:
                self.fail(f"{text!r} was not printed")
            time.sleep(0.05)

    def kill(self) -> None:
        """Kill the launcher and all its processes, as a power failure does."""
        self.send(signal.SIGKILL)
        self.process.join()

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the launcher and its ranks, which outlive a killed launcher."""
        assert self.process.pid is not None
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def output(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def fail(self, reason: str) -> NoReturn:
        """Fail the test with the end of what every machine printed and the stacks of its processes."""
        for machine in self.net.machines:
            machine.send(signal.SIGUSR2)
        time.sleep(1)
        outputs = (f"{machine.log.stem}:\n{machine.output()[-20_000:]}" for machine in self.net.machines)
        pytest.fail("\n".join((reason, *outputs)))
