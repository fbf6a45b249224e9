"""Write requirements.lock: one version of each package, for all platforms and Python 3.11 to 3.14.

    python tools/lock.py [--upgrade]

A locked version stays as long as pyproject.toml allows it. `--upgrade` locks the newest allowed versions instead. torch
is pinned by hand in install.py. The lock leaves out the CUDA packages that torch needs on Linux, because torch itself
requires them.
"""

import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from install import LOCK, TORCH, UV, Uv, pip_settings

HEADER = """\
# The version and the hashes of every package that `make` installs. Made by `make lock`; not edited by hand.
# No CUDA package is here: torch itself names the ones it needs.
"""


def main(options: list[str]) -> None:
    build = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["build-system"]["requires"]
    uv = Uv(pip_settings())
    # Resolve without local folders and extra indexes, which may hold wheels for this machine only.
    local = ("UV_FIND_LINKS", "UV_INDEX", "UV_INDEX_STRATEGY")
    environment = {name: value for name, value in uv.environment.items() if name not in local}
    # uv keeps the versions and hashes that it finds in its output file. The hashes may be incomplete, so remove them.
    made = Path(tempfile.mkdtemp(), LOCK.name)
    made.write_text(re.sub(r" \\\n    --hash=\S+", "", LOCK.read_text(encoding="utf-8")), encoding="utf-8")
    versions = ["--universal", "--fork-strategy", "fewest", "--python-version", "3.11", *options]
    written = ["--generate-hashes", "--no-header", "--no-annotate", "--quiet", "--output-file", str(made)]
    subprocess.run(
        [str(UV), "pip", "compile", "pyproject.toml", "-", "--all-extras", *versions, *written],
        input="\n".join([*build, "editables", "pip", TORCH]),
        text=True,
        env=environment,
        check=True,
    )
    entries = re.split(r"\n(?=\w)", made.read_text(encoding="utf-8").rstrip("\n"))
    kept = [entry for entry in entries if not re.match(r"nvidia|cuda|triton|torch==", entry)]
    LOCK.write_text(HEADER + "\n".join(sorted([*kept, TORCH])) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
