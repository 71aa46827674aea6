"""Settings of downloads: the archives that the paper's datasets are unpacked from."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from deop.settings.base import Positive, Settings


def _inside(path: str) -> str:
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise ValueError("is a path that leads out of the data root")
    return path


InRoot = Annotated[str, AfterValidator(_inside)]
Digest = Annotated[str, Field(pattern=r"^(sha256:[0-9a-f]{64}|md5:[0-9a-f]{32})$")]


class CatalogueEntry(Settings):
    """One archive, as the catalogue (``data/downloads/sources.yaml``) or the configuration describes it.

    urls: where it is downloaded from, tried in this order; none if the archive is handed out on request.
    how_to_get: what to do where no URL is known.
    archive: its file name under ``<root>/archives``; two entries may take different members of one archive.
    format: ``tar`` may be compressed.
    bytes, hash: of the archive; None where they are not publicly known.
    into: folder under the root that its members are unpacked into.
    members: patterns of the members to unpack, all if empty.
    holds: patterns of files under the root, and how many there are of each once it is unpacked. A ``*`` stands for
        any part of one name that does not begin with a dot.
    """

    urls: tuple[str, ...] = ()
    how_to_get: str | None = None
    archive: Annotated[str, Field(pattern=r"^[^/.][^/]*$")]
    format: Literal["zip", "tar"]
    bytes: Positive | None = None
    hash: Digest | None = None
    into: InRoot = "."
    members: tuple[str, ...] = ()
    holds: Annotated[dict[InRoot, Positive], Field(min_length=1)]

    @property
    def folder(self) -> PurePosixPath:
        """The folder under the root that everything in ``holds`` lies in."""
        folders = [PurePosixPath(pattern.partition("*")[0] + "x").parent for pattern in self.holds]
        return next(
            above
            for above in (folders[0], *folders[0].parents)
            if all(folder.is_relative_to(above) for folder in folders)
        )


class Download(Settings):
    """Settings of the stage ``download``: an entry of the catalogue and where its files go.

    root: the folder of all datasets in their original form (``data.root``).
    mirrors: further URLs of the archive, tried before those of the entry.
    path: a copy elsewhere that is used instead of downloading: the archive, or the folder that it was unpacked into.
    keep_archives: archives are kept after unpacking. They take as much space again, but damaged files can then be
        restored without the network.
    """

    name: str
    root: str
    mirrors: tuple[str, ...] = ()
    path: str | None = None
    keep_archives: bool = True
    entry: CatalogueEntry
