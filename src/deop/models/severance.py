"""Patch severance (section 4.1): replaces self-attention, layer by layer, so that patches do not mix.

A CLIP tower asks a :class:`Severance` for the replacement of the self-attention in each of its layers. The tower does
not depend on the kind of severance, nor the kinds on the tower.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from deop.models.attention import SelfAttention

Attend = Callable[[SelfAttention, Tensor, Tensor | None], Tensor]
"""``(attention, tokens, masks) -> tokens``: in place of plain self-attention.

``tokens`` (B, 1+h*w, C) are the layer-normalised class token, where the tower has one, and patches, C the tower's
width; ``masks`` (B, N, h, w) are proposal masks in [0, 1] on the patch grid for the kinds that are guided by them, or
None.
"""


@dataclass(frozen=True)
class Severance:
    """Which layers of a ViT are severed, by which rule, and how strongly.

    Args:
        kind: one of :data:`KINDS`: ``"none"`` (plain self-attention everywhere); ``"gps"``, generalised patch
            severance (Eq. 2); ``"mps"``, mask-guided patch severance (Eq. 1); or ``"mask_sum"``, the last layer
            of the authors' released code.
        alpha: layer index -> alpha in [0, 1]. Negative indices count from the end (-1 is the last layer).
            Layers that are not named have alpha 0, which is plain self-attention. The kinds guided by masks
            replace the product of queries and keys altogether (section 4.1; Table 4 gives MPS no alpha), so
            their layers have alpha 1.
        rows: one of :data:`ROWS`, how the attention of ``"mps"`` is normalised, which Eq. 1 leaves open:
            ``"share"`` divides each row by its sum, ``"softmax"`` takes its softmax as the release does. Other
            kinds ignore it.

    Raises:
        ValueError: unknown kind or rows, alpha outside [0, 1], an alpha between 0 and 1 for a kind in :data:`GUIDED`,
            or alphas given to kind ``"none"``.
    """

    kind: str = "none"
    alpha: Mapping[int, float] = field(default_factory=dict)
    rows: str = "share"

    def __post_init__(self) -> None:
        if self.rows not in ROWS:
            raise ValueError(f"unknown severance rows {self.rows!r}; valid rows: {', '.join(sorted(ROWS))}")
        if self.kind not in KINDS:
            raise ValueError(f"unknown severance kind {self.kind!r}; valid kinds: {', '.join(sorted(KINDS))}")
        if self.kind == "none" and self.alpha:
            raise ValueError(f"severance kind 'none' severs nothing, but alpha is {dict(self.alpha)}")
        for layer, alpha in self.alpha.items():
            if not 0 <= alpha <= 1:
                raise ValueError(f"severance alpha of layer {layer} is {alpha}; it must lie in [0, 1]")
            if self.kind in GUIDED and alpha not in (0, 1):
                raise ValueError(
                    f"severance alpha of layer {layer} is {alpha}; kind {self.kind!r} has none in between: "
                    "1 severs a layer, 0 leaves it alone"
                )

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
            replacements[index] = KINDS[self.kind](alpha, self.rows) if alpha > 0 else None
        return replacements


def generalised_patch_severance(alpha: float) -> Attend:
    """GPS, Eq. 2: F_out = (alpha * E + (1 - alpha) * Attn) F_in for every token, the class token included.

    F_in are the values as the layer projects them, per head; its output projection follows. With alpha = 1
    queries and keys are not computed. ``masks`` are ignored.
    """

    def attend(attention: SelfAttention, tokens: Tensor, masks: Tensor | None = None) -> Tensor:
        if alpha == 1:
            return attention.output(attention.values(tokens))
        query, key, value = attention.project(tokens)
        attended = F.scaled_dot_product_attention(query, key, value)
        return attention.merge(alpha * value + (1 - alpha) * attended)

    return attend


def mask_guided_patch_severance(
    attention: SelfAttention, tokens: Tensor, masks: Tensor | None = None
) -> Tensor:
    """MPS, Eq. 1, as an :data:`Attend`: patch i attends with M_i = sum_j M_j,i * M_j, divided by the sum of M_i.

    The attention is the same for all heads and is computed from the N masks, without queries and keys. Eq. 1 does not
    say how its rows are normalised. Here they are divided by their sums, so a patch only attends to patches with which
    it shares a mask (:func:`softmax_mask_guided_patch_severance` follows the release). Eq. 1 does not mention the class
    token either. As in the release, it lies in every mask with value 1: it attends to all patches, and each patch
    attends to it as to another patch of its masks. A patch in no mask attends to no patch.

    The (1+h*w)^2 attention matrix has rank N and is never formed. Instead, two weighted means are taken in turn: of the
    values under each mask, then of the masks at each token. Dividing each mask by its size keeps all numbers in the
    range of half precision; the second mean is weighted with the size.

    Raises:
        ValueError: no masks, or masks that do not fit the tokens.
    """
    membership = token_masks(masks, tokens, attention.prefix)  # (B, N, T)
    tiny = torch.finfo(membership.dtype).tiny
    size = membership.sum(-1, keepdim=True).clamp(min=tiny)  # with a class token at least 1
    of_tokens = membership * size
    of_tokens = of_tokens / of_tokens.sum(1, keepdim=True).clamp(min=tiny)
    means = (membership / size) @ attention.values(tokens)  # (B, N, C)
    return attention.output(of_tokens.transpose(1, 2) @ means)


def softmax_mask_guided_patch_severance(
    attention: SelfAttention, tokens: Tensor, masks: Tensor | None = None
) -> Tensor:
    """MPS, Eq. 1, with the softmax of its rows M_i as attention, as in the release; an :data:`Attend`.

    A patch attends to every patch: those with which it shares no mask have weight exp(0) before normalisation. The
    class token lies in every mask with value 1, as in :func:`mask_guided_patch_severance`.

    Raises:
        ValueError: no masks, or masks that do not fit the tokens.
    """
    # In full precision: the numbers in the exponent are up to N, and are compared with each other.
    with torch.autocast(tokens.device.type, enabled=False):
        membership = token_masks(masks, tokens, attention.prefix).float().transpose(1, 2)  # (B, T, N)
        attend = (membership @ membership.transpose(1, 2)).softmax(-1)
    values = attention.values(tokens)
    return attention.output(attend.to(values.dtype) @ values)


def mask_sum(attention: SelfAttention, tokens: Tensor, masks: Tensor | None = None) -> Tensor:
    """The release's last layer, as an :data:`Attend`: each patch's value times the sum over the N masks at it.

    Patches do not attend to each other, as in GPS with alpha = 1, but a patch is scaled up by the number of proposals
    it lies in: the values are not normalised. The class token lies in every mask with value 1, so its factor is N.
    This kind is not in the paper; it is here to run the released weights.

    Raises:
        ValueError: no masks, or masks that do not fit the tokens.
    """
    factors = token_masks(masks, tokens, attention.prefix).sum(1)  # (B, T)
    return attention.output(attention.values(tokens) * factors[..., None])


def token_masks(masks: Tensor | None, tokens: Tensor, prefix: int = 1) -> Tensor:
    """Masks (B, N, h, w) as (B, N, prefix+h*w): the class token, which lies in every mask, before the patches.

    Raises:
        ValueError: no masks, or masks that do not fit tokens (B, prefix+h*w, C).
    """
    if masks is None:
        raise ValueError(
            "patch severance guided by masks needs the proposal masks on the patch grid; got none"
        )
    batch, patches = tokens.shape[0], tokens.shape[1] - prefix
    if masks.shape[0] != batch or masks.shape[-2] * masks.shape[-1] != patches:
        raise ValueError(
            f"masks {tuple(masks.shape)} do not fit {patches} patches of {batch} images: wanted (B, N, h, w) "
            "on the patch grid"
        )
    return F.pad(masks.flatten(2), (prefix, 0), value=1.0)


def self_attention(
    attention: SelfAttention, tokens: Tensor, masks: Tensor | None = None, *, causal: bool = False
) -> Tensor:
    """Plain self-attention, as an :data:`Attend`; ``masks`` are ignored.

    nn.MultiheadAttention computes the same. On a CPU, though, its products with frozen weights take several times as
    long when gradients flow through them, because its memory layout of tokens copies the weights for every token.
    """
    query, key, value = attention.project(tokens)
    return attention.merge(F.scaled_dot_product_attention(query, key, value, is_causal=causal))


ROWS: dict[str, Attend] = {
    "share": mask_guided_patch_severance,
    "softmax": softmax_mask_guided_patch_severance,
}
"""The attention of MPS by how its rows are normalised."""

KINDS: dict[str, Callable[[float, str], Attend] | None] = {
    "none": None,
    "gps": lambda alpha, rows: generalised_patch_severance(alpha),
    "mps": lambda alpha, rows: ROWS[rows],
    "mask_sum": lambda alpha, rows: mask_sum,
}
"""By kind, the rule that turns a layer's alpha and ``rows`` into its attention. A new kind is a new entry."""

GUIDED = ("mps", "mask_sum")
"""Kinds that use the proposal masks and have no alpha: a layer is severed completely or not at all."""
