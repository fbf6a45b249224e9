"""The points of the Winograd kernels, compared with the usual ones by a slow implementation in numpy."""

from fractions import Fraction

import numpy as np
from numpy.polynomial import polynomial
from numpy.typing import NDArray

CHOSEN = ["0", "5/8", "-5/8", "3/2", "-3/2"]  # and infinity
USUAL = ["0", "1", "-1", "2", "-2"]  # Lavin & Gray 2016, section 4.2
TILES, CHANNELS, OUTPUTS = 60, 128, 8


def matrices(points: list[str]) -> tuple[NDArray[np.float64], ...]:
    """Aᵀ [4,6], G [6,3] and Bᵀ [6,6] of F(4, 3) with the given points and infinity, by Toom and Cook's construction."""
    finite = [float(Fraction(point)) for point in points]
    output = np.array([[*(point**row for point in finite), float(row == 3)] for row in range(4)])
    window, filters = np.zeros((6, 6)), np.zeros((6, 3))
    for row, point in enumerate(finite):
        others = [other for other in finite if other != point]
        window[row, :5] = polynomial.polyfromroots(others)
        filters[row] = np.array([1, point, point**2]) / np.prod([point - other for other in others])
    window[5] = polynomial.polyfromroots(finite)
    filters[5, 2] = 1
    return output, filters, window


def error(points: list[str]) -> float:
    """The relative error of a convolution computed in float32, for random windows and filters."""
    random = np.random.default_rng(0)
    windows = np.maximum(random.standard_normal((TILES, CHANNELS, 6, 6)), 0).astype(np.float32)
    filters = random.standard_normal((CHANNELS, OUTPUTS, 3, 3)).astype(np.float32)
    exact = sum(
        np.einsum("tcij,co->toij", windows[:, :, i : i + 4, j : j + 4].astype(float), filters[:, :, i, j].astype(float))
        for i in range(3)
        for j in range(3)
    )
    output, of_filters, of_windows = (matrix.astype(np.float32) for matrix in matrices(points))
    transformed = np.einsum("ai,coij,bj->abco", of_filters, filters, of_filters, optimize=True)
    products = np.einsum("ai,tcij,bj->abtc", of_windows, windows, of_windows, optimize=True) @ transformed
    found = np.einsum("ia,abto,jb->toij", output, products, output, optimize=True)
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


def test_the_points_of_the_kernels_have_less_than_half_the_error_of_the_usual_ones() -> None:
    assert error(CHOSEN) < error(USUAL) / 2
    assert error(CHOSEN) < 1e-6
