"""Batches by step number, and samples that are kept in memory."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deop.data.card import DatasetCard, LabelledClass
from deop.data.segmentation import Entry, SegmentationDataset, write_card, write_label_map, write_split
from deop.data.transforms import TrainingBatches, seed_cpu
from deop.errors import DeopError
from deop.settings.schedule import Augmentation

SIZE, IMAGES = 16, 5
BYTES = SIZE * SIZE * (3 + 4)  # of a sample that is kept


@pytest.fixture
def root(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    entries = []
    for index in range(IMAGES):
        entry = Entry(tmp_path / f"{index}.png", tmp_path / f"labels/{index}.png", (0, 1, 2))
        entry.label.parent.mkdir(exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (SIZE, SIZE, 3), np.uint8)).save(entry.image)
        write_label_map(entry.label, generator.integers(0, 3, (SIZE, SIZE)), 255)
        entries.append(entry)
    classes = tuple(LabelledClass(name=name, kind="thing") for name in ("dog", "cow", "shark"))
    write_card(tmp_path, DatasetCard(name="drawn", classes=classes))
    write_split(tmp_path, "train", entries)
    return tmp_path


def test_samples_that_are_kept_are_those_of_the_files_and_only_so_many(root):
    read = SegmentationDataset(root, "train")
    expected = [read[index] for index in range(IMAGES)]
    kept = SegmentationDataset(root, "train", keep_bytes=3 * BYTES + 1)
    for _ in range(2):
        for index in range(IMAGES):
            image, label = kept[index]
            assert torch.equal(image, expected[index].image) and torch.equal(label, expected[index].label)
            assert label.dtype == expected[index].label.dtype
            image.zero_(), label.zero_()  # what is done to a sample is not done to the next
    for path in root.glob("*.png"):
        path.unlink()
    assert torch.equal(kept[2].image, expected[2].image)
    with pytest.raises(DeopError, match=r"3\.png: no such image"):
        kept[3]


def test_what_is_read_ahead_is_what_stays_in_memory(root):
    ahead = SegmentationDataset(root, "train", keep_bytes=3 * BYTES + 1)
    ahead.read_ahead()
    for path in root.glob("*.png"):
        path.unlink()
    for index in range(3):
        ahead[index]
    with pytest.raises(DeopError, match="no such image"):
        ahead[3]


def test_every_epoch_has_every_image_once_and_a_step_is_the_same_again(root):
    augmentation = Augmentation(crop=SIZE, scale=(1.0, 1.0), flip=0.0, colour_jitter=0.0)
    dataset = SegmentationDataset(root, "train")
    images = [dataset[index].image for index in range(IMAGES)]
    batches = TrainingBatches(dataset, augmentation, batch_size=2, steps=10, seed=3)
    seen = [image for step in range(10) for image in batches[step]["image"]]
    indices = [next(i for i, known in enumerate(images) if torch.equal(image, known)) for image in seen]
    epochs = [indices[first : first + IMAGES] for first in range(0, len(indices), IMAGES)]
    assert len(epochs) == 4 and all(sorted(epoch) == list(range(IMAGES)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    again = TrainingBatches(SegmentationDataset(root, "train"), augmentation, batch_size=2, steps=10, seed=3)
    again = pickle.loads(pickle.dumps(again))  # as it comes to a process that does not share memory
    for step in (7, 2):  # in any order, by another process
        assert torch.equal(again[step]["image"], batches[step]["image"])


def test_a_seed_of_the_cpu_draws_what_torch_draws_with_it():
    torch.manual_seed(2**40 + 7)
    expected = torch.rand(3)
    seed_cpu(2**40 + 7)
    assert torch.equal(torch.rand(3), expected)
