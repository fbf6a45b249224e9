"""Explain a trained network with Grad-CAM heatmaps, and find possible label issues and near-duplicates."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from onecycle.core.metrics import margins_of, misclassified_by_confidence
from onecycle.data import Dataset, ImageSet
from onecycle.data.duplicates import most_similar
from onecycle.models import ModelComposite
from onecycle.predict.predictor import Predictor
from onecycle.storage.records import Interpretation

MISCLASSIFIED = 1000  # at most this many misclassified images are saved
LISTED_FRACTION = 0.05  # `_lowest` returns this fraction of the images, but at least `KEPT` images
KEPT = 100  # at most this many images of each list are saved with their pixels


def interpret(
    predictor: Predictor,
    dataset: Dataset,
    logits: NDArray[np.float32],
    training_margins: NDArray[np.float32],
) -> Interpretation:
    """Explain the network of `predictor`, and find data issues.

    `logits` `[N,C]` are the network's outputs on the evaluation set. `training_margins` `[M]` are the margins of the
    training images, averaged over the epochs. A low average margin indicates a wrong label, because the label
    contradicts what the network learned from the other images.
    Source: Pleiss et al. 2020, "Identifying Mislabeled Data using the Area Under the Margin Ranking".
    """
    evaluated, train = dataset.evaluation, dataset.train
    misclassified = misclassified_by_confidence(logits, evaluated.labels, predictor.temperature)[:MISCLASSIFIED]
    margins = margins_of(logits, evaluated.labels)
    label_issues = _lowest(margins)
    label_issues = label_issues[margins[label_issues] < 0]  # keep only labels that the network disagrees with
    train_label_issues = _lowest(training_margins)
    kept = train_label_issues[:KEPT]
    partners, similarities = most_similar(evaluated.images, train.images)
    similar = _lowest(-similarities)
    return Interpretation(
        misclassified=misclassified,
        misclassified_images=evaluated.images[misclassified],
        heatmaps=_heatmaps(predictor, evaluated.images[misclassified], logits[misclassified].argmax(axis=1)),
        label_issues=label_issues,
        label_issue_images=evaluated.images[label_issues[:KEPT]],
        train_label_issues=train_label_issues,
        train_label_issue_margins=training_margins[train_label_issues],
        train_label_issue_labels=train.labels[train_label_issues],
        train_label_issue_predictions=_best_other_class(predictor, train.subset(kept)),
        train_label_issue_images=train.images[kept],
        duplicates=np.stack([similar, partners[similar]], axis=1),
        duplicate_similarities=similarities[similar],
        duplicate_labels=np.stack([evaluated.labels[similar], train.labels[partners[similar]]], axis=1),
        duplicate_images=np.stack([evaluated.images[similar[:KEPT]], train.images[partners[similar[:KEPT]]]], axis=1),
    )


def grad_cam(model: ModelComposite, features: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Grad-CAM heatmaps for one class per image: float32 `[B,h,w]` from 0 to 1.

    `features` `[B,channels,h,w]` is the last feature map of `model`, and `classes` is int64 `[B]`. Each channel is
    weighted by the mean gradient of the class's logit with respect to the channel. A heatmap is the sum of the weighted
    channels, with negative values set to 0. It is scaled to a maximum of 1, or is 0 if nothing supports the class.
    Source: Selvaraju et al. 2017, "Grad-CAM", section 3.
    """
    features = features.detach().float().requires_grad_()
    logits = model.classify(features)
    (gradients,) = torch.autograd.grad(logits.gather(1, classes.unsqueeze(1)).sum(), features)
    weights = gradients.mean(dim=(2, 3), keepdim=True)  # [B,channels,1,1]
    heatmap = functional.relu((weights * features.detach()).sum(dim=1))  # [B,h,w]
    greatest = heatmap.amax(dim=(1, 2), keepdim=True)
    return heatmap / torch.where(greatest > 0, greatest, 1)


def _lowest(values: NDArray[np.float32]) -> NDArray[np.int64]:
    """The indices of the lowest `values`, in ascending order of the values.

    They are `LISTED_FRACTION` of all indices, but at least `KEPT` indices.
    """
    return np.argsort(values, kind="stable")[: max(KEPT, round(LISTED_FRACTION * len(values)))]


def _heatmaps(predictor: Predictor, images: NDArray[np.uint8], predictions: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Grad-CAM heatmaps, uint8 `[N,h,w]`, for the predicted classes of `images`, uint8 `[N,S,S,3]`.

    They are 0 for a network that does not define `features`.
    """
    if not len(images) or not predictor.model.has_features:
        return np.zeros((len(images), 1, 1), np.uint8)
    model, classes = predictor.model.eval(), torch.from_numpy(predictions).to(predictor.plan.device)
    maps = [
        grad_cam(model, features, batch)
        for features, batch in zip(
            _features(predictor, images), torch.split(classes, predictor.batch_size), strict=True
        )
    ]
    return (255 * torch.cat(maps)).round().to(torch.uint8).cpu().numpy()


def _best_other_class(predictor: Predictor, images: ImageSet) -> NDArray[np.int64]:
    """For each image, the most likely class other than its label, int64 `[N]`."""
    with torch.no_grad():
        model = predictor.model.eval()
        if model.has_features:
            logits = [model.classify(features.float()) for features in _features(predictor, images.images)]
        else:
            normalized = map(
                predictor.preprocessing.normalize, torch.split(torch.from_numpy(images.images), predictor.batch_size)
            )
            logits = [model(batch.to(predictor.plan.device)).float() for batch in normalized]
    others = torch.cat(logits).cpu().numpy()
    others[np.arange(len(images)), images.labels] = -np.inf
    best: NDArray[np.int64] = others.argmax(axis=1)
    return best


@torch.no_grad()
def _features(predictor: Predictor, images: NDArray[np.uint8]) -> list[torch.Tensor]:
    """The last feature maps of `images`, uint8 `[N,S,S,3]`, batch by batch."""
    plan = predictor.plan
    prepared = plan.for_evaluation().prepare(predictor.model).eval()
    maps = []
    for batch in torch.split(torch.from_numpy(images), predictor.batch_size):
        with plan.autocast():
            maps.append(prepared.features(predictor.preprocessing.normalize(batch.to(plan.device))))
    return maps
