"""What the folders of one's own datasets hold, which names what is made from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deop.data.readers.folder_files import content
from deop.errors import ConfigError, DeopError
from deop.settings.configuration import ProfileSettings
from deop.settings.datasets import Folder
from deop.settings.files import SOURCE


class FolderContents:
    """What datasets in folders hold, each looked at once, when a job first needs it.

    Args:
        profile: the settings of the datasets.
        root: the folder that relative paths start from.
    """

    def __init__(self, profile: ProfileSettings, root: Path) -> None:
        self._profile, self._root = profile, root
        self._known: dict[str, dict[str, Any]] = {}

    def of(self, dataset: str) -> dict[str, Any]:
        """See :func:`deop.data.readers.folder_files.content`.

        Raises:
            ConfigError: files that are missing, by key and path.
        """
        if dataset not in self._known:
            settings = self._profile.datasets[dataset]
            top = self._root / (settings.root or self._profile.main.data.root)
            try:
                found = content(settings, top)
            except DeopError as error:
                problem = str(error).removeprefix("config error: ")
                raise ConfigError(f"{SOURCE}: datasets.{dataset}.{problem}") from None
            self._check_distinct(dataset, found, self._places(settings, top))
            self._known[dataset] = found
        return self._known[dataset]

    def _check_distinct(self, dataset: str, found: dict[str, Any], places: list[Path]) -> None:
        """Datasets are named by the names and sizes of their files: different ones with the same would be one."""
        for other, known in self._known.items():
            settings = self._profile.datasets[other]
            top = self._root / (settings.root or self._profile.main.data.root)
            if known == found and self._places(settings, top) != places:
                raise ConfigError(
                    f"{SOURCE}: datasets.{dataset}: its images and label maps have the same names and sizes as those "
                    f"of {other!r} in another folder, and results could not tell the two apart; rename files of one"
                )

    @staticmethod
    def _places(settings: Folder, top: Path) -> list[Path]:
        """The folders of images and label maps."""
        splits = [split for _, split in sorted(settings.splits.items())]
        return [(top / folder).resolve() for split in splits for folder in (split.images, split.labels)]
