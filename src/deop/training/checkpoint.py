"""Checkpoints of a training that can be relied on: checked when they are read, with the one before as a reserve."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from deop.errors import StorageError
from deop.models.weight_files import read_pickled
from deop.utils.files import file_hash, move_into_place

KEPT = 2
"""Checkpoints on disk: the last one and, in case that is damaged, the one before it."""
_NAME = re.compile(r"checkpoint-(?P<step>\d{9})-(?P<sha256>[0-9a-f]{64})\.pt")


class _Found(NamedTuple):
    path: Path
    step: int
    sha256: str


def save_checkpoint(folder: Path, state: dict[str, Any], step: int) -> None:
    """Writes what is needed to go on at ``step``, and removes all but the last two checkpoints.

    A file has the SHA-256 of its contents in its name, so that both appear at once. One process at a time may save.
    """
    temporary = folder / ".checkpoint.pt"
    try:
        try:
            torch.save(state, temporary)
        except RuntimeError as error:
            raise StorageError(
                f"{folder}: a checkpoint cannot be written ({str(error).splitlines()[0]}); if the disk is full, make "
                "room, and run the same command again; the checkpoints before it are kept"
            ) from None
        move_into_place(temporary, folder / f"checkpoint-{step:09d}-{file_hash(temporary)}.pt")
    finally:
        temporary.unlink(missing_ok=True)
    # Those of later steps are damaged, or training would have gone on from them.
    saved = [found for found in _checkpoints(folder) if found.step <= step]
    for found in set(_checkpoints(folder)) - set(saved[:KEPT]):
        found.path.unlink(missing_ok=True)


def load_checkpoint(folder: Path, tell: Callable[[str], None]) -> tuple[dict[str, Any], int] | None:
    """The state and the step of the last undamaged checkpoint; None if there is none, and training starts anew.

    Args:
        tell: called with a line about each checkpoint that is damaged.

    Raises:
        WeightsError: a checkpoint that is not damaged but holds more than data.
    """
    for found in _checkpoints(folder):
        if file_hash(found.path) == found.sha256:
            return read_pickled(found.path), found.step
        tell(f"checkpoint {found.path} is damaged: its SHA-256 is not the one in its name; it is not used")
    return None


def _checkpoints(folder: Path) -> list[_Found]:
    """The checkpoints in a folder, the last one first."""
    found = [
        _Found(path, int(match["step"]), match["sha256"])
        for path in folder.iterdir()
        if (match := _NAME.fullmatch(path.name))
    ]
    return sorted(found, key=lambda one: one.step, reverse=True)
