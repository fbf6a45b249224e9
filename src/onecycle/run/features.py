"""Compute the features on which the head of a frozen backbone is trained, or read them from the cache."""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from onecycle.compute import hardware
from onecycle.data.augment.views import Views
from onecycle.data.feature_batches import FeatureBatches
from onecycle.data.store.features import Compute, FeatureCache, remove_oldest
from onecycle.models import BackboneClassifier
from onecycle.models.backbone_classifier import channel_means
from onecycle.models.backbones import fingerprint
from onecycle.run import environment
from onecycle.run.build import Experiment
from onecycle.run.progress import RunProgress


def compute_features(experiment: Experiment, progress: RunProgress) -> None:
    """Fill the batches of `experiment` with features, if its backbone is frozen."""
    model = experiment.model
    if not isinstance(model, BackboneClassifier) or not model.has_frozen_backbone:
        return
    cache = FeatureCache(_computing(experiment, model), _key(experiment, model))

    def compute(images: NDArray[np.uint8], views: Views) -> torch.Tensor:
        def start(missing: int) -> None:
            progress.start_features(missing, views.count)

        try:
            features, problem = cache.of(images, views, start=start, advance=progress.feature_step)
        finally:
            progress.end_features()
        if problem:
            progress.warn(f"The features were not saved for later runs: {problem}")
        return features

    for batches in (experiment.train, experiment.epoch_evaluation):
        assert isinstance(batches, FeatureBatches), "a head is trained on features"
        batches.fill(compute)
    remove_oldest(kept=2)  # keep both folders of this run: for training and for evaluation


def _computing(experiment: Experiment, model: BackboneClassifier) -> Compute:
    plan, preprocessing = replace(experiment.plan, torch_compile=False), experiment.preprocessing
    prepared = plan.prepare(model).eval()

    @torch.no_grad()
    def compute(images: torch.Tensor) -> torch.Tensor:
        with plan.autocast():
            return channel_means(prepared.features(preprocessing.normalize(images.to(plan.device)))).cpu()

    return compute


def _key(experiment: Experiment, model: BackboneClassifier) -> dict[str, object]:
    """All values that the bits of the features depend on, except the images and their views."""
    machine = hardware.detect()
    return {
        "backbone": fingerprint(experiment.config.backbone, model.backbone),
        "preprocessing": experiment.preprocessing.to_json(),
        "compute_plan": experiment.plan.to_json(),
        "machine": [machine.cpu, machine.cpu_features, machine.gpu, environment.kernels_of(experiment.plan)],
        "code": [environment.code_digest(), environment.versions(environment.COMPUTING)],
    }
