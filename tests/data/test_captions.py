"""Captions beside labelled images: what a caption names, and further images that have nothing else."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from PIL import Image

from deop.data.captions import LONGEST, CaptionedBatches, FileCaptions, caption_source
from deop.data.emoji.dataset import write
from deop.data.emoji.settings import EmojiScenes
from deop.data.segmentation import HIDDEN, SegmentationDataset
from deop.data.transforms import TrainingBatches
from deop.errors import DeopError
from deop.settings.datasets import Vocabulary
from deop.settings.schedule import Augmentation

PLAIN = Augmentation(crop=32, scale=(1.0, 1.0), flip=0.0, colour_jitter=0.0)


@pytest.fixture
def batches(tmp_path) -> TrainingBatches:
    vocabulary = Vocabulary(things=("dog", "cow", "rabbit"), stuff=("grass", "sky"), unseen=("cow", "sky"))
    settings = EmojiScenes(style="twemoji", vocabulary=vocabulary, train=6, val=1, image_size=32)
    write(tmp_path / "data", "scenes", settings)
    dataset = SegmentationDataset(tmp_path / "data", "train", seen_only=True)
    return TrainingBatches(dataset, PLAIN, batch_size=4, steps=5, seed=3)


def words_of(captioned: CaptionedBatches, row: torch.Tensor) -> list[str]:
    return [captioned.lexicon[index] for index in row if index >= 0]


def test_a_caption_names_everything_in_its_image_unseen_classes_too(batches):
    captioned = CaptionedBatches(batches)
    whole = SegmentationDataset(batches.dataset.root, "train")
    place = {entry.image: entry for entry in whole.entries}
    named = set()
    for step in range(5):
        batch = captioned[step]
        assert torch.equal(batch["image"], batches[step]["image"])
        assert batch["words"].shape == (4, LONGEST)
        for row, index in zip(batch["words"], batches.samples(step), strict=True):
            entry = place[batches.dataset.entries[index].image]
            words = words_of(captioned, row)
            assert words == [whole.names[label] for label in entry.classes]
            named |= set(words)
    assert {"cow", "sky"} <= named  # which no label map of the batches has


def test_samples_are_those_of_the_batch(batches):
    for step in range(5):
        images = torch.stack([batches.dataset[index].image for index in batches.samples(step)])
        assert torch.equal(images, batches[step]["image"])  # nothing is augmented here


def test_more_scenes_have_words_and_no_labels(batches):
    captioned = CaptionedBatches(batches, more=caption_source("scenes", batches), more_images=2)
    batch, again = captioned[1], captioned[1]
    assert batch["image"].shape == (12, 3, 32, 32) and batch["image"].dtype == torch.uint8
    assert (batch["label"][4:] == HIDDEN).all() and (batch["words"][:, 0] >= 0).all()
    assert all(torch.equal(batch[key], again[key]) for key in batch)
    assert len(captioned.lexicon) > 1000 and len(set(captioned.lexicon)) == len(captioned.lexicon)


def test_captions_of_a_file_come_with_its_images(batches, tmp_path):
    for name, value in (("a", 10), ("b", 200)):
        Image.fromarray(np.full((40, 48, 3), value, np.uint8)).save(tmp_path / f"{name}.png")
    table = tmp_path / "captions.csv"
    table.write_text("image,words\na.png,zebra; dog\nb.png,lamp\n")
    captioned = CaptionedBatches(batches, more=caption_source(str(table), batches))
    seen = set()
    for step in range(5):
        batch = captioned[step]
        for image, row in zip(batch["image"][4:], batch["words"][4:], strict=True):
            words = tuple(words_of(captioned, row))
            assert words == {10: ("zebra", "dog"), 200: ("lamp",)}[int(image.median())]
            seen.add(words)
    assert len(seen) == 2


def test_a_step_draws_one_of_an_images_own_captions(batches, tmp_path):
    entries = batches.dataset.entries
    own = {str(entry.image): [f"first {i}", f"second {i}"] for i, entry in enumerate(entries)}
    lines = [
        f"{os.path.relpath(image, tmp_path)},{word};same" for image, words in own.items() for word in words
    ]
    (tmp_path / "captions.csv").write_text("\n".join(["image,words", *lines]))
    captioned = CaptionedBatches(batches, tmp_path / "captions.csv")
    seen = set()
    for step in range(5):
        batch = captioned[step]
        assert torch.equal(batch["image"], batches[step]["image"])
        assert torch.equal(batch["words"], captioned[step]["words"])
        for row, index in zip(batch["words"], batches.samples(step), strict=True):
            word, same = words_of(captioned, row)
            assert word in own[str(entries[index].image)] and same == "same"
            seen.add(word.split()[0])
    assert seen == {"first", "second"}
    more = {"batch_size": 4, "steps": 5, "seed": 3}
    shares = [TrainingBatches(batches.dataset, PLAIN, rank=rank, world=2, **more) for rank in (0, 1)]
    halves = [CaptionedBatches(share, tmp_path / "captions.csv")[0]["words"] for share in shares]
    assert torch.equal(torch.stack(halves, 1).flatten(0, 1), captioned[0]["words"])  # as one process has them
    (tmp_path / "captions.csv").write_text("\n".join(["image,words", *lines[2:]]))
    with pytest.raises(DeopError, match=r"captions\.csv: 1 of \d training images have none, such as"):
        CaptionedBatches(batches, tmp_path / "captions.csv")


def test_files_that_cannot_be_used_are_named(batches, tmp_path):
    with pytest.raises(DeopError, match=r"gone\.csv cannot be read"):
        FileCaptions(tmp_path / "gone.csv", batches.augment, 0)
    (tmp_path / "bad.csv").write_text("image,caption\na.png,dog\n")
    with pytest.raises(DeopError, match=r"bad\.csv: columns image and words are needed"):
        FileCaptions(tmp_path / "bad.csv", batches.augment, 0)
    (tmp_path / "lost.csv").write_text("image,words\nlost.png,dog\n")
    with pytest.raises(DeopError, match=r"lost\.png, an image of .*lost\.csv, cannot be read"):
        CaptionedBatches(batches, more=caption_source(str(tmp_path / "lost.csv"), batches))[0]
