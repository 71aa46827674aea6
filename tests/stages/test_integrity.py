"""A byte that changed on disk is met before any training, by the name of the file."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import real_layouts
import torch
from torch import nn

from deop.data.downloads.manifests import record_files
from deop.data.downloads.sources import find_entry
from deop.data.segmentation import SegmentationDataset
from deop.errors import DeopError
from deop.jobs.artifacts import artifact
from deop.jobs.job import Job
from deop.models.pretrained import find_clip_weights
from deop.models.weight_files import checked_weights, load_learned, save_weights
from deop.settings.downloads import Download
from deop.settings.schedule import Augmentation
from deop.settings.stages import Proposals
from deop.stages import prepare_data, train_proposals


def flip(path: Path, at: float = 0.6) -> None:
    """Changes one bit, at a share of the file's length."""
    content = bytearray(path.read_bytes())
    content[int(at * len(content))] ^= 1
    path.write_bytes(content)


def sources(root: Path) -> list[dict]:
    """COCO's sources, with as many files as there are."""
    found = []
    for name in ("coco_train2017", "coco_val2017", "coco_stuffthingmaps"):
        holds = {pattern: len(list(root.glob(pattern))) for pattern in find_entry(name).holds}
        source = Download(name=name, root=str(root), entry=find_entry(name, {"holds": holds}))
        record_files(source)
        found.append(source.model_dump(mode="json"))
    return found


def prepared(root: Path, output: Path) -> Job:
    settings = {
        "dataset": {"kind": "coco_stuff", "complete": False},
        "data": {"root": str(root), "sources": sources(root)},
    }
    return Job(
        stage="prepare_data", key="0" * 12, output=str(output / "coco-000000000000"), settings=settings
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    real_layouts.write_coco_stuff(tmp_path / "raw")
    return tmp_path / "raw"


@pytest.mark.faults(
    "a file of an archive that was unpacked has a flipped byte", "no dataset is prepared from it"
)
@pytest.mark.parametrize("file", ["coco/stuffthingmaps/train2017/*.png", "coco/val2017/*.jpg"])
def test_of_what_was_unpacked(root, tmp_path, file):
    job = prepared(root, tmp_path)
    changed = sorted(root.glob(file))[2]
    flip(changed)
    with pytest.raises(DeopError, match=rf"{changed} has other contents"):
        prepare_data.run(job)
    assert not Path(job.output).exists()


@pytest.mark.faults(
    "a label map of a prepared dataset is changed",
    "the job ends with its path, before training if it was changed before",
)
def test_of_a_prepared_label_map(root, tmp_path):
    job = prepared(root, tmp_path)
    prepare_data.run(job)
    changed = sorted((Path(job.output) / "labels").rglob("*.png"))
    changed = next(path for path in changed if "train" in str(path))
    flip(changed)
    proposals = Proposals(
        backbone="resnet10t",
        pretrained_backbone=False,
        width=32,
        ffn_width=32,
        iterations=1,
        batch_size=2,
        augmentation=Augmentation(crop=64),
    )
    training = Job(
        stage="train_proposals",
        key="1" * 12,
        output=str(tmp_path / "proposals"),
        inputs={"data": job.output},
        settings={"proposals": proposals.model_dump(mode="json")},
    )
    with pytest.raises(DeopError, match=rf"not as they were prepared: {changed};"):
        train_proposals.run(training)
    assert not list(tmp_path.glob("proposals*"))


@pytest.mark.faults("weights have a flipped byte", "they are not loaded")
def test_of_trained_weights(tmp_path):
    network, output = nn.Linear(64, 64), tmp_path / "network"
    with artifact(Job(stage="toy", key="0" * 12, output=str(output))) as workspace:
        save_weights(network.state_dict(), workspace.path)
    load_learned(network, checked_weights(output))
    flip(output / "model.safetensors")
    with pytest.raises(DeopError, match=rf"{output}/model.safetensors has SHA-256"):
        load_learned(network, checked_weights(output))


@pytest.mark.faults("weights have a flipped byte", "they are not loaded")
def test_of_weights_in_the_cache_of_the_hub(tmp_path, monkeypatch):
    """As the hub's client lays it out: a link to a file that is called by its SHA-256."""
    content = bytes(range(256)) * 8
    blob = tmp_path / "blobs" / hashlib.sha256(content).hexdigest()
    blob.parent.mkdir()
    blob.write_bytes(content)
    link = tmp_path / "snapshots/0123/open_clip_model.safetensors"
    link.parent.mkdir(parents=True)
    link.symlink_to(blob)
    monkeypatch.setattr("open_clip.download_pretrained", lambda *arguments, **named: str(link))
    assert find_clip_weights("ViT-B-16", "openai", None) == link
    flip(blob)
    with pytest.raises(DeopError, match=rf"{link} has SHA-256"):
        find_clip_weights("ViT-B-16", "openai", None)


def test_a_copy_in_place_gives_the_same_dataset(root, tmp_path):
    """Images and labels are the same, wherever the originals lie; so is then what a network scores on them."""
    elsewhere = tmp_path / "group/datasets"
    elsewhere.parent.mkdir()
    folders = []
    for place in (root, elsewhere):
        if place is elsewhere:
            root.rename(elsewhere)
            root.symlink_to(elsewhere)  # the first dataset is still read from where it was prepared
        job = prepared(place, tmp_path / place.name)
        prepare_data.run(job)
        folders.append(Path(job.output))
    assert not list(folders[1].rglob("*.jpg"))
    for split in ("train", "val"):
        ours, theirs = (SegmentationDataset(folder, split, seen_only=split == "train") for folder in folders)
        assert len(ours) == len(theirs) > 0 and ours.card.image_root != theirs.card.image_root
        for one, other in zip(ours, theirs, strict=True):
            assert torch.equal(one.image, other.image) and torch.equal(one.label, other.label)
