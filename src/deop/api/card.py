"""The model card of a system, made from what its folder says. Without torch."""

from __future__ import annotations

from typing import Any

import yaml

from deop.settings.system import SystemConfig

_KEPT = ("seed", "commit", "created", "wall_time_s", "device")


def model_card(config: SystemConfig, provenance: dict[str, Any]) -> str:
    """A model card in Markdown: how to use the system, its classes, settings, provenance and scores."""
    header = {"library_name": "deop", "pipeline_tag": "image-segmentation", "license": "apache-2.0"}
    seen, unseen = config.seen_names, [name for name in config.class_names if name not in config.seen_names]
    parts = [
        f"---\n{yaml.safe_dump(header, sort_keys=False)}---",
        f"# {config.name}",
        "A system for open-vocabulary semantic segmentation, made with the package `deop` (DeOP, ICCV 2023).",
        '```python\nimport deop\n\nsegmenter = deop.load("THIS FOLDER OR REPOSITORY")\n'
        'segmenter("photo.jpg", ["bear", "grass"]).plot()\n```',
    ]
    if config.class_names:
        parts.append(f"Trained on {len(seen)} classes: {', '.join(seen)}.")
    if unseen:
        parts.append(f"Not shown in training, and used to measure it: {', '.join(unseen)}.")
    clip = config.sections.get("clip", {})
    if clip:
        parts.append(f"CLIP: {clip.get('model')}, weights {clip.get('pretrained') or 'in this folder'}.")
    rows = {key: provenance[key] for key in _KEPT if key in provenance}
    rows |= {f"version of {name}": number for name, number in config.versions.items()}
    if rows:
        parts.append(_table(("made with", ""), rows))
    if scores := provenance.get("scores"):
        parts.append(_table(("measured on its validation set", "percent"), _percent(scores)))
    settings = yaml.safe_dump(config.sections.get("method", {}), sort_keys=False)
    return "\n\n".join([*parts, f"Settings of the method:\n\n```yaml\n{settings}```"]) + "\n"


def _percent(scores: dict[str, Any]) -> dict[str, str]:
    return {name: f"{100 * value:.1f}" for name, value in scores.items() if isinstance(value, float)}


def _table(head: tuple[str, str], rows: dict[str, Any]) -> str:
    lines = [f"| {head[0]} | {head[1]} |", "|---|---|"]
    return "\n".join([*lines, *(f"| {key} | {value} |" for key, value in rows.items())])
