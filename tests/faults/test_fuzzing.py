"""Every reader of files from outside is given files that are damaged at random: it reads them or names the error."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save
from scipy.io import savemat

from deop.api.pictures import read_picture
from deop.cli import read_job
from deop.data.card import LabelledClass
from deop.data.downloads.archives import unpack
from deop.data.pairs import Pair
from deop.data.prepare import _Converter
from deop.data.raw_dataset import RawDataset
from deop.data.readers.pascal_voc import read_label
from deop.data.segmentation import SegmentationDataset, read_card
from deop.errors import DeopError
from deop.jobs.integrity import read_json
from deop.models.weight_files import read_weights
from deop.settings.downloads import Download
from deop.settings.files import read_profile


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """``whole`` with a few bytes changed, taken out or put in, or cut short."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content)))
        length = draw(st.sampled_from((0, 1, 2, 4, 16, 256, len(content))))
        content[start : start + length] = draw(st.binary(max_size=8))
    return bytes(content)


def image(format: str, mode: str = "RGB", **options: object) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 3, (12, 16, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels if mode == "RGB" else pixels[..., 0]).convert(mode).save(file, format, **options)
    return file.getvalue()


def matlab() -> bytes:
    file = io.BytesIO()
    savemat(file, {"GTcls": {"Segmentation": np.ones((12, 16), np.uint8)}})
    return file.getvalue()


def archive(kind: str) -> bytes:
    file, content = io.BytesIO(), image("PNG")
    if kind == "zip":
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as opened:
            opened.writestr("set/a.png", content)
        return file.getvalue()
    with tarfile.open(fileobj=file, mode="w") as opened:
        info = tarfile.TarInfo("set/a.png")
        info.size = len(content)
        opened.addfile(info, io.BytesIO(content))
    return gzip.compress(file.getvalue(), mtime=0) if kind == "tar.gz" else file.getvalue()


def pickled() -> bytes:
    file = io.BytesIO()
    torch.save({"state_dict": {"weight": torch.arange(12.0).view(3, 4)}, "step": 3}, file)
    return file.getvalue()


def torchscript() -> bytes:
    module = torch.nn.Linear(3, 4)
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(module, torch.zeros(1, 3)), file)
    return file.getvalue()


JOB = {"stage": "table", "key": "0" * 12, "output": "results/table3", "settings": {"clip": {"model": "x"}}}
CARD = {"name": "park", "classes": [{"name": "dog", "raw_id": 1, "kind": "thing"}], "images": {"val": 1}}
SPLIT = b"image,label,classes,crc32,image_crc32\na.jpg,labels/a.png,0 1,0000009f,000000a0\n"


def convert(folder: Path, pair: Pair, read: Callable) -> None:
    """Prepares one pair of a dataset, as the stage does."""
    source = RawDataset(
        (LabelledClass(name="dog", raw_id=1, kind="thing"),), frozenset({0, 2}), 0, folder, {}, read
    )
    [result] = _Converter(source, 255, folder).convert([(pair, folder / "converted.png")])
    assert isinstance(result, tuple) or str(folder) in result


def prepared(folder: Path, content: bytes, suffix: str) -> None:
    (folder / "a.png").write_bytes(image("PNG"))
    (folder / f"label{suffix}").write_bytes(content)
    convert(folder, Pair("a", folder / "a.png", folder / f"label{suffix}"), read_label)


def split(folder: Path, content: bytes) -> None:
    (folder / "dataset.json").write_text(json.dumps(CARD))
    (folder / "val.csv").write_bytes(content)
    (folder / "a.jpg").write_bytes(image("JPEG"))
    SegmentationDataset(folder, "val")


def unpacked(folder: Path, content: bytes, kind: str) -> None:
    path = folder / f"data.{kind}"
    path.write_bytes(content)
    entry = {"archive": path.name, "format": kind.removesuffix(".gz"), "holds": {"set/a.png": 1}}
    unpack(Download(name="data", root=str(folder / "root"), entry=entry), path, lambda *_: None)
    # What came out is where it should be, and nowhere else.
    assert sorted(each.name for each in folder.iterdir()) == [path.name, "root"]


def written(read: Callable[[Path], object], name: str) -> Callable[[Path, bytes], None]:
    """A reader of a file called ``name``."""

    def run(folder: Path, content: bytes) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
        read(folder / name)

    return run


READERS: dict[str, tuple[bytes, Callable[[Path, bytes], None]]] = {
    **{
        f"picture, {kind}": (content, written(read_picture, "picture"))
        for kind, content in {
            "JPEG": image("JPEG"),
            "progressive JPEG": image("JPEG", progressive=True),
            "CMYK JPEG": image("JPEG", "CMYK"),
            "PNG": image("PNG"),
            "palette PNG": image("PNG", "P"),
            "WebP": image("WEBP"),
            "GIF": image("GIF", "P"),
            "TIFF": image("TIFF"),
        }.items()
    },
    "label map, PNG": (image("PNG", "L"), lambda folder, content: prepared(folder, content, ".png")),
    "label map, MATLAB": (matlab(), lambda folder, content: prepared(folder, content, ".mat")),
    **{
        f"archive, {kind}": (
            archive(kind),
            lambda folder, content, kind=kind: unpacked(folder, content, kind),
        )
        for kind in ("zip", "tar", "tar.gz")
    },
    "job": (json.dumps(JOB).encode(), written(lambda path: read_job(path, "table"), "job.json")),
    "provenance": (json.dumps(JOB).encode(), written(lambda path: read_json(path, "x"), "provenance.json")),
    "dataset card": (
        json.dumps(CARD).encode(),
        written(lambda path: read_card(path.parent), "dataset.json"),
    ),
    "split file": (SPLIT, split),
    "configuration": (
        b"profile: mini\nseeds: [0, 1]\nclip: {model: deop-mini, pretrained: bundled}\nx: &x {y: 2}\n",
        written(lambda path: read_profile(path.parents[1]), "config/config.yaml"),
    ),
    "weights, pickle": (pickled(), written(read_weights, "weights.pt")),
    "weights, TorchScript": (torchscript(), written(read_weights, "weights.pt")),
    "weights, safetensors": (
        save({"weight": torch.arange(12.0).view(3, 4)}),
        written(read_weights, "weights.safetensors"),
    ),
}


@pytest.mark.faults(
    "pictures, label maps, archives, weights, configurations and the workflow's own files are damaged at random",
    "they are read, or refused by name",
)
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_are_read_or_refused_by_name(reader, injected):
    whole, read = READERS[reader]
    damages = 0

    @given(damaged(whole))
    def check(content: bytes) -> None:
        nonlocal damages
        damages += 1
        with tempfile.TemporaryDirectory() as folder:
            try:
                read(Path(folder), content)
            except DeopError as error:
                assert str(folder) in str(error) or "config/config.yaml" in str(error)
                assert "Traceback" not in str(error)

    with tempfile.TemporaryDirectory() as folder:
        read(Path(folder), whole)  # the file is a good one before it is damaged
    try:
        check()
    finally:
        injected(damages, fuzzed=True)
