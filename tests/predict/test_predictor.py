import copy
import io
import json
import multiprocessing
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.optim import Adam

from onecycle.core.errors import InputError
from onecycle.core.metrics import probabilities_of
from onecycle.core.out_of_distribution import energy_scores_of
from onecycle.data import ImageSet
from onecycle.data.batches import Batches
from onecycle.data.preprocessing import Preprocessing
from onecycle.models import Architecture, CustomResNet
from onecycle.models.test_time_augmentation import TestTimeAugmentation
from onecycle.predict.predictor import Predictor, read_image
from onecycle.storage.checkpoint import load_tensors, save_checkpoint, save_tensors
from onecycle.train.loop import Evaluation, fit


@pytest.fixture(scope="module")
def trained(tiny: tuple[ImageSet, ImageSet]) -> tuple[Predictor, Evaluation]:
    """A predictor whose network was trained for one epoch in float32, and the evaluation after that epoch."""
    torch.manual_seed(0)
    train, test = tiny
    preprocessing = Preprocessing.of(train.images)
    model = CustomResNet()
    evaluations: list[Evaluation] = []
    fit(
        model,
        Adam(model.parameters()),
        Batches(train, preprocessing, batch_size=25, shuffle=True),
        Batches(test, preprocessing, batch_size=len(test)),
        epochs=1,
        lr_min=1e-4,
        lr_max=1e-3,
        after_epoch=lambda record, evaluation: evaluations.append(evaluation),
    )
    return Predictor(
        model=model, architecture=Architecture(), preprocessing=preprocessing, classes=train.classes
    ), evaluations[0]


@pytest.fixture(scope="module")
def weights(trained: tuple[Predictor, Evaluation], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    trained[0].save(path)
    return path


@pytest.fixture(scope="module")
def predictor(weights: Path) -> Predictor:
    return Predictor.load(weights)


def test_a_predictor_is_saved_in_one_file_and_loaded_complete(
    trained: tuple[Predictor, Evaluation], predictor: Predictor
) -> None:
    saved = trained[0]
    assert predictor.classes == saved.classes
    assert predictor.preprocessing == saved.preprocessing
    state = predictor.model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in saved.model.state_dict().items())


def test_classes_input_size_and_normalization_are_in_the_metadata_of_the_weights(
    weights: Path, tiny: tuple[ImageSet, ImageSet]
) -> None:
    content = weights.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    metadata = json.loads(header["__metadata__"]["onecycle"])
    channels = tiny[0].images.reshape(-1, 3) / 255
    assert metadata["classes"] == list("0123456789")
    assert metadata["preprocessing"]["input_size"] == 32
    assert metadata["preprocessing"]["mean"] == pytest.approx(channels.mean(axis=0))
    assert metadata["preprocessing"]["std"] == pytest.approx(channels.std(axis=0))


def test_predictions_equal_those_of_the_evaluation_during_training(
    trained: tuple[Predictor, Evaluation], predictor: Predictor, tiny: tuple[ImageSet, ImageSet]
) -> None:
    evaluation = trained[1]
    predictions = predictor.predict([Image.fromarray(pixels) for pixels in tiny[1].images])
    expected = probabilities_of(evaluation.logits.numpy())
    assert [list(prediction.probabilities) for prediction in predictions] == expected.tolist()
    for prediction, logits in zip(predictions, evaluation.logits, strict=True):
        best = int(logits.argmax())
        assert prediction.class_name == predictor.classes[best]
        assert prediction.probability == prediction.probabilities[best] == max(prediction.probabilities)


def test_the_prediction_of_an_image_does_not_depend_on_its_batch(
    predictor: Predictor, tiny: tuple[ImageSet, ImageSet]
) -> None:
    images = [Image.fromarray(pixels) for pixels in tiny[1].images[:5]]
    alone = [predictor.predict([image])[0] for image in images]
    for single, batched in zip(alone, predictor.predict(images), strict=True):
        assert single.class_name == batched.class_name
        assert single.probabilities == pytest.approx(batched.probabilities, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("size", [(32, 32), (1, 1), (500, 3), (33, 640), (224, 224)])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_images_of_any_size_and_mode_are_predicted(predictor: Predictor, size: tuple[int, int], mode: str) -> None:
    (prediction,) = predictor.predict([Image.new(mode, size)])
    assert prediction.class_name in predictor.classes
    assert sum(prediction.probabilities) == pytest.approx(1, abs=1e-5)
    assert len(prediction.probabilities) == 10


def test_no_images_give_no_predictions(predictor: Predictor) -> None:
    assert predictor.predict([]) == []


def test_predicting_does_not_change_the_network(predictor: Predictor) -> None:
    before = {name: tensor.clone() for name, tensor in predictor.model.state_dict().items()}
    was_training = predictor.model.training
    predictor.predict([Image.new("RGB", (32, 32), "red")])
    assert predictor.model.training == was_training
    assert all(torch.equal(before[name], tensor) for name, tensor in predictor.model.state_dict().items())


def test_concurrent_threads_predict_the_same_as_one(weights: Path, tiny: tuple[ImageSet, ImageSet]) -> None:
    predictor = Predictor.load(weights)  # its network is in training mode, like every new network
    before = {name: tensor.clone() for name, tensor in predictor.model.state_dict().items()}
    expected = predictor.predict_images(tiny[1].images)
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(predictor.predict_images, [tiny[1].images] * 16))
    assert all(predictions == expected for predictions in results)
    assert all(torch.equal(before[name], tensor) for name, tensor in predictor.model.state_dict().items())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_process_that_is_forked_after_a_prediction_predicts_the_same(weights: Path) -> None:
    def predict() -> list[str]:
        return [prediction.class_name for prediction in predictor.predict_images(images)]

    def exit_with_agreement() -> None:
        os._exit(0 if predict() == expected else 1)

    images = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), np.uint8)
    predictor = Predictor.load(weights)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        expected = predict()
        child = multiprocessing.get_context("fork").Process(target=exit_with_agreement)
        child.start()
        child.join(60)
        child.kill()
        assert child.exitcode == 0
    finally:
        torch.set_num_threads(threads)


def test_a_single_image_and_pixels_of_another_kind_are_refused(predictor: Predictor) -> None:
    pixels = np.zeros((32, 32, 3), np.uint8)
    for single in ("cat.jpg", Path("cat.jpg"), Image.fromarray(pixels), pixels):
        with pytest.raises(TypeError, match="takes a list of images; put a single image into a list"):
            predictor.predict(single)  # type: ignore[arg-type]
    for wrong in (pixels.astype(np.float32), pixels[..., 0], pixels.transpose(2, 0, 1)):
        with pytest.raises(ValueError, match=r"they must be uint8 \[H,W,3\]"):
            predictor.predict([wrong])


@pytest.mark.parametrize(
    "image",
    [torch.zeros(32, 32, 3, dtype=torch.uint8), b"\x89PNG", None, [[[0, 0, 0]]]],
    ids=lambda image: str(type(image)),
)
def test_an_image_of_an_unknown_type_is_named(predictor: Predictor, image: object) -> None:
    with pytest.raises(TypeError, match=f"^an image is a {type(image).__name__}; it must be the path of a file, "):
        predictor.predict([image])  # type: ignore[list-item]


def test_a_pillow_image_of_floats_is_refused(predictor: Predictor) -> None:
    with pytest.raises(ValueError, match="float pixels, whose range is unknown; convert them to integers"):
        predictor.predict([Image.fromarray(np.full((32, 32), 0.5, np.float32))])


def test_an_image_without_pixels_is_refused(predictor: Predictor) -> None:
    photograph = Image.new("RGB", (32, 32))
    for empty in (np.asarray(photograph)[20:20], photograph.crop((5, 5, 5, 9)), photograph.crop((5, 5, 9, 5))):
        with pytest.raises(ValueError, match="an image has no pixels"):
            predictor.predict([empty])


def test_images_may_come_from_an_iterator(predictor: Predictor, tiny: tuple[ImageSet, ImageSet]) -> None:
    images = tiny[1].images[:3]
    assert predictor.predict(iter(images)) == predictor.predict(list(images)) == predictor.predict(images)


def test_a_predictor_does_not_depend_on_the_default_dtype_of_the_program(weights: Path, predictor: Predictor) -> None:
    image = Image.effect_noise((32, 32), 90)
    torch.set_default_dtype(torch.float64)
    try:
        loaded = Predictor.load(weights)
        assert loaded.predict([image]) == predictor.predict([image])
    finally:
        torch.set_default_dtype(torch.float32)


def test_weights_too_large_for_half_precision_are_refused(
    trained: tuple[Predictor, Evaluation], tmp_path: Path
) -> None:
    large = copy.deepcopy(trained[0])
    with torch.no_grad():
        large.model.linear.weight[0, 0] = 1e6  # type: ignore[index, union-attr]
    with pytest.raises(ValueError, match="too large for float16"):
        large.save(tmp_path / "half.safetensors", half=True)
    assert not list(tmp_path.iterdir())


def test_batches_of_large_images_are_smaller(predictor: Predictor) -> None:
    def of_size(size: int) -> Predictor:
        return replace(predictor, preprocessing=replace(predictor.preprocessing, input_size=size))

    assert [of_size(size).batch_size for size in (32, 64, 224, 2000)] == [250, 62, 5, 1]


def test_the_input_size_is_saved_with_the_weights(trained: tuple[Predictor, Evaluation], tmp_path: Path) -> None:
    small = replace(
        trained[0],
        model=CustomResNet(classes=3, input_size=16),
        preprocessing=Preprocessing(input_size=16, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)),
        classes=("ant", "bee", "cät"),
    )
    small.save(tmp_path / "weights")
    loaded = Predictor.load(tmp_path / "weights")
    assert loaded.preprocessing == small.preprocessing
    assert loaded.predict([Image.new("RGB", (32, 32))]) == small.predict([Image.new("RGB", (32, 32))])


# Temperature


def test_the_temperature_is_saved_with_the_weights(trained: tuple[Predictor, Evaluation], tmp_path: Path) -> None:
    for half in (False, True):
        replace(trained[0], temperature=0.7).save(tmp_path / "weights", half=half)
        assert Predictor.load(tmp_path / "weights").temperature == 0.7


def test_weights_of_earlier_versions_have_the_temperature_1(weights: Path, tmp_path: Path) -> None:
    tensors, metadata = load_tensors(weights)
    del metadata["temperature"]
    save_tensors(tmp_path / "weights", tensors, metadata)
    assert Predictor.load(tmp_path / "weights").temperature == 1


@pytest.mark.parametrize("temperature", [0.3, 3.0])
def test_the_temperature_changes_the_probabilities_but_no_class(
    predictor: Predictor, tiny: tuple[ImageSet, ImageSet], temperature: float
) -> None:
    images = tiny[1].images
    before, after = predictor.predict_images(images), replace(predictor, temperature=temperature).predict_images(images)
    for plain, scaled in zip(before, after, strict=True):
        assert [name for name, _ in plain.top(10)] == [name for name, _ in scaled.top(10)]
        assert (scaled.probability > plain.probability) == (temperature < 1)
        ratio = np.log(plain.probabilities) - temperature * np.log(scaled.probabilities)  # the same for all classes
        assert np.ptp(ratio) < 1e-9


@pytest.mark.parametrize("temperature", [0.3, 3.0])
def test_test_time_augmentation_with_a_temperature_predicts_the_same_classes(
    predictor: Predictor, tiny: tuple[ImageSet, ImageSet], temperature: float
) -> None:
    augmented = replace(predictor, model=TestTimeAugmentation(predictor.model))
    for plain, scaled in zip(
        augmented.predict_images(tiny[1].images[::4]),
        replace(augmented, temperature=temperature).predict_images(tiny[1].images[::4]),
        strict=True,
    ):
        assert [name for name, _ in plain.top(10)] == [name for name, _ in scaled.top(10)]


# Images unlike those of the training set


def test_the_energy_threshold_is_saved_with_the_weights(trained: tuple[Predictor, Evaluation], tmp_path: Path) -> None:
    for half in (False, True):
        replace(trained[0], energy_threshold=-1.25).save(tmp_path / "weights", half=half)
        assert Predictor.load(tmp_path / "weights").energy_threshold == -1.25


def test_weights_of_earlier_versions_do_not_say_whether_an_image_is_in_distribution(
    weights: Path, tmp_path: Path, tiny: tuple[ImageSet, ImageSet]
) -> None:
    tensors, metadata = load_tensors(weights)
    del metadata["energy_threshold"]
    save_tensors(tmp_path / "weights", tensors, metadata)
    for prediction in Predictor.load(tmp_path / "weights").predict_images(tiny[1].images):
        assert prediction.in_distribution is None


@pytest.mark.parametrize("temperature", [1.0, 0.3, 3.0])
def test_images_below_the_energy_threshold_are_out_of_distribution_at_every_temperature(
    trained: tuple[Predictor, Evaluation], predictor: Predictor, tiny: tuple[ImageSet, ImageSet], temperature: float
) -> None:
    scores = energy_scores_of(trained[1].logits.numpy())
    middle = float(np.median(scores))
    strict = replace(predictor, energy_threshold=middle, temperature=temperature)
    predictions = strict.predict_images(tiny[1].images)
    assert [prediction.energy_score for prediction in predictions] == scores.tolist()
    assert [prediction.in_distribution for prediction in predictions] == (scores >= middle).tolist()
    assert 0 < sum(scores < middle) < len(scores)


def test_test_time_augmentation_scores_the_averaged_logits(
    predictor: Predictor, tiny: tuple[ImageSet, ImageSet]
) -> None:
    images = tiny[1].images[::4]
    model = TestTimeAugmentation(predictor.model)
    augmented = replace(predictor, model=model, energy_threshold=0.0).predict_images(images)
    with torch.no_grad():
        logits = model.eval()(predictor.preprocessing.normalize(torch.from_numpy(images)))
    expected = energy_scores_of(logits.numpy())
    np.testing.assert_allclose([prediction.energy_score for prediction in augmented], expected, rtol=1e-5)
    assert [prediction.in_distribution for prediction in augmented] == (expected >= 0).tolist()


# Damaged weights


@pytest.mark.parametrize("keep", [0, 1000, 0.5, -1])
def test_truncated_weights_are_an_input_error(weights: Path, tmp_path: Path, keep: float) -> None:
    content = weights.read_bytes()
    truncated = tmp_path / "weights.safetensors"
    truncated.write_bytes(content[: int(len(content) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(InputError, match="weights.safetensors (is damaged|has no checksum)"):
        Predictor.load(truncated)


def test_missing_weights_and_those_of_another_program_are_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no weights.safetensors: the run did not get this far"):
        Predictor.load(tmp_path / "weights.safetensors")
    save_file({"a": torch.zeros(2)}, tmp_path / "theirs")
    with pytest.raises(InputError, match="theirs has no checksum, so it is damaged, or onecycle did not write it"):
        Predictor.load(tmp_path / "theirs")


def test_a_checkpoint_is_not_a_predictor(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    save_checkpoint(tmp_path / "checkpoint", model, Adam(model.parameters()), {"history": []})
    with pytest.raises(InputError, match="checkpoint is damaged or of another kind"):
        Predictor.load(tmp_path / "checkpoint")


def test_metadata_that_contradict_the_weights_are_an_input_error(weights: Path, tmp_path: Path) -> None:
    tensors, metadata = load_tensors(weights)
    save_tensors(tmp_path / "weights", tensors, {**metadata, "classes": ["one", "two"]})
    with pytest.raises(InputError, match="has the weights of another network"):
        Predictor.load(tmp_path / "weights")


# Image files


def test_an_image_file_is_read_completely(tmp_path: Path, tiny: tuple[ImageSet, ImageSet]) -> None:
    pixels = tiny[0].images[0]
    Image.fromarray(pixels).save(tmp_path / "digit.png")
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "digit.png")), pixels)


def test_a_file_that_is_not_an_image_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("this is not an image")
    (tmp_path / "empty.png").touch()
    for name, reason in (("text.jpg", "not an image"), ("empty.png", "the file is empty")):
        with pytest.raises(InputError, match=f"{name}: {reason}"):
            read_image(tmp_path / name)
    with pytest.raises(InputError, match="there is no file .*nowhere.png"):
        read_image(tmp_path / "nowhere.png")
    with pytest.raises(InputError, match="is not a file; give an image file"):
        read_image(tmp_path)


def test_a_truncated_jpeg_is_an_input_error(tmp_path: Path, tiny: tuple[ImageSet, ImageSet]) -> None:
    path = tmp_path / "digit.jpg"
    Image.fromarray(tiny[0].images[0]).save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="digit.jpg: the image cannot be read .*truncated"):
        read_image(path)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM"])
def test_an_image_truncated_anywhere_is_read_or_an_input_error(
    tmp_path: Path, tiny: tuple[ImageSet, ImageSet], kind: str
) -> None:
    encoded = io.BytesIO()
    Image.fromarray(tiny[0].images[0]).save(encoded, kind)
    content, path, refused = encoded.getvalue(), tmp_path / "digit", 0
    for end in range(0, len(content), max(1, len(content) // 60)):
        path.write_bytes(content[:end])
        try:
            assert read_image(path).size == (32, 32)
        except InputError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > 20
