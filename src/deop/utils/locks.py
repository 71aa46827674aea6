"""Locks on files, which keep two processes from doing the same work at once."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO

_held: list[IO] = []


def open_to_lock(path: Path) -> IO:
    """Opens an existing file for :func:`lock`: for writing too if that is allowed, as network file systems want it."""
    return path.open("r+b" if os.access(path, os.W_OK) else "rb")


def lock(file: IO, waiting: Callable[[], None], unsupported: Callable[[str], None]) -> bool:
    """Locks an open file until it is closed or this process ends, however it ends; waits for others without limit.

    The processes that this one forks, such as those that load batches, do not inherit the lock: one that outlives this
    process would hold it.

    Args:
        file: opened by :func:`open_to_lock`, or for writing.
        waiting: called if another process has the lock, before waiting for it.
        unsupported: called with the reason if the file system has no locks; two processes then do not notice each
            other.

    Returns:
        Whether another process had to be waited for.
    """
    _held[:] = [*(other for other in _held if not other.closed), file]
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        waiting()
        fcntl.flock(file, fcntl.LOCK_EX)
        return True
    except OSError as error:
        unsupported(error.strerror or str(error))
    return False


def _close_in_child() -> None:
    for file in _held:
        with contextlib.suppress(OSError):
            file.close()  # the parent's lock remains: it is released when the last copy of the descriptor is closed
    _held.clear()


os.register_at_fork(after_in_child=_close_in_child)
