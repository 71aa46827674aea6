"""Self-attention in steps, so that severance can replace the mixing step of layers of open_clip and of timm."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from timm.layers import apply_rot_embed_cat
from torch import Tensor, nn


class SelfAttention(ABC):
    """One layer's self-attention over tokens (B, T, C): its input and output projections, without the mixing between.

    Attributes:
        heads: attention heads.
        prefix: tokens before the patches: 1 with a class token, 0 without.
    """

    heads: int
    prefix: int

    @abstractmethod
    def _project(self, tokens: Tensor) -> list[Tensor]:
        """Queries, keys and values (B, T, C), heads concatenated."""

    @abstractmethod
    def values(self, tokens: Tensor) -> Tensor:
        """Only the values (B, T, C), heads concatenated."""

    @abstractmethod
    def output(self, context: Tensor) -> Tensor:
        """The output projection after the mixing of values: (B, T, C) to (B, T, C), token by token."""

    def project(self, tokens: Tensor) -> list[Tensor]:
        """Queries, keys and values, each (B, heads, T, C / heads), as they enter the softmax."""
        return [part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self._project(tokens)]

    def merge(self, heads: Tensor) -> Tensor:
        """The output (B, T, C) of the heads' results (B, heads, T, C / heads)."""
        return self.output(heads.transpose(1, 2).flatten(2))


class TorchAttention(SelfAttention):
    """``nn.MultiheadAttention``, as in open_clip's own transformers."""

    def __init__(self, module: nn.MultiheadAttention, prefix: int = 1) -> None:
        self.module, self.heads, self.prefix = module, module.num_heads, prefix

    def _project(self, tokens: Tensor) -> list[Tensor]:
        return list(F.linear(tokens, self.module.in_proj_weight, self.module.in_proj_bias).chunk(3, dim=-1))

    def values(self, tokens: Tensor) -> Tensor:
        start = 2 * self.module.embed_dim
        return F.linear(tokens, self.module.in_proj_weight[start:], self.module.in_proj_bias[start:])

    def output(self, context: Tensor) -> Tensor:
        return self.module.out_proj(context)


class TimmAttention(SelfAttention):
    """timm's ``Attention``, ``AttentionRope`` or ``EvaAttention``.

    The layer norm that some put between the mixing and the output projection (EVA02-L) belongs to the output.

    Args:
        module: one of the above, neither gated nor with fewer heads of keys than of queries.
        prefix: tokens before the patches, which have no rotary position.
        rope: rotary positions (h*w, ...) of the patches, or None.
    """

    def __init__(self, module: nn.Module, prefix: int, rope: Tensor | None = None) -> None:
        self.module, self.heads, self.prefix, self.rope = module, module.num_heads, prefix, rope

    def _project(self, tokens: Tensor) -> list[Tensor]:
        module = self.module
        if module.qkv is None:
            return [module.q_proj(tokens), module.k_proj(tokens), module.v_proj(tokens)]
        return list(F.linear(tokens, module.qkv.weight, self._bias()).chunk(3, dim=-1))

    def project(self, tokens: Tensor) -> list[Tensor]:
        query, key, value = super().project(tokens)
        query, key = self.module.q_norm(query), self.module.k_norm(key)
        return [self._rotated(query), self._rotated(key), value]

    def values(self, tokens: Tensor) -> Tensor:
        module = self.module
        if module.qkv is None:
            return module.v_proj(tokens)
        start, bias = 2 * module.qkv.out_features // 3, self._bias()
        return F.linear(tokens, module.qkv.weight[start:], None if bias is None else bias[start:])

    def output(self, context: Tensor) -> Tensor:
        return self.module.proj(self.module.norm(context))

    def _bias(self) -> Tensor | None:
        """The bias of all projections; EVA stores those of queries and values, and its keys have none."""
        module = self.module
        if getattr(module, "q_bias", None) is None:
            return module.qkv.bias
        return torch.cat([module.q_bias, torch.zeros_like(module.q_bias), module.v_bias])

    def _rotated(self, heads: Tensor) -> Tensor:
        if self.rope is None:
            return heads
        prefix, patches = heads[:, :, : self.prefix], heads[:, :, self.prefix :]
        half = getattr(self.module, "rotate_half", False)
        return torch.cat([prefix, apply_rot_embed_cat(patches, self.rope, half=half)], dim=2).to(heads.dtype)
