"""Artifacts: output folders that appear only when complete, with a ``provenance.json`` of how they were made."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deop import __version__
from deop.errors import DeopError
from deop.jobs.configuration_state import told_state
from deop.jobs.integrity import PROVENANCE, folder_hashes, read_json
from deop.jobs.job import Job
from deop.settings.precision import cpu_name
from deop.utils.files import file_hash, flush_to_disk, move_into_place, write_json, write_text

if TYPE_CHECKING:
    import torch

TENSORBOARD = "tensorboard"
"""The folder of a training's logs, which a resumed run adds to."""
PACKAGES = ("accelerate", "numpy", "open_clip_torch", "timm", "torchvision", "transformers")
"""Packages that results depend on, besides torch."""


def require_inputs(job: Job) -> None:
    """Checks that all inputs of a job exist, for commands that the workflow does not run.

    Raises:
        DeopError: an input that does not exist, by path and role.
    """
    for role, path in job.inputs.items():
        found = Path(path)
        if not found.exists() or (
            found.is_dir() and not any(found.iterdir())
        ):  # Snakemake makes folders early
            one_file = path.endswith(".json")
            inside = "" if one_file else "/dataset.json" if role == "data" else "/model.safetensors"
            raise DeopError(
                f"{path} is not there, the {role} of {job.stage} {job.key}; run this in the folder of the workflow, "
                f"after `snakemake {path}{inside}` (and the --configfile of its profile, if it has one)"
            )


def _git(*arguments: str) -> str | None:
    """Returns what a git command prints about the running code, or None outside a checkout."""
    folder = str(Path(__file__).parents[1])
    try:
        done = subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


@functools.cache
def code_version() -> dict[str, Any]:
    """Returns the commit of the running code, and whether files differ from it (``dirty``).

    The answer to the first call is kept: it is made before a stage runs, and files may change while it does. Both are
    None if the code is not tracked by git, including code that was installed inside another project's checkout.
    """
    if _git("ls-files", "--error-unmatch", "__init__.py") is None:
        return {"commit": None, "dirty": None}
    changed = [
        _git("status", "--porcelain", "--untracked-files=no"),
        _git("ls-files", "--others", "--exclude-standard"),  # new modules of the package
    ]
    return {"commit": _git("rev-parse", "HEAD"), "dirty": any(changed)}


def record_of(path: Path) -> Path:
    """The file that says how an artifact was made: the artifact itself if it is one JSON, else its provenance."""
    return path if path.suffix == ".json" else path / PROVENANCE


def provenance_of(path: str | Path) -> dict[str, Any] | None:
    """Returns the provenance of an artifact, or None if it does not exist or has none.

    Raises:
        DeopError: a record that is damaged.
    """
    path = Path(path)
    record = record_of(path)
    if not record.is_file():
        return None
    values = read_json(record, f"remove {path} to have it made again")
    return values.get("provenance") if record == path else values


def read_inputs(job: Job) -> dict[str, dict[str, str | None]]:
    """What a job reads, by role.

    Returns:
        ``path``, and ``sha256`` of its record (:func:`record_of`), which holds the hashes of its files; None without a
        record. Weights that come with the package have no path, and the SHA-256 of the weights themselves.
    """
    records = {role: record_of(Path(path)) for role, path in job.inputs.items()}
    found: dict[str, dict[str, str | None]] = {
        role: {"path": job.inputs[role], "sha256": file_hash(record) if record.is_file() else None}
        for role, record in records.items()
    }
    return found | {role: {"sha256": sha256} for role, sha256 in job.weights.items()}


def _dirty_inputs(job: Job) -> list[str]:
    """Returns the artifacts under a job that were made by code with uncommitted changes, sorted."""
    found: set[str] = set()
    for path in job.inputs.values():
        provenance = provenance_of(path) or {}
        found |= {path} if provenance.get("dirty") else set()
        found |= set(provenance.get("dirty_inputs", []))
    return sorted(found)


def device_name(device: torch.device) -> str:
    """Returns the name of a device, such as ``NVIDIA H100 80GB HBM3`` or ``cpu (Intel(R) Xeon(R) Processor)``."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return _of_this_host(device.type)


def _of_this_host(device: str) -> str:
    return f"{device} ({cpu_name() or platform.machine()})"


def _computed_with() -> dict[str, Any]:
    """Returns device, precision and number of processes of this process's stage, its threads, and the version of torch.

    A stage that made no Accelerator ran on the CPU in full precision. One that loaded no torch is not made to, which
    would take longer than its work.
    """
    alone = {"device": _of_this_host("cpu"), "precision": "fp32", "processes": 1}
    torch = sys.modules.get("torch")
    if torch is None:
        return {**alone, "threads": int(os.environ.get("OMP_NUM_THREADS", "1")), "torch": version("torch")}
    from accelerate.state import AcceleratorState, is_initialized

    if is_initialized():
        state = AcceleratorState()
        precision = "fp32" if state.mixed_precision == "no" else state.mixed_precision
        alone = {
            "device": device_name(state.device),
            "precision": precision,
            "processes": state.num_processes,
        }
    return {**alone, "threads": torch.get_num_threads(), "torch": torch.__version__}


def _machine() -> dict[str, Any]:
    """Returns the operating system, the number of CPU cores and the memory in GiB of this machine."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {"platform": platform.platform(), "cpus": os.cpu_count(), "memory_gib": round(memory / 2**30, 1)}


def describe(job: Job, **more: Any) -> dict[str, Any]:
    """Returns the provenance of a job's output: what ran, on which machine, commit, configuration and inputs.

    ``dirty`` says whether the code differed from the commit; ``dirty_inputs`` are the artifacts under the output for
    which it did. ``inputs`` are those of :func:`read_inputs`.
    """
    return {
        "stage": job.stage,
        "config_hash": job.key,
        "seed": job.seed,
        "version": __version__,
        **code_version(),
        "dirty_inputs": _dirty_inputs(job),
        "configuration": told_state(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        **_computed_with(),
        **_machine(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "inputs": read_inputs(job),
        "settings": job.settings,
        **more,
    }


class Workspace:
    """An artifact that is being made, in ``<output>.partial``. An interrupted run leaves it, and the next one resumes.

    Attributes:
        output: the final path of the artifact.
        partial: the folder beside it.
        path: the folder in which the files of the artifact are written. Of several processes, all but the first
            (``rank`` 0) have one of their own, which is removed with ``state``.
        state: the folder of what is needed to resume; removed when the artifact is complete.
        provenance: further entries of the provenance, known only when the artifact is made.
    """

    def __init__(self, output: Path, rank: int = 0) -> None:
        self.output, self.rank = output, rank
        self.partial = output.with_name(output.name + ".partial")
        self.state = self.partial / "state"
        self.path = self.state / f"rank{rank}" if rank else self.partial
        self.provenance: dict[str, Any] = {}
        self._clock = self.state / "seconds"
        self._started = time.monotonic()

    def seconds(self) -> float:
        """Returns the wall time spent on this artifact in seconds, including earlier, interrupted runs."""
        before = float(self._clock.read_text()) if self._clock.exists() else 0.0
        return before + time.monotonic() - self._started

    def remove_all_but(self, names: tuple[str, ...]) -> None:
        """Removes what is in the partial folder, but for the state and ``names``."""
        for path in self.partial.iterdir():
            if path == self.state or path.name in names:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

    def tick(self) -> None:
        """Saves the wall time so far; called at every checkpoint."""
        spent = self.seconds()
        self._started = time.monotonic()
        write_text(self._clock, f"{spent:.3f}")


@contextlib.contextmanager
def artifact(job: Job, *, resumes: tuple[str, ...] = (), **more: Any) -> Iterator[Workspace]:
    """Context manager that makes ``job.output``: yields a workspace, which gets its final name if the block succeeds.

    ``provenance.json`` holds the hashes of its files (:mod:`deop.jobs.integrity`). If Accelerate launched
    several processes, the first one renames the workspace when all have finished their block.

    Args:
        resumes: names in the workspace, besides its state, that the block goes on from. Everything else that an
            interrupted run left, or anybody put there, is removed.
        more: further entries of the provenance.

    Raises:
        DeopError: a file in the place of one of the folders.
    """
    workspace = Workspace(Path(job.output), int(os.environ.get("RANK", "0")))
    for folder in (workspace.output, workspace.partial):
        if os.path.lexists(folder) and not folder.is_dir():
            raise DeopError(f"{folder} is in the way of the {job.stage} that is made there; move it away")
    workspace.state.mkdir(parents=True, exist_ok=True)
    if not workspace.rank:
        workspace.remove_all_but(resumes)
    workspace.path.mkdir(exist_ok=True)
    yield workspace
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from accelerate import PartialState

        PartialState().wait_for_everyone()
    if workspace.rank:
        return
    provenance = describe(job, wall_time_s=round(workspace.seconds(), 2), **more, **workspace.provenance)
    write_json(workspace.path / PROVENANCE, provenance | folder_hashes(workspace.path))
    flush_to_disk(workspace.path)
    # Only now: what is above takes a while for large weights, and could be interrupted.
    shutil.rmtree(workspace.state)
    if workspace.output.is_symlink():
        workspace.output.unlink()
    elif workspace.output.exists():
        shutil.rmtree(workspace.output)
    move_into_place(workspace.path, workspace.output)
