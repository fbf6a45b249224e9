import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onecycle.cli import main
from onecycle.core.errors import InputError
from onecycle.data import ImageSet
from onecycle.data.check import check


@pytest.fixture
def copied(image_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(image_folder, tmp_path / "images"))


def noise(seed: int, mode: str = "RGB", size: tuple[int, int] = (40, 30)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def test_a_sound_folder_is_counted_and_safe(image_folder: Path, tiny: tuple[ImageSet, ImageSet]) -> None:
    found = check(image_folder)
    assert found.classes == tiny[0].classes
    assert found.counts == {"train": (5,) * 10, "test": (2,) * 10}
    assert (found.problems, found.converted, found.repeated, found.dangers()) == ((), {}, (), [])


@pytest.mark.parametrize("data", ["digits", "archive"])
def test_every_kind_of_data_can_be_checked(data: str, python_archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "digits" if data == "digits" else str(python_archive)]) == 0
    assert capsys.readouterr().out.endswith("\nSafe to train on\n")


def test_each_conversion_is_listed_with_its_files(copied: Path) -> None:
    folder = copied / "train" / "0"
    noise(0).save(folder / "animated.gif", save_all=True, append_images=[noise(1), noise(2)])
    exif = Image.Exif()
    exif[0x0112] = 6
    noise(3).save(folder / "rotated.jpg", exif=exif)
    Image.fromarray(np.arange(1024, dtype=np.uint16).reshape(32, 32) * 60).save(folder / "deep.png")
    noise(4, "CMYK").save(folder / "print.jpg")
    noise(5, "RGBA").save(folder / "transparent.png")
    noise(6, "L").save(folder / "gray.png")
    noise(7).save(folder / "jpeg.png", "JPEG")
    found = check(copied)
    assert not found.problems
    converted = {what: [Path(name).name for name in names] for what, names in found.converted.items()}
    assert converted == {
        "CMYK: converted to RGB": ["print.jpg"],
        "L: converted to RGB": ["gray.png"],
        "animated: only the first frame is used": ["animated.gif"],
        "more than 8 bits a channel: scaled to 8": ["deep.png"],
        "in a different format than the suffix says": ["jpeg.png"],
        "rotated as their EXIF tag says": ["rotated.jpg"],
    } | {what: names for what, names in converted.items() if what.startswith(("P:", "transparent"))}
    assert found.dangers() == []


def test_a_photograph_with_a_preview_is_not_an_animation(copied: Path) -> None:
    for name in ("camera.jpg", "camera.mpo"):
        noise(0).save(copied / "train" / "0" / name, "MPO", save_all=True, append_images=[noise(1)])
    found = check(copied)
    assert (found.converted, found.left_out, found.counts["train"][0]) == ({}, (), 7)


def test_what_is_left_out_is_listed_after_the_images_that_cannot_be_used(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copied / "train" / "0" / "IMG_1.CR2").touch()
    shutil.copytree(copied / "test", copied / "more")
    assert main(["check", str(copied)]) == 0
    lines = capsys.readouterr().out.splitlines()
    start = lines.index("Left out:")
    assert lines[start - 1] == "Images that cannot be used: 0"
    assert [line.split(",")[0] for line in lines[start + 1 : start + 3]] == ["  20 images in more/", "  1 file .cr2"]
    assert lines[start + 3].startswith("Images with copies: ")


@pytest.mark.parametrize("size", [(65, 32), (32, 100), (1000, 40)])
def test_an_image_that_loses_more_than_half_of_its_pixels_to_the_crop_is_listed(
    copied: Path, size: tuple[int, int]
) -> None:
    noise(0).resize(size).save(copied / "train" / "0" / "long.png")
    noise(1).resize((64, 32)).save(copied / "train" / "0" / "half.png")
    noise(2).resize((20, 39)).save(copied / "train" / "0" / "photograph.png")
    found = check(copied).converted
    assert {what: [Path(name).name for name in names] for what, names in found.items()} == {
        "more than twice as long as wide: only the center is used": ["long.png"]
    }


@pytest.mark.parametrize(("count", "ending"), [(3, "gray-2.png)"), (4, "gray-2.png, …)")])
def test_three_files_of_a_conversion_are_named_and_an_ellipsis_stands_for_more(
    copied: Path, count: int, ending: str
) -> None:
    for number in range(count):
        noise(number, "L").save(copied / "train" / "0" / f"gray-{number}.png")
    (line,) = [line for line in check(copied).lines() if "L: converted to RGB" in line]
    assert line.strip().startswith(f"{count} L: converted") and line.endswith(ending)


def test_copies_of_an_image_are_found_within_and_across_splits(copied: Path) -> None:
    first, second = (sorted((copied / "train" / "1").iterdir())[i] for i in range(2))
    shutil.copy(first, copied / "train" / "1" / "again.png")
    shutil.copy(second, copied / "train" / "2" / "other-label.png")
    shutil.copy(first, copied / "test" / "1" / "leaked.png")
    found = check(copied)
    names = {tuple(sorted(Path(image.name).name for image in group)) for group in found.repeated}
    assert names == {
        tuple(sorted(("again.png", first.name, "leaked.png"))),
        tuple(sorted((second.name, "other-label.png"))),
    }
    assert (found.shared(), found.contradicted()) == ({"test": 1}, 2)
    assert found.dangers() == [
        "1 of 21 test images are also in the training set",
        "2 of 52 training images have a copy with another label",
    ]
    lines = found.lines()
    same = f"{copied}/train/1/again.png (1)", f"{copied}/test/1/leaked.png (1)"
    assert any(all(name in line for name in same) for line in lines)


def test_a_missing_data_set_is_refused_as_in_training(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file or folder"):
        check(tmp_path / "nothing")
