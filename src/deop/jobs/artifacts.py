"""Artifacts: folders that appear whole or not at all, each with a ``provenance.json`` that says how it was made."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deop import __version__
from deop.errors import DeopError
from deop.jobs.configuration_state import told_state
from deop.jobs.job import Job
from deop.settings.precision import cpu_name

if TYPE_CHECKING:
    import torch

PROVENANCE = "provenance.json"
WEIGHTS = "model.safetensors"


def write_text(path: Path, text: str) -> None:
    """Writes a file under a temporary name and renames it, so that a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON as :func:`write_text` does."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def require_inputs(job: Job) -> None:
    """Nothing, if all inputs of a job are there; for commands that the workflow does not call.

    Raises:
        DeopError: an input that is not there, by path and role.
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
    """What a git command prints about the code that runs, or None outside a checkout."""
    folder = str(Path(__file__).parents[1])
    try:
        done = subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


@functools.cache
def code_version() -> dict[str, Any]:
    """Commit of the code that runs, and whether files differ from it; as first asked, which is before a stage runs.

    Both are None if the code is not in a git checkout, also if it was installed into a folder of someone else's.
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
    """The provenance of an artifact, a folder or one JSON; None if it is not there or has none."""
    path = Path(path)
    record = record_of(path)
    if not record.is_file():
        return None
    values = json.loads(record.read_text())
    return values.get("provenance") if record == path else values


def _dirty_inputs(job: Job) -> list[str]:
    """What a job rests on that was made by code with uncommitted changes: its inputs, and what those rest on."""
    found: set[str] = set()
    for path in job.inputs.values():
        provenance = provenance_of(path) or {}
        found |= {path} if provenance.get("dirty") else set()
        found |= set(provenance.get("dirty_inputs", []))
    return sorted(found)


def device_name(device: torch.device) -> str:
    """What a device is called: ``NVIDIA H100 80GB HBM3``, or ``cpu (Intel(R) Xeon(R) Processor)``."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({cpu_name() or platform.machine()})"


def _computed_with() -> dict[str, Any]:
    """Device, precision and number of processes of the stage that this process ran.

    Where it made no Accelerator, the CPU, in full precision.
    """
    import torch
    from accelerate.state import AcceleratorState, is_initialized

    if not is_initialized():
        return {"device": device_name(torch.device("cpu")), "precision": "fp32", "processes": 1}
    state = AcceleratorState()
    precision = "fp32" if state.mixed_precision == "no" else state.mixed_precision
    return {"device": device_name(state.device), "precision": precision, "processes": state.num_processes}


def describe(job: Job, **more: Any) -> dict[str, Any]:
    """The provenance of a job's output: what ran, on what, from which commit, by which configuration.

    ``dirty`` says whether the code differed from the commit, ``dirty_inputs`` which artifacts under the output were
    made by code that did.
    """
    import torch

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
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "settings": job.settings,
        **more,
    }


class Workspace:
    """The unfinished form of an artifact: ``<output>.partial``, which a killed run leaves and the next one takes up.

    ``path`` is where the files of the artifact are written; ``state`` holds what is needed to resume and is
    removed before the artifact is published. Of several processes at one artifact, all but the first (``rank`` 0) write
    to a ``path`` of their own, which is removed with the state.
    """

    def __init__(self, output: Path, rank: int = 0) -> None:
        self.output, self.rank = output, rank
        partial = output.with_name(output.name + ".partial")
        self.state = partial / "state"
        self.path = self.state / f"rank{rank}" if rank else partial
        self._clock = partial / "seconds"
        self._started = time.monotonic()

    def seconds(self) -> float:
        """Wall time spent on this artifact, earlier, interrupted runs included."""
        before = float(self._clock.read_text()) if self._clock.exists() else 0.0
        return before + time.monotonic() - self._started

    def tick(self) -> None:
        """Remembers the wall time so far; called at every checkpoint."""
        spent = self.seconds()
        self._started = time.monotonic()
        write_text(self._clock, f"{spent:.3f}")


@contextlib.contextmanager
def artifact(job: Job, **more: Any) -> Iterator[Workspace]:
    """Makes ``job.output``: yields a workspace and, if the block ends well, publishes it under its final name.

    Of weights, ``provenance.json`` has the SHA-256, which is checked whenever they are loaded.
    Of several processes that Accelerate launched, the first publishes, when all have ended their block.
    """
    workspace = Workspace(Path(job.output), int(os.environ.get("RANK", "0")))
    workspace.state.mkdir(parents=True, exist_ok=True)
    workspace.path.mkdir(exist_ok=True)
    yield workspace
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from accelerate import PartialState

        PartialState().wait_for_everyone()
    if workspace.rank:
        return
    weights = workspace.path / WEIGHTS
    if weights.exists():
        more["sha256"] = sha256_of(weights)
    write_json(workspace.path / PROVENANCE, describe(job, wall_time_s=round(workspace.seconds(), 2), **more))
    shutil.rmtree(workspace.state)
    workspace._clock.unlink(missing_ok=True)
    if workspace.output.exists():
        shutil.rmtree(workspace.output)
    os.replace(workspace.path, workspace.output)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def bundle(folder: Path, name: str, package_weights: Path) -> Path:
    """Makes the weights that a pre-training wrote into ``folder`` the bundled ones called ``name``.

    They are copied into the package with a JSON that says how they were made and how accurate they are; it holds their
    SHA-256, which is checked whenever they are loaded.
    """
    target = package_weights / f"{name}.safetensors"
    target.parent.mkdir(exist_ok=True)
    shutil.copyfile(folder / WEIGHTS, target)
    sha256 = sha256_of(target)
    provenance, accuracy = (json.loads((folder / part).read_text()) for part in (PROVENANCE, "accuracy.json"))
    write_json(target.with_suffix(".json"), {**provenance, "sha256": sha256, "accuracy": accuracy})
    return target
