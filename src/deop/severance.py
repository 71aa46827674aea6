"""Patch severance (section 4.1): self-attention replaced, layer by layer, so that patches keep to themselves.

A CLIP tower asks a :class:`Severance` what stands in for the self-attention of each of its layers; it need
not know which kind of severance that is, and the kinds here need not know the tower.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch.nn.functional as F
from torch import Tensor, nn

Attend = Callable[[nn.MultiheadAttention, Tensor, Tensor | None], Tensor]
"""``(attention, tokens, masks) -> tokens``: in place of ``attention(tokens, tokens, tokens)``.

``tokens`` (B, 1+h*w, C) are the layer-normalised class token and patches, C the tower's width; ``masks``
(B, N, h, w) are proposal masks in [0, 1] on the patch grid for the kinds that are guided by them, or None.
"""


@dataclass(frozen=True)
class Severance:
    """Which layers of a ViT are severed, how, and how far.

    Args:
        kind: one of :data:`KINDS`: ``"none"`` (plain self-attention everywhere) or ``"gps"``, generalised
            patch severance (Eq. 2).
        alpha: layer index -> alpha in [0, 1]. Negative indices count from the end (-1 is the last layer).
            Layers that are not named have alpha 0, which is plain self-attention.

    Raises:
        ValueError: unknown kind, alpha outside [0, 1], or alphas given to kind ``"none"``.
    """

    kind: str = "none"
    alpha: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown severance kind {self.kind!r}; valid kinds: {', '.join(sorted(KINDS))}")
        if self.kind == "none" and self.alpha:
            raise ValueError(f"severance kind 'none' severs nothing, but alpha is {dict(self.alpha)}")
        for layer, alpha in self.alpha.items():
            if not 0 <= alpha <= 1:
                raise ValueError(f"severance alpha of layer {layer} is {alpha}; it must lie in [0, 1]")

    def attentions(self, layers: int) -> list[Attend | None]:
        """What replaces self-attention in each of a tower's ``layers`` layers, None where nothing does.

        Raises:
            ValueError: a layer index outside the tower, or two indices that mean the same layer.
        """
        replacements: list[Attend | None] = [None] * layers
        named: dict[int, int] = {}
        for layer, alpha in self.alpha.items():
            if not -layers <= layer < layers:
                raise ValueError(
                    f"severance of layer {layer}, but the tower has {layers} layers: "
                    f"valid are {-layers} to {layers - 1}"
                )
            index = layer % layers
            if index in named:
                raise ValueError(f"severance layers {named[index]} and {layer} are the same of {layers}")
            named[index] = layer
            # An alpha of 0 is plain self-attention, to the last bit.
            replacements[index] = KINDS[self.kind](alpha) if alpha > 0 else None
        return replacements


def generalised_patch_severance(alpha: float) -> Attend:
    """GPS, Eq. 2: F_out = (alpha * E + (1 - alpha) * Attn) F_in for every token, the class token included.

    F_in are the values as the layer projects them, per head; its output projection follows. With alpha = 1
    queries and keys are not even computed.
    """

    def attend(attention: nn.MultiheadAttention, tokens: Tensor, masks: Tensor | None = None) -> Tensor:
        width = attention.embed_dim
        weight, bias = attention.in_proj_weight, attention.in_proj_bias
        if alpha == 1:
            return attention.out_proj(F.linear(tokens, weight[2 * width :], bias[2 * width :]))
        query, key, value = project(attention, tokens)
        attended = F.scaled_dot_product_attention(query, key, value)
        return merge(attention, alpha * value + (1 - alpha) * attended)

    return attend


def project(attention: nn.MultiheadAttention, tokens: Tensor) -> list[Tensor]:
    """Queries, keys and values, each (B, heads, T, C / heads), of tokens (B, T, C)."""
    projected = F.linear(tokens, attention.in_proj_weight, attention.in_proj_bias)
    return [
        part.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for part in projected.chunk(3, dim=-1)
    ]


def merge(attention: nn.MultiheadAttention, heads: Tensor) -> Tensor:
    """The output projection (B, T, C) of what the heads (B, heads, T, C / heads) found."""
    return attention.out_proj(heads.transpose(1, 2).flatten(2))


def self_attention(
    attention: nn.MultiheadAttention, tokens: Tensor, masks: Tensor | None = None, *, causal: bool = False
) -> Tensor:
    """``attention(tokens, tokens, tokens)`` itself, as an :data:`Attend`; ``masks`` are of no use to it.

    nn.MultiheadAttention would compute the same, but on a CPU its products with frozen weights take several times as
    long while gradients flow through them: it lays tokens out so that the weights are copied for every token.
    """
    query, key, value = project(attention, tokens)
    return merge(attention, F.scaled_dot_product_attention(query, key, value, is_causal=causal))


KINDS: dict[str, Callable[[float], Attend] | None] = {"none": None, "gps": generalised_patch_severance}
"""Kind -> rule that turns a layer's alpha into its attention; another kind of severance is one more entry."""
