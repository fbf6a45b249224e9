"""Install onecycle as a package with the newest dependencies that pyproject.toml allows, and run its commands.

Only torch has its locked version, because the newest build installs CUDA on most machines.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from install import TORCH, Uv, install_cpu_build, pip_settings, wants_cpu_build

ROOT = Path(__file__).resolve().parents[1]
TRAIN = """
train --network whitened_convnet --no-whitening --widths 8 8 8 --data digits --limit 60 --epochs 2 --batch-size 20
--lr-min 1e-4 --lr-max 1e-2
"""
USE = """
import sys
from pathlib import Path
from onecycle.cli import main
(run,) = Path("runs").iterdir()
for command, *arguments in (["evaluate"], ["export", "--to", "onnx"], ["predict", run / "plots"]):
    code = main([command, "--run", str(run), *map(str, arguments)])
    assert code == 0, (command, code)
"""
KERNELS = """
from onecycle.compute.kernels import native
assert native.compiled() is not None, "the wheel has no kernels for this CPU"
print("kernels", native.build_id())
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        python = Path(folder, "venv", "bin", "python")
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", python.parents[1]], check=True)
        uv = Uv(pip_settings(), python.parents[1])
        if wants_cpu_build(uv):
            install_cpu_build(uv)
        uv.pip("install", f"{ROOT}[export,serve]", TORCH)
        uv.pip("list")
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        onecycle = python.with_name("onecycle")
        for command in ([onecycle, *TRAIN.split()], [python, "-c", USE]):
            subprocess.run(command, cwd=folder, env=environment, check=True)
        if sys.platform == "linux":
            subprocess.run([python, "-c", KERNELS], cwd=folder, env={**environment, "CC": "false"}, check=True)


if __name__ == "__main__":
    main()
