"""Class-agnostic mask proposals: MaskFormer without its class head (section 3.1).

Systems with a class head use the same network: :meth:`ProposalNetwork.decode` returns the query states, and
:meth:`ProposalNetwork.matched_loss` the mask losses and the matching, to which the system can add a class cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from transformers import MaskFormerConfig
from transformers.models.maskformer.configuration_maskformer import MaskFormerDetrConfig
from transformers.models.maskformer.modeling_maskformer import (
    MaskformerMLPPredictionHead,
    MaskFormerPixelDecoder,
    MaskFormerTransformerModule,
)

from deop.errors import NotFiniteError
from deop.models.backbones import timm_features
from deop.models.losses import enlarged, labels_at, mask_losses, pairwise_mask_losses

GROUP_NORM_GROUPS = 32  # fixed in transformers' pixel decoder


class Pairs(NamedTuple):
    """M matched pairs of a query and a segment in one decoder layer, as index tensors (M,): image, query, class."""

    image: Tensor
    query: Tensor
    label: Tensor


class ProposalNetwork(nn.Module):
    """A timm backbone, MaskFormer's pixel and transformer decoders and its mask embedding; no class head.

    Attributes:
        width: channels of the query states and of the decoders.
        queries: number N of proposals.

    Args:
        backbone: timm model name, one that supports ``features_only``.
        backbone_args: further arguments of ``timm.create_model``, e.g. ``{"channels": [32, 64, 96, 128]}``; and
            ``multi_grid``, the dilations of the 3x3 convolutions in the blocks of a ResNet's last stage (DeepLab's and
            MaskFormer's ResNet-101c: 1, 2, 4), which timm has no argument for.
        frozen_batch_norm: the backbone's batch norms keep their statistics and scales.
        pretrained_backbone: start from timm's pretrained weights (others can be loaded into ``backbone``).
        out_indices: backbone stages used, finest first; the first sets the resolution of the masks, the last
            feeds the transformer decoder.
        queries: number N of proposals.
        decoder_layers: transformer decoder layers; each is supervised.
        width: channels of pixel and transformer decoders, a multiple of 32 and of ``heads``.
        ffn_width: hidden width of the decoder layers' feed-forward networks.
        heads: attention heads of the decoder layers.
        dropout: dropout in attention, feed-forward networks and residuals of the decoder layers.
        decoder_norm: what the norm after each layer applies to: only the ``"outputs"``, as in MaskFormer's code, or
            ``"chained"``, as in transformers, where the next layer takes the normalised state as its input.
        focal_weight: weight of the focal mask loss, in the loss and in the matching cost.
        dice_weight: weight of the dice loss, likewise.
        ignored: how losses and matching treat pixels labelled "ignore": ``"excluded"``, or as ``"background"`` outside
            of every segment, as in MaskFormer's criterion.

    Raises:
        ValueError: unknown ``backbone``, a ``width`` that does not divide, or a ``multi_grid`` that does not fit.
        WeightsError: timm's weights cannot be downloaded.
    """

    def __init__(
        self,
        *,
        backbone: str,
        backbone_args: dict[str, Any],
        pretrained_backbone: bool,
        out_indices: Sequence[int],
        queries: int,
        decoder_layers: int,
        width: int,
        ffn_width: int,
        heads: int,
        dropout: float = 0.0,
        decoder_norm: Literal["chained", "outputs"] = "chained",
        frozen_batch_norm: bool = False,
        focal_weight: float = 20.0,
        dice_weight: float = 1.0,
        ignored: Literal["excluded", "background"] = "excluded",
    ) -> None:
        super().__init__()
        if width % GROUP_NORM_GROUPS or width % heads:
            raise ValueError(
                f"width {width} must be a multiple of {GROUP_NORM_GROUPS} and of heads ({heads})"
            )
        self.width, self.queries = width, queries
        self.decoder_norm = decoder_norm
        self.focal_weight = focal_weight
        self.dice_weight = dice_weight
        self.ignored = ignored
        self.backbone = timm_features(
            backbone,
            backbone_args,
            out_indices,
            pretrained=pretrained_backbone,
            frozen_batch_norm=frozen_batch_norm,
        )
        *lateral, deepest = self.backbone.feature_info.channels()
        self._stride: int = self.backbone.feature_info.reduction()[0]
        self.pixel_decoder = MaskFormerPixelDecoder(
            in_features=deepest, lateral_widths=lateral, feature_size=width, mask_feature_size=width
        )
        config = MaskFormerConfig(
            decoder_config=MaskFormerDetrConfig(
                num_queries=queries,
                decoder_layers=decoder_layers,
                d_model=width,
                decoder_ffn_dim=ffn_width,
                decoder_attention_heads=heads,
                dropout=dropout,
                attention_dropout=dropout,
                activation_dropout=dropout,
                auxiliary_loss=True,  # keeps the states of every layer, for deep supervision
            )
        )
        self.transformer = MaskFormerTransformerModule(in_features=deepest, config=config)
        self.mask_embedding = MaskformerMLPPredictionHead(width, width, width)
        for module in (self.transformer.decoder, self.mask_embedding):
            for parameter in module.parameters():
                if parameter.dim() > 1:
                    nn.init.xavier_uniform_(parameter)
        # On a CPU this makes convolutions a quarter faster. Not for the pixel decoder: its group norms would be twenty
        # times slower.
        self.backbone.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Mask logits of every decoder layer.

        Args:
            images: (B, 3, H, W), normalised with ImageNet's mean and standard deviation.

        Returns:
            One (B, N, h, w) tensor of logits per decoder layer, the last layer last; h x w is the resolution of
            the first backbone feature (stride 4 for a ResNet's ``out_indices=[1, 2, 3, 4]``).
        """
        return self.decode(images)[1]

    def decode(self, images: Tensor, *, last_only: bool = False) -> tuple[Tensor, list[Tensor]]:
        """Query states of every decoder layer (layers, B, N, width), for a class head, and :meth:`forward`'s masks.

        With ``last_only``, only those of the last layer: the others are for training.
        """
        features = self.backbone(images.contiguous(memory_format=torch.channels_last))
        features = [feature.contiguous() for feature in features]
        pixels = self.pixel_decoder(features).last_hidden_state
        if self.decoder_norm == "chained":
            states = self.transformer(features[-1]).intermediate_hidden_states  # (layers, B, N, width)
        else:
            states = self._states(features[-1])
        states = states[-1:] if last_only else states
        embeddings = self.mask_embedding(states)
        return states, [torch.einsum("bnc,bchw->bnhw", layer, pixels) for layer in embeddings]

    def _states(self, features: Tensor) -> Tensor:
        """Query states (layers, B, N, width) as in MaskFormer's code, where only the outputs are normalised."""
        transformer = self.transformer
        if transformer.input_projection is not None:
            features = transformer.input_projection(features)
        positions = transformer.position_embedder(features.shape, features.device, features.dtype)
        queries = transformer.queries_embedder.weight.expand(len(features), -1, -1)
        state, states = torch.zeros_like(queries), []
        for layer in transformer.decoder.layers:
            state = layer(
                state,
                spatial_position_embeddings=positions.flatten(2).transpose(1, 2),
                object_queries_position_embeddings=queries,
                encoder_hidden_states=features.flatten(2).transpose(1, 2),
            )
            states.append(transformer.decoder.layernorm(state))
        return torch.stack(states)

    def mask_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """The resolution (h, w) of the masks of images of ``size`` (H, W)."""
        return tuple(-(-side // self._stride) for side in size)

    def denominators(
        self, labels: Tensor, *, ignore: int = 255, no_object_weight: float = 0.0
    ) -> dict[str, Tensor]:
        """By name of a loss, the number of items in labels (B, H, W) that it is a mean over (scalars).

        ``focal`` and ``dice`` are means over the ground-truth masks, and ``class``, the classification of a system with
        a class head, over the queries: those matched weigh 1, the others ``no_object_weight``.
        """
        counts = segment_classes(labels, ignore)[1]
        matched = sum(min(count, self.queries) for count in counts)
        weight = matched + no_object_weight * (self.queries * len(counts) - matched)
        masks = labels.new_tensor(sum(counts))
        return {"focal": masks, "dice": masks, "class": torch.tensor(weight, device=labels.device)}

    def loss(self, outputs: Sequence[Tensor], labels: Tensor, *, ignore: int = 255) -> dict[str, Tensor]:
        """Focal and dice loss of the matched masks, summed over the decoder layers.

        Each class present in an image is one ground-truth mask; :func:`match` pairs the masks of an image
        with proposals, separately for every layer, at the resolution of the proposals. The losses of the pairs are
        computed at the resolution of the labels, to which the proposals are upsampled bilinearly: sampled at a
        quarter of it, small segments would lose their outline.

        Two kinds of pixels belong to no ground-truth mask. Those without a label (negative numbers: unlabelled
        background) lie outside all of them, so proposals that cover them are penalised; otherwise masks of things would
        divide the background among themselves. Those labelled ``ignore`` (unseen classes) do not count, neither in
        the losses nor in the matching; otherwise masks would learn to leave out unseen classes. The public
        implementations treat both as background, and so does a network with ``ignored="background"``.

        Args:
            outputs: what :meth:`forward` returned, tensors of (B, N, h, w).
            labels: (B, H, W) class indices, another negative number for "no class", or ``ignore``.
            ignore: the label of pixels that do not count.

        Returns:
            ``focal`` and ``dice``, scalars, already weighted: the loss to minimise is their sum. Each is the
            mean over all ground-truth masks of the batch, so 0 for a batch without any.
        """
        return self.matched_loss(outputs, labels, ignore=ignore)[0]

    def matched_loss(
        self,
        outputs: Sequence[Tensor],
        labels: Tensor,
        *,
        ignore: int = 255,
        class_costs: Tensor | None = None,
    ) -> tuple[dict[str, Tensor], list[Pairs]]:
        """:meth:`loss` and its matching, one :class:`Pairs` per decoder layer.

        Args:
            outputs, labels, ignore: as in :meth:`loss`.
            class_costs: (layers, B, N, C), added to the mask cost of pairing a query with a segment of each of C
                classes; None for a class-agnostic matching.
        """
        if self.ignored == "background":
            labels, ignore = _as_background(labels, ignore)
        with torch.autocast(labels.device.type, enabled=False):
            logits = [output.float() for output in outputs]
            classes, counts = segment_classes(labels, ignore)
            coarse = labels_at(labels, logits[-1].shape[-2:])
            segment_costs = None
            if class_costs is not None:
                # Padding in ``classes`` is never matched, so any valid index will do.
                index = classes.masked_fill(classes == ignore, 0)[None, :, None]
                segment_costs = class_costs.gather(3, index.expand(*class_costs.shape[:3], -1))
            matching = match(
                [layer.detach().flatten(2) for layer in logits],
                segment_masks(coarse, classes, ignore).flatten(2),
                (coarse != ignore).flatten(1).float(),
                counts,
                self.focal_weight,
                self.dice_weight,
                segment_costs,
            )
            # Connected to the graph even if nothing is matched.
            focal = overlap = 0.0 if any(counts) else sum(layer.sum() for layer in logits) * 0
            known, numbers = (labels != ignore).flatten(1), labels.flatten(1).int()
            truth = None
            # Layer by layer, since the masks of all layers at full resolution would take most of a step's memory.
            for layer_logits, (image, query, segment) in zip(logits, matching, strict=True):
                if not len(image):
                    continue
                # Unless segments outnumber queries, every layer has pairs of the same segments in the same order.
                if truth is None or max(counts) > layer_logits.shape[1]:
                    target = numbers[image] == classes.int()[image, segment, None]
                    truth = target.float(), known[image].float()
                matched = enlarged(layer_logits[image, query], labels.shape[-2:]).flatten(1)
                of_focal, of_overlap = mask_losses(matched, *truth)
                focal, overlap = focal + of_focal.sum(), overlap + of_overlap.sum()
            masks = max(sum(counts), 1)
            losses = {"focal": self.focal_weight * focal / masks, "dice": self.dice_weight * overlap / masks}
            pairs = [Pairs(image, query, classes[image, segment]) for image, query, segment in matching]
            return losses, pairs


def _as_background(labels: Tensor, ignore: int) -> tuple[Tensor, int]:
    """Labels in which ignored pixels have no class, and a new ``ignore`` value that no pixel has."""
    return labels.masked_fill(labels == ignore, -1).clamp(min=-1), -2


def segment_classes(labels: Tensor, ignore: int) -> tuple[Tensor, list[int]]:
    """The classes present in each image, each of which is one ground-truth segment.

    Args:
        labels: (B, H, W) class indices, a negative number for "no class", or ``ignore``.

    Returns:
        (B, K) class indices ascending, K the largest number in one image, padded with ``ignore``; the number of
        segments of each image.
    """
    # Counting is several times as fast as the sort under Tensor.unique.
    numbers = [torch.bincount(image)[1:] for image in labels.clamp(min=-1).add_(1).flatten(1)]
    present = [number.nonzero().flatten() for number in numbers]
    present = [classes[classes != ignore] for classes in present]
    padded = nn.utils.rnn.pad_sequence(present, batch_first=True, padding_value=ignore)
    return padded, [len(classes) for classes in present]


def segment_masks(labels: Tensor, classes: Tensor, ignore: int) -> Tensor:
    """The masks (B, K, h, w) in {0, 1} of ``classes`` (B, K) in labels (B, h, w); 0 for padding."""
    return ((labels[:, None] == classes[..., None, None]) & (labels != ignore)[:, None]).float()


@torch.no_grad()
def match(
    logits: Sequence[Tensor],
    targets: Tensor,
    valid: Tensor,
    counts: Sequence[int],
    focal_weight: float,
    dice_weight: float,
    class_costs: Tensor | None = None,
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Cheapest one-to-one assignment of proposals to ground-truth masks, for every decoder layer and image.

    The cost of a pair is weighted focal plus weighted dice at the resolution of ``logits``, plus its class cost if
    given.

    Args:
        logits: (B, N, pixels) mask logits of each layer, float32.
        targets: (B, K, pixels) ground-truth masks.
        valid: (B, pixels), 0 for pixels that do not count, else 1.
        counts: B numbers of ground-truth masks; if there are more than proposals, those with the highest costs stay
            unmatched.
        focal_weight: weight of the focal cost.
        dice_weight: weight of the dice cost.
        class_costs: (layers, B, N, K), already weighted, or None.

    Returns:
        For every layer three (M,) index tensors: image, query and ground-truth mask of each of its M pairs, ordered by
        image and mask.

    Raises:
        NotFiniteError: masks that training has made infinite or not a number.
    """
    costs = []
    for layer in logits:
        focal, overlap = pairwise_mask_losses(layer, targets, valid)
        costs.append(focal_weight * focal + dice_weight * overlap)
    total = torch.stack(costs) if class_costs is None else torch.stack(costs) + class_costs
    total = total.cpu()
    if not torch.isfinite(total).all():
        raise NotFiniteError("the masks are not finite; a lower learning rate may help")
    pairs = []
    for layer_costs in total.numpy():
        found = [
            (image, query, segment)
            for image, count in enumerate(counts)
            # Transposed, because pairs are ordered by the first index.
            for segment, query in zip(*linear_sum_assignment(layer_costs[image, :, :count].T), strict=True)
        ]
        pairs.append(torch.tensor(found, dtype=torch.long, device=targets.device).reshape(-1, 3).unbind(1))
    return pairs
