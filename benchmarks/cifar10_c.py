"""The corruptions of CIFAR-10-C, made by the package imagecorruptions-imaug.

The packages on PyPI that corrupt images have the strengths for ImageNet, which are too strong for 32×32 pixels. This
one is maintained, and its functions are those of the authors of CIFAR-10-C. Here each function gets the strengths of
CIFAR-10-C instead of its own. The frost and the elastic transform of CIFAR-10-C differ in more than their strengths,
so they are written here. Motion blur is the library's, which needs no ImageMagick. The corrupted images are therefore
like those of CIFAR-10-C, but do not have the same pixels.

Source: Hendrycks & Dietterich 2019, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations".
The strengths are those of make_cifar_c.py in https://github.com/hendrycks/robustness.
"""

import ast
import importlib
import inspect
from collections.abc import Callable, Sequence
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from types import ModuleType
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

PACKAGE = "imagecorruptions-imaug"
SIZE = 32

# Five strengths of each kind, as the functions of the library expect them.
STRENGTHS: dict[str, Sequence[Any]] = {
    "gaussian_noise": (0.04, 0.06, 0.08, 0.09, 0.10),  # standard deviation
    "shot_noise": (500, 250, 100, 75, 50),  # photons of a white pixel
    "impulse_noise": (0.01, 0.02, 0.03, 0.05, 0.07),  # share of the values
    "defocus_blur": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),  # radius, blur of the disk
    "glass_blur": ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),  # blur, distance, repetitions
    "motion_blur": ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),  # radius, sigma
    "zoom_blur": tuple(np.arange(1, end, 0.01) for end in (1.06, 1.11, 1.16, 1.21, 1.26)),
    "snow": (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ),
    "frost": ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),  # weights of the image and of the frost
    "fog": ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),  # thickness, roughness
    "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),
    # Largest displacement, its blur, and the largest shift of the corners, all as fractions of the image's size.
    "elastic_transform": ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
    "pixelate": (0.95, 0.9, 0.85, 0.75, 0.65),  # size
    "jpeg_compression": (80, 65, 58, 50, 40),  # quality
    "speckle_noise": (0.06, 0.1, 0.12, 0.16, 0.2),
    "gaussian_blur": (0.4, 0.6, 0.7, 0.8, 1),  # sigma
    "spatter": (
        (0.62, 0.1, 0.7, 0.7, 0.5, 0),
        (0.65, 0.1, 0.8, 0.7, 0.5, 0),
        (0.65, 0.3, 1, 0.69, 0.5, 0),
        (0.65, 0.1, 0.7, 0.69, 0.6, 1),
        (0.65, 0.1, 0.5, 0.68, 0.6, 1),
    ),
    "saturate": ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),  # factor and offset of the saturation
}
EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")  # not in the mean over corruptions
FROSTS = ("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg")  # the authors never draw the sixth

Corruption = Callable[..., Any]


def corrupt(images: NDArray[np.uint8], kind: str, strength: int, *, seed: int) -> NDArray[np.uint8]:
    """Copies of `images`, uint8 `[N,32,32,3]`, with a corruption of `kind` and a `strength` from 1 to 5."""
    function = _corruption(kind)
    seeds = np.random.SeedSequence((seed, list(STRENGTHS).index(kind), strength)).generate_state(len(images))
    corrupted = np.empty_like(images)
    for row, (image, number) in enumerate(zip(images, seeds.tolist(), strict=True)):
        np.random.seed(number)  # the library draws from NumPy's global generator, but for some of its functions
        own_seed = {"seed": number} if "seed" in inspect.signature(function).parameters else {}
        found = np.asarray(function(Image.fromarray(image), severity=strength, **own_seed))
        corrupted[row] = found.astype(np.uint8)
    return corrupted


def library() -> str:
    """The name and version of the library.

    Raises:
        SystemExit: when the library or a package that it needs is missing.
    """
    try:
        _functions()
    except ImportError as error:
        raise SystemExit(
            f"corruptions: {error}; pip install scikit-image numba, and pip install --no-deps {PACKAGE}, because its "
            "opencv-python would replace opencv-python-headless"
        ) from error
    return f"{PACKAGE} {version(PACKAGE)}"


def _functions() -> ModuleType:
    return importlib.import_module("imagecorruptions.corruptions")


@cache
def _corruption(kind: str) -> Corruption:
    own: dict[str, Corruption] = {"frost": _frost, "elastic_transform": _elastic_transform}
    return own.get(kind) or _with_strengths(getattr(_functions(), kind), STRENGTHS[kind])


def _with_strengths(function: Corruption, strengths: Sequence[Any]) -> Corruption:
    """A copy of `function` of the library that takes its parameters from `strengths`.

    The library has them as a literal in the code of the function, `[...][severity - 1]`.

    Raises:
        SystemExit: when the function has no such literal, or several.
    """
    tree = ast.parse(inspect.getsource(function))
    tables = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.List) and len(node.value.elts) == 5
    ]
    if len(tables) != 1:
        raise SystemExit(f"corruptions: {PACKAGE} has changed {function.__name__}; use its version 1.1.5")
    tables[0].value = ast.copy_location(ast.Name("strengths", ast.Load()), tables[0].value)
    namespace = {**function.__globals__, "strengths": strengths}
    exec(compile(tree, inspect.getfile(function), "exec"), namespace)
    return namespace[function.__name__]


def _frost(image: Image.Image, severity: int) -> NDArray[np.float64]:
    of_image, of_frost = STRENGTHS["frost"][severity - 1]
    photograph = _frost_photograph(FROSTS[np.random.randint(len(FROSTS))])
    top, left = (np.random.randint(side - SIZE) for side in photograph.shape[:2])
    return np.clip(of_image * np.asarray(image) + of_frost * photograph[top : top + SIZE, left : left + SIZE], 0, 255)


@cache
def _frost_photograph(name: str) -> NDArray[np.uint8]:
    content = np.frombuffer((files("imagecorruptions") / "frost" / name).read_bytes(), np.uint8)
    photograph = cv2.resize(cv2.imdecode(content, cv2.IMREAD_COLOR), None, fx=0.2, fy=0.2)
    return photograph[..., ::-1]  # OpenCV has B,G,R


def _elastic_transform(image: Image.Image, severity: int) -> NDArray[np.float32]:
    """Move three points in the image, which makes an affine map, and then each pixel on its own."""
    most, blur, shift = (SIZE * fraction for fraction in STRENGTHS["elastic_transform"][severity - 1])
    center, distance = SIZE // 2, SIZE // 3
    corners = np.array([[1, 1], [1, -1], [-1, -1]], np.float32) * distance + center
    moved = corners + np.random.uniform(-shift, shift, corners.shape).astype(np.float32)
    affine = cv2.getAffineTransform(corners, moved)
    pixels = cv2.warpAffine(np.asarray(image, np.float32), affine, (SIZE, SIZE), borderMode=cv2.BORDER_REFLECT_101)
    rows, columns = np.mgrid[:SIZE, :SIZE].astype(np.float32)
    offsets = [
        most * gaussian_filter(np.random.uniform(-1, 1, (SIZE, SIZE)), blur, mode="reflect", truncate=3)
        for _ in range(2)
    ]
    across, down = (offset.astype(np.float32) for offset in offsets)
    return cv2.remap(pixels, columns + across, rows + down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
