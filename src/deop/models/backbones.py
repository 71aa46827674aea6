"""timm backbones as pyramids of features: those of mask proposals and of per-pixel systems."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

import timm
import torch
from huggingface_hub import hf_hub_url
from timm.layers import freeze_batch_norm_2d
from torch import nn

from deop.errors import WeightsError
from deop.models.pretrained import cached_backbone, check_hub_file, download_failed, hub_cache


def timm_features(
    backbone: str,
    backbone_args: dict[str, Any],
    out_indices: Sequence[int],
    *,
    pretrained: bool = False,
    frozen_batch_norm: bool = False,
) -> nn.Module:
    """A timm model that returns the features of several stages, finest first.

    Args:
        backbone: timm model name, one that supports ``features_only``.
        backbone_args: further arguments of ``timm.create_model``; and ``multi_grid``, the dilations of the 3x3
            convolutions in the blocks of a ResNet's last stage, which timm has no argument for.
        out_indices: the stages.
        pretrained: start from timm's pretrained weights.
        frozen_batch_norm: batch norms keep their statistics and scales.

    Raises:
        ValueError: unknown ``backbone``, or a ``multi_grid`` that does not fit.
        WeightsError: timm's weights cannot be downloaded.
    """
    if not timm.is_model(backbone):
        close = ", ".join(get_close_matches(backbone, timm.list_models(), n=5)) or "none"
        raise ValueError(f"backbone {backbone!r} is no timm model; close names: {close}")
    arguments = {key: value for key, value in backbone_args.items() if key != "multi_grid"}
    try:
        network = timm.create_model(
            backbone, pretrained=pretrained, features_only=True, out_indices=tuple(out_indices), **arguments
        )
    except Exception as error:
        if not pretrained or isinstance(error, TypeError | ValueError):
            raise
        raise WeightsError(_how_to_get(backbone, error)) from error
    cached = cached_backbone(backbone)[0] if pretrained else None
    if cached is not None:
        check_hub_file(cached)
    if "multi_grid" in backbone_args:
        _dilate_last_stage(network, backbone, backbone_args["multi_grid"])
    if frozen_batch_norm:
        freeze_batch_norm_2d(network)
    return network


def _dilate_last_stage(network: nn.Module, name: str, dilations: Sequence[int]) -> None:
    """Dilates the 3x3 convolutions of the last stage, one dilation per block, without changing sizes."""
    blocks = getattr(network, "layer4", ())
    convolutions = [getattr(block, "conv2", None) for block in blocks]
    if len(convolutions) != len(dilations) or not all(isinstance(conv, nn.Conv2d) for conv in convolutions):
        raise ValueError(
            f"multi_grid {list(dilations)} does not fit backbone {name!r}: wanted one dilation for each of the "
            f"{len(convolutions)} blocks of a ResNet's layer4"
        )
    for convolution, dilation in zip(convolutions, dilations, strict=True):
        convolution.dilation = convolution.padding = (dilation, dilation)


def _how_to_get(backbone: str, error: Exception) -> str:
    about = timm.get_pretrained_cfg(backbone)
    url, cache = about.url, f"{torch.hub.get_dir()}/checkpoints"
    if about.hf_hub_id:
        url, cache = hf_hub_url(about.hf_hub_id, about.hf_hub_filename or "model.safetensors"), hub_cache()
    remedy = "Download that file on a machine that may, and set proposals.pretrained_backbone to its path"
    return download_failed(f"timm's weights of backbone {backbone!r}", url, cache, remedy, error)
