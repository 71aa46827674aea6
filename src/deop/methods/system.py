"""A trained system as a folder: ``config.json``, ``model.safetensors`` and ``provenance.json``.

:func:`load_system` builds a system from such a folder and nothing else: no job, no dataset, no workflow. Weights that
anyone can fetch, such as OpenAI's CLIP, stay a reference with a SHA-256 unless they are written in.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from deop.errors import DeopError, WeightsError, explain
from deop.jobs.integrity import PROVENANCE, WEIGHTS
from deop.methods.base import Segmenter
from deop.methods.builder import Builder
from deop.models.clip import DenseCLIP, load_clip
from deop.models.pretrained import find_clip_weights
from deop.models.weight_files import checked_weights, load_fitting, read_weights, save_weights
from deop.settings.methods import method_class, method_settings
from deop.settings.stages import Clip, Proposals, TextPrompts
from deop.settings.system import CONFIG, ClipReference, SystemConfig
from deop.utils.files import file_hash, write_json

_CLIP = "clip."
_SECTIONS = {"clip": Clip, "prompts": TextPrompts, "proposals": Proposals}
_PACKAGES = ("deop", "torch", "open_clip_torch", "timm", "transformers")


def read_config(folder: str | Path) -> SystemConfig:
    """The ``config.json`` of a system.

    Raises:
        DeopError: a folder that holds no system, or a file that cannot be read as one.
    """
    path = Path(folder) / CONFIG
    try:
        config = SystemConfig.model_validate_json(path.read_bytes())
    except OSError as error:
        raise DeopError(f"{folder} is no trained system: {path} cannot be read ({error.strerror})") from None
    except ValidationError as error:
        raise DeopError(explain(error, SystemConfig, str(path))) from None
    method = method_settings(config.sections.get("method", {}).get("method", ""), str(path))
    for name, model in {"method": method, **_SECTIONS}.items():
        if name in config.sections:
            try:
                model.model_validate(config.sections[name])
            except ValidationError as error:
                raise DeopError(explain(error, model, str(path), ("sections", name))) from None
    return config


def load_system(
    folder: str | Path,
    *,
    changes: Mapping[str, Any] | None = None,
    seen_names: tuple[str, ...] | None = None,
) -> Segmenter:
    """Builds a system from its folder.

    Args:
        folder: as :func:`save_system` wrote it.
        changes: settings of the method to use in place of those in the folder; they must not change its networks.
        seen_names: the classes to treat as seen; None is those that the system was trained on.

    Returns:
        The segmenter, in evaluation mode, on the CPU, with ``size_divisibility`` and ``upsample`` as in the folder.

    Raises:
        DeopError: a folder that holds no system.
        WeightsError: weights that are missing, damaged, or do not fit the settings.
    """
    folder = Path(folder)
    config = read_config(folder)
    path = checked_weights(folder)
    sections = {**config.sections, "method": {**config.sections["method"], **(changes or {})}}
    builder = Builder(
        sections,
        {},
        seen_names=config.seen_names if seen_names is None else seen_names,
        class_names=config.class_names,
        clip=lambda: _clip(config, path),
    )
    segmenter = method_class(sections["method"]["method"]).build(builder)
    state = {name: value for name, value in read_weights(path).items() if not name.startswith(_CLIP)}
    # Counters of batch norms are not used here, and weights of other origin lack them.
    needed = {
        name
        for name in segmenter.state_dict()
        if not name.startswith(_CLIP) and not name.endswith("num_batches_tracked")
    }
    load_fitting(segmenter, state, path, needed)
    segmenter.size_divisibility = config.inference.size_divisibility
    segmenter.upsample = config.inference.upsample
    return segmenter.eval()


def save_system(
    segmenter: Segmenter, config: SystemConfig, folder: Path, *, include_clip: bool = False
) -> None:
    """Writes ``config.json`` and ``model.safetensors`` of a system into ``folder``.

    Their hashes are in ``provenance.json``, to which whoever knows more adds how the system was made.

    The weights are all that the segmenter has, but for those of a public CLIP. ``config.clip`` and ``config.versions``
    are filled in here.

    Args:
        include_clip: write the weights of the CLIP in, so that the folder needs no other file.
    """
    state = {name: value for name, value in segmenter.state_dict().items() if not name.startswith(_CLIP)}
    clip = getattr(segmenter, "clip", None)
    sections, reference = dict(config.sections), None
    if clip is not None:
        settings = Clip.model_validate(sections["clip"])
        included = (
            include_clip or settings.pretrained is None or (config.clip is not None and config.clip.included)
        )
        sha256 = None
        if included:
            state |= {f"{_CLIP}{name}": _compact(value) for name, value in clip.model.state_dict().items()}
            sections["clip"] = sections["clip"] | {"pretrained": None, "quick_gelu": clip.quick_gelu}
        else:
            sha256 = file_hash(find_clip_weights(settings.model, settings.pretrained, None))
        reference = ClipReference(included=included, sha256=sha256, mean=clip.mean, std=clip.std)
    versions = {name: version(name) for name in _PACKAGES}
    config = config.model_copy(update={"sections": sections, "clip": reference, "versions": versions})
    write_json(folder / CONFIG, config.model_dump(mode="json"))
    save_weights(state, folder)
    hashes = {"sha256": file_hash(folder / WEIGHTS), "files": {CONFIG: file_hash(folder / CONFIG)}}
    write_json(folder / PROVENANCE, hashes)


def _clip(config: SystemConfig, path: Path) -> DenseCLIP:
    settings, reference = Clip.model_validate(config.sections["clip"]), config.clip
    if reference is None:
        raise WeightsError(f"{path.parent / CONFIG} has no entry clip, but its method needs a CLIP")
    if not reference.included:
        return load_clip(
            settings.model,
            settings.pretrained,
            quick_gelu=settings.quick_gelu,
            weights_sha256=reference.sha256,
        )
    clip = load_clip(settings.model, str(path), quick_gelu=settings.quick_gelu, prefix=_CLIP)
    clip.mean, clip.std = reference.mean, reference.std
    return clip


def _compact(value: Tensor) -> Tensor:
    """Half the size where that loses nothing: bundled weights are kept in half precision."""
    half = value.half() if value.dtype == torch.float32 else value
    return half if torch.equal(half.to(value.dtype), value) else value
