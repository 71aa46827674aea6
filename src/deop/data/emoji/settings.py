"""Settings of EmojiScenes."""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator

from deop.settings.base import Fraction, Positive, Whole
from deop.settings.datasets import GeneratedDataset, Vocabulary


class EmojiScenes(GeneratedDataset):
    """A generated dataset (README, "EmojiScenes"). Sizes count scenes, ``image_size`` is in pixels."""

    kind: str = "emoji_scenes"
    style: Literal["twemoji", "openmoji"]
    vocabulary: Vocabulary
    train: Whole
    val: Positive
    image_size: Positive = 96
    objects: tuple[Positive, Positive] = (2, 4)
    object_size: tuple[Fraction, Fraction] = (0.3, 0.6)
    label_stuff: bool = True

    @field_validator("vocabulary")
    @classmethod
    def _with_things(cls, vocabulary: Vocabulary) -> Vocabulary:
        if not vocabulary.things:
            raise ValueError("things are needed: scenes show at least one")
        return vocabulary

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that have images."""
        return ("train", "val") if self.train else ("val",)

    @property
    def images(self) -> str:
        artwork = {"twemoji": "Twemoji", "openmoji": "OpenMoji"}[self.style]
        return f"generated EmojiScenes scenes, {artwork} artwork"
