"""One embedding a proposal: mask pooling and classification anchor learning (sections 3.1 and 4.2)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers.models.maskformer.configuration_maskformer import MaskFormerDetrConfig
from transformers.models.maskformer.modeling_maskformer import (
    MaskFormerDetrDecoderLayer,
    MaskFormerSinePositionEmbedding,
)


def mask_pool(features: Tensor, masks: Tensor) -> Tensor:
    """Mean of the patch features under each mask, weighted by the mask (section 3.1, the baseline's pooling).

    Args:
        features: (B, D, h, w) patch features.
        masks: (B, N, h, w) proposal masks in [0, 1] on the patch grid.

    Returns:
        (B, N, D); a mask that is 0 everywhere gives 0.
    """
    weights = masks.flatten(2)
    total = torch.bmm(weights, features.flatten(2).transpose(1, 2))
    return total / weights.sum(-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)


class AnchorOutput(NamedTuple):
    """What a heatmap decoder gives for every proposal.

    Attributes:
        heatmaps: (B, N, heads, h, w) classification anchor heatmaps on the patch grid; for pictures, take the
            mean over the heads.
        embeddings: (B, N, D) the patch features pooled by the heatmaps, not normalised.
    """

    heatmaps: Tensor
    embeddings: Tensor


class QueryHeatmapDecoder(nn.Module):
    """Query-based classification anchor heatmap decoder (section 4.2.1, figure 4 right).

    ``layers`` post-norm transformer decoder layers update N anchor queries from the patch features, then a
    heatmap output layer compares the queries with the patches (Eq. 3) and the features are pooled by the
    heatmaps (section 4.2.2). The features are the values unprojected, so the embeddings stay in CLIP's joint
    space: head i pools the i-th of ``heads`` equal slices of the D channels with its own heatmap.

    Args:
        width: D, channels of the patch features (CLIP's joint embedding).
        queries: N, one anchor query for each proposal, in the proposals' order.
        layers: K, transformer decoder layers before the heatmap output layer; may be 0.
        heads: attention heads.
        ffn_width: hidden width of the decoder layers' feed-forward networks.
        dropout: dropout in attention, feed-forward networks and residuals.
        feature_scale: factor of the patch features where they are attended to; the values that are pooled keep
            unit length. With 1 (the release) a channel of a feature is about 1 / sqrt(D), small beside its sine
            position, and long training has to make up for it; with sqrt(D) queries see content from the start.

    The untrained output layer gives almost uniform heatmaps: training starts from mask pooling (up to scale).

    Raises:
        ValueError: ``width`` is not a multiple of ``heads`` and of 4 (sine and cosine of rows and columns).
    """

    def __init__(
        self,
        *,
        width: int,
        queries: int,
        layers: int = 1,
        heads: int = 8,
        ffn_width: int = 1024,
        dropout: float = 0.1,
        feature_scale: float = 1.0,
    ) -> None:
        super().__init__()
        if width % heads or width % 4:
            raise ValueError(f"width {width} must be a multiple of heads ({heads}) and of 4")
        self.heads = heads
        self.feature_scale = feature_scale
        self.queries = nn.Embedding(queries, width)
        self.positions = MaskFormerSinePositionEmbedding(num_position_features=width // 2, normalize=True)
        config = MaskFormerDetrConfig(
            d_model=width,
            decoder_attention_heads=heads,
            decoder_ffn_dim=ffn_width,
            dropout=dropout,
            attention_dropout=dropout,
            activation_dropout=dropout,
            attn_implementation="sdpa",
        )
        self.layers = nn.ModuleList(MaskFormerDetrDecoderLayer(config) for _ in range(layers))
        self.self_attention = nn.MultiheadAttention(width, heads, dropout=dropout, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.query_projection = nn.Linear(width, width)
        self.key_projection = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        for module in (self.layers, self.self_attention, self.key_projection):
            for parameter in module.parameters():
                if parameter.dim() > 1:
                    nn.init.xavier_uniform_(parameter)
        nn.init.xavier_uniform_(self.query_projection.weight, gain=0.1)

    def forward(self, features: Tensor, masks: Tensor) -> AnchorOutput:
        """Heatmaps and pooled embeddings of all proposals.

        Args:
            features: (B, D, h, w) patch features in CLIP's joint space, L2-normalised per patch.
            masks: (B, N, h, w) proposal masks in [0, 1] on the patch grid.

        Raises:
            ValueError: features or masks do not fit the decoder or each other.
        """
        batch, channels, height, width = features.shape
        queries = self.queries.weight.expand(batch, -1, -1)
        if masks.shape != (batch, queries.shape[1], height, width) or channels != queries.shape[2]:
            raise ValueError(
                f"features {tuple(features.shape)} and masks {tuple(masks.shape)} do not fit a decoder of "
                f"{queries.shape[1]} queries and width {queries.shape[2]}: "
                f"wanted (B, {queries.shape[2]}, h, w) and (B, {queries.shape[1]}, h, w)"
            )
        patches = features.flatten(2).transpose(1, 2)  # (B, h*w, D)
        positions = self.positions(features.shape, features.device, features.dtype).flatten(2).transpose(1, 2)
        memory = patches * self.feature_scale
        state = torch.zeros_like(queries)
        for layer in self.layers:
            state = layer(
                state,
                spatial_position_embeddings=positions,
                object_queries_position_embeddings=queries,
                encoder_hidden_states=memory,
            )
        located = state + queries
        attended, _ = self.self_attention(located, located, state, need_weights=False)
        state = self.norm(state + self.dropout(attended))

        query = self._split(self.query_projection(state + queries))
        key = self._split(self.key_projection(memory + positions))
        scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        heatmaps = self.dropout(scores.softmax(-1)) * masks.flatten(2)[:, None]  # (B, heads, N, h*w)
        pooled = heatmaps @ self._split(patches)
        return AnchorOutput(
            heatmaps=heatmaps.transpose(1, 2).unflatten(-1, (height, width)),
            embeddings=pooled.transpose(1, 2).flatten(2),
        )

    def _split(self, tokens: Tensor) -> Tensor:
        """(B, T, D) to (B, heads, T, D / heads)."""
        return tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2)
