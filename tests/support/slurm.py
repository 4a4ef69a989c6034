"""A real SLURM on this machine: munged, slurmctld and slurmd, started for a test and ended after it. Needs root."""

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
START_S = 30.0  # for which the cluster may take to come up

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
    """One controller, and nodes with two CPUs each, all of which are this machine.

    Args:
        folder: of its configuration, state and logs; its path must be short, as that of a socket.
        num_nodes: number of nodes, `n1` and so on.
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
        places = [f"--{name}={self.folder}/munge.{name}" for name in ("pid-file", "log-file", "seed-file")]
        self._daemon("munged", "--force", f"--key-file={key}", f"--socket={self.folder}/munge.socket", *places)
        self._until(lambda: (self.folder / "munge.socket").exists())
        self._daemon("slurmctld", "-D", "-i")
        for name in names:
            self._daemon("slurmd", "-D", "-N", name)
        self._until(lambda: self.ask("sinfo", "-h", "-N", "-o", "%T").split() == ["idle"] * self.num_nodes)

    def ask(self, *command: str) -> str:
        """What a command of SLURM prints."""
        return subprocess.run(
            command, env=os.environ | self.environment, capture_output=True, text=True, timeout=30
        ).stdout.strip()

    def stop(self) -> None:
        self.ask("scancel", "--user=root", "--signal=KILL")
        self.ask("scancel", "--user=root")
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
                raise RuntimeError(f"SLURM did not start: {log or 'it took too long'}")
            time.sleep(0.1)


@contextmanager
def cluster(folder: Path, *, num_nodes: int = 1) -> Iterator[Cluster]:
    """Starts a cluster and ends it; skips the test, with the reason, where that cannot be."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        pytest.skip(f"SLURM is not here, {', '.join(missing)}: {DEBIAN}")
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
