"""Patch severance (section 4.1): self-attention replaced, layer by layer, so that patches keep to themselves.

A CLIP tower asks a :class:`Severance` what stands in for the self-attention of each of its layers; it need
not know which kind of severance that is, and the kinds here need not know the tower.
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
    """Which layers of a ViT are severed, how, and how far.

    Args:
        kind: one of :data:`KINDS`: ``"none"`` (plain self-attention everywhere); ``"gps"``, generalised patch
            severance (Eq. 2); ``"mps"``, mask-guided patch severance (Eq. 1); or ``"mask_sum"``, the last layer
            of the authors' released code.
        alpha: layer index -> alpha in [0, 1]. Negative indices count from the end (-1 is the last layer).
            Layers that are not named have alpha 0, which is plain self-attention. The kinds guided by masks
            replace the product of queries and keys altogether (section 4.1; Table 4 gives MPS no alpha), so
            their layers have alpha 1.
        rows: one of :data:`ROWS`, how the attention of ``"mps"`` is normalised, of which Eq. 1 says nothing:
            ``"share"`` divides each row by its sum, ``"softmax"`` takes its softmax as the release does. Other
            kinds have no use for it.

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
    queries and keys are not even computed. ``masks`` are of no use to it.
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

    The attention is the same for all heads, and comes from the N masks alone: no queries, no keys. Eq. 1 does not
    say how its rows are normalised; here they are divided by their sums, so that a patch attends to no patch that it
    shares no mask with (:func:`softmax_mask_guided_patch_severance` is the release's way). Nor does it speak of the
    class token: as in the release, that lies in every mask, with value 1, so it attends to all and is to each patch
    like one more patch of that patch's masks. A patch in no mask at all attends to nothing.

    The (1+h*w)^2 attention is never made: it has rank N. Each mask is divided by its size, and the other factor
    takes that size over: two weighted means in a row (of the values of each mask, then of the masks of each token),
    no number of which is too large for half precision.

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

    A patch attends to every patch: one that it shares no mask with has weight exp(0) before normalisation. The class
    token lies in every mask, with value 1, as in :func:`mask_guided_patch_severance`.

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

    No patch hears another, as in GPS with alpha = 1, but patches weigh more the more proposals they lie in: here
    the values are not divided by anything. The class token lies in every mask, with value 1, so its factor is N.
    The paper does not have this kind; it is here so that the released weights can be compared.

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
    """Plain self-attention, as an :data:`Attend`; ``masks`` are of no use to it.

    nn.MultiheadAttention itself would compute the same, but on a CPU its products with frozen weights take several
    times as long while gradients flow through them: it lays tokens out so that the weights are copied for every token.
    """
    query, key, value = attention.project(tokens)
    return attention.merge(F.scaled_dot_product_attention(query, key, value, is_causal=causal))


ROWS: dict[str, Attend] = {
    "share": mask_guided_patch_severance,
    "softmax": softmax_mask_guided_patch_severance,
}
"""How the rows of MPS are normalised -> its attention."""

KINDS: dict[str, Callable[[float, str], Attend] | None] = {
    "none": None,
    "gps": lambda alpha, rows: generalised_patch_severance(alpha),
    "mps": lambda alpha, rows: ROWS[rows],
    "mask_sum": lambda alpha, rows: mask_sum,
}
"""Kind -> rule that turns a layer's alpha, and the rows, into its attention; another kind is one more entry."""

GUIDED = ("mps", "mask_sum")
"""Kinds that read the proposal masks and have no alpha: a layer is severed whole or not at all."""
