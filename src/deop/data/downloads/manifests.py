"""Manifests: size and checksum of each unpacked file, to detect changed labels and images."""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import NamedTuple, TypeVar

from deop.data.downloads.sources import count, differences, matches
from deop.errors import DeopError
from deop.settings.downloads import Download
from deop.utils.files import whole_file
from deop.utils.progress import progress_bar

ARCHIVES = "archives"
"""Folder under the data root that holds archives, what is known of them, and manifests."""

Item, Result = TypeVar("Item"), TypeVar("Result")

_BLOCK = 1 << 20
_SHOWN = 3  # files that an error names
_BATCH = 256  # files that a thread is handed at a time


class Record(NamedTuple):
    """One file: its path under the data root, its size in bytes and its CRC-32."""

    path: str
    size: int
    crc32: int


def manifest_path(source: Download) -> Path:
    return Path(source.root) / ARCHIVES / f"{source.name}.manifest.csv.gz"


def write_manifest(source: Download, records: Iterable[Record]) -> None:
    """Writes ``records`` as CSV with the columns path, size, crc32 (hexadecimal); whole or not at all."""
    path = manifest_path(source)
    with whole_file(path) as temporary, gzip.open(temporary, "wt", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Record._fields)
        writer.writerows((record.path, record.size, f"{record.crc32:08x}") for record in sorted(records))


def read_manifest(source: Download) -> list[Record] | None:
    """The records of a source; None if there is no manifest."""
    path = manifest_path(source)
    try:
        with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
            lines = csv.reader(file)
            if next(lines, None) != list(Record._fields):
                raise ValueError("its first line is not path,size,crc32")
            return [Record(name, int(size), int(crc32, 16)) for name, size, crc32 in lines]
    except FileNotFoundError:
        return None
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DeopError(f"{path} cannot be read ({error}): remove it, and it is made anew") from None


def record_files(source: Download, workers: int = 8) -> None:
    """Writes the manifest of files that were already there, with their present contents."""
    root = Path(source.root)
    paths = [str(path.relative_to(root)) for pattern in source.entry.holds for path in matches(root, pattern)]

    def read(path: str) -> Record:
        return Record(path, *_checksum(root / path))

    write_manifest(source, _in_threads(read, paths, f"recording {source.name}", workers))


def verify(source: Download, *, full: bool = False, workers: int = 8) -> dict[str, int]:
    """Checks that all unpacked files exist and are unchanged since they were unpacked (or first found).

    Counts are compared with the entry's, and sizes with those in the manifest, where there is one.

    Args:
        full: also compare contents, which reads every file.
        workers: threads.

    Returns:
        How many files there are of each pattern.

    Raises:
        DeopError: counts that are off, or files that are missing or changed, by name.
    """
    root, entry = Path(source.root), source.entry
    counts = count(entry.holds, root)
    wrong = differences(entry.holds, counts)
    if wrong:
        raise DeopError(f"{source.name}: not all of it is in {root}: {wrong}")

    def problem(record: Record) -> str | None:
        path = root / record.path
        try:
            size, crc32 = _checksum(path) if full else (path.stat().st_size, record.crc32)
        except (FileNotFoundError, NotADirectoryError):
            return f"{path} is missing"
        if size != record.size:
            return f"{path} has {size:,} bytes instead of {record.size:,}"
        if crc32 != record.crc32:
            return f"{path} has other contents (CRC-32 {crc32:08x} instead of {record.crc32:08x})"
        return None

    records = read_manifest(source) or []
    problems = [found for found in _in_threads(problem, records, f"checking {source.name}", workers) if found]
    if problems:
        more = f"; and {len(problems) - _SHOWN:,} more" if len(problems) > _SHOWN else ""
        raise DeopError(
            f"{source.name}: {len(problems):,} of {len(records):,} files changed since they were recorded: "
            f"{'; '.join(problems[:_SHOWN])}{more}. Put the right files back, or remove all that "
            f"{' and '.join(entry.holds)} name and run again; if the change is meant, remove {manifest_path(source)}"
        )
    return counts


def _checksum(path: Path) -> tuple[int, int]:
    """Size in bytes and CRC-32 of a file's contents."""
    size = crc32 = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            size += len(block)
            crc32 = zlib.crc32(block, crc32)
    return size, crc32


def _in_threads(
    function: Callable[[Item], Result], items: list[Item], description: str, workers: int
) -> list[Result]:
    """Maps ``function`` over items, in order; in threads, since reading and CRC-32 release the GIL."""
    batches = [items[first : first + _BATCH] for first in range(0, len(items), _BATCH)]
    results: list[Result] = []
    with (
        ThreadPoolExecutor(workers) as pool,
        progress_bar(total=len(items), desc=description, unit="file") as progress,
        # closed first, so that an error cancels the tasks that have not started
        closing(pool.map(lambda batch: [function(item) for item in batch], batches)) as done,
    ):
        for some in done:
            results += some
            progress.update(len(some))
    return results
