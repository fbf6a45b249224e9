"""What a trained network looked at, and which of the data look wrong. Needs the network, so it is computed once."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from onecycle.core.metrics import confident_mistakes, margins_of
from onecycle.data import Dataset, ImageSet
from onecycle.data.duplicates import most_alike
from onecycle.models import ModelComposite
from onecycle.predict.predictor import Predictor
from onecycle.storage.records import Interpretation

MISTAKES = 1000  # kept with their pixels, at most
LISTED = 0.05  # part of the images that a list of suspects ranks
SHOWN = 100  # of a list of suspects, kept with their pixels
_BATCH = 250


def interpret(
    predictor: Predictor,
    dataset: Dataset,
    logits: NDArray[np.float32],
    training_margins: NDArray[np.float32],
) -> Interpretation:
    """Look into the network of `predictor`, which gave the evaluated images these logits `[N,C]`, and into its data.

    `training_margins` `[M]` are how far the logit of each training image's label was above the others, in the mean
    over the epochs. Small ones mark wrong labels: what other images taught spoke against them all the time.
    Source: Pleiss et al. 2020, "Identifying Mislabeled Data using the Area Under the Margin Ranking".
    """
    evaluated, train = dataset.evaluation, dataset.train
    mistakes = confident_mistakes(logits, evaluated.labels)[:MISTAKES]
    margins = margins_of(logits, evaluated.labels)
    suspects = _lowest(margins)
    suspects = suspects[margins[suspects] < 0]  # where the network agrees with the label, it suspects nothing
    train_suspects = _lowest(training_margins)
    shown = train_suspects[:SHOWN]
    partners, similarities = most_alike(evaluated.images, train.images)
    alike = _lowest(-similarities)
    return Interpretation(
        mistakes=mistakes,
        mistake_images=evaluated.images[mistakes],
        heat=_heat(predictor, evaluated.images[mistakes], logits[mistakes].argmax(axis=1)),
        suspects=suspects,
        suspect_images=evaluated.images[suspects[:SHOWN]],
        train_suspects=train_suspects,
        train_suspect_margins=training_margins[train_suspects],
        train_suspect_labels=train.labels[train_suspects],
        train_suspect_guesses=_guesses(predictor, train.subset(shown)),
        train_suspect_images=train.images[shown],
        duplicates=np.stack([alike, partners[alike]], axis=1),
        duplicate_similarities=similarities[alike],
        duplicate_labels=np.stack([evaluated.labels[alike], train.labels[partners[alike]]], axis=1),
        duplicate_images=np.stack([evaluated.images[alike[:SHOWN]], train.images[partners[alike[:SHOWN]]]], axis=1),
    )


def grad_cam(model: ModelComposite, features: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Where in the last map `[B,channels,h,w]` of `model` something speaks for the `classes` int64 `[B]`.

    Float32 `[B,h,w]` from 0 to 1: the channels, each weighted by the mean gradient of the class's logit, added up;
    what speaks against the class is left out; the greatest value of an image is 1; 0 where nothing
    speaks for the class.
    Source: Selvaraju et al. 2017, "Grad-CAM", section 3.
    """
    features = features.detach().float().requires_grad_()
    logits = model.classify(features)
    (gradients,) = torch.autograd.grad(logits.gather(1, classes.unsqueeze(1)).sum(), features)
    weights = gradients.mean(dim=(2, 3), keepdim=True)  # [B,channels,1,1]
    heat = functional.relu((weights * features.detach()).sum(dim=1))  # [B,h,w]
    greatest = heat.amax(dim=(1, 2), keepdim=True)
    return heat / torch.where(greatest > 0, greatest, 1)


def _lowest(values: NDArray[np.float32]) -> NDArray[np.int64]:
    """The positions of the lowest values, lowest first: as many as a list ranks."""
    return np.argsort(values, kind="stable")[: max(SHOWN, round(LISTED * len(values)))]


def _heat(predictor: Predictor, images: NDArray[np.uint8], predictions: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Grad-CAM of `images` uint8 `[N,S,S,3]` for the predicted classes: uint8 `[N,h,w]`."""
    if not len(images):
        return np.zeros((0, 1, 1), np.uint8)
    model, classes = predictor.model.eval(), torch.from_numpy(predictions).to(predictor.acceleration.device)
    maps = [
        grad_cam(model, features, batch)
        for features, batch in zip(_features(predictor, images), torch.split(classes, _BATCH), strict=True)
    ]
    return (255 * torch.cat(maps)).round().to(torch.uint8).cpu().numpy()


def _guesses(predictor: Predictor, images: ImageSet) -> NDArray[np.int64]:
    """The likeliest class of each image but for its label, int64 `[N]`."""
    with torch.no_grad():
        model = predictor.model.eval()
        logits = [model.classify(features.float()) for features in _features(predictor, images.images)]
    others = torch.cat(logits).cpu().numpy()
    others[np.arange(len(images)), images.labels] = -np.inf
    guesses: NDArray[np.int64] = others.argmax(axis=1)
    return guesses


@torch.no_grad()
def _features(predictor: Predictor, images: NDArray[np.uint8]) -> list[torch.Tensor]:
    """The last maps of `images` uint8 `[N,S,S,3]`, batch by batch."""
    how = predictor.acceleration
    running = how.for_evaluation().prepare(predictor.model).eval()
    maps = []
    for batch in torch.split(torch.from_numpy(images), _BATCH):
        with how.autocast():
            maps.append(running.features(predictor.preprocessing.normalize(batch.to(how.device))))
    return maps
