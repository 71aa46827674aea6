"""The networks of a system, made from its settings: what :meth:`deop.methods.base.Segmenter.build` is given."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from deop.errors import WeightsError
from deop.models.backbones import timm_features
from deop.models.clip import DenseCLIP, load_clip
from deop.models.clip_build import has_quick_gelu
from deop.models.pretrained import BUNDLED
from deop.models.prompts import TextPrompt
from deop.models.proposals import ProposalNetwork
from deop.models.weight_files import check_sha256, checked_weights, load_learned, read_weights
from deop.settings.methods import MethodSettings, method_settings
from deop.settings.schedule import Schedule
from deop.settings.stages import Clip, Proposals, Segmentation, TextPrompts

_SCHEDULES: dict[str, type[Schedule]] = {"proposals": Proposals, "segmentation": Segmentation}


class Builder:
    """Makes the networks of a system, each when it is asked for.

    Args:
        sections: settings by section of the configuration: ``method``, and ``clip``, ``prompts``, ``proposals`` and the
            schedule of a round of training, as far as the method needs them.
        inputs: by role (``clip``, ``prompts``, ``proposals``, ``backbone``), the folders of the artifacts that the
            networks take their weights from. Without, weights are those that the sections ask for, or random ones.
        seen_names: the classes that the system is trained on.
        class_names: all classes of the dataset that it is trained on, in label order, by name alone.
        clip: makes the CLIP where it is neither that of the sections nor that of the inputs.
        round: the round of training that the system is built for, none to use it.

    Attributes:
        settings: of the method.
    """

    def __init__(
        self,
        sections: Mapping[str, dict[str, Any]],
        inputs: Mapping[str, str],
        *,
        seen_names: tuple[str, ...] = (),
        class_names: tuple[str, ...] = (),
        clip: Callable[[], DenseCLIP] | None = None,
        round: str | None = None,
    ) -> None:
        self._sections, self._inputs, self._clip, self._round = sections, inputs, clip, round
        self.seen_names, self.class_names = seen_names, class_names
        values = sections["method"]
        self.settings: MethodSettings = method_settings(values["method"]).model_validate(values)

    @functools.cached_property
    def clip(self) -> DenseCLIP:
        """The CLIP of the sections, or the one that was pre-trained for this system."""
        if self._clip is not None:
            return self._clip()
        return build_clip(self.clip_settings, self._inputs.get("clip"))

    @property
    def clip_settings(self) -> Clip:
        return Clip.model_validate(self._sections["clip"])

    def text_prompt(self) -> TextPrompt:
        """The text prompt that was learned offline."""
        return build_prompt(
            TextPrompts.model_validate(self._sections["prompts"]), self.clip, self._inputs.get("prompts")
        )

    @property
    def proposal_settings(self) -> Proposals:
        return Proposals.model_validate(self._sections["proposals"])

    def proposals(self) -> ProposalNetwork:
        """The proposal network: trained, or fresh on its pre-trained backbone."""
        inputs = self._inputs
        fresh = self._round is not None
        return build_proposals(
            self.proposal_settings, inputs.get("proposals"), inputs.get("backbone"), fresh=fresh
        )

    def backbone(self) -> nn.Module:
        """The backbone of a network that makes no proposals: that of the proposal network, and pre-trained as it is."""
        settings = self.proposal_settings
        fresh = self._round is not None
        network = timm_features(
            settings.backbone,
            settings.backbone_args,
            settings.out_indices,
            pretrained=fresh and settings.pretrained_backbone is True,
            frozen_batch_norm=settings.frozen_batch_norm,
        )
        if fresh and isinstance(settings.pretrained_backbone, str):
            weights = _backbone_weights(settings, self._inputs.get("backbone"))
            _load_backbone(network, settings.backbone, weights)
        return network

    @property
    def schedule(self) -> Schedule | None:
        """The schedule of the round of training; None where the system is not built for training."""
        if self._round is None:
            return None
        own = getattr(self.settings, self._round, None)
        return own if own is not None else _SCHEDULES[self._round].model_validate(self._sections[self._round])


def build_clip(settings: Clip, trained: str | None = None) -> DenseCLIP:
    """The CLIP that settings ask for, or one that was pre-trained here, in the folder ``trained``."""
    if trained is None:
        return load_clip(settings.model, settings.pretrained, quick_gelu=settings.quick_gelu)
    return load_clip(settings.model, str(checked_weights(trained)), quick_gelu=has_quick_gelu(settings.model))


def build_prompt(settings: TextPrompts, clip: DenseCLIP, trained: str | None = None) -> TextPrompt:
    """A text prompt for ``clip``, with the weights in the folder ``trained`` if there is one."""
    prompt = TextPrompt(
        settings.prefix_tokens,
        clip.text_width,
        clip.embed_dim,
        init_std=settings.init_std,
        words=clip.word_embeddings(settings.prefix_words),
    )
    if trained is not None:
        load_learned(prompt, checked_weights(trained))
    return prompt


def build_proposals(
    settings: Proposals, trained: str | None = None, backbone: str | None = None, *, fresh: bool = True
) -> ProposalNetwork:
    """A proposal network.

    Args:
        trained: the folder of its weights.
        backbone: the folder of its backbone's weights, where the backbone was pre-trained here.
        fresh: without ``trained``, start from a pre-trained backbone, as the settings say. Otherwise weights are
            random, because others follow.
    """
    fresh = fresh and trained is None
    network = ProposalNetwork(
        pretrained_backbone=fresh and settings.pretrained_backbone is True, **settings.architecture
    )
    if trained is not None:
        load_learned(network, checked_weights(trained))
    elif fresh and isinstance(settings.pretrained_backbone, str):
        _load_backbone(network.backbone, settings.backbone, _backbone_weights(settings, backbone))
    return network


def _backbone_weights(settings: Proposals, folder: str | None) -> Path:
    """The file of the backbone's weights: in a ``folder``, bundled, or given by path.

    Raises:
        WeightsError: a file that is not there, or is not the bundled one.
    """
    if folder is not None:
        return checked_weights(folder)
    if settings.pretrained_backbone != "bundled":
        path = Path(str(settings.pretrained_backbone))
        if not path.is_file():
            raise WeightsError(
                f"proposals.pretrained_backbone: file {path} is not there; valid: true (timm's own), false, bundled, "
                "or the path of a .safetensors, .pth or .bin file"
            )
        return path
    path = BUNDLED / f"{settings.backbone}.safetensors"
    check_sha256(path, json.loads(path.with_suffix(".json").read_text())["sha256"])
    return path


def _load_backbone(backbone: nn.Module, name: str, path: Path) -> None:
    """Loads pre-trained weights into the stages of the backbone that are used.

    Raises:
        WeightsError: a file that cannot be read, or lacks a tensor that the backbone needs or has it in another shape.
    """
    state = read_weights(path)
    needed = backbone.state_dict()
    missing = sorted(key for key in needed if key not in state and not key.endswith("num_batches_tracked"))
    if missing:
        raise WeightsError(f"{path} does not fit backbone {name}: it lacks {', '.join(missing[:5])}")
    for key, value in needed.items():
        if key in state and state[key].shape != value.shape:
            raise WeightsError(
                f"{path} does not fit backbone {name}: {key} has shape {tuple(state[key].shape)}, "
                f"not {tuple(value.shape)}"
            )
    backbone.load_state_dict({key: state[key] for key in needed if key in state}, strict=False)
