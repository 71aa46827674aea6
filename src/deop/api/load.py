"""``deop.load``: a segmenter by the name that people give it."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
from huggingface_hub import HfApi, constants, get_hf_file_metadata, hf_hub_url
from pydantic import ValidationError

from deop.api.places import bundled_systems, find_folder, find_project, systems_of
from deop.api.segmenter import OpenVocabularySegmenter
from deop.errors import DeopError, WeightsError, explain
from deop.methods.builder import Builder
from deop.methods.training_free import TrainingFree
from deop.models.pretrained import cached_clip, hub_cache, reason_of
from deop.settings.stages import Inference
from deop.settings.system import CONFIG, SystemConfig
from deop.settings.training_free import TrainingFreeSettings

GRAPHS = (".onnx", ".xml")
_SHORT_SIDE = 512
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def load(
    name: str | Path,
    *,
    proposals: str | None = None,
    severance: str | dict[str, Any] | None = None,
    templates: str | Sequence[str] | None = None,
    short_side: int | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    project: str | Path | None = None,
    profiles: Sequence[str | Path] = (),
) -> OpenVocabularySegmenter:
    """A segmenter, ready to use.

    Examples:
        >>> segmenter = load("deop-mini/bundled", severance="none", short_side=96)
        >>> segmenter.name, segmenter.classes
        ('deop-mini/bundled', [])

    Args:
        name: the folder of a trained system; a system of the project such as ``"es171/deop"``; a bundled one; the name
            of a repository on the Hugging Face hub; a graph that ``deop export`` wrote (.onnx or .xml); or a CLIP of
            open_clip with the tag of its weights, or a file of them, such as ``"ViT-B-16/openai"``, which segments
            without any training.
        proposals: for a CLIP: ``"none"`` (the default: classes per patch, upsampled), ``"slic"`` (superpixels), or the
            name of a MaskFormer, Mask2Former or SAM on the hub, whose masks are used and whose classes are not.
        severance: for a CLIP: ``"none"``, or ``{"kind": "gps", "alpha": {-1: 1}}``, which is the default: the last
            layer's patches do not attend to each other.
        templates: for a CLIP: ``"imagenet"``, ``"vild"``, or texts with ``{}`` for the class name.
        short_side: pixels of the shorter side of pictures as the network is shown them; None is what the system was
            evaluated with, and 512 for a CLIP.
        device: as :class:`~deop.api.segmenter.OpenVocabularySegmenter` takes it.
        dtype: likewise.
        project: the folder with ``config/`` that names refer to; by default ``DEOP_PROJECT``, or this folder or one
            above it.
        profiles: files merged over its ``config/config.yaml`` in turn.

    Raises:
        DeopError: a name that means nothing, with the nearest ones; settings that do not fit; weights that cannot be
            had.
    """
    if Path(name).suffix in GRAPHS:
        options = {"proposals": proposals, "severance": severance, "templates": templates}
        return _graph(
            Path(name),
            {key for key, value in options.items() if value is not None},
            short_side,
            device,
            dtype,
        )
    own = {"proposals": proposals, "severance": severance, "templates": templates}
    own = {key: value for key, value in own.items() if value is not None}
    text = str(name)
    root = find_project(project)
    files = [Path(profile) for profile in profiles]
    folder = find_folder(text, root, files)
    if folder is None and (split := _split_clip(text)) is not None:
        return _training_free(*split, own, short_side or _SHORT_SIDE, device, dtype)
    if own:
        raise DeopError(
            f"{text}: {', '.join(own)} cannot be changed, because the system was trained with its own; they are for "
            "a CLIP, such as 'ViT-B-16/openai'"
        )
    if folder is None:
        folder = _from_hub(text, root, files)
    found = OpenVocabularySegmenter.of_folder(folder, device=device, dtype=dtype)
    if short_side is not None:
        inference = found.settings.inference.model_copy(update={"short_side": short_side})
        found.settings = found.settings.model_copy(update={"inference": inference})
    return found


def _graph(
    path: Path,
    own: set[str],
    short_side: int | None,
    device: str | torch.device | None,
    dtype: str | torch.dtype | None,
) -> OpenVocabularySegmenter:
    """A graph that ``deop export`` wrote.

    Raises:
        DeopError: a file that is not there or no such graph, or options that a graph does not have: graphs compute in
            float32 (``dtype`` None or ``"auto"``) or bfloat16.
    """
    if not path.is_file():
        raise DeopError(f"{path} is not there")
    if own:
        raise DeopError(f"{path}: {', '.join(sorted(own))} cannot be changed, because the graph has its own")
    if device is not None and torch.device(device).type != "cpu":
        raise DeopError(f"{path}: device {device!r} is not to be had; graphs run on the CPU")
    from deop.methods.graph_segmenter import read_graph

    precisions = {
        "None": torch.float32,
        "auto": torch.float32,
        "float32": torch.float32,
        "bfloat16": torch.bfloat16,
    }
    precision = precisions.get(str(dtype).removeprefix("torch."))
    if precision is None:
        raise DeopError(f"{path}: dtype {dtype!r}: valid for a graph: float32, bfloat16")
    network = read_graph(path, precision, lambda metadata: load(metadata.system, device="cpu").network)
    config = network.metadata.config
    if short_side is not None:
        inference = config.inference.model_copy(update={"short_side": short_side})
        config = config.model_copy(update={"inference": inference})
    if network.metadata.names is not None:
        config = config.model_copy(update={"class_names": network.metadata.names})
    return OpenVocabularySegmenter(
        network, config, device="cpu", dtype="float32", provenance=network.metadata.provenance
    )


def _split_clip(name: str) -> tuple[str, str] | None:
    """The model and the weights in ``MODEL/WEIGHTS``, None where MODEL is none of open_clip's."""
    model, _, weights = name.partition("/")
    return (model, weights) if weights and open_clip.get_model_config(model) is not None else None


def _training_free(
    model: str,
    weights: str,
    own: dict[str, Any],
    short_side: int,
    device: str | torch.device | None,
    dtype: str | torch.dtype | None,
) -> OpenVocabularySegmenter:
    if isinstance(own.get("severance"), str):
        kind = own["severance"]
        own = own | {"severance": {"kind": kind} if kind == "none" else {"kind": kind, "alpha": {-1: 1}}}
    try:
        settings = TrainingFreeSettings.model_validate({"method": "training_free"} | own)
    except ValidationError as error:
        raise DeopError(explain(error, TrainingFreeSettings, f"{model}/{weights}")) from None
    announce_clip(model, weights)
    sections = {"method": settings.model_dump(mode="json"), "clip": {"model": model, "pretrained": weights}}
    config = SystemConfig(
        name=f"{model}/{weights}",
        sections=sections,
        class_names=(),
        seen_names=(),
        inference=Inference(short_side=short_side),
        versions={},
    )
    try:
        network = TrainingFree.build(Builder(sections, {}))
    except ValueError as error:  # of severance: a layer that the tower does not have
        if isinstance(error, DeopError):
            raise
        raise DeopError(f"{model}/{weights}: {error}") from None
    return OpenVocabularySegmenter(network.eval(), config, device=device, dtype=dtype)


def announce_clip(model: str, weights: str) -> None:
    """Says on standard error that weights will be downloaded, from where, to where, and how much.

    Raises:
        WeightsError: the hub cannot be reached. This asks once; the hub's client would go on trying, with a warning
            each time.
    """
    if not open_clip.get_pretrained_cfg(model, weights):
        return
    path, url = cached_clip(model, weights)
    if path is not None:
        return
    if not url.startswith(constants.ENDPOINT):
        print(f"deop: downloading {model}/{weights} from {url}", file=sys.stderr)
        return
    _announce(f"{model}/{weights}", url, _remedy(model))


def _remedy(model: str) -> str:
    return (
        "Download that file on a machine that may, and name it in place of the tag: "
        f"deop.load('{model}/PATH.safetensors'), --model {model}/PATH.safetensors"
    )


def _announce(what: str, url: str, remedy: str) -> None:
    try:
        size = get_hf_file_metadata(url, timeout=10, retry_on_errors=False).size
    except Exception as error:  # of the hub's client, of the line
        raise WeightsError(
            f"{what}: the weights are not on this machine, and cannot be downloaded from {url} ({reason_of(error)}); "
            f"they would be kept in {hub_cache()}. {remedy}"
        ) from None
    amount = f" ({size / 1e6:,.0f} MB)" if size else ""
    print(f"deop: downloading {what}{amount} from {url} to {hub_cache()}, this once", file=sys.stderr)


def _from_hub(name: str, project: Path | None, profiles: Sequence[Path]) -> Path:
    """The folder of a system on the hub.

    Raises:
        DeopError: a name that means nothing here, nor on the hub, or a hub that cannot be reached.
    """
    unknown = _unknown(name, project, profiles)
    if not _HUB_NAME.fullmatch(name):
        raise DeopError(unknown)
    from huggingface_hub import snapshot_download

    kept = [CONFIG, "model.safetensors", "provenance.json"]
    try:
        here = Path(snapshot_download(name, allow_patterns=kept, local_files_only=True))
    except Exception:  # not there yet
        here = None
    if here is not None and _is_newest(name, here.name):
        return here
    try:
        _announce(name, hf_hub_url(name, "model.safetensors"), "Copy its folder here, and name that")
    except WeightsError as error:
        raise WeightsError(f"{unknown}. As a repository of the hub: {error}") from None
    try:
        return Path(snapshot_download(name, allow_patterns=kept))
    except Exception as error:
        raise WeightsError(f"{name} could not be downloaded ({reason_of(error)})") from None


def _is_newest(name: str, commit: str) -> bool:
    """Whether a repository of the hub is at this commit, or cannot be asked."""
    try:
        return HfApi().repo_info(name, timeout=5).sha == commit
    except Exception:  # of the hub's client, of the line
        return True


def _unknown(name: str, project: Path | None, profiles: Sequence[Path]) -> str:
    trained = [system.name for system in systems_of(project, profiles) if system.trained]
    clips = [f"{model}/{tag}" for model, tag in open_clip.list_pretrained()]
    near = difflib.get_close_matches(name, [*bundled_systems(), *trained, *clips], n=5, cutoff=0.4)
    return (
        f"{name}: no system of that name; nearest: {', '.join(near) or 'none'}; trained here: "
        f"{', '.join(trained) or 'none'}; bundled: {', '.join(bundled_systems()) or 'none'}; without training: any "
        "CLIP of open_clip, such as ViT-B-16/openai"
    )
