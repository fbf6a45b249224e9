"""Tune the backbone of `transfer` with Lightning, as Lightning's documentation shows. For transfer.py.

Lightning's callback `BackboneFinetuning` has its default values: it trains the last layer for 10 epochs, then all
layers. Each image is cropped at random and mirrored. The program prints one JSON object with the test accuracy.
"""

import argparse
import json
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data import Dataset as TorchDataset

import onecycle
from onecycle.data import ImageSet
from onecycle.models import backbones

SIZE = 128  # pixels, as in `transfer`
BATCH_SIZE = 32
EPOCHS = 20
LR = 1e-3  # the default of Adam


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=Path, help="a folder of class folders, perhaps in train/ and test/")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    import lightning
    from lightning.pytorch.callbacks import BackboneFinetuning

    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    lightning.seed_everything(options.seed, verbose=False)
    dataset = onecycle.load_dataset(options.photographs, input_size=SIZE)
    backbone = backbones.build("efficientnet_lite0", pretrained=True)
    classifier = make_classifier(backbone, len(dataset.train.classes))
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=EPOCHS,
        callbacks=[BackboneFinetuning()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(classifier, DataLoader(Augmented(dataset.train, backbone, options.seed), BATCH_SIZE, shuffle=True))
    images = normalized(torch.from_numpy(dataset.evaluation.images[:]), backbone)
    tests = TensorDataset(images, torch.from_numpy(dataset.evaluation.labels))
    [tested] = trainer.test(classifier, DataLoader(tests, BATCH_SIZE), verbose=False)
    images_of = {"train_images": len(dataset.train), "eval_images": len(dataset.evaluation)}
    print(json.dumps({"accuracy": tested["accuracy"], **images_of, "lightning": lightning.__version__}))
    return 0


def normalized(images: torch.Tensor, backbone: backbones.Backbone) -> torch.Tensor:
    """uint8 `[B,S,S,3]` to float32 `[B,3,S,S]`, normalized as in the pretraining of `backbone`."""
    return ((images / 255 - torch.tensor(backbone.mean)) / torch.tensor(backbone.std)).permute(0, 3, 1, 2)


class Augmented(TorchDataset[tuple[torch.Tensor, int]]):
    """The images of a set, each augmented at random whenever it is read."""

    def __init__(self, images: ImageSet, backbone: backbones.Backbone, seed: int) -> None:
        os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # otherwise the import asks the web for a newer version
        import albumentations

        self._images = images
        self._backbone = backbone
        self._augment = albumentations.Compose(
            [albumentations.RandomResizedCrop((SIZE, SIZE), scale=(0.6, 1)), albumentations.HorizontalFlip()], seed=seed
        )

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image = torch.from_numpy(self._augment(image=self._images.images[index])["image"])
        return normalized(image[None], self._backbone)[0], int(self._images.labels[index])


def make_classifier(backbone: backbones.Backbone, classes: int) -> Any:
    """A module of Lightning with a backbone and a linear layer."""
    import lightning

    class Classifier(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = backbone.network  # `BackboneFinetuning` finds it by this name
            self.head = nn.Linear(backbone.channels, classes)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.head(self.backbone(images).mean((2, 3)))
            return logits

        def training_step(self, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
            images, labels = batch
            return functional.cross_entropy(self(images), labels)

        def test_step(self, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
            images, labels = batch
            right = (self(images).argmax(1) == labels).float().mean()
            self.log("accuracy", right, on_epoch=True, batch_size=len(labels))

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(filter(lambda parameter: parameter.requires_grad, self.parameters()), lr=LR)

    return Classifier()


if __name__ == "__main__":
    sys.exit(main())
