"""Connection to a Ray cluster, or a Ray on this machine for the duration of a sweep."""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alexlab import compat
from alexlab.distributed import hardware
from alexlab.distributed.imports import python_path
from alexlab.distributed.signals import HANDLED, Interrupted
from alexlab.errors import ConfigError

CONNECT_S = 15.0  # how long a cluster may take to answer; Ray itself tries for two minutes
REMOVE_S = 10.0  # how long to retry removing Ray's files
REMOVE_POLL_S = 0.2
OBJECT_STORE_BYTES = 80_000_000  # Ray's minimum; configs and scores pass through it, no images
PROBE = "import sys, ray; ray.init(address=sys.argv[1], configure_logging=False, log_to_driver=False); ray.nodes()"


def check_answers(address: str) -> None:
    """Check, in a process that can be killed, that a Ray cluster answers.

    Raises:
        ConfigError: if the cluster does not answer.
    """
    try:
        command = [sys.executable, "-c", PROBE, address]
        result = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=CONNECT_S)
        last = (result.stderr.strip().splitlines() or [f"exit code {result.returncode}"])[-1]
        reason = last if result.returncode else ""
    except subprocess.TimeoutExpired:
        reason = f"no answer within {CONNECT_S:g} s"
    if reason:
        raise ConfigError(
            f"launcher.address must be a running Ray cluster, auto, HOST:PORT or ray://HOST:PORT; cannot connect to {address}: "
            f"{reason}"
        )


@contextmanager
def connected(address: str | None) -> Iterator[Any]:
    """Connect to Ray and yield the module; without an address, start Ray on this machine and remove all its files at the end."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    path = os.environ["PYTHONPATH"] = python_path()
    options: dict[str, Any] = {"address": address or "local", "log_to_driver": False, "configure_logging": False}
    temp_dir = None
    if address is None:
        # Without this variable Ray uses the address of the network instead of 127.0.0.1; it is read on import.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}  # against other users
        temp_dir = tempfile.mkdtemp(prefix="alexlab_", dir="/tmp")  # the paths of its sockets must be short
        options |= {
            **compat.local_ray_options(temp_dir),
            "num_cpus": hardware.num_cores(),
            "object_store_memory": OBJECT_STORE_BYTES,
            "include_dashboard": False,
        }
    else:
        options["runtime_env"] = {"env_vars": {"PYTHONPATH": path}}
    import ray

    handlers = {signum: signal.getsignal(signum) for signum in HANDLED}
    try:
        with _separate_process_groups():
            ray.init(**options)
        for signum, handler in handlers.items():  # Ray replaces the one for SIGTERM
            signal.signal(signum, handler)
        yield ray
    except SystemExit as error:  # raised by Ray's handler
        raise Interrupted(signal.SIGTERM) from error
    finally:
        ray.shutdown()
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
        if temp_dir is not None:
            _remove(Path(temp_dir))


@contextmanager
def _separate_process_groups() -> Iterator[None]:
    """Start Ray's processes outside of this process group.

    A terminal and `timeout` signal the whole group: Ray would exit and kill the jobs before they save a checkpoint.
    """
    starting = True
    os.register_at_fork(after_in_child=lambda: os.setpgid(0, 0) if starting else None)
    try:
        yield
    finally:
        starting = False


def _remove(folder: Path) -> None:
    """Remove a folder that exiting processes may still write to for a moment."""
    end_s = time.monotonic() + REMOVE_S
    while folder.exists() and time.monotonic() < end_s:
        shutil.rmtree(folder, ignore_errors=True)
        if folder.exists():
            time.sleep(REMOVE_POLL_S)
