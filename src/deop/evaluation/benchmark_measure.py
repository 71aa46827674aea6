"""Measures time, memory and floating-point operations of calls, in turns."""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from deop.utils.progress import progress_bar
from deop.utils.timing import PartTimes, wait_for

Name = TypeVar("Name")
MATMUL = {"cpu": 2048, "cuda": 8192}
"""By device, the side of the square matrices whose product measures the speed of the machine."""
_RESET_PEAK = "5"  # see proc(5), clear_refs


@dataclass
class Measured:
    """The measurements of one call.

    Attributes:
        seconds: of each timed run.
        parts: median seconds by part (see :mod:`deop.utils.timing`). On a GPU they are from separate runs, since
            timing parts synchronises the device.
        added_mb: peak memory during the call beyond that before it, in MB (10^6 bytes): of the process on a CPU (Linux;
            else NaN), of tensors on a GPU.
        flop: floating-point operations of matrix products and convolutions, two per multiplication.
    """

    flop: int = 0
    seconds: list[float] = field(default_factory=list)
    parts: dict[str, float] = field(default_factory=dict)
    added_mb: float = 0.0

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def interleave(
    calls: Mapping[Name, Callable[[], object]],
    device: torch.device,
    *,
    rounds: int,
    budget_s: float,
    description: str,
    counted_in: Mapping[Name, Name] | None = None,
) -> dict[Name, Measured]:
    """Measures calls in turns (A B C, A B C, ...), so that other load on the machine affects all of them alike.

    Each call is first run twice as a warm-up, once to count its operations and once to measure its memory, which both
    slow a run down. No further round begins after ``budget_s`` seconds. The operations of other runtimes cannot be
    counted: ``counted_in`` names another call with the same operations.
    """
    measured, counted_in = {name: Measured() for name in calls}, counted_in or {}
    for name, call in progress_bar(calls.items(), desc=f"{description}: warm-up"):
        if name in counted_in:
            call()
        else:
            measured[name].flop = count_flop(call)
        memory = PeakMemory(device)
        call()  # compiled code records its CUDA graphs in this run
        measured[name].added_mb = memory.added_mb()
    for name, other in counted_in.items():
        measured[name].flop = measured[other].flop
    parts: dict[Name, list[dict[str, float]]] = {name: [] for name in calls}
    on_gpu, begun = device.type == "cuda", time.monotonic()
    for _ in progress_bar(range(rounds), desc=f"{description}: rounds"):
        for name, call in calls.items():
            if on_gpu:
                with PartTimes(device) as times:
                    call()
                parts[name].append(times.seconds)
                measured[name].seconds.append(timed(call, device))
            else:  # without a device to synchronise, timing parts costs nothing
                with PartTimes(device) as times:
                    measured[name].seconds.append(timed(call, device))
                parts[name].append(times.seconds)
        if time.monotonic() - begun > budget_s:
            break
    for name, listened in parts.items():
        measured[name].parts = {
            part: statistics.median(run.get(part, 0.0) for run in listened) for part in listened[0]
        }
    return measured


def timed(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, until the device has finished it."""
    wait_for(device)
    begun = time.perf_counter()
    call()
    wait_for(device)
    return time.perf_counter() - begun


def count_flop(call: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products and convolutions of a call, two for each multiplication."""
    # Fused attention is not counted on every device, and fused layers on none; plain attention is matrix products.
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            call()
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return counter.get_total_flops()


def matmul_call(device: torch.device, dtype: torch.dtype = torch.float32) -> Callable[[], object]:
    """The product of two square matrices of that type with sides of :data:`MATMUL`: 2 * side^3 operations."""
    side = MATMUL.get(device.type, MATMUL["cpu"])
    left, right = (torch.rand(side, side, device=device, dtype=dtype) for _ in range(2))
    return lambda: left @ right


class PeakMemory:
    """Peak memory from now on, beyond the memory held now (see :class:`Measured`)."""

    def __init__(self, device: torch.device) -> None:
        self._device: torch.device | None = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._before = torch.cuda.memory_allocated(device)
            return
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:  # memory freed by others must not count
            trim(0)
        try:
            Path("/proc/self/clear_refs").write_text(_RESET_PEAK)
            self._before = _process_bytes("VmRSS")
        except OSError:
            self._device = None

    def added_mb(self) -> float:
        if self._device is None:
            return float("nan")
        if self._device.type == "cuda":
            return (torch.cuda.max_memory_allocated(self._device) - self._before) / 1e6
        return (_process_bytes("VmHWM") - self._before) / 1e6


def _process_bytes(name: str) -> int:
    """Memory of this process: ``VmRSS`` is the current and ``VmHWM`` the peak size (proc(5))."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith(name)))
