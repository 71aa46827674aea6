"""Evaluation of images as people have them: of several sizes, which cannot be one batch."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from deop.data.card import DatasetCard, LabelledClass
from deop.data.segmentation import Entry, SegmentationDataset, write_card, write_label_map, write_split
from deop.stages.evaluate import batches, load_batch

SIZES = [(4, 6), (4, 6), (4, 6), (6, 4), (4, 6), (5, 5), (5, 5)]


def test_a_batch_has_images_of_one_size_in_order(tmp_path):
    entries = []
    for index, size in enumerate(SIZES):
        entry = Entry(tmp_path / f"{index}.png", tmp_path / f"label-{index}.png", (0,))
        Image.fromarray(np.full((*size, 3), index, np.uint8)).save(entry.image)
        write_label_map(entry.label, np.zeros(size, int), 255)
        entries.append(entry)
    write_card(tmp_path, DatasetCard(name="sizes", classes=(LabelledClass(name="dog", kind="thing"),)))
    write_split(tmp_path, "val", entries)
    dataset = SegmentationDataset(tmp_path, "val")
    for size, lengths in ((1, [1] * 7), (2, [2, 1, 1, 1, 2]), (16, [3, 1, 1, 2])):
        found = batches(dataset, size)
        assert [len(batch) for batch in found] == lengths
        assert [index for batch in found for index in batch] == list(range(7))
        for batch in found:
            images, labels = load_batch(dataset, batch, torch.device("cpu"))
            assert (
                images.shape == (len(batch), 3, *SIZES[batch.start]) and labels.shape[1:] == images.shape[2:]
            )
            assert (images[:, 0, 0, 0] * 255).round().int().tolist() == list(batch)
