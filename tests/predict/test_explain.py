import numpy as np
import pytest
import torch
from torch import nn

from onecycle.core.recipes import BASELINE, QUICK
from onecycle.data import Dataset, ImageSet, load_dataset
from onecycle.data.preprocessing import Preprocessing
from onecycle.models import Architecture, CustomResNet, ModelComposite
from onecycle.predict.explain import KEPT, grad_cam, interpret
from onecycle.predict.predictor import Predictor
from onecycle.storage.records import Interpretation


class Sums(ModelComposite):
    """A network whose logit of class c is the sum of channel c."""

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.relu(images)

    def classify(self, features: torch.Tensor) -> torch.Tensor:
        return features.sum(dim=(2, 3))


def test_grad_cam_highlights_the_evidence_for_the_class() -> None:
    features = torch.zeros(2, 3, 4, 4)
    features[0, 1, 2, 3] = 5.0  # channel 1 supports class 1
    features[0, 2, 0, 0] = 9.0  # channel 2 supports class 2
    heatmaps = grad_cam(Sums(), features, torch.tensor([1, 0]))
    assert heatmaps[0, 2, 3] == 1 and heatmaps[0].sum() == 1
    assert heatmaps[1].sum() == 0, "nothing supports this class"


def test_grad_cam_ignores_evidence_against_the_class() -> None:
    class Against(Sums):
        def classify(self, features: torch.Tensor) -> torch.Tensor:
            return super().classify(features) * torch.tensor([1.0, -1.0, 1.0])

    assert grad_cam(Against(), torch.ones(1, 3, 2, 2), torch.tensor([1])).sum() == 0


def test_grad_cam_is_the_formula_of_its_source() -> None:
    torch.manual_seed(0)
    model = CustomResNet().eval()
    with torch.no_grad():
        features = model.features(torch.randn(4, 3, 32, 32))
    classes = torch.tensor([0, 3, 3, 9])
    heatmaps = grad_cam(model, features, classes)
    for row, chosen in enumerate(classes.tolist()):
        single = features[row : row + 1].clone().requires_grad_()
        model.classify(single)[0, chosen].backward()
        assert single.grad is not None
        weights = single.grad.mean(dim=(2, 3))[0]
        expected = torch.relu((weights[:, None, None] * features[row]).sum(dim=0))
        torch.testing.assert_close(heatmaps[row], expected / expected.max().clamp(min=1e-30))


@pytest.mark.parametrize("recipe", [BASELINE, QUICK])
def test_features_and_classify_together_equal_the_network(recipe) -> None:  # type: ignore[no-untyped-def]
    model = Architecture.of(recipe).build(10, 32).eval()
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(images), model.classify(model.features(images)))


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits", limit=300)


@pytest.fixture(scope="module")
def predictor(digits: Dataset) -> Predictor:
    torch.manual_seed(0)
    architecture = Architecture.of(QUICK)
    return Predictor(
        model=architecture.build(10, 32).eval(),
        architecture=architecture,
        preprocessing=Preprocessing.of(digits.train.images),
        classes=digits.train.classes,
    )


def interpreted(predictor: Predictor, digits: Dataset, logits: np.ndarray) -> Interpretation:
    margins = np.linspace(1, -1, len(digits.train), dtype=np.float32)
    return interpret(predictor, digits, logits, margins)


def test_the_arrays_of_an_interpretation_are_consistent(predictor: Predictor, digits: Dataset) -> None:
    evaluated, train = digits.evaluation, digits.train
    logits = np.random.default_rng(0).normal(size=(len(evaluated), 10)).astype(np.float32)
    made = interpreted(predictor, digits, logits)
    assert (logits[made.misclassified].argmax(axis=1) != evaluated.labels[made.misclassified]).all()
    assert np.array_equal(made.misclassified_images, evaluated.images[made.misclassified])
    assert made.heatmaps.shape[0] == len(made.misclassified)
    assert made.heatmaps.dtype == np.uint8 and made.heatmaps.max() == 255
    assert made.train_label_issues[0] == len(train) - 1, "the lowest margin comes first"
    assert np.array_equal(made.train_label_issue_images, train.images[made.train_label_issues[:KEPT]])
    assert (made.train_label_issue_predictions != made.train_label_issue_labels[:KEPT]).all(), (
        "the label itself is left out"
    )
    ours, theirs = made.duplicates.T
    assert np.array_equal(made.duplicate_labels, np.stack([evaluated.labels[ours], train.labels[theirs]], axis=1))
    assert (np.diff(made.duplicate_similarities) <= 0).all()


def test_wrong_labels_in_the_evaluated_split_come_first(predictor: Predictor, digits: Dataset) -> None:
    images = digits.evaluation
    logits = 5 * np.eye(10, dtype=np.float32)[images.labels]  # logits of a perfect network
    wrong = images.labels.copy()
    wrong[[7, 70]] = (wrong[[7, 70]] + 1) % 10
    mislabeled = Dataset(
        name="digits",
        train=digits.train,
        evaluation=ImageSet(images.images, wrong, images.classes),
        evaluated_on="test",
        source="",
    )
    assert set(interpreted(predictor, mislabeled, logits).label_issues[:2].tolist()) == {7, 70}


def test_a_network_that_misclassifies_nothing_has_no_heatmaps(predictor: Predictor, digits: Dataset) -> None:
    made = interpreted(predictor, digits, 5 * np.eye(10, dtype=np.float32)[digits.evaluation.labels])
    assert len(made.misclassified) == len(made.heatmaps) == len(made.misclassified_images) == 0
