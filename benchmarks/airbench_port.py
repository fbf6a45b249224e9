"""A port of airbench94-Muon to the CPU: the published recipe without the kernels of this project.

Network, optimizers, learning rates, augmentation and test-time augmentation are those of Jordan 2024 (arXiv 2404.00498)
and of its later Muon version. The port computes with bfloat16 autocast in channels-last memory, and its allocator keeps
freed memory. Everything else is standard PyTorch.

The output is one line of JSON with the accuracies, with and without test-time augmentation, and the seconds. As in the
original, `seconds` include whitening, training and test-time augmentation. `data_seconds` are the time to load and
normalize the images.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn import functional

from onecycle.compute import hardware
from onecycle.compute.plan import ComputePlan
from onecycle.data import load_dataset

BATCH_SIZE = 2000
WIDTHS = (64, 256, 256)
FILTER_LR, FILTER_MOMENTUM = 0.24, 0.6
# These rates are for losses that are summed over a batch.
BIAS_LR, HEAD_LR, MOMENTUM = 0.053, 0.67, 0.85
WEIGHT_DECAY = 2e-6 * BATCH_SIZE  # per step, at the full learning rate
WHITENING_BIAS_EPOCHS = 3
SMOOTHING = 0.2
SHIFT = 2
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10", help="as in `onecycle train`")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--limit", type=int, help="use only this many images of each split")
    options = parser.parse_args()
    plan = ComputePlan(precision="bfloat16", channels_last=True, threads=hardware.detect().cores)
    plan.apply()
    torch.manual_seed(options.seed)
    started = time.perf_counter()
    data = load_dataset(options.data, limit=options.limit)
    images, labels = normalized(data.train.images), torch.from_numpy(data.train.labels)
    eval_images, eval_labels = normalized(data.evaluation.images), torch.from_numpy(data.evaluation.labels)
    loaded = time.perf_counter()
    network = Network(len(data.train.classes)).to(memory_format=torch.channels_last)
    network.whiten(images[:5000])
    train(network, images, labels, options.epochs, plan)
    trained = time.perf_counter()
    without_tta = accuracy(infer(network, eval_images, plan), eval_labels)
    evaluated = time.perf_counter()
    with_tta = accuracy(infer_with_tta(network, eval_images, plan), eval_labels)
    seconds = (time.perf_counter() - evaluated) + (trained - loaded)
    result = {"accuracy": without_tta, "tta_accuracy": with_tta, "seconds": seconds, "data_seconds": loaded - started}
    print(json.dumps({"seed": options.seed, **result, "fingerprint": data.fingerprint}))
    return 0


def normalized(pixels: object) -> torch.Tensor:
    """Normalize uint8 pixels `[N,H,W,3]`. Returns float32 images `[N,3,H,W]`, channels-last."""
    images = torch.as_tensor(pixels).float().div_(255)
    return images.sub_(torch.tensor(MEAN)).div_(torch.tensor(STD)).permute(0, 3, 1, 2)


class Group(nn.Sequential):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            convolution(inputs, outputs),
            nn.MaxPool2d(2),
            norm(outputs),
            nn.GELU(),
            convolution(outputs, outputs),
            norm(outputs),
            nn.GELU(),
        )


def convolution(inputs: int, outputs: int) -> nn.Conv2d:
    layer = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    nn.init.dirac_(layer.weight.data[:inputs])
    return layer


def norm(channels: int) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(channels, eps=1e-12, momentum=0.4)
    layer.weight.requires_grad_(False)
    return layer


class Network(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.whitening = nn.Conv2d(3, 24, 2)
        self.whitening.weight.requires_grad_(False)
        groups = [Group(inputs, outputs) for inputs, outputs in zip((24, *WIDTHS), WIDTHS, strict=False)]
        self.body = nn.Sequential(nn.GELU(), *groups, nn.MaxPool2d(3), nn.Flatten())
        self.head = nn.Linear(WIDTHS[-1], classes, bias=False)
        self.head.weight.data /= self.head.weight.data.std()

    @torch.no_grad()
    def whiten(self, images: torch.Tensor) -> None:
        patches = images.unfold(2, 2, 1).unfold(3, 2, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, 12)
        variances, directions = torch.linalg.eigh(patches.T @ patches / len(patches))
        filters = directions.T.reshape(12, 3, 2, 2) / (variances + 5e-4).sqrt().view(12, 1, 1, 1)
        self.whitening.weight.copy_(torch.cat([filters, -filters]))

    def forward(self, images: torch.Tensor, train_whitening: bool = False) -> torch.Tensor:
        bias = self.whitening.bias if train_whitening else self.whitening.bias.detach()
        features = self.body(functional.conv2d(images, self.whitening.weight, bias))
        return self.head(features) / WIDTHS[-1]


class Muon:
    """The published Muon: Nesterov momentum, filters scaled to a constant norm, and three Newton-Schulz iterations."""

    def __init__(self, filters: list[nn.Parameter]) -> None:
        self.filters = [(parameter, torch.zeros_like(parameter)) for parameter in filters]

    @torch.no_grad()
    def step(self, lr: float) -> None:
        for parameter, buffer in self.filters:
            buffer.mul_(FILTER_MOMENTUM).add_(parameter.grad)
            update = parameter.grad + FILTER_MOMENTUM * buffer
            parameter.mul_(len(parameter) ** 0.5 / parameter.norm())
            orthogonal = newton_schulz(update.reshape(len(update), -1)).view_as(parameter)
            parameter.add_(orthogonal.to(parameter.dtype), alpha=-lr)


def newton_schulz(matrix: torch.Tensor) -> torch.Tensor:
    x = matrix.bfloat16()
    x = x / (x.norm() + 1e-7)
    x = x.T if matrix.shape[0] > matrix.shape[1] else x
    for _ in range(3):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def train(network: Network, images: torch.Tensor, labels: torch.Tensor, epochs: int, plan: ComputePlan) -> None:
    steps = max(1, len(images) // BATCH_SIZE)
    total, whitening_steps = epochs * steps, min(WHITENING_BIAS_EPOCHS, epochs) * steps
    trainable = [parameter for parameter in network.body.parameters() if parameter.requires_grad]
    muon = Muon([parameter for parameter in trainable if parameter.dim() == 4])
    groups = [
        ([network.whitening.bias], BIAS_LR, whitening_steps),
        ([parameter for parameter in trainable if parameter.dim() == 1], BIAS_LR, total),
        ([network.head.weight], HEAD_LR, total),
    ]
    sgd = torch.optim.SGD(
        [{"params": parameters, "lr": lr, "weight_decay": WEIGHT_DECAY / lr} for parameters, lr, _ in groups],
        momentum=MOMENTUM,
        nesterov=True,
    )
    network.train()
    for step, (batch, targets) in enumerate(batches(images, labels, epochs)):
        with plan.autocast():
            logits = network(batch, train_whitening=step < whitening_steps)
            loss = functional.cross_entropy(logits, targets, label_smoothing=SMOOTHING, reduction="sum")
        loss.backward()
        for group, (_, lr, ends) in zip(sgd.param_groups, groups, strict=True):
            group["lr"] = lr * max(0.0, 1 - step / ends)
        sgd.step()
        muon.step(FILTER_LR * (1 - step / total))
        network.zero_grad()


def batches(images: torch.Tensor, labels: torch.Tensor, epochs: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of images that are randomly shifted by up to two pixels.

    Each image is flipped in every other epoch. A short last batch is dropped.
    """
    size = images.shape[-1]
    flipped = torch.rand(len(images)) < 0.5
    padded = functional.pad(images, (SHIFT,) * 4, mode="reflect").permute(0, 2, 3, 1)  # [N,H+4,W+4,3]
    offsets = torch.arange(size)
    for epoch in range(epochs):
        rows, columns = torch.randint(2 * SHIFT + 1, (2, len(images), 1)) + offsets  # [N,S] each
        columns = torch.where((flipped ^ bool(epoch % 2))[:, None], columns.flip(1), columns)
        for batch in torch.randperm(len(images)).split(BATCH_SIZE):
            if len(batch) == BATCH_SIZE or len(images) < BATCH_SIZE:
                chosen = padded[batch[:, None, None], rows[batch][:, :, None], columns[batch][:, None, :]]
                yield chosen.permute(0, 3, 1, 2), labels[batch]


@torch.no_grad()
def infer(network: Network, images: torch.Tensor, plan: ComputePlan) -> torch.Tensor:
    network.eval()
    logits = []
    for batch in images.split(BATCH_SIZE):
        with plan.autocast():
            logits.append(network(batch.contiguous(memory_format=torch.channels_last)).float())
    return torch.cat(logits)


def infer_with_tta(network: Network, images: torch.Tensor, plan: ComputePlan) -> torch.Tensor:
    """The weighted mean of the logits of six views of each image.

    The views are the image, two copies shifted diagonally by one pixel, and the mirror images of these three. The image
    and its mirror image weigh 1/4 each, and the other views 1/8 each.
    """
    size = images.shape[-1]
    padded = functional.pad(images, (1,) * 4, mode="reflect")
    views = [(images, 0.5), (padded[..., :size, :size], 0.25), (padded[..., 2:, 2:], 0.25)]
    return sum(weight / 2 * (infer(network, view, plan) + infer(network, view.flip(3), plan)) for view, weight in views)


def accuracy(logits: torch.Tensor, labels: torch.Tensor) -> float:
    return math.fsum((logits.argmax(1) == labels).tolist()) / len(labels)


if __name__ == "__main__":
    sys.exit(main())
