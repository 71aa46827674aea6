"""The precision that networks compute in: decided when jobs are planned, so that it is part of what names a result.

Read by the planner, hence without torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

Precision = Literal["fp32", "bf16", "fp16"]
"""Full precision, or what PyTorch's automatic mixed precision computes matrix products and convolutions in."""
Runtime = Literal["torch", "compiled", "onnxruntime", "openvino"]
"""What computes the networks of a system: PyTorch, torch.compile, or graphs on other runtimes (CPU only)."""
Asked = Literal["auto", "fp32", "bf16", "fp16"]

_CPU_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # the last is Arm's name
_GPUS = ("nvidia[0-9]*", "kfd", "dxg")  # of NVIDIA, of AMD, and of Windows under Linux


def resolve(
    asked: Asked,
    *,
    use_cpu: bool,
    cpuinfo: Path = Path("/proc/cpuinfo"),
    devices: Path = Path("/dev"),
) -> Precision:
    """The precision that ``asked`` means on this machine: ``auto`` is bf16 where there is bf16 arithmetic, else fp32.

    A GPU is taken to have it. A job that runs where there is none refuses, see
    :func:`deop.training.loop.make_accelerator`.

    Args:
        use_cpu: jobs leave GPUs alone.
        cpuinfo, devices: where Linux lists the CPU's features and its devices; elsewhere ``auto`` is fp32.
    """
    if asked != "auto":
        return asked
    if not use_cpu and any(True for pattern in _GPUS for _ in devices.glob(pattern)):
        return "bf16"
    return "bf16" if _CPU_FLAGS & _cpu_flags(cpuinfo) else "fp32"


def _cpu_flags(cpuinfo: Path) -> set[str]:
    """What the first core can do: the line is called ``flags`` on x86 and ``Features`` on Arm."""
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    return next(
        (set(line.split(":", 1)[1].split()) for line in lines if line.startswith(("flags", "Features"))),
        set(),
    )


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str | None:
    """The CPU's name, where Linux tells it."""
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), None)
