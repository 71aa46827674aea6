"""What an artifact was made from, and that from, back to data and weights, read from the records of artifacts."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from deop.jobs.artifacts import TENSORBOARD, provenance_of, record_of
from deop.jobs.integrity import read_json
from deop.jobs.plan import JOBS
from deop.utils.files import file_hash

ORDER = (
    "table",
    "evaluate",
    "measure_speed",
    "build_system",
    "train_system",
    "train_proposals",
    "pretrain_backbone",
    "learn_prompts",
    "pretrain_clip",
    "prepare_data",
    "download",
)
"""Stages from a number back to where it comes from."""


class Part(NamedTuple):
    """An artifact in a lineage.

    path: relative to the folder of the workflow.
    stage: that made it; empty if neither it nor a job file tells.
    made: its provenance, without one that of its job file (``seed``, ``settings``), else empty.
    there: whether it is on disk.
    changed: whether something that was made from it had read another record.
    weights: by role, the SHA-256 of weights of the package that it was made from.
    """

    path: str
    stage: str
    made: dict[str, Any]
    there: bool
    changed: bool
    weights: dict[str, str]


def lineage(root: Path, path: str, sha256: str | None, within: str = "") -> list[Part]:
    """An artifact and all that it was made from, each once, what was made last first.

    Artifacts that are gone, or have no record of their inputs, are walked through by their job files, if these exist.

    Args:
        root: the folder of the workflow.
        path: the artifact, relative to ``root``.
        sha256: of its record, as whoever read it found it; None if that is not known.
        within: of the artifact itself, follow only roles that start with this, as those of one system in a measurement
            of several.

    Raises:
        DeopError: a record that is damaged.
    """
    found: dict[str, Part] = {}
    waiting: list[tuple[str, str | None, str]] = [(path, sha256, within)]
    while waiting:
        path, sha256, prefix = waiting.pop(0)
        if path not in found:
            found[path] = _read(root, path)
            inputs = found[path].made.get("inputs", {})
            waiting += [
                (each["path"], each["sha256"], "")
                for role, each in inputs.items()
                if "path" in each and role.startswith(prefix)
            ]
        part = found[path]  # which others may have read before it was made again
        if part.there and sha256 is not None and file_hash(record_of(root / path)) != sha256:
            found[path] = part._replace(changed=True)
    return sorted(
        found.values(), key=lambda part: ORDER.index(part.stage) if part.stage in ORDER else len(ORDER)
    )


def _read(root: Path, path: str) -> Part:
    """A part, by its record or, if that is gone or says nothing of its inputs, its job file."""
    record = provenance_of(root / path)
    made = record if record is not None and "inputs" in record else _job_of(root, path) | (record or {})
    weights = {role: each["sha256"] for role, each in made.get("inputs", {}).items() if "path" not in each}
    return Part(path, made.get("stage", ""), made, record is not None, False, weights)


def _job_of(root: Path, path: str) -> dict[str, Any]:
    """What the job file of an artifact says of how it is made, as a provenance would; empty without a job file."""
    key = Path(path).name.removesuffix(".json")[-12:]
    for file in (root / JOBS).glob(f"*-{key}.json"):
        job = read_json(file, f"remove {file}; Snakemake writes it again when it plans (snakemake -n)")
        inputs = {role: {"path": each, "sha256": None} for role, each in job["inputs"].items()}
        inputs |= {role: {"sha256": sha256} for role, sha256 in job.get("weights", {}).items()}
        return {"stage": job["stage"], "seed": job["seed"], "settings": job["settings"], "inputs": inputs}
    return {}


def logs_of(root: Path, part: Part) -> dict[str, Path]:
    """What its job wrote beside it, as far as it exists: its log, and the curves of a training."""
    log = Path("logs", part.stage, f"{Path(part.path).name.removesuffix('.json')}.log")
    places = {"log": log, "curves for TensorBoard": Path(part.path, TENSORBOARD)}
    return {name: place for name, place in places.items() if (root / place).exists()}
