"""Progress bars that do not fill log files."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress_bar(iterable: Iterable | None = None, **options: Any) -> tqdm:
    """A tqdm bar that is redrawn every second on a terminal, and every 15 seconds in a file.

    Args:
        iterable: what to iterate over; None for a bar that is updated by hand.
        options: of :class:`tqdm.tqdm`.
    """
    return tqdm(iterable, **{"mininterval": 1 if sys.stderr.isatty() else 15} | options)
