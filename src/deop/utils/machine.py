"""What jobs that run on this machine at the same time have to share: its GPUs and its memory."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def shared_resources() -> dict[str, int]:
    """By Snakemake's names of resources: ``mem_mb`` (10^6 bytes), and ``gpu`` where there are any."""
    found = {"mem_mb": _memory() // 10**6, "gpu": len(gpus())}
    return {name: amount for name, amount in found.items() if amount}


def gpus() -> list[str]:
    """The NVIDIA GPUs that processes here may use, as ``CUDA_VISIBLE_DEVICES`` names them. Does not import torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name.strip() not in ("", "-1")]
    command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return []
    return done.stdout.split()


def _memory(limits: tuple[str, ...] = _LIMITS) -> int:
    """Bytes of memory of the machine, or of the container; 0 where the system does not say."""
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 0
    for path in map(Path, limits):
        text = path.read_text().strip() if path.is_file() else ""
        if text.isdigit():
            total = min(total, int(text))
    return total
