"""Open-vocabulary semantic segmentation with a decoupled one-pass network (DeOP, ICCV 2023).

``deop.load`` gives a segmenter. What needs torch is imported when it is first asked for.
"""

from __future__ import annotations

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deop.api.load import load
    from deop.api.result import Segmentation
    from deop.api.segmenter import OpenVocabularySegmenter
    from deop.errors import DeopError

__all__ = ["DeopError", "OpenVocabularySegmenter", "Segmentation", "load"]
__version__ = version("deop")

_PLACES = {
    "DeopError": "deop.errors",
    "OpenVocabularySegmenter": "deop.api.segmenter",
    "Segmentation": "deop.api.result",
    "load": "deop.api.load",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'deop' has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_PLACES]
