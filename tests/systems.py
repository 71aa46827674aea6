"""Small trained systems in folders, with random weights: what evaluation, pictures and commands start from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from deop.jobs.integrity import PROVENANCE, WEIGHTS
from deop.jobs.jobs import dump
from deop.methods.base import Segmenter
from deop.methods.builder import Builder
from deop.methods.system import save_system
from deop.settings.methods import MethodSettings, method_class
from deop.settings.system import Inference, SystemConfig
from deop.utils.files import file_hash, write_json

CLIP = {"model": "deop-mini", "pretrained": None}
PROMPTS = {"prefix_tokens": 2, "iterations": 0}
PROPOSALS = {
    "backbone": "resnet10t",
    "backbone_args": {"channels": [8, 8, 16, 16]},
    "pretrained_backbone": False,
    "out_indices": [0, 1, 2, 3],
    "queries": 4,
    "decoder_layers": 1,
    "width": 32,
    "ffn_width": 32,
    "heads": 2,
    "iterations": 1,
    "batch_size": 2,
    "augmentation": {"crop": 32},
}


def sections(method: MethodSettings, **changes: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The settings of a small system; ``changes`` are values of sections, by name: ``proposals={"queries": 8}``."""
    values = {"clip": CLIP, "prompts": PROMPTS, "proposals": PROPOSALS} | {"method": dump(method)}
    return {name: section | changes.get(name, {}) for name, section in values.items()}


def build(method: MethodSettings, seen: Sequence[str] = (), **changes: dict[str, Any]) -> Segmenter:
    """A system with random weights, those that training would change among them."""
    torch.manual_seed(0)
    builder = Builder(sections(method, **changes), {}, seen_names=tuple(seen))
    segmenter = method_class(method.method).build(builder).eval()
    with torch.no_grad():
        for name, value in segmenter.named_parameters():
            if not name.startswith("clip."):
                value.add_(0.1 * torch.randn_like(value))
    return segmenter


def save(
    segmenter: Segmenter,
    folder: Path,
    names: Sequence[str],
    *,
    unseen: Sequence[str] = (),
    inference: Inference | None = None,
    include_clip: bool = False,
    **changes: dict[str, Any],
) -> Path:
    """Writes the folder of a system that :func:`build` made with the same ``changes``; returns it."""
    settings = getattr(segmenter, "settings", None) or segmenter.network
    config = SystemConfig(
        name="small",
        sections=sections(settings, **changes),
        class_names=tuple(names),
        seen_names=tuple(name for name in names if name not in unseen),
        inference=inference or Inference(),
    )
    folder.mkdir(parents=True, exist_ok=True)
    save_system(segmenter, config, folder, include_clip=include_clip)
    write_json(folder / PROVENANCE, {"stage": "build_system", "sha256": file_hash(folder / WEIGHTS)})
    return folder
