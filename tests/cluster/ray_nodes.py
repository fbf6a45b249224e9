"""Ray on hosts: its nodes, each started by hand; and what `ray up` needs to start them all by ssh."""

import hashlib
import importlib.util
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hosts import OWN_TMP, Host, NotStarted, need

PORT = 6379
USER = "onecycle"

_SSHD = """\
HostKey {key}
AuthorizedKeysFile {operator}.pub
PidFile none
StrictModes no
UsePAM no
SetEnv TMPDIR={own_tmp}
"""


def need_ray() -> None:
    """Ask for Ray.

    Raises:
        NotStarted: where it is not installed.
    """
    if importlib.util.find_spec("ray") is None:
        raise NotStarted("no Ray here (pip install 'onecycle[cluster]')")


@contextmanager
def ray_nodes(hosts: list[Host], *, cores: int = 1) -> Iterator[str]:
    """Start a Ray node on each host, the first of which leads; its address. They end with the hosts.

    Raises:
        NotStarted: where Ray is not installed.
    """
    need_ray()
    first, *others = hosts
    address = f"{first.address}:{PORT}"
    own = (f"--num-cpus={cores}", "--disable-usage-stats")
    first.run("ray", "start", "--head", f"--port={PORT}", "--include-dashboard=false", *own)
    joining = [host.start("ray", "start", f"--address={address}", *own) for host in others]
    for node in joining:
        assert node.end(60) == 0, node.said
    yield address


@dataclass(frozen=True)
class Operator:
    """Whoever holds the key to all hosts, and works on the first of them."""

    host: Host
    home: Path

    def run(self, *command: str | Path, **environment: str) -> str:
        own = {"HOME": str(self.home), "USER": USER}
        return self.host.run(*command, folder=self.home, environment=own | environment, seconds=120)


@contextmanager
def hosts_by_ssh(hosts: list[Host], folder: Path) -> Iterator[Operator]:
    """Start ssh on each host, for one user who has a home on each, where this Python's programs are on the PATH.

    Raises:
        NotStarted: where Ray, ssh, its server or rsync, which Ray uses, is not installed.
    """
    need_ray()
    need(ssh="openssh-client", sshd="openssh-server", rsync="rsync")
    homes = [folder / f"{host.name}-home" for host in hosts]
    operator, key, configuration = homes[0] / ".ssh" / "id_ed25519", folder / "host_key", folder / "sshd_config"
    operator.parent.mkdir(mode=0o700, parents=True)
    for made in (operator, key):
        hosts[0].run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", made)
    configuration.write_text(_SSHD.format(key=key, operator=operator, own_tmp=OWN_TMP))
    for host, home in zip(hosts, homes, strict=True):
        home.mkdir(exist_ok=True)
        (home / ".bashrc").write_text(f"export PATH={Path(sys.executable).parent}:$PATH\n")
        users = folder / f"{host.name}-users"
        # Root by another name, with another home: nothing of this comes into that of the machine's root.
        users.write_text(f"{USER}:x:0:0::{home}:/bin/bash\n{Path('/etc/passwd').read_text()}")
        host.run("mount", "--bind", users, "/etc/passwd")
        host.run("mkdir", "--mode=755", "/run/sshd")
        host.run(str(shutil.which("sshd")), "-f", configuration)  # it is there when the command has ended
    try:
        yield Operator(hosts[0], homes[0])
    finally:  # the one folder that Ray makes outside of $TMPDIR and the home
        shutil.rmtree(f"/tmp/ray_ssh_{hashlib.sha256(USER.encode()).hexdigest()[:10]}", ignore_errors=True)
