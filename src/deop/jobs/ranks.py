"""A decision that the first process of a launch makes for all of them, before Accelerate connects them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from deop.errors import DeopError

if TYPE_CHECKING:
    from torch.distributed import Store

_POLL_SECONDS = 0.2
_LEAVE_SECONDS = 60.0
_KEY = "deop/decision"
_stores: list[
    Store
] = []  # kept as long as the process lives: unless the launcher serves the store, the first process does


def decided_by_first(decide: Callable[[], bool]) -> bool:
    """Returns what ``decide`` returns in the first process of a launch (rank 0); the others wait for it without limit.

    A process group would time out if the first process waits for hours. If the first process dies, its launcher ends
    the others, or they notice that its store is gone.

    Raises:
        DeopError: the first process ended before it decided.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return decide()
    from torch.distributed import rendezvous

    store, rank, world = next(rendezvous("env://"))
    _stores.append(store)
    if rank == 0:
        decision = decide()
        store.set(_KEY, str(int(decision)))
        if decision:  # this process may end now, and its store with it
            _wait_until_read(store, world - 1)
        return decision
    try:
        while not store.check([_KEY]):
            time.sleep(_POLL_SECONDS)
        decision = store.get(_KEY) == b"1"
    except RuntimeError as error:
        raise DeopError(
            f"process {rank}: the first process of this launch ended; its own message says why"
        ) from error
    store.add(f"{_KEY}/read", 1)
    return decision


def _wait_until_read(store: Store, others: int) -> None:
    until = time.monotonic() + _LEAVE_SECONDS
    while store.add(f"{_KEY}/read", 0) < others and time.monotonic() < until:
        time.sleep(_POLL_SECONDS)
