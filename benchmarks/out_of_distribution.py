"""How well scores tell the test images of CIFAR-10 from images of something else.

One set of images chooses the score, and other sets are reported. Nothing is chosen on what is reported.

The score is chosen on crops of the photographs that come with scikit-learn, flat colors, gradients, and the photographs
of hands in the archive --signs, against training images. Of the scores that the logits give, it is the one with the
highest mean AUROC over these kinds. The feature norm is measured beside them. It needs the last feature map, which
neither an own network nor the recorded logits of a run have.

The reported kinds are the embedded digits, crops of the textures and photographs that come with scikit-image, and
noise. The photographs show no class of CIFAR-10: `astronaut` (with a space shuttle), `chelsea` (a cat) and `horse` are
left out. The network is that of --run, or the included one, and predicts as `onecycle.load` does.
"""

import argparse
import hashlib
import io
import json
import sys
import tarfile
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter
from sklearn.datasets import load_sample_images
from sklearn.metrics import roc_auc_score
from studies import rounded, write

import onecycle
from onecycle.compute import hardware
from onecycle.core.metrics import probabilities_of
from onecycle.core.out_of_distribution import energy_scores_of, energy_threshold_of
from onecycle.predict.predictor import Predictor, load
from onecycle.report.model_card import Auroc
from onecycle.run import environment

TEXTURES = ("brick.png", "grass.png", "gravel.png")
PHOTOGRAPHS = (
    "camera.png",
    "cell.png",
    "clock_motion.png",
    "coffee.png",
    "coins.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "moon.png",
    "motorcycle_left.png",
    "page.png",
    "retina.jpg",
    "rocket.jpg",
    "text.png",
)
KINDS = ("digits", "textures", "photographs", "uniform noise", "Gaussian noise", "smooth noise")
SMALLEST_CROP = 32  # pixels
GRAY, CONTRAST = 128, 50  # mean and standard deviation of noise

Images = NDArray[np.uint8]  # [N,S,S,3]
Scores = dict[str, NDArray[np.float64]]  # [N] for each score


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a run on CIFAR-10; by default the included network")
    parser.add_argument("--data", default="cifar10", help="CIFAR-10")
    parser.add_argument("--signs", type=Path, default=Path("../shared/sign-digits.tar"), help="left out if missing")
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS, help="the reported kinds of images")
    parser.add_argument("--images", type=int, default=2000, help="images of each kind")
    parser.add_argument("--known", type=int, default=10_000, help="training images, and test images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("results/out_of_distribution.json"))
    options = parser.parse_args()
    from_scikit_image = {"textures", "photographs"} & set(options.kinds)
    if from_scikit_image and find_spec("skimage") is None:
        without = " and ".join(sorted(from_scikit_image))
        message = f"skimage is not installed; pip install scikit-image, or use --kinds without {without}"
        print(f"out_of_distribution: {message}", file=sys.stderr)
        return 2
    predictor, dataset = load(options.run), onecycle.load_dataset(options.data)
    if dataset.evaluation.classes != predictor.classes:
        print(f"out_of_distribution: {options.data} has other classes than the network", file=sys.stderr)
        return 2
    rng = np.random.default_rng(options.seed)
    train, test = (
        images.images[rng.permutation(len(images))[: options.known]] for images in (dataset.train, dataset.evaluation)
    )
    choosing = separation(predictor, train, kinds_to_choose(predictor, options.signs, options.images, rng))
    means = {score: rounded(float(np.mean([kind[score] for kind in choosing.values()]))) for score in LOGIT_SCORES}
    reported = {
        kind: MAKE[kind](predictor, options.images, np.random.default_rng((options.seed, number)))
        for number, kind in enumerate(KINDS)
        if kind in options.kinds
    }
    threshold = energy_threshold_of(logits_and_features(predictor, test)[0])
    assert threshold is not None, "there are thousands of test images"
    unlike = {kind: share_below(predictor, images, threshold) for kind, images in reported.items()}
    record = {
        "network": "included" if options.run is None else options.run.resolve().name,
        "weights": digest(predictor),
        "seed": options.seed,
        "chosen": max(means, key=lambda score: means[score]),
        "chosen_on": {"training_images": len(train), "mean_auroc": means, "auroc": choosing},
        "test_images": len(test),
        "threshold": threshold,
        "auroc": separation(predictor, test, reported),
        "called_unlike": unlike,
        "images": {kind: len(images) for kind, images in reported.items()},
        "fingerprint": dataset.fingerprint,
        "environment": environment.describe(hardware.detect(), predictor.plan),
    }
    write(options.out, record)
    print(f"chosen: {record['chosen']}, of {means}")
    for kind in reported:
        print(f"{kind}: AUROC {record['auroc'][kind]}, {unlike[kind]:.1%} called unlike anything it was trained on")
    return 0


LOGIT_SCORES: Mapping[str, Callable[[NDArray[np.float32], float], NDArray[np.float64]]] = {
    "maximum logit": lambda logits, temperature: logits.max(axis=1).astype(np.float64),
    "energy": lambda logits, temperature: energy_scores_of(logits),
    "energy of calibrated logits": lambda logits, temperature: energy_scores_of(logits / np.float32(temperature)),
    "maximum probability": lambda logits, temperature: probabilities_of(logits, temperature).max(axis=1),
}
"""Scores from logits `[N,C]` and the temperature of the network. They are high for images like the training images."""


def separation(predictor: Predictor, known: Images, others: Mapping[str, Images]) -> dict[str, dict[str, float]]:
    """For each kind of `others`, the AUROC of each score against `known`."""
    of_known = scores_of(predictor, known)
    areas: dict[str, dict[str, float]] = {}
    for kind, images in others.items():
        of_others = scores_of(predictor, images)
        is_known = np.repeat([1, 0], [len(known), len(images)])
        areas[kind] = {
            score: rounded(roc_auc_score(is_known, np.concatenate([of_known[score], of_others[score]])))
            for score in of_known
        }
    return areas


def scores_of(predictor: Predictor, images: Images) -> Scores:
    logits, features = logits_and_features(predictor, images)
    scores = {name: score(logits, predictor.temperature) for name, score in LOGIT_SCORES.items()}
    return scores if features is None else {**scores, "feature norm": np.linalg.norm(features, axis=1)}


@torch.no_grad()
def logits_and_features(predictor: Predictor, images: Images) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """The logits `[N,C]`, and the maximum of each channel of the last feature map, `[N,channels]`."""
    plan = predictor.plan
    model = plan.prepare(predictor.model).eval()
    logits, features = [], []
    for batch in torch.split(torch.from_numpy(images), predictor.batch_size):
        inputs = predictor.preprocessing.normalize(batch.to(plan.device))
        with plan.autocast():
            if model.has_features:
                maps = model.features(inputs)
                features.append(maps.float().amax(dim=(2, 3)).cpu())
                logits.append(model.classify(maps).float().cpu())
            else:
                logits.append(model(inputs).float().cpu())
    return torch.cat(logits).numpy(), torch.cat(features).numpy() if features else None


def share_below(predictor: Predictor, images: Images, threshold: float) -> float:
    """The fraction of `images` with an energy score below `threshold`."""
    return rounded(float((energy_scores_of(logits_and_features(predictor, images)[0]) < threshold).mean()))


def digest(predictor: Predictor) -> str:
    """A SHA-256 of the weights, whatever else is in their file."""
    found = hashlib.sha256()
    for name, tensor in sorted(predictor.model.state_dict().items()):
        found.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def auroc_in(path: Path, predictor: Predictor) -> Auroc | None:
    """The AUROC of the energy for each kind in the record at `path`. None unless it was measured for `predictor`."""
    record = json.loads(path.read_text()) if path.exists() else {}
    if record.get("weights") != digest(predictor):
        return None
    return {kind: (areas["energy"], record["called_unlike"][kind]) for kind, areas in record["auroc"].items()}


def kinds_to_choose(
    predictor: Predictor, signs: Path, count: int, rng: np.random.Generator
) -> dict[str, NDArray[np.uint8]]:
    size = predictor.preprocessing.input_size
    china, flower = (Image.fromarray(pixels) for pixels in load_sample_images().images)
    start, end = rng.integers(0, 256, (2, count, 1, 1, 3))
    kinds = {
        "china.jpg": crops(predictor, [china], count, rng),
        "flower.jpg": crops(predictor, [flower], count, rng),
        "flat colors": np.broadcast_to(rng.integers(0, 256, (count, 1, 1, 3)), (count, size, size, 3)).astype(np.uint8),
        "gradients": (start + (end - start) * ramps(count, size, rng)).astype(np.uint8),
    }
    if signs.exists():
        kinds["hand signs"] = from_archive(predictor, signs, count, rng)
    return kinds


def ramps(count: int, size: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Linear ramps from 0 to 1 in random directions, `[count,size,size,1]`."""
    down, right = np.mgrid[:size, :size]
    angle = rng.uniform(0, 2 * np.pi, (count, 1, 1))
    values = np.cos(angle) * right + np.sin(angle) * down  # [count,size,size]
    values -= values.min(axis=(1, 2), keepdims=True)
    return (values / values.max(axis=(1, 2), keepdims=True))[..., None]


def from_archive(predictor: Predictor, archive: Path, count: int, rng: np.random.Generator) -> Images:
    with tarfile.open(archive) as tar:
        members = [member for member in tar if member.name.lower().endswith((".jpg", ".jpeg", ".png"))]
        contents = []
        for place in rng.permutation(len(members))[:count]:
            content = tar.extractfile(members[place])
            assert content, "it is a file"
            contents.append(content.read())
    return np.stack([predictor.to_input(Image.open(io.BytesIO(content))) for content in contents])


def crops(predictor: Predictor, pictures: Sequence[Image.Image], count: int, rng: np.random.Generator) -> Images:
    """`count` square crops of `pictures` in turn. Their sides are log-uniform, up to the short side of the picture."""
    found = []
    for number in range(count):
        picture = pictures[number % len(pictures)]
        side = round(float(np.exp(rng.uniform(np.log(SMALLEST_CROP), np.log(min(picture.size))))))
        left, top = (int(rng.integers(length - side + 1)) for length in picture.size)
        found.append(predictor.to_input(picture.crop((left, top, left + side, top + side))))
    return np.stack(found)


def of_scikit_image(names: Sequence[str]) -> Callable[[Predictor, int, np.random.Generator], Images]:
    def make(predictor: Predictor, count: int, rng: np.random.Generator) -> Images:
        import skimage

        folder = Path(skimage.__file__).parent / "data"
        return crops(predictor, [Image.open(folder / name).convert("RGB") for name in names], count, rng)

    return make


def digits(predictor: Predictor, count: int, rng: np.random.Generator) -> Images:
    sets = onecycle.load_dataset("digits")
    images = np.concatenate([sets.train.images, sets.evaluation.images])
    chosen = images[rng.permutation(len(images))[:count]]
    return np.stack([predictor.to_input(pixels) for pixels in chosen])


def uniform_noise(predictor: Predictor, count: int, rng: np.random.Generator) -> Images:
    size = predictor.preprocessing.input_size
    return rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def gaussian_noise(predictor: Predictor, count: int, rng: np.random.Generator) -> Images:
    size = predictor.preprocessing.input_size
    return (GRAY + CONTRAST * rng.standard_normal((count, size, size, 3))).clip(0, 255).astype(np.uint8)


def smooth_noise(predictor: Predictor, count: int, rng: np.random.Generator) -> Images:
    """Gaussian noise that is blurred by half a pixel to 4 pixels, and then has the contrast of the noise before."""
    size = predictor.preprocessing.input_size
    blurred = np.stack(
        [
            gaussian_filter(rng.standard_normal((size, size, 3)), (sigma, sigma, 0))
            for sigma in np.exp(rng.uniform(np.log(0.5), np.log(4), count))
        ]
    )
    blurred /= blurred.std(axis=(1, 2, 3), keepdims=True)
    return (GRAY + CONTRAST * blurred).clip(0, 255).astype(np.uint8)


MAKE: Mapping[str, Callable[[Predictor, int, np.random.Generator], Images]] = {
    "digits": digits,
    "textures": of_scikit_image(TEXTURES),
    "photographs": of_scikit_image(PHOTOGRAPHS),
    "uniform noise": uniform_noise,
    "Gaussian noise": gaussian_noise,
    "smooth noise": smooth_noise,
}


if __name__ == "__main__":
    sys.exit(main())
