"""The variants of the kernels that a wheel contains, compiled in advance for machines without a C compiler.

tools/build_kernels.py reads this file when it builds a wheel, so this file imports nothing from the package.
"""

import platform
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

FLAGS = ("-O3", "-fopenmp", "-fPIC")
FOLDER = "prebuilt"  # the folder of the compiled variants, beside this file


@dataclass(frozen=True)
class Variant:
    """The compiler options of one variant, and the CPU capabilities that the variant requires.

    `requires` uses the names of `torch.cpu.get_capabilities`.
    """

    options: tuple[str, ...]
    requires: tuple[str, ...]


_AVX2 = ("avx2", "fma3", "bmi", "bmi2", "f16c", "lzcnt")
_AVX512 = (*_AVX2, "avx512_f", "avx512_bw", "avx512_cd", "avx512_dq", "avx512_vl")
_WIDE = "-mprefer-vector-width=512"

# For each machine, the fastest variant comes first.
VARIANTS: dict[str, dict[str, Variant]] = {
    "x86_64": {
        "amx": Variant(
            ("-march=x86-64-v4", _WIDE, "-mavx512bf16", "-mamx-tile", "-mamx-bf16"),
            (*_AVX512, "avx512_bf16", "amx_tile", "amx_bf16"),
        ),
        "avx512": Variant(("-march=x86-64-v4", _WIDE), _AVX512),
        "avx2": Variant(("-march=x86-64-v3",), _AVX2),
    },
    "aarch64": {"neon": Variant((), ())},
}


def compile_all(folder: Path) -> list[Path]:
    """Compile the variants for this kind of machine into `folder`. Returns the paths of the compiled libraries.

    The function skips variants that the C compiler cannot compile.
    """
    sources, compiled = sorted(Path(__file__).resolve().parent.glob("*.c")), []
    for name, variant in VARIANTS.get(platform.machine(), {}).items():
        library = folder.resolve() / f"{name}.so"
        with tempfile.TemporaryDirectory() as objects, suppress(OSError, subprocess.CalledProcessError):
            compiling: list[str | Path] = ["cc", *FLAGS, *variant.options, "-c", *sources]
            subprocess.run(compiling, cwd=objects, check=True, capture_output=True)
            # Link without -fopenmp, which would require the system's libgomp. PyTorch brings its own.
            linking: list[str | Path] = ["cc", "-shared", "-s", *sorted(Path(objects).glob("*.o")), "-o", library]
            subprocess.run(linking, check=True, capture_output=True)
            compiled.append(library)
    return compiled
