"""Starting the pre-training of a CLIP from another's weights: another image size, new last layers, or more layers."""

from __future__ import annotations

import torch
from open_clip.model import resize_pos_embed
from timm.layers.patch_embed import resample_patch_embed
from torch import Tensor, nn

_FRESH_GAIN = 3.0
_BLOCKS = "visual.transformer.resblocks."


def start_from(model: nn.Module, weights: dict[str, Tensor], fresh_layers: int) -> None:
    """Loads the weights of an earlier round, whose image size and pooling may have been others.

    The last ``fresh_layers`` layers of the image tower, its last norm and its projection stay as they are in ``model``.
    What the fresh layers write is scaled up: otherwise the patches of the trained layers below, which keep their scale,
    would outweigh it.

    Raises:
        ValueError: weights of a model of another width or depth.
    """
    blocks = model.visual.transformer.resblocks
    fresh = [f"{_BLOCKS}{len(blocks) - 1 - index}." for index in range(fresh_layers)]
    fresh += ["visual.ln_post.", "visual.proj"] if fresh_layers else []
    _load(model, {name: value for name, value in weights.items() if not name.startswith(tuple(fresh))})
    with torch.no_grad():
        for block in blocks[len(blocks) - fresh_layers :]:
            for linear in (block.attn.out_proj, block.mlp.c_proj):
                linear.weight.mul_(_FRESH_GAIN)


def grow_from(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Starts a model with more layers or smaller patches from ``weights``, so that it computes nearly what they do.

    Added layers start as identities: the weights that write to the residual stream are zero. They are spread over the
    tower, before its last two layers, which stay the last. Patch embeddings are resampled as in FlexiViT
    (https://arxiv.org/abs/2212.08013, section 3.4), positional embeddings interpolated.

    Raises:
        ValueError: weights of a model of another width, of more layers, or of fewer than three.
    """
    blocks = model.visual.transformer.resblocks
    depth = 1 + max(
        int(name.removeprefix(_BLOCKS).split(".")[0]) for name in weights if name.startswith(_BLOCKS)
    )
    if not 2 < depth <= len(blocks):
        raise ValueError(f"a tower of {len(blocks)} layers cannot be grown from one of {depth}")
    places = [index * (len(blocks) - 2) // (depth - 2) for index in range(depth - 2)]
    places += [len(blocks) - 2, len(blocks) - 1]
    with torch.no_grad():
        for index in set(range(len(blocks))) - set(places):
            for linear in (blocks[index].attn.out_proj, blocks[index].mlp.c_proj):
                nn.init.zeros_(linear.weight)
                nn.init.zeros_(linear.bias)
    moved = {}
    for name, value in weights.items():
        if name.startswith(_BLOCKS):
            index, rest = name.removeprefix(_BLOCKS).split(".", 1)
            name = f"{_BLOCKS}{places[int(index)]}.{rest}"
        elif name == "visual.conv1.weight":
            value = resample_patch_embed(value.float(), list(model.visual.conv1.kernel_size))
        moved[name] = value
    _load(model, moved)


def _load(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Loads weights in half precision, of another image size; what they lack stays as it is in ``model``."""
    weights = {name: value.float() for name, value in weights.items()}
    resize_pos_embed(weights, model)
    try:
        model.load_state_dict(model.state_dict() | weights)
    except RuntimeError as error:
        raise ValueError(f"the weights to start from do not fit the model: {error}") from error
