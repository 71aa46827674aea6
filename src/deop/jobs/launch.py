"""How stages are started: directly, or through ``accelerate launch`` if several processes work together."""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Any

# The keys of a launch file that describe a single process on this machine. Any other key needs the launcher.
_PLAIN = {
    "compute_environment",
    "distributed_type",
    "mixed_precision",
    "num_machines",
    "num_processes",
    "use_cpu",
}
ON_EACH_NODE = "workflow/scripts/on-each-node"
WITH_GPUS = "workflow/scripts/with-gpus"
# Read by the BLAS, OpenMP and MKL libraries when they are loaded.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def launch_command(path: str, values: dict[str, Any], *, alone: bool = False, gpus: int = 0) -> str:
    """Returns the shell command that runs ``deop`` as an Accelerate launch file says.

    A single process is started directly: the launcher would import torch a second time only to set a variable, which
    takes a quarter of the time of an evaluation on the mini profile.

    Args:
        path: the launch file.
        values: its content.
        alone: whether to start one process whatever the file says, for a stage that cannot use more.
        gpus: how many GPUs of this machine the command gets for itself. On several machines, Slurm gives it its own.
    """
    claimed = f"{WITH_GPUS} {gpus} " if gpus else ""
    direct = f"ACCELERATE_USE_CPU={values.get('use_cpu', False)} {claimed}deop"
    if alone:
        return direct
    if (
        values.get("distributed_type") != "NO"
        or values.get("num_processes", 1) != 1
        or not values.keys() <= _PLAIN
    ):
        launcher = f"accelerate launch --config_file {path} -m deop"
        if values.get("use_cpu"):
            # Left alone, the launcher joins processes on CPUs through MPI, and does not join them where there is none.
            launcher = f"accelerate launch --multi_gpu --config_file {path} -m deop"
        machines = values.get("num_machines", 1)
        if machines > 1:
            # A step has all CPUs of the job's machines, but its one task on each may be bound to a single one.
            step = f"srun --nodes={machines} --ntasks-per-node=1 --cpu-bind=none --kill-on-bad-exit=1"
            launcher = f"{step} {ON_EACH_NODE} {launcher}"
        else:
            launcher = claimed + launcher
        return f"ACCELERATE_USE_CPU=true {launcher}" if values.get("use_cpu") else launcher
    return direct


def prepare_process(threads: int) -> None:
    """What has to be set before torch is imported: how many CPU threads it uses, and how memory is kept."""
    for variable in THREAD_VARIABLES:
        os.environ[variable] = str(threads)
    keep_freed_memory()


def keep_freed_memory() -> None:
    """Makes the process reuse large blocks of memory that it freed, on Linux with glibc; elsewhere nothing changes.

    By default each tensor of more than a few hundred kilobytes is new memory from the operating system, which is
    cleared page by page when it is first written. That takes an eighth of a training step on a CPU.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
