"""Stage ``download``: one archive of the paper's datasets, downloaded and unpacked unless its files are there."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from tqdm import tqdm

from deop.data.downloads.archives import CorruptArchive, pending, place, unpack
from deop.data.downloads.download import obtain, put_aside, read_record, record_path, require_space
from deop.data.downloads.manifests import ARCHIVES, manifest_path, record_files, verify
from deop.data.downloads.sources import count, differences
from deop.errors import DeopError
from deop.jobs.artifacts import describe
from deop.jobs.integrity import write_sealed
from deop.jobs.job import Job
from deop.settings.downloads import Download
from deop.utils.locks import lock


def run(job: Job) -> None:
    """Puts the files of ``job.settings["source"]`` in place, and describes them in ``job.output``."""
    started = time.monotonic()
    source = Download.model_validate(job.settings["source"])
    found = provide(source)
    provenance = describe(job, wall_time_s=round(time.monotonic() - started, 2))
    write_sealed(
        Path(job.output), {"source": source.name, "root": source.root, **found, "provenance": provenance}
    )


def provide(source: Download) -> dict[str, Any]:
    """Puts the files of a source in place. Existing files are used, and never replaced.

    Returns:
        ``holds``, the number of files of each pattern, and ``archive``, the ``bytes``, ``sha256`` and ``url`` of the
        archive that they were unpacked from; None if they existed without it.

    Raises:
        DeopError: only some of the files exist, or they cannot be downloaded.
    """
    root, entry = Path(source.root), source.entry
    archive = root / ARCHIVES / entry.archive
    if pending(source) or count(entry.holds, root) != entry.holds:
        root.mkdir(parents=True, exist_ok=True)
        with _alone(archive):
            _complete(source, archive)
    if not manifest_path(source).exists():
        _record(source)
    return {"holds": verify(source), "archive": read_record(archive)}


def _complete(source: Download, archive: Path) -> None:
    """Puts all files in place, whatever another process or an interrupted run left."""
    root, holds = Path(source.root), source.entry.holds
    if unpacked := pending(source):
        place(unpacked, root)
    counts = count(holds, root)
    if counts == holds:
        return
    if any(counts.values()):
        raise DeopError(
            f"{source.name}: part of it is in {root}: {differences(holds, counts)}. Complete it, or move it away "
            f"to have it downloaded; if this is all there should be, set data.sources.{source.name}.holds"
        )
    if source.path is not None and Path(source.path).is_dir():
        _link(source)
    else:
        _unpack(source, archive)


@contextmanager
def _alone(archive: Path) -> Iterator[None]:
    """Locks the archive against other processes, because two entries may share one."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    with archive.with_name(f".{archive.name}.lock").open("w") as file:
        lock(
            file,
            lambda: tqdm.write(
                f"another process is at {archive.name}; waiting for it to end", file=sys.stderr
            ),
            lambda reason: tqdm.write(f"{file.name} cannot be locked ({reason})", file=sys.stderr),
        )
        yield


def _unpack(source: Download, archive: Path) -> None:
    """Fetches the archive, unless it is there, and unpacks it."""
    if source.path is not None and not Path(source.path).exists():
        raise DeopError(f"data.sources.{source.name}.path: {source.path} is not there")
    try:
        path, _ = obtain(source, archive)
        try:
            unpack(source, path, lambda folder, size, purpose: require_space([(folder, size, purpose)]))
        except CorruptArchive as error:
            if path != archive or source.entry.hash:
                raise
            # The recorded hash is that of the corrupt archive.
            record_path(archive).unlink()
            aside = put_aside(archive)
            raise DeopError(f"{error}. It was moved to {aside.name}; run again to download it") from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DeopError(
            f"no space is left for {source.name} at {source.root}: make room and run again"
        ) from None
    if not source.keep_archives and path == archive:
        archive.unlink()


def _link(source: Download) -> None:
    """Links the user's own copy of the files into the data root.

    ``source.path`` is the folder to link to (``.../VOC2012``), or one above it with the layout of the root.
    """
    path, entry, parts = Path(str(source.path)).resolve(), source.entry, source.entry.folder.parts
    if path == Path(source.root).resolve():
        raise DeopError(f"data.sources.{source.name}.path: {path} is the data root, and it is not there")
    closest = (-1, "")
    for above in range(len(parts), -1, -1):
        holds = {"/".join(PurePosixPath(name).parts[above:]): number for name, number in entry.holds.items()}
        counts = count(holds, path)
        if counts == holds:
            target, copy = Path(source.root) / entry.folder, path.joinpath(*parts[above:])
            if os.path.lexists(target):
                raise DeopError(f"{target} is in the way of a link to {copy}: move it away")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(copy, target_is_directory=True)
            return
        closest = max(closest, (sum(counts.values()), differences(holds, counts)))
    raise DeopError(
        f"data.sources.{source.name}.path: {path} does not hold all of {entry.folder}: {closest[1]}"
    )


def _record(source: Download) -> None:
    """Writes the manifest of files that existed before, if the folder is writable."""
    if os.access(source.root, os.W_OK):
        record_files(source)
        return
    tqdm.write(
        f"{source.root} is not writable: changes of {source.name} will not be noticed", file=sys.stderr
    )
