"""Weights that come with the package, each with a JSON that says how they were made. CLIPs may share a text tower."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from deop.errors import WeightsError
from deop.jobs.integrity import PROVENANCE
from deop.models.weight_files import check_sha256, checked_weights, read_weights
from deop.utils.files import file_hash, write_json


def bundle(folder: Path, name: str, target: Path, text_tower: str | None = None) -> Path:
    """Makes the weights that a pre-training wrote into ``folder`` the bundled ones called ``name``; returns their file.

    They are copied into ``target`` with a JSON that has their provenance, accuracy and SHA-256.

    Args:
        text_tower: name of the file that the text tower of a CLIP is kept in, so that several CLIPs can share it. It is
            written if there is none.

    Raises:
        WeightsError: a file ``text_tower`` with another text tower.
    """
    weights = read_weights(checked_weights(folder))
    provenance, accuracy = (json.loads((folder / part).read_text()) for part in (PROVENANCE, "accuracy.json"))
    provenance.pop("files", None)  # hashes of files that stay behind
    about = {**provenance, "accuracy": accuracy}
    target.mkdir(exist_ok=True)
    if text_tower is not None:
        text = {key: value for key, value in weights.items() if not key.startswith(("visual.", "logit_"))}
        shared = target / f"{text_tower}.safetensors"
        if not shared.exists():
            save_file(text, shared)
        elif not _same(text, read_weights(shared)):
            raise WeightsError(f"{folder} has another text tower than {shared}")
        weights = {key: value for key, value in weights.items() if key not in text}
        about["text_tower"] = {"name": text_tower, "sha256": file_hash(shared)}
    path = target / f"{name}.safetensors"
    save_file(weights, path)
    write_json(path.with_suffix(".json"), {**about, "sha256": file_hash(path)})
    return path


def read_bundled(path: Path) -> dict[str, Tensor]:
    """The tensors of bundled weights, with those of the text tower that is kept in another file.

    Raises:
        WeightsError: a file that is not the one that the JSON is about.
    """
    about = json.loads(path.with_suffix(".json").read_text())
    check_sha256(path, about["sha256"])
    weights = read_weights(path)
    if (shared := about.get("text_tower")) is None:
        return weights
    text = path.with_name(f"{shared['name']}.safetensors")
    check_sha256(text, shared["sha256"])
    return read_weights(text) | weights


def _same(weights: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return weights.keys() == other.keys() and all(torch.equal(weights[key], other[key]) for key in weights)
