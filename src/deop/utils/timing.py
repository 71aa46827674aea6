"""Where the time of a network goes: named parts of its forward pass, measured only while somebody listens.

torch.profiler sees single operations and slows down what it watches, the more the smaller they are; it answers why a
part is slow. This says which part, in a run that is otherwise as fast as any.
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
    """Seconds spent in each :func:`part`, of what runs inside ``with PartTimes(device) as times``.

    Of parts inside parts each has its own time alone, so that times add up. A GPU is waited for wherever a part begins
    or ends: runs that are timed as a whole are not listened to.

    Attributes:
        seconds: by part.
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
        """What has passed since the last turn belongs to the innermost part that was open."""
        wait_for(self._device)
        now = time.perf_counter()
        if self._open:
            name = self._open[-1]
            self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self._since = now


@contextmanager
def part(name: str) -> Iterator[None]:
    """What runs inside is counted as ``name``, if a :class:`PartTimes` listens."""
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
    """``items``, the making of each counted as ``name``."""
    iterator = iter(items)
    while True:
        with part(name):
            try:
                item = next(iterator)
            except StopIteration:
                return
        yield item


def wait_for(device: torch.device) -> None:
    """Until the device has done all that it was told to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
