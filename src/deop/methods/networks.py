"""Networks as the stages need them: built from a job's settings, with the weights of its inputs."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from deop.data.segmentation import IGNORE, read_card
from deop.errors import WeightsError
from deop.jobs.artifacts import PROVENANCE, WEIGHTS
from deop.jobs.job import Job
from deop.methods.base import Segmenter
from deop.methods.deop import DeOP
from deop.methods.multipass import MultiPass
from deop.methods.simbaseline import SimBaseline
from deop.methods.zegformer import ZegFormer
from deop.models.clip import DenseCLIP, load_clip
from deop.models.clip_build import has_quick_gelu
from deop.models.pretrained import BUNDLED, check_sha256
from deop.models.prompts import TextPrompt, TextTemplates
from deop.models.proposals import ProposalNetwork
from deop.models.weight_files import read_weights
from deop.settings.methods import SYSTEMS, Network
from deop.settings.stages import Clip, Proposals, Segmentation, TextPrompts
from deop.settings.templates import templates_of

MULTI_PASS: dict[str, type[MultiPass]] = {"simbaseline": SimBaseline, "zegformer": ZegFormer}


def build_clip(job: Job) -> DenseCLIP:
    """The CLIP of ``settings.clip``, or the one that an earlier stage pre-trained."""
    settings = Clip.model_validate(job.settings["clip"])
    trained = job.inputs.get("clip")
    if trained is None:
        return load_clip(settings.model, settings.pretrained, quick_gelu=settings.quick_gelu)
    path, quick_gelu = str(checked_weights(trained)), has_quick_gelu(settings.model)
    return load_clip(settings.model, path, quick_gelu=quick_gelu)


def build_prompt(job: Job, clip: DenseCLIP) -> TextPrompt:
    """The text prompt, with the offline learned weights if the job has them as input."""
    settings = TextPrompts.model_validate(job.settings["prompts"])
    prompt = TextPrompt(
        settings.prefix_tokens,
        clip.text_width,
        clip.embed_dim,
        init_std=settings.init_std,
        words=clip.word_embeddings(settings.prefix_words),
    )
    if "prompts" in job.inputs:
        load_weights(prompt, job.inputs["prompts"])
    return prompt


def build_proposals(job: Job) -> ProposalNetwork:
    """The proposal network, with trained weights if the job has them as input."""
    settings = Proposals.model_validate(job.settings["proposals"])
    # A trained multi-pass system has the network among its own weights.
    trained = job.inputs.get("proposals", job.inputs.get("multipass"))
    network = ProposalNetwork(
        # The trained weights hold the backbone's.
        pretrained_backbone=settings.pretrained_backbone is True and trained is None,
        **settings.architecture,
    )
    if "proposals" in job.inputs:
        load_weights(network, trained)
    elif trained is None and isinstance(settings.pretrained_backbone, str):
        _load_backbone(network, settings.backbone, _backbone_weights(settings, job.inputs.get("backbone")))
    return network


def _backbone_weights(settings: Proposals, folder: str | None) -> Path:
    """The file of the backbone's weights: of an earlier stage's ``folder``, bundled, or given by path.

    Raises:
        WeightsError: a file that is not there, or is not the bundled one.
    """
    if folder is not None:
        return checked_weights(folder)
    if settings.pretrained_backbone != "bundled":
        path = Path(settings.pretrained_backbone)
        if not path.is_file():
            raise WeightsError(
                f"proposals.pretrained_backbone: file {path} is not there; valid: true (timm's own), false, bundled, "
                "or the path of a .safetensors, .pth or .bin file"
            )
        return path
    path = BUNDLED / f"{settings.backbone}.safetensors"
    check_sha256(path, json.loads(path.with_suffix(".json").read_text())["sha256"])
    return path


def _load_backbone(network: ProposalNetwork, name: str, path: Path) -> None:
    """Loads pre-trained weights into the stages of the backbone that are used.

    Raises:
        WeightsError: a file that cannot be read, or lacks a tensor that the backbone needs or has it in another shape.
    """
    state = read_weights(path)
    needed = network.backbone.state_dict()
    missing = sorted(key for key in needed if key not in state and not key.endswith("num_batches_tracked"))
    if missing:
        raise WeightsError(f"{path} does not fit backbone {name}: it lacks {', '.join(missing[:5])}")
    for key, value in needed.items():
        if key in state and state[key].shape != value.shape:
            raise WeightsError(
                f"{path} does not fit backbone {name}: {key} has shape {tuple(state[key].shape)}, "
                f"not {tuple(value.shape)}"
            )
    network.backbone.load_state_dict({key: state[key] for key in needed if key in state}, strict=False)


def build_segmenter(job: Job) -> Segmenter:
    """The whole system of ``settings.network``, with trained weights if the job has them as input."""
    if job.settings["network"]["method"] in MULTI_PASS:
        return build_multipass(job)
    network, clip = Network.model_validate(job.settings["network"]), build_clip(job)
    segmenter = DeOP(
        clip,
        build_proposals(job),
        TextTemplates(templates_of(network.templates), clip.embed_dim)
        if network.templates
        else build_prompt(job, clip),
        network,
        queries=Proposals.model_validate(job.settings["proposals"]).queries,
        normalisation=Clip.model_validate(job.settings["clip"]).normalisation,
        loss=Segmentation.model_validate(job.settings["segmentation"])
        if "segmentation" in job.settings
        else None,
        ignore=IGNORE,
    )
    segmenter.gradient_checkpointing = job.settings.get("machine", {}).get("gradient_checkpointing", False)
    if "segmentation" in job.inputs:
        load_weights(segmenter, job.inputs["segmentation"])
    return segmenter


def build_multipass(job: Job) -> MultiPass:
    """A multi-pass system, which counts as seen what its dataset says is; on another's images, no class.

    The latter is the release's way (see :class:`deop.settings.methods.SimBaselineSettings`).
    """
    values = job.settings["network"]
    settings = SYSTEMS[values["method"]].model_validate(values)
    card, clip = read_card(Path(job.inputs["data"])), build_clip(job)
    segmenter = MULTI_PASS[settings.method](
        clip,
        build_proposals(job),
        settings,
        seen_names=[] if "transfer" in job.settings else [card.names[index] for index in card.seen],
        text_prompt=build_prompt(job, clip) if "prompts" in job.inputs else None,
    )
    if "multipass" in job.inputs:
        load_weights(segmenter, job.inputs["multipass"])
    return segmenter


def save_weights(state: dict[str, Tensor], folder: Path) -> None:
    """Writes named tensors as ``model.safetensors`` in ``folder``."""
    save_file({name: value.detach().cpu().contiguous() for name, value in state.items()}, folder / WEIGHTS)


def checked_weights(folder: str | Path) -> Path:
    """The weights that an earlier stage wrote into ``folder``.

    Raises:
        WeightsError: another SHA-256 than the ``provenance.json`` beside them has.
    """
    path, provenance = Path(folder) / WEIGHTS, Path(folder) / PROVENANCE
    expected = json.loads(provenance.read_text()).get("sha256") if provenance.exists() else None
    if expected is not None:
        check_sha256(path, expected)
    return path


def load_weights(module: nn.Module, folder: str | Path) -> None:
    """Loads what :func:`save_weights` wrote; tensors the file lacks (frozen ones) are left as they are.

    Raises:
        WeightsError: the file is not the one that was written.
        ValueError: it holds a tensor that the module has not, or lacks one that it learns.
    """
    path = checked_weights(folder)
    result = module.load_state_dict(read_weights(path), strict=False)
    learned = {name for name, value in module.named_parameters() if value.requires_grad}
    wrong = [*result.unexpected_keys, *(learned & set(result.missing_keys))]
    if wrong:
        raise ValueError(f"{path} does not fit the network: {', '.join(sorted(wrong)[:5])}")


def seed_everything(job: Job) -> None:
    """Seeds the initialisation of new weights."""
    torch.manual_seed(job.seed)
