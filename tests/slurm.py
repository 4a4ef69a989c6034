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
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,batch_sched_delay=0
KillWait=5
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
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
    """One controller and one node with two CPUs, which is this machine.

    Args:
        folder: of its configuration, state and logs; its path must be short, as that of a socket.
    """

    folder: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def start(self) -> None:
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        host = socket.gethostname().split(".")[0]
        (self.folder / "slurm.conf").write_text(
            CONF.format(host=host, folder=self.folder, ports=free_ports(2), cpus=CPUS)
        )
        places = [f"--{name}={self.folder}/munge.{name}" for name in ("pid-file", "log-file", "seed-file")]
        self._daemon("munged", "--force", f"--key-file={key}", f"--socket={self.folder}/munge.socket", *places)
        self._until(lambda: (self.folder / "munge.socket").exists())
        self._daemon("slurmctld", "-D", "-i")
        self._daemon("slurmd", "-D")
        self._until(lambda: "idle" in self.ask("sinfo", "-h", "-o", "%T"))

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
def cluster(folder: Path) -> Iterator[Cluster]:
    """Starts a cluster and ends it; skips the test, with the reason, where that cannot be."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        pytest.skip(f"SLURM is not here, {', '.join(missing)}: {DEBIAN}")
    if os.geteuid() != 0:
        pytest.skip("SLURM's daemons need root")
    made = Cluster(folder)
    try:
        try:
            made.start()
        except RuntimeError as error:
            pytest.skip(str(error))
        yield made
    finally:
        made.stop()
