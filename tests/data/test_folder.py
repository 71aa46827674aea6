"""One's own dataset, described in YAML: the example of the documentation, kinds of files, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from pydantic import ValidationError

from deop.data.prepare import prepare
from deop.data.readers.folder import Folder
from deop.data.segmentation import IGNORE, SegmentationDataset, restore_raw
from deop.errors import DeopError

ROOT = Path(__file__).parents[2]
IDS = np.array([[0, 1, 1, 2], [3, 3, 255, 2]])
CLASSES = [{"id": 3, "name": "path"}, {"id": 1, "name": "dog", "kind": "thing"}, {"id": 2, "name": "sky"}]
EXPECTED = np.array([[IGNORE, 1, 1, 2], [0, 0, IGNORE, 2]])


def write_pair(root: Path, stem: str, ids: np.ndarray | Image.Image, suffix: str = ".png") -> Path:
    label = root / "labels" / f"{stem}{suffix}"
    label.parent.mkdir(parents=True, exist_ok=True)
    picture = ids if isinstance(ids, Image.Image) else Image.fromarray(ids.astype(np.uint8))
    picture.save(label)
    image = root / "images" / f"{stem}.jpg"
    image.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", picture.size, "teal").save(image)
    return label


def folder(**values) -> Folder:
    base = {
        "kind": "folder",
        "splits": {"val": {"images": "images", "labels": "labels"}},
        "classes": CLASSES,
        "ignore": [0, 255],
    }
    return Folder.model_validate(base | values)


def labels(settings: Folder, root: Path, output: Path, split: str = "val") -> list[np.ndarray]:
    prepare(output, "own", settings, root)
    dataset = SegmentationDataset(output, split)
    return [dataset[index].label.numpy() for index in range(len(dataset))]


def test_the_example_of_the_documentation_works(tmp_path, monkeypatch):
    text = (ROOT / "docs/own-dataset.md").read_text(encoding="utf-8")
    block = text.split("```yaml\n")[1].split("```")[0]
    values = yaml.safe_load(block)["datasets"]["park"]
    monkeypatch.chdir(tmp_path)
    root, rng = Path("data/raw/park"), np.random.default_rng(0)
    stems = [f"{year}/img_{index:04d}" for year in (2023, 2024) for index in range(3)]
    for stem in stems:
        ids = rng.choice([0, 1, 2, 5, 7, 255], (6, 8)).astype(np.uint8)
        for path, picture in (
            (root / f"masks/{stem}_mask.png", Image.fromarray(ids)),
            (root / f"photos/{stem}.jpg", Image.new("RGB", (8, 6))),
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path)
    (root / "training.txt").write_text("\n".join(stems[:4]))
    (root / "validation.txt").write_text("\n".join(stems[4:]) + "\n")
    card = prepare(tmp_path / "out", "park", Folder.model_validate(values), Path("data/raw"))
    assert card.images == {"train": 4, "val": 2}
    assert card.names == ["bench", "lawn", "gravel path", "fountain"] and card.unseen == [3]
    monkeypatch.chdir("/")  # images are found from anywhere
    dataset = SegmentationDataset(tmp_path / "out", "val")
    theirs = np.asarray(Image.open(tmp_path / root / f"masks/{stems[4]}_mask.png"))
    assert np.array_equal(restore_raw(dataset[0].label.numpy(), card), np.where(theirs == 255, 0, theirs))
    assert SegmentationDataset(tmp_path / "out", "train", seen_only=True).names == card.names[:3]


def palette(ids: np.ndarray) -> Image.Image:
    picture = Image.fromarray(ids.astype(np.uint8), "P")
    picture.putpalette(list(range(255, -1, -1)) * 3)
    return picture


@pytest.mark.parametrize(
    ("picture", "suffix"),
    [
        (Image.fromarray(IDS.astype(np.uint8)), ".png"),
        (Image.fromarray(IDS.astype(np.uint16)), ".png"),
        (palette(IDS), ".png"),
        (Image.fromarray(IDS.astype(np.uint8)), ".tif"),
        (Image.fromarray(IDS.astype(np.uint16)), ".tiff"),
        (Image.fromarray(IDS.astype(np.int32)), ".tif"),
    ],
    ids=["8 bit", "16 bit", "palette", "tiff", "16 bit tiff", "32 bit tiff"],
)
def test_kinds_of_label_maps(tmp_path, picture, suffix):
    write_pair(tmp_path, "2024/a", picture, suffix)
    (label,) = labels(folder(), tmp_path, tmp_path / "out")
    assert np.array_equal(label, EXPECTED)


def test_ids_of_small_depths_are_not_stretched(tmp_path):
    """Four ids fit a PNG of two bits a pixel, which Pillow does not write: written here byte by byte."""
    import struct
    import zlib

    label = write_pair(tmp_path, "a", np.zeros((1, 4)))
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 4, 1, 2, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(bytes([0, 0b00011011]))),
        (b"IEND", b""),
    ]
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    ]
    label.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    (read,) = labels(folder(), tmp_path, tmp_path / "out")
    assert read.tolist() == [[IGNORE, 1, 2, 0]]


def test_tiffs_of_one_bit(tmp_path):
    write_pair(tmp_path, "a", Image.fromarray(np.array([[True, False]])), ".tif")
    (read,) = labels(folder(ignore=[0]), tmp_path, tmp_path / "out")
    assert read.tolist() == [[EXPECTED[IDS == 1][0], IGNORE]]


def test_deep_images_keep_their_contrast(tmp_path):
    write_pair(tmp_path, "a", IDS)
    values = np.linspace(0, 65535, IDS.size).reshape(IDS.shape).astype(np.uint16)
    (tmp_path / "images/a.jpg").unlink()
    Image.fromarray(values).save(tmp_path / "images/a.png")
    prepare(tmp_path / "out", "own", folder(), tmp_path)
    [sample] = SegmentationDataset(tmp_path / "out", "val")
    assert np.array_equal(sample.image[0].numpy(), values >> 8)


def test_images_may_lie_in_another_place(tmp_path):
    write_pair(tmp_path / "here", "a", IDS)
    (tmp_path / "here/images").rename(tmp_path / "elsewhere")
    split = {"images": str(tmp_path / "elsewhere"), "labels": "labels"}
    prepare(tmp_path / "out", "own", folder(splits={"val": split}), tmp_path / "here")
    assert len(SegmentationDataset(tmp_path / "out", "val")) == 1
    assert SegmentationDataset(tmp_path / "out", "val")[0].image.shape[1:] == IDS.shape


def test_images_that_are_turned_when_shown_are_refused(tmp_path):
    write_pair(tmp_path, "a", IDS)
    exif = Image.Exif()
    exif[0x0112] = 3
    image = tmp_path / "images/a.jpg"
    Image.open(image).save(image, exif=exif)
    with pytest.raises(DeopError, match=r"a\.jpg: its EXIF data say .*orientation 3.*mogrify -auto-orient"):
        prepare(tmp_path / "out", "own", folder(), tmp_path)


def test_ids_beyond_8_bits_and_more_than_255_classes(tmp_path):
    classes = [{"id": 100 * index, "name": f"class {index}"} for index in range(300)]
    write_pair(tmp_path, "a", Image.fromarray(np.array([[0, 29900, 65535]], np.uint16)))
    (label,) = labels(folder(classes=classes, ignore=[65535]), tmp_path, tmp_path / "out")
    assert label.tolist() == [[0, 299, IGNORE]]


def test_classes_from_a_csv_file(tmp_path):
    write_pair(tmp_path, "a", IDS)
    path = tmp_path / "classes.csv"
    path.write_text("id,name,kind,unseen\n3,path,,\n1,dog,thing,true\n2,sky,stuff,false\n")
    settings = folder(classes="classes.csv")
    (label,) = labels(settings, tmp_path, tmp_path / "out")
    card = SegmentationDataset(tmp_path / "out", "val").card
    assert np.array_equal(label, EXPECTED)
    assert (card.names, card.unseen) == (["path", "dog", "sky"], [1])
    assert [entry.kind for entry in card.classes] == ["stuff", "thing", "stuff"]
    for text, message in (
        ("id,name\n1,dog\nx,cow\n", r"classes\.csv, line 3: id: .*\(got 'x'\)"),
        ("id,name\n1,dog\n1,cow\n", r"classes\.csv: two classes have the id 1"),
        ("id,name\n0,dog\n", r"classes\.csv: ids that are a class and in ignore: 0"),
        ("name\ndog\n", r"classes\.csv, line 2: missing key 'id'"),
        ("id,name\n", r"classes\.csv: holds no class"),
    ):
        path.write_text(text)
        with pytest.raises(DeopError, match=message):
            prepare(tmp_path / "again", "own", settings, tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"classes": [*CLASSES, {"id": 9, "name": "dog"}]}, "two classes have the name dog"),
        ({"classes": [*CLASSES, {"id": 9, "name": " Dog"}]}, "two classes have the name dog"),
        ({"ignore": [2]}, "ids that are a class and in ignore: 2"),
        ({"classes": []}, "at least 1"),
        ({"splits": {}}, "at least 1"),
        ({"splits": {"test": {"images": "i", "labels": "l"}}}, "'train' or 'val'"),
        ({"classes": [{"id": 70000, "name": "far"}]}, "65535"),
    ],
)
def test_settings_that_can_not_be_meant(values, message):
    with pytest.raises(ValidationError, match=message):
        folder(**values)


def test_what_is_refused_names_the_file(tmp_path):
    write_pair(tmp_path, "2023/a", IDS)
    label = write_pair(tmp_path, "2024/b", IDS)

    def refused(message: str, **values) -> None:
        with pytest.raises(DeopError, match=message) as caught:
            prepare(tmp_path / "out", "own", folder(**values), tmp_path)
        assert "\n" not in str(caught.value)

    refused(
        r"labels/2023/a\.png: holds id 2, which is neither a class nor ignored; .*labels/2024/b\.png: holds id 2",
        classes=CLASSES[:2],
    )
    Image.fromarray(np.array([[1, 2, 3, 4_000_000]], np.int32)).save(label.with_suffix(".tif"))
    refused(r"b\.tif: has the same name as .*b\.png, but for the suffix")
    label.unlink()
    Image.new("RGB", (4, 1)).save(tmp_path / "images/2024/b.jpg")
    refused(r"labels/2024/b\.tif: holds id 4000000, which is neither")
    label.with_suffix(".tif").unlink()
    refused(r"labels: holds 1 of 2 label maps; none for 2024/b ")
    (tmp_path / "list.txt").write_text("2023/a.jpg\n2025/c\n")
    split = {"images": "images", "labels": "labels", "list": "list.txt"}
    refused(r"images: holds 1 of 2 images; none for 2025/c ", splits={"val": split})
    (tmp_path / "list.txt").unlink()
    refused(r"list\.txt: no such file", splits={"val": split})
    one_place = {"images": "labels", "labels": "labels"}
    refused(r"2023/a would be image and label map at once", splits={"val": one_place})
    refused(r"nowhere: no such folder", root=str(tmp_path / "nowhere"))
