"""Whitening filters, which make the patches of natural images uncorrelated."""

import torch

_AT_ONCE = 256  # the patches of this many images are in memory at the same time
EPSILON = 5e-4  # limits the scale of filters for directions with little variance
# A direction is left out if its variance is less than this share of the largest variance. At this limit, the standard
# deviation is about one of 255 gray levels, so the direction holds only rounding and noise. The smallest share in
# CIFAR-10 is 5.4e-5.
SMALLEST_SHARE = 2e-5


def whitening_filters(images: torch.Tensor, size: int = 2, epsilon: float = EPSILON) -> torch.Tensor:
    """Filters `[C size², C, size, size]` whose outputs on the patches of `images` `[B,C,H,W]` are uncorrelated.

    The filters are the eigenvectors of the patches' covariance. Each is divided by √(eigenvalue + `epsilon`). Without
    `epsilon`, every output would have variance one. `images` must have mean zero.

    A direction whose eigenvalue is less than `SMALLEST_SHARE` of the largest is left out. A copy of another filter
    takes its place. Gray images, for example, have no variance in the color directions. Filters for the color
    directions would amplify the slightest color of a later image, and the network would have learned nothing about
    the outputs of these filters. Filters of zeros would not help. Their output is constant, so batch norm would
    divide by a standard deviation of about 0.

    Source: Page 2019, "How to Train Your ResNet 8: Bag of Tricks", as adopted by hlb-CIFAR10 and airbench.
    """
    channels = images.shape[1]
    covariance, count = torch.zeros([channels * size * size] * 2, dtype=torch.float64), 0
    for part in torch.split(images, _AT_ONCE):
        patches = part.unfold(2, size, 1).unfold(3, size, 1)  # [b,C,h,w,size,size]
        rows = patches.permute(0, 2, 3, 1, 4, 5).reshape(-1, len(covariance)).double()
        covariance += rows.T @ rows
        count += len(rows)
    variances, directions = torch.linalg.eigh(covariance / count)  # variances ascend; each column is a direction
    variances = variances.clamp(min=0)  # rounding may make them negative
    left_out = int((variances < SMALLEST_SHARE * variances[-1]).sum())  # number left out; they are the first ones
    place = torch.arange(len(variances))
    place[:left_out] = left_out + place[:left_out] % (len(variances) - left_out)
    filters: torch.Tensor = (directions / (variances + epsilon).sqrt()).T[place]
    return filters.reshape(-1, channels, size, size).to(images.dtype)
