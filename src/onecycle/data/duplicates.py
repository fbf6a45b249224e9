"""Images of one set that are nearly the same as images of another."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

SIDE = 8  # to which images are averaged: what is left are the colours of a scene and where they are
_AT_ONCE = 500  # images described at a time
_THEIRS = 50_000  # of them compared with at a time: 38 MB
_PRODUCTS = 25_000_000  # similarities held at a time: 100 MB


def most_alike(ours: NDArray[np.uint8], theirs: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """For each of our images the one of theirs that is most alike, and how alike: int64 `[N]`, float32 `[N]`.

    Images are uint8 `[N,S,S,3]` and `[M,S,S,3]`. They are averaged to 8×8 pixels; two are as alike as the correlation
    of these, from -1 to 1, the other way round or mirrored. It finds what was taken from one photograph, scaled,
    brightened, mirrored or compressed again, and much less of what was cropped in another way.

    Raises:
        ValueError: when there is no image to be alike to.
    """
    if not len(theirs):
        raise ValueError("there are no images to compare with")
    partners, similarities = np.zeros(len(ours), np.int64), np.full(len(ours), -np.inf, np.float32)
    for first in range(0, len(theirs), _THEIRS):
        others = _described(theirs[first : first + _THEIRS])
        at_once = max(1, _PRODUCTS // len(others))
        for start in range(0, len(ours), at_once):
            part = slice(start, start + at_once)
            best = [(_described(view) @ others.T).max(dim=1) for view in (ours[part], ours[part][:, :, ::-1])]
            similarity, view = torch.stack([values for values, _ in best]).max(dim=0)  # [n]
            partner = torch.stack([indices for _, indices in best]).gather(0, view.unsqueeze(0)).squeeze(0)
            better = similarity.numpy() > similarities[part]
            similarities[part] = np.where(better, similarity.numpy(), similarities[part])
            partners[part] = np.where(better, first + partner.numpy(), partners[part])
    return partners, similarities


def _described(images: NDArray[np.uint8]) -> torch.Tensor:
    """Directions `[N,3·8·8]` whose products are the correlations of the images."""
    parts = []
    for start in range(0, len(images), _AT_ONCE):
        pixels = torch.from_numpy(np.ascontiguousarray(images[start : start + _AT_ONCE])).permute(0, 3, 1, 2).float()
        small = functional.adaptive_avg_pool2d(pixels, SIDE).flatten(1)  # [n,192]
        parts.append(functional.normalize(small - small.mean(dim=1, keepdim=True), dim=1))
    return torch.cat(parts) if parts else torch.empty(0, 3 * SIDE * SIDE)
