"""Open-vocabulary semantic segmentation with a decoupled one-pass network (DeOP, ICCV 2023)."""

from __future__ import annotations

from importlib.metadata import version

__version__ = version("deop")
