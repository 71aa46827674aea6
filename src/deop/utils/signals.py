"""Requests to end, which come as signals."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def termination() -> Iterator[Callable[[], bool]]:
    """Holds back SIGTERM: yields a function that says whether it came, so that work can be saved first.

    A cluster sends it some seconds before it kills a job. Outside the main thread, where Python allows no handlers,
    nothing is held back.
    """
    came = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield came.is_set
        return

    def note(number: int, frame: FrameType | None) -> None:
        came.set()

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield came.is_set
    finally:
        signal.signal(signal.SIGTERM, before)
