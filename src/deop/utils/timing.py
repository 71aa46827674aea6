"""Named parts of a forward pass, timed only inside :class:`PartTimes`.

torch.profiler records single operations, and slows down small ones most; use it to find out why a part is slow. The
times here say which part is slow, with hardly any overhead.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

import torch

Item = TypeVar("Item")

_listener: ContextVar[PartTimes | None] = ContextVar("part_times", default=None)


class PartTimes:
    """Seconds spent in each :func:`part` that runs inside ``with PartTimes(device) as times``.

    The time of a part does not include parts inside it, so times add up. A GPU is synchronised wherever a part begins
    or ends, so total run time should be measured outside of ``PartTimes``.

    Attributes:
        seconds: by name of a part.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._since = device, 0.0
        self._open: list[str] = []
        self.seconds: dict[str, float] = {}

    def __enter__(self) -> PartTimes:
        self._token = _listener.set(self)
        return self

    def __exit__(self, *error: object) -> None:
        _listener.reset(self._token)

    def begin(self, name: str) -> None:
        self._turn()
        self._open.append(name)

    def end(self) -> None:
        self._turn()
        self._open.pop()

    def _turn(self) -> None:
        """Adds the time since the last turn to the innermost open part."""
        wait_for(self._device)
        now = time.perf_counter()
        if self._open:
            name = self._open[-1]
            self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self._since = now


@contextmanager
def part(name: str) -> Iterator[None]:
    """Times what runs inside as ``name``; active only inside :class:`PartTimes`."""
    times = _listener.get()
    if times is None:
        yield
        return
    times.begin(name)
    try:
        yield
    finally:
        times.end()


def parts_of(items: Iterable[Item], name: str) -> Iterator[Item]:
    """Yields ``items``, and times the making of each as ``name``."""
    iterator = iter(items)
    while True:
        with part(name):
            try:
                item = next(iterator)
            except StopIteration:
                return
        yield item


def wait_for(device: torch.device) -> None:
    """Waits until the device has finished its queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
