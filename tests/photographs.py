"""Eight CIFAR-10 photographs from the run folder of the pretrained network, `results/fast-cifar10`."""

from pathlib import Path

from onecycle.storage.run_folder import RunFolder

RECORD = RunFolder(Path(__file__).parents[1] / "results" / "fast-cifar10")
PHOTOGRAPHS = RECORD.read_arrays(RECORD.augmentations)["originals"]  # uint8 [8,32,32,3]
SHOWN = ["horse", "airplane", "truck", "frog", "cat", "ship", "frog", "truck"]  # the classes of the photographs
