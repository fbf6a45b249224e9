"""Ray on virtual hosts: nodes that are started one by one, and machines that `ray up` can start over ssh."""

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
    """Check that Ray is installed.

    Raises:
        NotStarted: when Ray is not installed.
    """
    if importlib.util.find_spec("ray") is None:
        raise NotStarted("Ray is not installed; pip install 'onecycle[cluster]'")


@contextmanager
def ray_nodes(hosts: list[Host], *, cores: int = 1) -> Iterator[str]:
    """Start the Ray head on the first host and a Ray node on each other host. Yields the address of the head.

    The nodes stop when the hosts stop.

    Raises:
        NotStarted: when Ray is not installed.
    """
    need_ray()
    first, *others = hosts
    address = f"{first.address}:{PORT}"
    own = (f"--num-cpus={cores}", "--disable-usage-stats")
    first.run("ray", "start", "--head", f"--port={PORT}", "--include-dashboard=false", *own)
    joining = [host.start("ray", "start", f"--address={address}", *own) for host in others]
    for node in joining:
        assert node.end(60) == 0, node.output
    yield address


@dataclass(frozen=True)
class Operator:
    """A user with ssh access to all hosts, who works on the first host."""

    host: Host
    home: Path

    def run(self, *command: str | Path, **environment: str) -> str:
        own = {"HOME": str(self.home), "USER": USER}
        return self.host.run(*command, folder=self.home, environment=own | environment, seconds=120)


@contextmanager
def hosts_by_ssh(hosts: list[Host], folder: Path) -> Iterator[Operator]:
    """Start an ssh server on each host, for one user. The user has a home folder, and this Python is on the PATH.

    Raises:
        NotStarted: when Ray, ssh, sshd or rsync is not installed. Ray needs rsync.
    """
    need_ray()
    need(ssh="openssh-client", sshd="openssh-server", rsync="rsync")
    homes = [folder / f"{host.name}-home" for host in hosts]
    operator, key, configuration = homes[0] / ".ssh" / "id_ed25519", folder / "host_key", folder / "sshd_config"
    operator.parent.mkdir(mode=0o700, parents=True)
    for path in (operator, key):
        hosts[0].run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path)
    configuration.write_text(_SSHD.format(key=key, operator=operator, own_tmp=OWN_TMP))
    for host, home in zip(hosts, homes, strict=True):
        home.mkdir(exist_ok=True)
        (home / ".bashrc").write_text(f"export PATH={Path(sys.executable).parent}:$PATH\n")
        users = folder / f"{host.name}-users"
        # The user is root with another name and another home folder, so the files of the real root do not change.
        users.write_text(f"{USER}:x:0:0::{home}:/bin/bash\n{Path('/etc/passwd').read_text()}")
        host.run("mount", "--bind", users, "/etc/passwd")
        host.run("mkdir", "--mode=755", "/run/sshd")
        host.run(str(shutil.which("sshd")), "-f", configuration)  # sshd is ready when the command ends
    try:
        yield Operator(hosts[0], homes[0])
    finally:  # outside $TMPDIR and the home folder, Ray creates only the folder removed here
        shutil.rmtree(f"/tmp/ray_ssh_{hashlib.sha256(USER.encode()).hexdigest()[:10]}", ignore_errors=True)
