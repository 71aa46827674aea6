"""Atomic writing of files, and checksums."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def whole_file(path: Path, *, flush: bool = True) -> Iterator[Path]:
    """Yields a temporary path beside ``path``, which is renamed to ``path`` when the block ends without an error.

    A reader therefore finds the old file or the new one, never a part of it. After an error the temporary file is
    removed.
    The temporary name is hidden, random, and has the suffix of ``path``. Missing folders are created.

    Args:
        flush: also keep the file through a power cut, see :func:`move_into_place`. Without it, the file may be empty
            after one, which is for many small files that are checked or flushed together later.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{secrets.token_hex(4)}.{path.name}")
    try:
        yield temporary
        if flush:
            move_into_place(temporary, path)
        else:
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def move_into_place(source: Path, target: Path) -> None:
    """Renames a file or folder so that after a power cut ``target`` is what it was before or all of ``source``.

    For this, its content is written to disk before it is renamed, and then the new name.
    """
    flush_to_disk(source)
    os.replace(source, target)
    _fsync(target.parent)


def flush_to_disk(path: Path) -> None:
    """Writes a file, or a folder and everything in it, to disk (fsync)."""
    if not path.is_dir():
        _fsync(path)
        return
    below = [Path(place, name) for place, _, names in os.walk(path) for name in names]
    folders = [Path(place) for place, _, _ in os.walk(path)]
    with ThreadPoolExecutor() as pool:  # file systems write many at once
        for _ in pool.map(_fsync, (file for file in below if not file.is_symlink())):
            pass
    for folder in folders:
        _fsync(folder)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF):  # some file systems have it for no folders
            raise
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Writes a text file in UTF-8, as :func:`whole_file` does."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file, as :func:`whole_file` does."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def file_hash(path: Path, algorithm: str = "sha256") -> str:
    """The hexadecimal digest of a file; ``algorithm`` is any name that :func:`hashlib.new` knows."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()
