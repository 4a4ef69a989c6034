"""A real SLURM on this machine: munged, slurmctld and slurmd, started for a test and stopped after it. Needs root."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol")
DEBIAN = "apt-get install --no-install-recommends slurmctld slurmd slurm-client munge"
CPUS = 2
START_S = 30.0  # time limit for the cluster to start

CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmctldPort={ports[0]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,batch_sched_delay=0
KillWait=5
ReturnToService=2
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@dataclass
class Cluster:
    """One controller and nodes with two CPUs each, all on this machine.

    Args:
        folder: configuration, state and logs; a short path, since it contains a socket.
        num_nodes: number of nodes, named `n1` and so on.
    """

    folder: Path
    num_nodes: int = 1
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def start(self) -> None:
        names = [f"n{number}" for number in range(1, self.num_nodes + 1)]
        for name in ("state", *(f"spool.{name}" for name in names)):
            (self.folder / name).mkdir()
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        host = socket.gethostname().split(".")[0]
        ports = free_ports(1 + self.num_nodes)
        nodes = "\n".join(
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={CPUS} State=UNKNOWN"
            for name, port in zip(names, ports[1:], strict=True)
        )
        (self.folder / "slurm.conf").write_text(CONF.format(host=host, folder=self.folder, ports=ports, nodes=nodes))
        files = [f"--{name}={self.folder}/munge.{name}" for name in ("pid-file", "log-file", "seed-file")]
        self._daemon("munged", "--force", f"--key-file={key}", f"--socket={self.folder}/munge.socket", *files)
        self._until(lambda: (self.folder / "munge.socket").exists())
        self._daemon("slurmctld", "-D", "-i")
        for name in names:
            self._daemon("slurmd", "-D", "-N", name)
        self._until(lambda: self.run("sinfo", "-h", "-N", "-o", "%T").split() == ["idle"] * self.num_nodes)

    def run(self, *command: str) -> str:
        """Run a SLURM command and return its output."""
        return subprocess.run(
            command, env=os.environ | self.environment, capture_output=True, text=True, timeout=30
        ).stdout.strip()

    def stop(self) -> None:
        self.run("scancel", "--user=root", "--signal=KILL")
        self.run("scancel", "--user=root")
        for process in reversed(self.processes):
            process.send_signal(signal.SIGTERM)
        for process in reversed(self.processes):
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _daemon(self, *command: str) -> None:
        foreground = ["--foreground"] if command[0] == "munged" else []
        with (self.folder / "daemons.log").open("ab") as log:
            self.processes.append(
                subprocess.Popen(
                    [command[0], *foreground, *command[1:]],
                    env=os.environ | self.environment,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )

    def _until(self, ready) -> None:  # type: ignore[no-untyped-def]
        end = time.monotonic() + START_S
        while not ready():
            if time.monotonic() > end or any(process.poll() is not None for process in self.processes):
                log = (self.folder / "daemons.log").read_text(errors="replace")[-800:]
                raise RuntimeError(f"SLURM did not start: {log or 'timed out'}")
            time.sleep(0.1)


@contextmanager
def cluster(folder: Path, *, num_nodes: int = 1) -> Iterator[Cluster]:
    """Start a cluster and stop it; skip the test with the reason if that is not possible."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        pytest.skip(f"SLURM is not installed, missing {', '.join(missing)}: {DEBIAN}")
    if os.geteuid() != 0:
        pytest.skip("SLURM's daemons need root")
    made = Cluster(folder, num_nodes)
    try:
        try:
            made.start()
        except RuntimeError as error:
            pytest.skip(str(error))
        yield made
    finally:
        made.stop()
