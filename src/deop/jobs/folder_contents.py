"""What folders of one's own datasets hold, and how other files differ, which names what is made from them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deop.errors import ConfigError, DeopError
from deop.settings.configuration import ProfileSettings
from deop.settings.files import SOURCE
from deop.utils.files import file_hash


class FolderContents:
    """What datasets in folders hold, and sizes or checksums of other files.

    Each is looked at once, when a job first needs it.

    Args:
        profile: the settings of the datasets.
        root: the folder that relative paths start from.
    """

    def __init__(self, profile: ProfileSettings, root: Path) -> None:
        self._profile, self._root = profile, root
        self._known: dict[str, dict[str, Any] | None] = {}
        self._sizes: dict[str, int | None] = {}
        self._hashes: dict[str, str | None] = {}

    def of(self, dataset: str) -> dict[str, Any] | None:
        """See :meth:`deop.settings.datasets.DatasetSettings.contents`.

        Raises:
            ConfigError: files that are missing, by key and path.
        """
        if dataset not in self._known:
            settings, data_root = self._profile.datasets[dataset], Path(self._profile.main.data.root)
            try:
                found = settings.contents(data_root, self._root)
            except DeopError as error:
                problem = str(error).removeprefix("config error: ")
                raise ConfigError(f"{SOURCE}: datasets.{dataset}.{problem}") from None
            if found is not None:
                self._check_distinct(dataset, found, settings.folders(data_root, self._root))
            self._known[dataset] = found
        return self._known[dataset]

    def sizes(self, paths: Sequence[str]) -> dict[str, int]:
        """The bytes of each file that is there, by path; files that are made or fetched later are left out."""
        for path in paths:
            if path not in self._sizes:
                file = self._root / path
                self._sizes[path] = file.stat().st_size if file.is_file() else None
        return {path: size for path in paths if (size := self._sizes[path]) is not None}

    def sha256(self, path: str) -> str | None:
        """The checksum of a file of weights, None if it is not there: files of one architecture have the same size."""
        if path not in self._hashes:
            file = self._root / path
            self._hashes[path] = file_hash(file) if file.is_file() else None
        return self._hashes[path]

    def _check_distinct(self, dataset: str, found: dict[str, Any], places: list[Path]) -> None:
        """Datasets are named by the names and sizes of their files: different ones with the same would be one."""
        for other, known in self._known.items():
            settings, data_root = self._profile.datasets[other], Path(self._profile.main.data.root)
            if known == found and settings.folders(data_root, self._root) != places:
                raise ConfigError(
                    f"{SOURCE}: datasets.{dataset}: its images and label maps have the same names and sizes as those "
                    f"of {other!r} in another folder, and results could not tell the two apart; rename files of one"
                )
