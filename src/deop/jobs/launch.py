"""How a stage is started: through ``accelerate launch`` where processes have to be brought together, else directly."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

# What a launch file says of a single process of this machine; with anything more it is for the launcher.
_PLAIN = {
    "compute_environment",
    "distributed_type",
    "mixed_precision",
    "num_machines",
    "num_processes",
    "use_cpu",
}
ON_EACH_NODE = "workflow/scripts/on-each-node"
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def launch_command(path: str, values: dict[str, Any], *, alone: bool = False) -> str:
    """The shell command that runs ``deop`` as an Accelerate launch file says.

    A single process needs no launcher, which would import torch once more to set a variable: of an evaluation
    on the mini profile, a quarter of the time.

    Args:
        path: the launch file.
        values: what is in it.
        alone: one process, whatever the file says of their number, for a stage that has nothing to share out.
    """
    direct = f"ACCELERATE_USE_CPU={values.get('use_cpu', False)} deop"
    if alone:
        return direct
    if (
        values.get("distributed_type") != "NO"
        or values.get("num_processes", 1) != 1
        or not values.keys() <= _PLAIN
    ):
        machines = values.get("num_machines", 1)
        if machines > 1:
            return f"srun --nodes={machines} --ntasks-per-node=1 --kill-on-bad-exit=1 {ON_EACH_NODE} {path}"
        return f"accelerate launch --config_file {path} -m deop"
    return direct


def keep_freed_memory() -> None:
    """Lets the process keep large blocks that it frees, on Linux with glibc; elsewhere nothing changes.

    By default each tensor of more than a few hundred kilobytes is new memory of the system, cleared page by page
    when it is first written: an eighth of a training step on a CPU.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
