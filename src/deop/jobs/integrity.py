"""Hashes of artifacts: written when they are made, and checked before a stage reads them.

A folder has them in its ``provenance.json``: ``sha256`` of its weights, and ``files``, by name, of the other files at
its top. A dataset's label maps and images have checksums in its split files, which are among these. An artifact that is
one JSON holds its own hash as ``sha256``, and as ``files`` those of files beside it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deop.errors import DeopError
from deop.jobs.job import Job
from deop.utils.files import file_hash, write_json

PROVENANCE = "provenance.json"
WEIGHTS = "model.safetensors"


def folder_hashes(folder: Path) -> dict[str, Any]:
    """The hashes that belong into the provenance of a folder; ``sha256`` only if it has weights."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    hashes = {path.name: file_hash(path) for path in files if path.name != PROVENANCE}
    weights = {"sha256": hashes.pop(WEIGHTS)} if WEIGHTS in hashes else {}
    return weights | {"files": hashes}


def write_sealed(path: Path, values: Mapping[str, Any], beside: tuple[Path, ...] = ()) -> None:
    """Writes an artifact that is one JSON.

    Args:
        beside: files in the same folder that belong to it.
    """
    files = {"files": {file.name: file_hash(file) for file in beside}} if beside else {}
    content = {**values, **files}
    write_json(path, content | {"sha256": _seal(content)})


def check_inputs(job: Job) -> None:
    """Checks what a job reads against the hashes from when it was made, but for weights: these are when loaded.

    Raises:
        DeopError: a file that has changed since, is missing or has no hash, by name, and what to remove.
    """
    for path in map(Path, job.inputs.values()):
        if path.suffix == ".json":
            _check_file(path)
        else:
            _check_folder(path)


def _check_folder(folder: Path) -> None:
    remedy = f"remove {folder} to have it made again"
    provenance = read_json(folder / PROVENANCE, remedy)
    if "sha256" not in provenance and "files" not in provenance:
        raise DeopError(f"{folder / PROVENANCE} has no hashes of the files beside it; {remedy}")
    _check_files(folder, provenance.get("files", {}), remedy)


def _check_file(path: Path) -> None:
    remedy = f"remove {path} to have it made again"
    values = read_json(path, remedy)
    seal = values.pop("sha256", None)
    if seal is None:
        raise DeopError(f"{path} has no hash of its content; {remedy}")
    if seal != _seal(values):
        raise DeopError(f"{path} is not as it was made: its content has another SHA-256; {remedy}")
    _check_files(path.parent, values.get("files", {}), remedy)


def _check_files(folder: Path, hashes: Mapping[str, str], remedy: str) -> None:
    for name, sha256 in hashes.items():
        path = folder / name
        if not path.is_file():
            raise DeopError(f"{path} is not there; {remedy}")
        if file_hash(path) != sha256:
            raise DeopError(f"{path} is not as it was made: it has another SHA-256; {remedy}")


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """The object in a JSON file of an artifact.

    Raises:
        DeopError: a file that is missing or is no JSON object; its message ends with ``remedy``.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DeopError(f"{path} cannot be read ({error.strerror}); {remedy}") from None
    except ValueError as error:  # not JSON, or not UTF-8
        raise DeopError(f"{path} cannot be read as JSON ({error}); {remedy}") from None
    if not isinstance(values, dict):
        raise DeopError(f"{path} is no JSON object; {remedy}")
    return values


def _seal(values: Mapping[str, Any]) -> str:
    as_read = json.loads(json.dumps(values))  # tuples are lists then
    return hashlib.sha256(json.dumps(as_read, sort_keys=True).encode()).hexdigest()
