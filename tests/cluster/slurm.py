"""A Slurm cluster on hosts: its controller on the first, a compute node on each."""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hosts import Host, need

# No cgroups, which Slurm would ask systemd for, and no look at what a node really has. A job that is put back into the
# queue waits until its credential has expired: for seconds, not two minutes.
_CONFIGURATION = """\
ClusterName=onecycle
SlurmctldHost={first.name}({first.address})
AuthType=auth/munge
AuthInfo=cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmdParameters=config_overrides
SlurmUser=root
SlurmdUser=root
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
MailProg=/bin/true
{nodes}
PartitionName=all Nodes=ALL Default=YES State=UP
"""
_NODE = "NodeName={node.name} NodeAddr={node.address} CPUs={cores} State=UNKNOWN"
_ENDED = {"COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL", "TIMEOUT", "BOOT_FAIL", "OUT_OF_MEMORY"}


@dataclass(frozen=True)
class Slurm:
    hosts: list[Host]
    environment: Mapping[str, str]

    def run(self, *command: str | Path, folder: Path | None = None, **environment: str) -> str:
        """What a command of Slurm's says, on the first host."""
        return self.hosts[0].run(*command, folder=folder, environment=dict(self.environment) | environment)

    def end(self, job: str, seconds: float) -> str:
        """How a job ended, in Slurm's words: COMPLETED, FAILED, …

        Raises:
            TimeoutError: after so many seconds; it is cancelled then.
        """
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            shown = dict(word.partition("=")[::2] for word in self.run("scontrol", "-o", "show", "job", job).split())
            if shown["JobState"] in _ENDED:
                return shown["JobState"]
            time.sleep(0.3)
        self.run("scancel", job)
        raise TimeoutError(f"job {job} has not ended after {seconds} seconds")


@contextmanager
def slurm(hosts: list[Host], folder: Path, *, cores: int = 2) -> Iterator[Slurm]:
    """Start Slurm on the hosts, with all that it keeps in `folder`. It ends with them.

    Raises:
        NotStarted: where Slurm or munge is not installed.
    """
    need(munged="munge", slurmctld="slurmctld", slurmd="slurmd", sbatch="slurm-client")
    key, configuration = folder / "munge.key", folder / "slurm.conf"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    (folder / "state").mkdir()
    nodes = "\n".join(_NODE.format(node=host, cores=cores) for host in hosts)
    configuration.write_text(_CONFIGURATION.format(first=hosts[0], folder=folder, nodes=nodes))
    cluster = Slurm(hosts, {"SLURM_CONF": str(configuration)})
    for host in hosts:
        (folder / host.name).mkdir()
        host.run("mkdir", "--mode=755", "/run/munge")
        own = [f"--{kind}-file=/run/munge/{kind}" for kind in ("pid", "seed", "log")]
        host.run("munged", f"--key-file={key}", *own)  # it is there when the command has ended
    daemons = [hosts[0].start("slurmctld", "-D", environment=cluster.environment)]
    daemons += [host.start("slurmd", "-D", "-N", host.name, environment=cluster.environment) for host in hosts]
    until = time.monotonic() + 30
    # Until the controller listens, the command fails.
    while "idle" * len(hosts) != "".join(_states(cluster)):
        assert time.monotonic() < until, "\n".join(daemon.said for daemon in daemons)
        time.sleep(0.1)
    yield cluster


def _states(cluster: Slurm) -> list[str]:
    asked = cluster.hosts[0].start("sinfo", "--noheader", "--Node", "--format=%T", environment=cluster.environment)
    return asked.said.split() if asked.process.wait() == 0 else []
