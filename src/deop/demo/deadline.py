"""A time limit that ends a computation: networks look at the clock before each of their modules."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from deop.demo.limits import Refused

_state = threading.local()


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Inside, networks that are :func:`watched` stop with :class:`Refused` once this time has passed."""
    _state.ends = time.monotonic() + seconds
    try:
        yield
    finally:
        _state.ends = None


def seconds_left() -> float:
    """Seconds until the deadline of this thread; infinite without one."""
    ends = getattr(_state, "ends", None)
    return float("inf") if ends is None else ends - time.monotonic()


def check() -> None:
    """Raises :class:`Refused` past the deadline."""
    if seconds_left() < 0:
        raise Refused("That took too long and was stopped. Please try a smaller picture or fewer names.")


def watched(network: nn.Module) -> None:
    """Makes a network check the deadline before each of its modules."""

    def before(*_: Any) -> None:
        check()

    for module in network.modules():
        module.register_forward_pre_hook(before)
