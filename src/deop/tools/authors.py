"""The authors' released checkpoint in terms of our networks: which tensor of theirs is which of ours.

Names and shapes are those that CongHan0808/DeOP gives its modules (its ``scripts/deop_verifycoco.sh``): MaskFormer's
ResNet-101 with DeepLab's stem and decoders, CLIP ViT-B/16 with learned position maps, the learned prefix, and the query
decoder. Every tensor is mapped or listed as left out, with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from deop.errors import DeopError

PARTS = ("proposals", "prompts", "clip", "segmentation")
"""The networks that a checkpoint holds."""


class Imported(NamedTuple):
    """A checkpoint taken apart.

    parts: by network, tensors by their names here.
    left_out: what has no place here, by its name in the checkpoint, and why.
    """

    parts: dict[str, dict[str, Tensor]]
    left_out: dict[str, str]


Target = tuple[str, str, Tensor]
Rule = tuple[str, Callable[[re.Match, Tensor], Iterable[Target]] | str]


def _to(part: str, name: str) -> Callable[[re.Match, Tensor], Iterable[Target]]:
    """A rule for a tensor that only changes its name; ``name`` is a template of the match."""
    return lambda match, value: [(part, match.expand(name), value)]


def _split(part: str, layer: str) -> Callable[[re.Match, Tensor], Iterable[Target]]:
    """A rule for the joint projection of queries, keys and values, which are three layers here."""

    def rule(match: re.Match, value: Tensor) -> Iterable[Target]:
        rows = zip("qkv", value.chunk(3), strict=True)
        return [
            (part, f"{match.expand(layer)}.{letter}_proj.{match['what']}", rows_) for letter, rows_ in rows
        ]

    return rule


def _heatmap_projections(match: re.Match, value: Tensor) -> Iterable[Target]:
    """The heatmap layer pools features unprojected: the rows of its values are never read."""
    query, key, _ = value.chunk(3)
    names = (f"anchors.{which}_projection.{match['what']}" for which in ("query", "key"))
    return [("segmentation", name, rows) for name, rows in zip(names, (query, key), strict=True)]


def _no_object(match: re.Match, value: Tensor) -> Iterable[Target]:
    return [("prompts", "no_object", value[0]), ("segmentation", "text_prompt.no_object", value[0])]


def _prefix(match: re.Match, value: Tensor) -> Iterable[Target]:
    return [("prompts", "context", value), ("segmentation", "text_prompt.context", value)]


def _maskformer_layer(source: str, cross: str, part: str, layer: str) -> list[Rule]:
    """Rules for a post-norm decoder layer of DETR's kind; ``source`` is a pattern with the layer's number in ``i``."""
    rules: list[Rule] = []
    for theirs, ours in (("self_attn", "self_attn"), (cross, "encoder_attn")):
        rules += [
            (rf"{source}\.{theirs}\.in_proj_(?P<what>weight|bias)", _split(part, rf"{layer}.{ours}")),
            (
                rf"{source}\.{theirs}\.out_proj\.(?P<what>\w+)",
                _to(part, rf"{layer}.{ours}.o_proj.\g<what>"),
            ),
        ]
    for theirs, ours in (
        ("linear1", "mlp.fc1"),
        ("linear2", "mlp.fc2"),
        ("norm1", "self_attn_layer_norm"),
        ("norm2", "encoder_attn_layer_norm"),
        ("norm3", "final_layer_norm"),
    ):
        rules.append((rf"{source}\.{theirs}\.(?P<what>\w+)", _to(part, rf"{layer}.{ours}.\g<what>")))
    return rules


def _backbone() -> list[Rule]:
    """detectron2's ResNet with DeepLab's stem -> timm's ``resnet101s``: the stem, then res2 to res5 as layer1 to 4."""
    rules: list[Rule] = []
    for number, (conv, norm) in enumerate(
        (("conv1.0", "conv1.1"), ("conv1.3", "conv1.4"), ("conv1.6", "bn1")), 1
    ):
        stem = rf"backbone\.stem\.conv{number}"
        rules += [
            (rf"{stem}\.weight", _to("proposals", f"backbone.{conv}.weight")),
            (rf"{stem}\.norm\.(?P<what>\w+)", _to("proposals", rf"backbone.{norm}.\g<what>")),
        ]
    for stage in range(2, 6):
        block, ours = rf"backbone\.res{stage}\.(?P<i>\d+)", rf"backbone.layer{stage - 1}.\g<i>"
        rules += [
            (
                rf"{block}\.conv(?P<k>[123])\.norm\.(?P<what>\w+)",
                _to("proposals", rf"{ours}.bn\g<k>.\g<what>"),
            ),
            (rf"{block}\.conv(?P<k>[123])\.weight", _to("proposals", rf"{ours}.conv\g<k>.weight")),
            (rf"{block}\.shortcut\.norm\.(?P<what>\w+)", _to("proposals", rf"{ours}.downsample.1.\g<what>")),
            (rf"{block}\.shortcut\.weight", _to("proposals", rf"{ours}.downsample.0.weight")),
        ]
    return rules


def _pixel_decoder() -> list[Rule]:
    """The finest level has number 1 there; here the levels are in the order they are computed, coarsest first."""
    source, ours = r"sem_seg_head\.pixel_decoder", "pixel_decoder"
    rules: list[Rule] = [
        (rf"{source}\.mask_features\.(?P<what>\w+)", _to("proposals", rf"{ours}.mask_projection.\g<what>")),
        (rf"{source}\.layer_4\.norm\.(?P<what>\w+)", _to("proposals", rf"{ours}.fpn.stem.1.\g<what>")),
        (rf"{source}\.layer_4\.weight", _to("proposals", f"{ours}.fpn.stem.0.weight")),
    ]
    for level in (1, 2, 3):
        for theirs, place in (("adapter", "proj"), ("layer", "block")):
            layer, at = rf"{source}\.{theirs}_{level}", f"{ours}.fpn.layers.{3 - level}.{place}"
            rules += [
                (rf"{layer}\.norm\.(?P<what>\w+)", _to("proposals", rf"{at}.1.\g<what>")),
                (rf"{layer}\.weight", _to("proposals", f"{at}.0.weight")),
            ]
    return rules


_PREDICTOR = r"sem_seg_head\.predictor"
_CLIP = r"clip_adapter\.clip_model"
_LEARNED_POSITION = re.compile(
    rf"{_CLIP}\.visual\.(?:transformer\.resblocks\.(?P<layer>\d+)\.)?learned_position"
)

RULES: list[Rule] = [
    (r".*\.num_batches_tracked", "a counter that nothing reads"),
    *_backbone(),
    *_pixel_decoder(),
    (rf"{_PREDICTOR}\.class_embed\..*", "class head of SimBaseline, whose output DeOP overwrites"),
    (
        rf"{_PREDICTOR}\.query_embed\.weight",
        _to("proposals", "transformer.queries_embedder.weight"),
    ),
    (
        rf"{_PREDICTOR}\.input_proj\.(?P<what>\w+)",
        _to("proposals", r"transformer.input_projection.\g<what>"),
    ),
    *_maskformer_layer(
        rf"{_PREDICTOR}\.transformer\.decoder\.layers\.(?P<i>\d+)",
        "multihead_attn",
        "proposals",
        r"transformer.decoder.layers.\g<i>",
    ),
    (
        rf"{_PREDICTOR}\.transformer\.decoder\.norm\.(?P<what>\w+)",
        _to("proposals", r"transformer.decoder.layernorm.\g<what>"),
    ),
    (
        rf"{_PREDICTOR}\.mask_embed\.layers\.(?P<i>[012])\.(?P<what>\w+)",
        _to("proposals", r"mask_embedding.\g<i>.0.\g<what>"),
    ),
    (r"query_embedding\.weight", _to("segmentation", "anchors.queries.weight")),
    *_maskformer_layer(
        r"decoder\.layers\.(?P<i>\d+)", "multihead_attn_my", "segmentation", r"anchors.layers.\g<i>"
    ),
    (r"decoder\.norm\..*", "norm of intermediate outputs that only its training could use"),
    (
        r"decoder\.outlayer\.self_attn\.(?P<what>.+)",
        _to("segmentation", r"anchors.self_attention.\g<what>"),
    ),
    (r"decoder\.outlayer\.norm1\.(?P<what>\w+)", _to("segmentation", r"anchors.norm.\g<what>")),
    (r"decoder\.outlayer\.multihead_attn_my\.in_proj_(?P<what>weight|bias)", _heatmap_projections),
    (r"clip_adapter\.prompt_learner\.prefix_prompt", _prefix),
    (
        r"clip_adapter\.prompt_learner\.(?:start|dot|end|pad)_signal",
        "embedding of a fixed token, which is among CLIP's",
    ),
    (r"clip_adapter\.non_object_embedding", _no_object),
    (rf"{_CLIP}\.(?P<name>.+)", _to("clip", r"\g<name>")),
    (r"criterion\.empty_weight", "class weights of the matching loss, of training alone"),
]
"""Patterns of whole names in the checkpoint, the first that fits; a text in place of a rule is why it is left out."""


def convert(state: dict[str, Tensor]) -> Imported:
    """Maps a state dict of the release to the tensors of our networks.

    Raises:
        DeopError: a tensor of the release that is missing or of another shape than its place here.
    """
    parts: dict[str, dict[str, Tensor]] = {part: {} for part in PARTS}
    left_out: dict[str, str] = {}
    positions: dict[int, Tensor] = {}
    for key, value in state.items():
        name = key.removeprefix("module.")
        if place := _LEARNED_POSITION.fullmatch(name):
            positions[int(place["layer"] or 0)] = value
            continue
        for pattern, rule in RULES:
            match = re.fullmatch(pattern, name)
            if match is None:
                continue
            if isinstance(rule, str):
                left_out[key] = rule
            else:
                parts_of_key = list(rule(match, value))
                for part, target, tensor in parts_of_key:
                    parts[part][target] = tensor
                if rule is _heatmap_projections:
                    rows = f"rows {2 * len(value) // 3} to {len(value) - 1}"
                    left_out[f"{key} ({rows})"] = "values, which the heatmap layer takes unprojected"
            break
        else:
            left_out[key] = "no part of the released network that is known here"
    if positions:
        parts["segmentation"] |= _visual_prompts(positions)
    missing = [name for name, (part, target) in _NEEDED.items() if target not in parts[part]]
    if missing:
        raise DeopError(
            f"the checkpoint is not that of a whole DeOP network: it lacks {', '.join(missing)}; "
            "import the file that the release's README calls the model weight"
        )
    return Imported(parts, left_out)


_NEEDED = {
    "backbone.stem.conv1.weight": ("proposals", "backbone.conv1.0.weight"),
    "sem_seg_head.pixel_decoder.mask_features.weight": ("proposals", "pixel_decoder.mask_projection.weight"),
    "sem_seg_head.predictor.query_embed.weight": ("proposals", "transformer.queries_embedder.weight"),
    "query_embedding.weight": ("segmentation", "anchors.queries.weight"),
    "decoder.outlayer.multihead_attn_my.in_proj_weight": (
        "segmentation",
        "anchors.query_projection.weight",
    ),
    "clip_adapter.prompt_learner.prefix_prompt": ("prompts", "context"),
    "clip_adapter.non_object_embedding": ("prompts", "no_object"),
    "clip_adapter.clip_model.visual.learned_position": ("segmentation", "visual_prompts.patches"),
    "clip_adapter.clip_model.visual.conv1.weight": ("clip", "visual.conv1.weight"),
    "clip_adapter.clip_model.token_embedding.weight": ("clip", "token_embedding.weight"),
}
"""One tensor of each part, by its name in the release: the part and the name here."""


def _visual_prompts(positions: dict[int, Tensor]) -> dict[str, Tensor]:
    """Learned positions (1 + g*g, width) by layer, as the maps that :class:`deop.models.prompts.VisualPrompts` stores.

    Layer 0 stands beside the positional embedding, the others at the inputs of their blocks.
    """
    depth = max(positions) + 1
    shape = next(iter(positions.values())).shape
    maps = torch.stack([positions.get(layer, torch.zeros(shape)) for layer in range(depth)])
    side = round((shape[0] - 1) ** 0.5)
    patches = maps[:, 1:].transpose(1, 2).unflatten(2, (side, side))
    return {"visual_prompts.class_token": maps[:, 0], "visual_prompts.patches": patches}
