"""Filters that make the patches of natural images uncorrelated: a first layer that need not be learned."""

import torch

_AT_ONCE = 256  # images whose patches are held in memory
EPSILON = 5e-4  # keeps directions in which images hardly differ from being blown up


def whitening_filters(images: torch.Tensor, size: int = 2, epsilon: float = EPSILON) -> torch.Tensor:
    """Filters `[C size², C, size, size]` whose outputs on the patches of `images` `[B,C,H,W]` are uncorrelated.

    They are the eigenvectors of the patches' covariance, each divided by the root of its eigenvalue plus `epsilon`:
    without that the outputs would all have a variance of one. `images` are taken to be normalized, to a mean of zero.

    Source: Page 2019, "How to Train Your ResNet 8: Bag of Tricks", by way of hlb-CIFAR10 and airbench.
    """
    channels = images.shape[1]
    covariance, count = torch.zeros([channels * size * size] * 2, dtype=torch.float64), 0
    for part in torch.split(images, _AT_ONCE):
        patches = part.unfold(2, size, 1).unfold(3, size, 1)  # [b,C,h,w,size,size]
        rows = patches.permute(0, 2, 3, 1, 4, 5).reshape(-1, len(covariance)).double()
        covariance += rows.T @ rows
        count += len(rows)
    variances, directions = torch.linalg.eigh(covariance / count)  # ascending; directions are columns
    filters: torch.Tensor = (directions / (variances + epsilon).sqrt()).T
    return filters.reshape(-1, channels, size, size).to(images.dtype)
