"""A Slurm cluster on virtual hosts. Each host is a compute node, and the first host also runs the controller."""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hosts import Host, need

# This configuration uses no cgroups, because cgroups need systemd. Slurm does not compare the configured cores with the
# real hardware. A requeued job waits until its credential expires: 5 seconds here, 2 minutes by default.
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
        """Run a Slurm command on the first host, and return its output."""
        return self.hosts[0].run(*command, folder=folder, environment=dict(self.environment) | environment)

    def end(self, job: str, seconds: float) -> str:
        """Wait until the job ends, and return its state, such as COMPLETED or FAILED.

        Raises:
            TimeoutError: when the job takes longer than `seconds`. The job is then canceled.
        """
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            fields = dict(word.partition("=")[::2] for word in self.run("scontrol", "-o", "show", "job", job).split())
            if fields["JobState"] in _ENDED:
                return fields["JobState"]
            time.sleep(0.3)
        self.run("scancel", job)
        raise TimeoutError(f"job {job} has not ended after {seconds} seconds")


@contextmanager
def slurm(hosts: list[Host], folder: Path, *, cores: int = 2) -> Iterator[Slurm]:
    """Start Slurm on the hosts, with all of its files in `folder`. Slurm stops when the hosts stop.

    Raises:
        NotStarted: when Slurm or munge is not installed.
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
        host.run("munged", f"--key-file={key}", *own)  # the daemon is ready when the command ends
    daemons = [hosts[0].start("slurmctld", "-D", environment=cluster.environment)]
    daemons += [host.start("slurmd", "-D", "-N", host.name, environment=cluster.environment) for host in hosts]
    until = time.monotonic() + 30
    # Wait until all nodes are idle. sinfo fails until the controller listens.
    while "idle" * len(hosts) != "".join(_states(cluster)):
        assert time.monotonic() < until, "\n".join(daemon.output for daemon in daemons)
        time.sleep(0.1)
    yield cluster


def _states(cluster: Slurm) -> list[str]:
    sinfo = cluster.hosts[0].start("sinfo", "--noheader", "--Node", "--format=%T", environment=cluster.environment)
    return sinfo.output.split() if sinfo.process.wait() == 0 else []
