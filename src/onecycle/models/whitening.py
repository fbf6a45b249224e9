"""Whitening filters, which make the patches of natural images uncorrelated."""

import torch

_AT_ONCE = 256  # images; their patches are in memory at the same time
EPSILON = 5e-4  # limits the scale of filters for directions with little variance


def whitening_filters(images: torch.Tensor, size: int = 2, epsilon: float = EPSILON) -> torch.Tensor:
    """Filters `[C size², C, size, size]` whose outputs on the patches of `images` `[B,C,H,W]` are uncorrelated.

    The filters are the eigenvectors of the patches' covariance. Each is divided by √(eigenvalue + `epsilon`). Without
    `epsilon`, every output would have variance one. `images` must have mean zero.

    Source: Page 2019, "How to Train Your ResNet 8: Bag of Tricks", as adopted by hlb-CIFAR10 and airbench.
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
