"""Atomic writing of files, and checksums."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside ``path``, which is renamed to ``path`` when the block ends without an error.

    A reader therefore finds the old file or the new one, never a part of it. After an error the temporary file is
    removed.
    The temporary name is hidden, random, and has the suffix of ``path``. Missing folders are created.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{secrets.token_hex(4)}.{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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
