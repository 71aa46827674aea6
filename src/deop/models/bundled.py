"""Weights that come with the package, each with a JSON that says how they were made. CLIPs may share a text tower."""

from __future__ import annotations

import hashlib
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
        text_tower: a bundled CLIP whose text tower these weights were trained with; they are written without their own.

    Raises:
        WeightsError: weights whose text tower is another.
    """
    weights = read_weights(checked_weights(folder))
    provenance, accuracy = (json.loads((folder / part).read_text()) for part in (PROVENANCE, "accuracy.json"))
    provenance.pop("files", None)  # hashes of files that stay behind
    about = {**provenance, "accuracy": accuracy}
    if text_tower is not None:
        shared = _text_of(read_weights(target / f"{text_tower}.safetensors"))
        own = _text_of(weights)
        if own.keys() != shared.keys() or not all(torch.equal(own[key], shared[key]) for key in own):
            raise WeightsError(f"{folder} has another text tower than {text_tower}")
        weights = {key: value for key, value in weights.items() if key not in own}
        about["text_tower"] = {"model": text_tower, "sha256": _digest(shared)}
    path = target / f"{name}.safetensors"
    target.mkdir(exist_ok=True)
    save_file(weights, path)
    write_json(path.with_suffix(".json"), {**about, "sha256": file_hash(path)})
    return path


def read_bundled(path: Path) -> dict[str, Tensor]:
    """The tensors of bundled weights, with those of a text tower that they share with another CLIP.

    Raises:
        WeightsError: a file that is not the one that the JSON beside it is about, or another text tower.
    """
    about = json.loads(path.with_suffix(".json").read_text())
    check_sha256(path, about["sha256"])
    weights = read_weights(path)
    if (shared := about.get("text_tower")) is None:
        return weights
    text = _text_of(read_weights(path.with_name(f"{shared['model']}.safetensors")))
    if _digest(text) != shared["sha256"]:
        raise WeightsError(f"{path} was trained with another text tower than that of {shared['model']}")
    return text | weights


def _text_of(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in weights.items() if not key.startswith(("visual.", "logit_"))}


def _digest(weights: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for key in sorted(weights):
        digest.update(key.encode())
        digest.update(weights[key].contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()
