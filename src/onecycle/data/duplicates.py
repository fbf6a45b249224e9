"""Find images of one set that are nearly identical to images of another set."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

SIDE = 8  # images are averaged down to 8×8 pixels, which still show where the colors are
_AT_ONCE = 500  # images averaged at a time
_THEIRS = 50_000  # images of the other set that are compared at a time; their thumbnails need 38 MB
_PRODUCTS = 25_000_000  # similarities that are in memory at a time; they need 100 MB


def most_similar(ours: NDArray[np.uint8], theirs: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """For each image in `ours`, the index of the most similar image in `theirs`, int64 `[N]`, and the similarity.

    Images are uint8 `[N,S,S,3]` and `[M,S,S,3]`. They are averaged to 8×8 pixels. The similarity, float32 `[N]`, is the
    correlation of these pixels, from -1 to 1. It is computed with and without mirroring, and the larger value counts.
    Images from the same photograph are similar even if scaled, brightened, mirrored or compressed again. Different
    crops of a photograph are rarely similar.

    Raises:
        ValueError: when `theirs` is empty.
    """
    if not len(theirs):
        raise ValueError("there are no images to compare with")
    partners, similarities = np.zeros(len(ours), np.int64), np.full(len(ours), -np.inf, np.float32)
    for first in range(0, len(theirs), _THEIRS):
        others = _normalized_thumbnails(theirs[first : first + _THEIRS])
        at_once = max(1, _PRODUCTS // len(others))
        for start in range(0, len(ours), at_once):
            part = slice(start, start + at_once)
            best = [
                (_normalized_thumbnails(view) @ others.T).max(dim=1) for view in (ours[part], ours[part][:, :, ::-1])
            ]
            similarity, view = torch.stack([values for values, _ in best]).max(dim=0)  # [n]
            partner = torch.stack([indices for _, indices in best]).gather(0, view.unsqueeze(0)).squeeze(0)
            better = similarity.numpy() > similarities[part]
            similarities[part] = np.where(better, similarity.numpy(), similarities[part])
            partners[part] = np.where(better, first + partner.numpy(), partners[part])
    return partners, similarities


def _normalized_thumbnails(images: NDArray[np.uint8]) -> torch.Tensor:
    """Unit vectors `[N,3·8·8]` whose dot products are the correlations of the images."""
    parts = []
    for start in range(0, len(images), _AT_ONCE):
        pixels = torch.from_numpy(np.ascontiguousarray(images[start : start + _AT_ONCE])).permute(0, 3, 1, 2).float()
        small = functional.adaptive_avg_pool2d(pixels, SIDE).flatten(1)  # [n,192]
        parts.append(functional.normalize(small - small.mean(dim=1, keepdim=True), dim=1))
    return torch.cat(parts) if parts else torch.empty(0, 3 * SIDE * SIDE)
