"""Images found in folders and decoded, and class names as they are typed."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deop.data.image_files import LoadedImage, batches_of_one_size, read_image
from deop.data.image_places import find_images
from deop.data.vocabulary import parse_names
from deop.errors import DeopError

HEIGHT, WIDTH = 4, 6


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_folders_are_searched_to_their_depths_and_in_order(tmp_path):
    folder, output = tmp_path / "photos", tmp_path / "photos/labels"
    wanted = [folder / name for name in ("a.JPG", "b.c.jpeg", "sub/d.webp", "sub/deep/a.png")]
    touch(*reversed(wanted))
    others = ("notes.txt", ".hidden.png", ".cache/e.png", "a.jpg.bak")
    touch(*(folder / name for name in others), output / "a.png", output / "sub/d.png")
    (folder / "sub/round").symlink_to(folder)
    found = find_images([folder, folder / "a.JPG"], output)  # once, though it is given twice
    assert list(found.items()) == list(
        zip(map(Path, ("a.png", "b.c.png", "sub/d.png", "sub/deep/a.png")), wanted, strict=True)
    )
    assert list(find_images([folder / "sub/d.webp"], output)) == [Path("d.png")]


def test_images_with_one_place_are_both_named(tmp_path):
    touch(tmp_path / "one/a.jpg", tmp_path / "two/a.webp")
    with pytest.raises(
        DeopError, match=r"one/a\.jpg and .*two/a\.webp would both be written to .*out/a\.png"
    ):
        find_images([tmp_path / "one", tmp_path / "two"], tmp_path / "out")


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 4), np.uint8)


def palette(pixels: np.ndarray) -> Image.Image:
    image = Image.fromarray(pixels[..., :3]).quantize(8)
    image.info["transparency"] = bytes(range(8))
    return image


def rgb(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize(
    ("kind", "make", "expected"),
    [
        ("rgb.png", lambda p: Image.fromarray(p[..., :3]), lambda p: p[..., :3]),
        ("alpha.webp", lambda p: Image.fromarray(p[..., :3]), lambda p: p[..., :3]),
        ("alpha.png", Image.fromarray, lambda p: p[..., :3]),
        ("grey.png", lambda p: Image.fromarray(p[..., 0]), lambda p: p[..., [0, 0, 0]]),
        ("two.png", lambda p: Image.fromarray(p[..., 0] > 99), lambda p: p[..., [0, 0, 0]].__gt__(99) * 255),
        (
            "deep.png",
            lambda p: Image.fromarray(p[..., 0].astype(np.uint16) * 256 + 7),
            lambda p: p[..., [0, 0, 0]],
        ),
        ("whole.tif", lambda p: Image.fromarray(p[..., 0].astype(np.int32)), lambda p: p[..., [0, 0, 0]]),
        (
            "float.tif",
            lambda p: Image.fromarray(p[..., 0].astype(np.float32) / 255),
            lambda p: p[..., [0, 0, 0]],
        ),
        ("palette.png", palette, lambda p: rgb(Image.fromarray(p[..., :3]).quantize(8))),
    ],
)
def test_all_kinds_of_pixels_become_rgb(pixels, tmp_path, kind, make, expected):
    make(pixels).save(tmp_path / kind, lossless=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = read_image(tmp_path / kind)
    assert image.dtype == torch.uint8
    assert np.array_equal(image.permute(1, 2, 0).numpy(), expected(pixels))


@pytest.mark.parametrize(("value", "kind"), [(70_000, np.int32), (1.5, np.float32)])
def test_values_that_cannot_be_meant_are_said(tmp_path, value, kind):
    Image.fromarray(np.full((4, 4), value, kind)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=f"values from {value:g} to {value:g}; valid"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_images_are_turned_the_way_that_they_are_shown(pixels, tmp_path, orientation, turns):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "photo.jpg"
    Image.fromarray(pixels[..., :3]).save(path, exif=exif, quality=95)
    expected = np.rot90(np.asarray(Image.open(path)), turns)
    assert np.array_equal(read_image(path).permute(1, 2, 0).numpy(), expected)


def test_only_neighbours_of_one_size_are_put_together():
    sizes = [(2, 3)] * 5 + [(3, 2)] + [(2, 3)] * 2
    loaded = [LoadedImage(index, torch.zeros(3, *size), "") for index, size in enumerate(sizes)]
    found = [[of.index for of in batch] for batch in batches_of_one_size(iter(loaded), 2)]
    assert found == [[0, 1], [2, 3], [4], [5], [6, 7]]


def test_names_are_read_from_the_line_or_from_a_file(tmp_path):
    assert parse_names(" cat ,brick  wall, Dog") == ["cat", "brick wall", "Dog"]
    file = tmp_path / "names.txt"
    file.write_text("\ufeffscreen, CRT screen\r\n\n  brick \t wall\nDöner\n", encoding="utf-8")
    assert parse_names(f"@{file}") == ["screen, CRT screen", "brick wall", "Döner"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' has an empty name or none; valid: names separated by commas"),
        ("cat,,dog", "'cat,,dog' has an empty name"),
        ("cat, dog, Cat", "has 'Cat' twice"),
        ("@{}/gone.txt", r"gone\.txt cannot be read: No such file"),
        ("@{}/empty.txt", r"empty\.txt has an empty name or none"),
        ("@{}/binary.txt", r"binary\.txt cannot be read: it is no text"),
        ("{}/names.txt", r"names\.txt is a file; write @.*names\.txt for the names"),
        ("@{}/many.txt", "has 65537 names; a label map holds at most 65536"),
    ],
)
def test_names_that_cannot_be_used_are_said(tmp_path, text, message):
    (tmp_path / "empty.txt").write_text(" \n\n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "names.txt").write_text("cat\n")
    (tmp_path / "many.txt").write_text("\n".join(map(str, range(65537))))
    with pytest.raises(DeopError, match=message):
        parse_names(text.format(tmp_path))
