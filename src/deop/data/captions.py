"""Captions of training images, as the words that they name."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from deop.data.emoji.artwork import concepts
from deop.data.emoji.captioned import CaptionedScenes
from deop.data.emoji.textures import texture_names
from deop.data.image_files import to_rgb
from deop.data.segmentation import HIDDEN, IGNORE, Sample
from deop.data.transforms import Augment, TrainingBatches, seed_cpu
from deop.errors import DeopError

LONGEST = 12
"""Words that are kept of a caption."""


class CaptionSource(Protocol):
    """Captioned images without labels, in an endless stream. ``lexicon`` has every word of a caption."""

    lexicon: list[str]

    def draw(self, step: int, count: int) -> tuple[Tensor, list[list[str]]]:
        """``count`` images (count, 3, S, S) uint8 and the words of their captions, a pure function of ``step``."""


class SceneCaptions:
    """Newly drawn EmojiScenes of all concepts, by both artists, with captions that name all things and textures."""

    def __init__(self, size: int, seed: int) -> None:
        self._size, self._seed = size, seed
        self._scenes: dict[
            int, CaptionedScenes
        ] = {}  # made where batches are: its textures take seconds to draw
        self.lexicon = [*(concept.name for concept in concepts()), *texture_names()]

    def draw(self, step: int, count: int) -> tuple[Tensor, list[list[str]]]:
        if count not in self._scenes:
            self._scenes[count] = CaptionedScenes(
                image_size=self._size,
                batch_size=count,
                objects=(1, 4),
                steps=2**31,
                seed=self._seed,
                textures=4,
            )
        images, words = self._scenes[count].named(step)
        return (255 * images).round().to(torch.uint8), words


class CaptionTable:
    """Captions in a CSV with columns ``image`` (a path, from the CSV's folder) and ``words`` (``dog;grass``).

    An image may have several lines, one for each caption. ``deop caption-words`` writes such a file.

    Attributes:
        images: the image of each caption.
        words: its words.
        lexicon: all words.

    Raises:
        DeopError: a file that cannot be read, lacks a column or has no line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            table = pd.read_csv(path, dtype=str, keep_default_na=False)
        except (OSError, ValueError) as error:
            raise DeopError(f"captions {path} cannot be read: {error}") from None
        missing = {"image", "words"} - set(table.columns)
        if missing or not len(table):
            raise DeopError(f"captions {path}: columns image and words are needed, and at least one line")
        self.images = [path.parent / image for image in table["image"]]
        self.words = [
            [sys.intern(word.strip()) for word in words.split(";") if word.strip()]
            for words in table["words"]
        ]
        self.lexicon = sorted({word for words in self.words for word in words})

    def of(self, images: Sequence[Path]) -> list[list[int]]:
        """The captions of each image, by their places in the table.

        Raises:
            DeopError: images without a caption.
        """
        folders: dict[Path, str] = {}

        def key(image: Path) -> tuple[str, str]:
            if image.parent not in folders:
                folders[image.parent] = os.path.realpath(image.parent)
            return folders[image.parent], image.name

        captions: dict[tuple[str, str], list[int]] = {}
        for place, image in enumerate(self.images):
            captions.setdefault(key(image), []).append(place)
        if lost := [image for image in images if key(image) not in captions]:
            raise DeopError(
                f"captions {self.path}: {len(lost)} of {len(images)} training images have none, such as {lost[0]}"
            )
        return [captions[key(image)] for image in images]


class FileCaptions:
    """Images and words of a :class:`CaptionTable`, drawn at random."""

    def __init__(self, path: Path, augment: Augment, seed: int) -> None:
        self._table, self._augment, self._seed = CaptionTable(path), augment, seed
        self.lexicon = self._table.lexicon

    def draw(self, step: int, count: int) -> tuple[Tensor, list[list[str]]]:
        table = self._table
        chosen = np.random.default_rng((self._seed, step)).integers(len(table.images), size=count)
        images = []
        for index in chosen:
            path = table.images[index]
            try:
                image = torch.from_numpy(np.array(to_rgb(Image.open(path)))).permute(2, 0, 1)
            except (OSError, ValueError) as error:
                raise DeopError(f"{path}, an image of {table.path}, cannot be read: {error}") from None
            nothing = torch.full(image.shape[-2:], IGNORE)
            images.append(self._augment(Sample(image, nothing)).image)
        return torch.stack(images), [table.words[index] for index in chosen]


def caption_source(name: str, batches: TrainingBatches) -> CaptionSource:
    """The source called ``scenes``, or the one in a CSV file, of images as large as those of ``batches``."""
    seed = batches.seed * batches.world + batches.rank
    if name == "scenes":
        return SceneCaptions(batches.augment.crop, seed)
    return FileCaptions(Path(name), batches.augment, seed)


class CaptionedBatches(Dataset):
    """Batches with ``words`` (B, K) int32: indices into the lexicon, negative for padding.

    Without a table of captions, the caption of a training image names the classes of its segments, those that are
    hidden from training too: captions need no labels. Images of a source of more captions come after the labelled
    ones; their labels are all ``HIDDEN``.

    Args:
        batches: labelled images.
        captions: a CSV with their captions, of which a step draws one for each image (:class:`CaptionTable`).
        more: the source of more captions.
        more_images: how many of these for each labelled image.

    Raises:
        DeopError: captions that cannot be read, or images that have none.
    """

    def __init__(
        self,
        batches: TrainingBatches,
        captions: Path | None = None,
        more: CaptionSource | None = None,
        more_images: int = 1,
    ) -> None:
        self._batches, self._more, self._more_images = batches, more, more_images
        dataset = batches.dataset
        if captions is None:
            words = dataset.card.names
            self._captions: Callable[[int], Sequence[Sequence[str]]] = lambda index: [
                [words[label] for label in dataset.captioned[index]]
            ]
        else:
            table = CaptionTable(captions)
            words, places = table.lexicon, table.of([entry.image for entry in dataset.entries])
            self._captions = lambda index: [table.words[place] for place in places[index]]
        self.lexicon = list(dict.fromkeys([*words, *(more.lexicon if more else ())]))
        self._index = {word: index for index, word in enumerate(self.lexicon)}

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        batch = self._batches[step]
        words = []
        for position, index in zip(self._batches.positions(step), self._batches.samples(step), strict=True):
            captions = self._captions(index)
            words.append(
                captions[np.random.default_rng((self._batches.seed, position)).integers(len(captions))]
            )
        images, labels = batch["image"], batch["label"]
        if self._more is not None:
            with torch.random.fork_rng(devices=[]):
                seed = (self._batches.seed, self._batches.rank, step)
                seed_cpu(int(np.random.default_rng(seed).integers(2**62)))
                more, of_more = self._more.draw(step, len(images) * self._more_images)
            images = torch.cat([images, more])
            hidden = torch.full((len(more), *labels.shape[1:]), HIDDEN, dtype=labels.dtype)
            labels, words = torch.cat([labels, hidden]), words + of_more
        indices = torch.full((len(words), LONGEST), -1, dtype=torch.int32)
        for row, caption in zip(indices, words, strict=True):
            known = [self._index[word] for word in dict.fromkeys(caption)][:LONGEST]
            row[: len(known)] = torch.tensor(known, dtype=torch.int32)
        return {"image": images, "label": labels, "words": indices}
