"""Imports the authors' released checkpoint, a detectron2 ``.pth``, in the form that the stages read."""

from __future__ import annotations

import collections
import os
import shutil
from pathlib import Path

import numpy as np
import torch
from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from torch import Tensor

from deop import __version__
from deop.data.class_lists import labelled_classes
from deop.data.release_names import link_dataset, release_names
from deop.data.segmentation import SegmentationDataset, read_card
from deop.errors import DeopError
from deop.jobs.artifacts import PROVENANCE, code_version, provenance_of
from deop.jobs.integrity import folder_hashes
from deop.jobs.job import Job
from deop.jobs.jobs import dump
from deop.models.weight_files import read_pickled, save_weights
from deop.settings.methods import AnchorSettings, DeOPSettings, SeveranceSettings
from deop.settings.schedule import Augmentation
from deop.settings.stages import Clip, Evaluation, Proposals, TextPrompts
from deop.settings.system import CONFIG, ClipReference, Inference, SystemConfig
from deop.tools.authors import Imported, convert
from deop.utils.files import file_hash, write_json, write_text

CLIP_MODELS = {
    (768, 32, 50): "ViT-B-32-quickgelu",
    (768, 16, 197): "ViT-B-16-quickgelu",
    (1024, 14, 257): "ViT-L-14-quickgelu",
    (1024, 14, 577): "ViT-L-14-336-quickgelu",
}
"""open_clip's names of OpenAI's ViTs by token width, patch size and number of positions."""


INFERENCE = Inference(short_side=512, size_divisibility=32, upsample="scores")
PREFIXES = {"proposals": "proposals.", "prompts": "text_prompt.", "clip": "clip.", "segmentation": ""}
"""How the names of each part's tensors start in the weights of a system."""


def config_of(imported: Imported) -> SystemConfig:
    """The configuration of the imported system; sizes are those of its tensors.

    What a tensor cannot say is the release's: ImageNet's normalisation also for CLIP, the severance ``mask_sum``, a
    pooled embedding brought to unit length (its heatmap layer does so, though the paper is silent), how its maps
    and masks are resampled, images padded to multiples of 32 pixels, and class scores resized.

    Raises:
        DeopError: a CLIP that is none of OpenAI's ViTs.
    """
    proposals, segmentation, clip = (imported.parts[part] for part in ("proposals", "segmentation", "clip"))
    patch_weights, positions = clip["visual.conv1.weight"], clip["visual.positional_embedding"]
    size = (len(patch_weights), patch_weights.shape[-1], len(positions))
    if size not in CLIP_MODELS:
        raise DeopError(
            f"the checkpoint's CLIP has width {size[0]}, patches of {size[1]} pixels and {size[2]} positions; known: "
            + ", ".join(CLIP_MODELS.values())
        )
    classes = labelled_classes("coco_stuff", "original")
    sections = {
        "clip": dump(
            Clip(model=CLIP_MODELS[size], pretrained=None, quick_gelu=True, normalisation="imagenet")
        ),
        "proposals": dump(
            Proposals(
                backbone="resnet101s",
                backbone_args={"multi_grid": [1, 2, 4]},
                pretrained_backbone=False,
                queries=len(proposals["transformer.queries_embedder.weight"]),
                decoder_layers=_layers(proposals, "transformer.decoder.layers"),
                width=proposals["transformer.queries_embedder.weight"].shape[1],
                ffn_width=len(proposals["transformer.decoder.layers.0.mlp.fc1.weight"]),
                decoder_norm="outputs",
                iterations=60_000,
                augmentation=Augmentation(crop=640),
            )
        ),
        "prompts": dump(
            TextPrompts(prefix_tokens=len(imported.parts["prompts"]["context"]), iterations=10_000)
        ),
        "method": dump(
            DeOPSettings(
                visual_prompts=True,
                text_prompts="online",
                severance=SeveranceSettings(kind="mask_sum", alpha={-1: 1.0}),
                anchors=AnchorSettings(kind="query", layers=_layers(segmentation, "anchors.layers")),
                visual_prompt_grid=segmentation["visual_prompts.patches"].shape[-1],
                renormalise_pooled=True,
                logit_scale=100.0,
                resampling="release",
            )
        ),
    }
    return SystemConfig(
        name="deop-release",
        sections=sections,
        class_names=tuple(entry.name for entry in classes),
        seen_names=tuple(entry.name for entry in classes if not entry.unseen),
        clip=ClipReference(included=True, mean=OPENAI_DATASET_MEAN, std=OPENAI_DATASET_STD),
        inference=INFERENCE,
        versions={"deop": __version__},
    )


def _layers(tensors: dict[str, Tensor], stem: str) -> int:
    return 1 + max(
        (int(name.split(".")[stem.count(".") + 1]) for name in tensors if name.startswith(stem)), default=-1
    )


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The state dict in a detectron2 checkpoint, whose other entries (optimiser, scheduler) are not looked at.

    No code of the file is run: beside tensors only numpy's numbers and counters are let in, which detectron2 puts into
    its schedulers' state.

    Raises:
        DeopError: a file that is not there, not a checkpoint, or could only be read by running code that it names.
    """
    if not path.is_file():
        raise DeopError(f"checkpoint {path} is not there; the release's README links to it as 'model weight'")
    scalars = [np.dtype, np.ndarray, *(type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8", "bool"))]
    functions = (np._core.multiarray.scalar, np._core.multiarray._reconstruct)
    loaded = read_pickled(path, (*scalars, *functions, collections.Counter))
    state = loaded.get("model", loaded) if isinstance(loaded, dict) else None
    if not isinstance(state, dict) or not any(isinstance(value, Tensor) for value in state.values()):
        raise DeopError(f"{path} holds no state dict, neither at top level nor under 'model'")
    return {name: torch.as_tensor(value) for name, value in state.items()}


def import_checkpoint(path: Path, output: Path, data: Path | None = None) -> Imported:
    """Reads the release's checkpoint and writes ``output``, the folder of a system (:mod:`deop.methods.system`).

    Its CLIP is written in. The provenance has the source's SHA-256, and what was left out and why. With ``data``, a
    prepared dataset, there is also ``evaluate.json``: the job of ``deop evaluate`` that measures the system on it,
    under the class names that the release evaluates with (:func:`deop.data.release_names.release_names`). Where
    ``data`` has others, the job reads ``output/data``, the same images and label maps under those names.

    Raises:
        DeopError: a file that cannot be read or is not the release's, an ``output`` that is there already, or a
            ``data`` without a validation set.
    """
    if output.exists():
        raise DeopError(f"{output} is there already; remove it, or name another folder")
    if data is not None:
        own = SegmentationDataset(data, "val").card
    state = read_checkpoint(path)
    imported = convert(state)
    config = config_of(imported)
    partial = output.with_name(output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    # In full precision and apart from each other: the rows of a joint projection share memory.
    tensors = {
        PREFIXES[part] + name: value.float().clone()
        for part, of_part in imported.parts.items()
        for name, value in of_part.items()
    }
    save_weights(tensors, partial)
    write_json(partial / CONFIG, config.model_dump(mode="json"))
    source = file_hash(path)
    write_json(
        partial / PROVENANCE,
        {
            "stage": "import_authors",
            "source": path.name,
            "source_sha256": source,
            **folder_hashes(partial),
            **code_version(),
            "tensors": {"in_checkpoint": len(state), "left_out": len(imported.left_out)},
            "left_out": imported.left_out,
        },
    )
    if data is not None:
        named = release_names(own)
        if named != own:
            link_dataset(data, named, partial / "data")
            linked = (provenance_of(data) or {}) | folder_hashes(partial / "data")
            write_json(partial / "data" / PROVENANCE, linked)
            data = output / "data"
        job = Job(
            stage="evaluate",
            key=source[:12],
            output=str(output / "evaluation.json"),
            inputs={"data": str(data), "system": str(output)},
            settings={"evaluation": dump(Evaluation(**INFERENCE.model_dump()))},
        )
        write_text(partial / "evaluate.json", job.model_dump_json(indent=1) + "\n")
    os.replace(partial, output)
    return imported


def class_names(output: Path, data: Path) -> str:
    """Which class names the evaluation of an import in ``output`` on ``data`` uses, in words."""
    own = read_card(data)
    named = release_names(own)
    if named.spelling is None:
        return f"those of {data}, which is not a dataset of the release"
    changed = sum(ours != theirs for ours, theirs in zip(own.names, named.names, strict=True))
    where = (
        f" ({output / 'data'}; {data} has others for {changed} of {len(own.names)} classes)"
        if changed
        else ""
    )
    return f"{named.spelling}, as the release has them{where}"
