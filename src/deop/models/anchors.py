"""One embedding per proposal: mask pooling and classification anchor learning (sections 3.1 and 4.2)."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
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
    """The output of a heatmap decoder for every proposal.

    Attributes:
        heatmaps: (B, N, heads, h, w) classification anchor heatmaps on the patch grid; figures show the mean over
            the heads.
        embeddings: (B, N, D) the patch features pooled by the heatmaps, not normalised.
    """

    heatmaps: Tensor
    embeddings: Tensor


class QueryHeatmapDecoder(nn.Module):
    """Query-based classification anchor heatmap decoder (section 4.2.1, figure 4 right).

    ``layers`` post-norm transformer decoder layers update N anchor queries from the patch features, then a
    heatmap output layer compares the queries with the patches (Eq. 3) and the features are pooled by the
    heatmaps (section 4.2.2). The values are the features without a projection, so the embeddings stay in CLIP's joint
    space: head i pools the i-th of ``heads`` equal slices of the D channels with its own heatmap.

    Args:
        width: D, channels of the patch features (CLIP's joint embedding).
        queries: N, one anchor query for each proposal, in the proposals' order.
        layers: K, transformer decoder layers before the heatmap output layer; may be 0.
        heads: attention heads.
        ffn_width: hidden width of the decoder layers' feed-forward networks.
        dropout: dropout in attention, feed-forward networks and residuals.
        feature_scale: factor of the patch features where queries attend to them; the features that are pooled keep
            unit length. With 1 (the release) a channel of a feature is about 1 / sqrt(D), small compared
            with its sine position, which long training has to make up for. With sqrt(D) queries attend to content
            from the start.

    The untrained output layer gives almost uniform heatmaps, so training starts from mask pooling (up to scale).

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


class ConvHeatmapDecoder(nn.Module):
    """Convolutional anchor heatmap decoder (Eq. 4, figure 4 left), the query decoder's counterpart in Table 5.

    Each proposal gets a copy of the feature map, multiplied by its mask. ``layers`` blocks of 3x3 convolution, batch
    norm and ReLU, shared by all copies, are followed by a 1x1 convolution to one score per patch. A softmax of the
    scores over the patches is the proposal's heatmap, which pools the unmasked features (section 4.2.2).

    The paper does not say which patches the softmax of Eq. 4 runs over, and gives no kernel size for the last
    convolution. Unlike Eq. 3, Eq. 4 does not multiply the heatmap by the mask again.

    Args:
        width: D, channels of the patch features (CLIP's joint embedding) and of the blocks.
        layers: K, convolution blocks before the last convolution; may be 0.
        softmax_over: ``"mask"``: each patch is weighted in the softmax by its value in the mask (for a binary mask,
            the softmax runs over the patches inside). ``"image"``: all patches have the same weight, so the mask acts
            only through the masked features.
        feature_scale: factor of the patch features in the scores; the features that are pooled keep unit length.
            Batch norm cancels it except for its epsilon, so it matters most with K = 0.

    The untrained last convolution gives almost equal scores. With ``softmax_over="mask"`` that is an almost uniform
    heatmap over the mask, so training starts from mask pooling and moves away from it only where this helps. A
    decoder that starts with random scores has to unlearn them first; with ``"image"`` all proposals start with the
    same embedding, the mean of the image.

    Cost: training keeps 2 K maps of B * N * D * h * w numbers, two per block. At the paper's size (4 images per GPU,
    N = 100, D = 512, a 32 x 32 grid) a map is 0.84 GB in float32, so K = 3 keeps 5 GB. Each block but the first costs
    9 * D^2 * N * h * w multiplications per image, 2.4e11 at that size: more than twice the whole visual tower of
    ViT-B/16. The masked copies are never formed (:func:`masked_convolution`). Splitting the proposals into groups would
    save memory, but change the batch norm, whose statistics are over all copies of the batch.

    Raises:
        ValueError: unknown ``softmax_over``.
    """

    def __init__(
        self,
        *,
        width: int,
        layers: int = 3,
        softmax_over: Literal["mask", "image"] = "mask",
        feature_scale: float = 1.0,
    ) -> None:
        super().__init__()
        if softmax_over not in ("mask", "image"):
            raise ValueError(f"unknown softmax_over {softmax_over!r}; valid: mask, image")
        self.softmax_over = softmax_over
        self.feature_scale = feature_scale
        # No biases: batch norm subtracts the mean, and a softmax does not depend on a constant.
        self.convolutions = nn.ModuleList(
            nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(layers)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(layers))
        self.score = nn.Conv2d(width, 1, 1, bias=False)
        for convolution in self.convolutions:
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
        # Small but not zero: with zeros, the blocks would get no gradient in the first step.
        nn.init.normal_(self.score.weight, std=0.1 / width**0.5)

    def forward(self, features: Tensor, masks: Tensor) -> AnchorOutput:
        """Heatmaps (heads = 1) and pooled embeddings of all proposals.

        Args:
            features: (B, D, h, w) patch features in CLIP's joint space, L2-normalised per patch.
            masks: (B, N, h, w) proposal masks in [0, 1] on the patch grid, for any N. In training, the batch statistics
                are over all B * N copies and all patches.

        Raises:
            ValueError: features or masks do not fit the decoder or each other.
        """
        batch, channels, height, width = features.shape
        if (
            channels != self.score.in_channels
            or masks.shape[0] != batch
            or masks.shape[2:] != features.shape[2:]
        ):
            raise ValueError(
                f"features {tuple(features.shape)} and masks {tuple(masks.shape)} do not fit a decoder of width "
                f"{self.score.in_channels}: wanted (B, {self.score.in_channels}, h, w) and (B, N, h, w)"
            )
        first, *rest = (*self.convolutions, self.score)
        x = masked_convolution(first, features * self.feature_scale, masks)
        for norm, convolution in zip(self.norms, rest, strict=True):
            x = convolution(F.relu(norm(x), inplace=True))
        scores = x.unflatten(0, (batch, -1)).flatten(2).float()  # (B, N, h*w)
        if self.softmax_over == "mask":
            # Not -inf outside the mask: the heatmap of an empty mask would be NaN.
            scores = scores + masks.flatten(2).float().clamp(min=torch.finfo(torch.float32).tiny).log()
        heatmaps = scores.softmax(-1)
        embeddings = heatmaps @ features.flatten(2).transpose(1, 2)
        return AnchorOutput(heatmaps.unflatten(-1, (height, width))[:, :, None], embeddings)


def masked_convolution(convolution: nn.Conv2d, features: Tensor, masks: Tensor) -> Tensor:
    """``convolution`` of the N masked copies F * M of each feature map, without forming the copies.

    The result at a patch is a sum over the kernel's taps: the mask at the tap times the product of the tap's weights
    with the features there. These products are the same for all N copies and are computed once, which takes 1/N + 1/C
    of the multiplications of convolving every copy.

    Args:
        convolution: D channels to C; odd square kernel, stride 1, padding that keeps the size, no bias.
        features: (B, D, h, w).
        masks: (B, N, h, w).

    Returns:
        (B * N, C, h, w), the copies of an image one after another.
    """
    around = {"kernel_size": convolution.kernel_size, "padding": convolution.padding}
    near_features = F.unfold(features, **around).unflatten(1, (features.shape[1], -1))  # (B, D, taps, h*w)
    near_masks = F.unfold(masks, **around).unflatten(1, (masks.shape[1], -1))  # (B, N, taps, h*w)
    products = torch.einsum("bdtp,cdt->bptc", near_features, convolution.weight.flatten(2))
    copies = torch.einsum("bntp,bptc->bncp", near_masks, products)
    return copies.flatten(0, 1).unflatten(-1, features.shape[2:])
