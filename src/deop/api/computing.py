"""On what a segmenter computes, and in which precision."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from deop.errors import DeopError
from deop.settings.precision import resolve
from deop.settings.system import SystemConfig

AUTO = "auto"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_TRIAL_S = 2.0
"""Seconds that a trial of two precisions takes after its first runs, or one more run of each if that is longer."""
_WORTH = 0.9
"""bf16 is taken where it needs less than this share of the time; less is within the noise of a short trial."""


class Computing:
    """Inference on a device, in a precision; a context."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._inference = torch.inference_mode()
        self._autocast = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)

    def __enter__(self) -> None:
        self._inference.__enter__()
        self._autocast.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._autocast.__exit__(*error)
        self._inference.__exit__(*error)


def device_of(device: str | torch.device | None) -> torch.device:
    """The device of that name; None is a GPU where there is one.

    Raises:
        DeopError: a device that there is not.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError:
        raise DeopError(f"device {device!r}: no such device; valid: cpu, cuda, cuda:1, mps") from None
    if found.type == "cuda" and not torch.cuda.is_available():
        raise DeopError(f"device {device!r}: this machine has no GPU that torch can use; valid: cpu")
    return found


def dtype_of(
    dtype: str | torch.dtype | None, settings: SystemConfig, device: torch.device, run: Callable[[], Any]
) -> torch.dtype:
    """The precision that most layers compute in.

    Args:
        dtype: ``"float32"``, ``"bfloat16"`` or ``"float16"``, or torch's own. None is float32 on a CPU and what the
            system was trained in on a GPU. ``"auto"`` is None on a GPU; on a CPU with bfloat16 arithmetic, whichever of
            bfloat16 and float32 takes less time, and else float32.
        run: shows the network an image, for ``"auto"``.

    Raises:
        DeopError: no such precision.
    """
    if dtype is None or (dtype == AUTO and device.type != "cpu"):
        trained = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(settings.precision, torch.float32)
        return trained if device.type == "cuda" else torch.float32
    if dtype == AUTO:
        if resolve("auto", use_cpu=True) == "fp32":
            return torch.float32
        return faster(torch.bfloat16, torch.float32, run, device)
    found = _DTYPES.get(str(dtype).removeprefix("torch."))
    if found is None:
        raise DeopError(f"dtype {dtype!r}: valid: {', '.join([*_DTYPES, AUTO])}")
    return found


def faster(
    lower: torch.dtype,
    full: torch.dtype,
    run: Callable[[], Any],
    device: torch.device,
    clock: Callable[[], float] = time.perf_counter,
) -> torch.dtype:
    """``lower`` if ``run`` takes clearly less time in it than in ``full``: medians, taken in turn after a first run."""
    times: dict[torch.dtype, list[float]] = {lower: [], full: []}
    for dtype in times:  # weights are converted and memory is taken in the first run
        with Computing(device, dtype):
            run()
    end = clock() + _TRIAL_S
    while not times[full] or clock() < end:
        for dtype, seconds in times.items():
            with Computing(device, dtype):
                start = clock()
                run()
                seconds.append(clock() - start)
    return lower if statistics.median(times[lower]) < _WORTH * statistics.median(times[full]) else full
