"""A build hook of hatch: compile the kernels in C into the wheel, in several variants, for users without a compiler."""

import platform
import runpy
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

KERNELS = "onecycle/compute/kernels"
TAG = "py3-none-manylinux_2_17_{machine}"  # the compiled kernels use only functions of glibc 2.17 and older


class KernelsHook(BuildHookInterface):
    """Adds the compiled variants to a wheel. An editable installation gets none, and neither does another system."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel" or version == "editable" or sys.platform != "linux":
            return
        variants = runpy.run_path(str(Path(self.root, "src", KERNELS, "variants.py")))
        self._temporary = tempfile.TemporaryDirectory()
        compiled = variants["compile_all"](Path(self._temporary.name))
        if not compiled:
            self.app.display_warning("no C compiler with OpenMP was found, so the wheel has no compiled kernels")
            return
        for path in compiled:
            build_data["force_include"][str(path)] = f"{KERNELS}/{variants['FOLDER']}/{path.name}"
        build_data["pure_python"] = False
        build_data["tag"] = TAG.format(machine=platform.machine())

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if hasattr(self, "_temporary"):
            self._temporary.cleanup()
