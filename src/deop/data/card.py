"""The card of a prepared dataset: what its ``dataset.json`` holds."""

from __future__ import annotations

from typing import Literal

from deop.settings.base import Settings
from deop.settings.datasets import Spelling


class LabelledClass(Settings):
    """One class; its label id is its position in the list, ``raw_id`` the one in the original label maps."""

    name: str
    kind: Literal["thing", "stuff"]
    unseen: bool = False
    raw_id: int | None = None


class DatasetCard(Settings):
    """What ``dataset.json`` holds.

    image_root: absolute path that the images of the split files are relative to; None is the dataset's folder.
    raw_ignore: what the original label maps hold where there is no class.
    images: number of images of each split.
    spelling: which spelling of its class list (``data/classes``) the names have; None for a custom list.
    """

    name: str
    classes: tuple[LabelledClass, ...]
    ignore: int = 255
    image_root: str | None = None
    raw_ignore: int | None = None
    images: dict[str, int] | None = None
    spelling: Spelling | None = None

    @property
    def names(self) -> list[str]:
        return [entry.name for entry in self.classes]

    @property
    def unseen(self) -> list[int]:
        """Label ids of the unseen classes."""
        return [index for index, entry in enumerate(self.classes) if entry.unseen]

    @property
    def seen(self) -> list[int]:
        """Label ids of the seen classes."""
        return [index for index, entry in enumerate(self.classes) if not entry.unseen]


def ignore_value(classes: int) -> int:
    """The ignore value on disk: 255 in 8-bit maps, 65535 in the 16-bit maps of 256 classes and more."""
    return 255 if classes <= 255 else 65535
