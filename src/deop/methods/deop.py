"""DeOP and its baselines: one network, of which each row of Table 3 is a setting.

Baseline (section 3.1) is proposals, one pass of CLIP and mask pooling. Baseline+ (section 3.2) adds learned visual
prompts and goes on learning the text prompt. DeOP adds patch severance (section 4.1) and classification anchors
(section 4.2).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from deop.data.segmentation import IGNORE
from deop.methods.base import IMAGENET_MEAN, IMAGENET_STD, normalise, to_multiple
from deop.methods.builder import Builder
from deop.methods.masks import ClassScores, MaskSegmenter, Regions, SegmenterOutput
from deop.models.anchors import ConvHeatmapDecoder, QueryHeatmapDecoder, mask_pool
from deop.models.clip import DenseCLIP
from deop.models.losses import SEGMENTATION_LOSSES, labels_at
from deop.models.prompts import TextPrompt, TextTemplates, VisualPrompts
from deop.models.proposals import ProposalNetwork
from deop.models.severance import Severance
from deop.settings.methods import AnchorSettings, DeOPSettings, method
from deop.settings.stages import Segmentation
from deop.settings.templates import templates_of
from deop.utils.precision import in_float32
from deop.utils.timing import part


@method(DeOPSettings)
class DeOP(MaskSegmenter):
    """A decoupled one-pass segmenter: frozen proposals, frozen CLIP, and what ``network`` lets it learn.

    Args:
        clip: the frozen CLIP.
        proposals: the trained proposal network; frozen here.
        text_prompt: the offline learned text prompt, which goes on learning if ``network.text_prompts`` is
            ``"online"``; or the templates in its place.
        network: which parts are on.
        queries: number N of proposals, one anchor query each.
        normalisation: whose mean and deviation CLIP's input is normalised with, ``"clip"`` or ``"imagenet"``.
        ignore: label of pixels without a seen class; those of other negative labels count as such.
    """

    compiled_methods = ("propose", "encode")

    def __init__(
        self,
        clip: DenseCLIP,
        proposals: ProposalNetwork,
        text_prompt: TextPrompt | TextTemplates,
        network: DeOPSettings,
        *,
        queries: int,
        normalisation: str = "clip",
        loss: Segmentation | None = None,
        ignore: int = -1,
    ) -> None:
        super().__init__()
        self.clip, self.proposals, self.text_prompt = clip, proposals.requires_grad_(False), text_prompt
        self.network, self.loss, self.ignore = network, loss, ignore
        self.logit_scale = network.logit_scale or clip.logit_scale
        self.mean, self.std = (
            (clip.mean, clip.std) if normalisation == "clip" else (IMAGENET_MEAN, IMAGENET_STD)
        )
        self.severance = Severance(**dict(network.severance))
        self.severance.attentions(
            clip.layers
        )  # fails here, not in the first step, on a layer CLIP does not have
        self.visual_prompts = (
            VisualPrompts(
                clip.width,
                depth=min(6, clip.layers),
                grid=network.visual_prompt_grid,
                prefix=clip.prefix,
            )
            if network.visual_prompts
            else None
        )
        self.anchors = build_anchors(network.anchors, clip.embed_dim, queries)
        if isinstance(text_prompt, TextPrompt):
            text_prompt.context.requires_grad_(network.text_prompts == "online")
        # Only training can teach what "no object" looks like.
        text_prompt.no_object.requires_grad_(network.trained)
        self._text_cache: tuple[tuple[str, ...], Tensor] | None = None

    @classmethod
    def build(cls, builder: Builder) -> DeOP:
        settings = builder.settings
        return cls(
            builder.clip,
            builder.proposals(),
            TextTemplates(templates_of(settings.templates), builder.clip.embed_dim)
            if settings.templates
            else builder.text_prompt(),
            settings,
            queries=builder.proposal_settings.queries,
            normalisation=builder.clip_settings.normalisation,
            loss=builder.schedule,
            ignore=IGNORE,
        )

    def lr_factors(self, schedule: Segmentation) -> dict[str, float]:
        return {"anchors.": schedule.anchors_lr_factor}

    def train(self, mode: bool = True) -> DeOP:
        """The frozen networks stay in evaluation mode, their batch statistics with them."""
        super().train(mode)
        self.proposals.eval()
        self._text_cache = None
        return self

    def text_features(self, names: list[str]) -> Tensor:
        """Class embeddings (C, D), L2-normalised.

        They are kept for as long as the names stay the same and the prompt does not learn.
        """
        key = tuple(names)
        if self._text_cache is not None and self._text_cache[0] == key:
            return self._text_cache[1]
        with part("text"):
            text = self.text_prompt(self.clip, names)
        if not (self.training and text.requires_grad):
            self._text_cache = (key, text)
        return text

    def classifier(self, names: list[str]) -> Tensor:
        """Class embeddings and "no object": (C + 1, D), L2-normalised."""
        return self._with_no_object(self.text_features(names))

    def _with_no_object(self, text: Tensor) -> Tensor:
        return torch.cat([text, F.normalize(self.text_prompt.no_object, dim=0)[None].to(text.dtype)])

    def embed(self, names: list[str]) -> None:
        self.text_features(names)

    def forward(self, images: Tensor, names: list[str]) -> SegmenterOutput:
        """Proposals and their class logits for images (B, 3, H, W) in [0, 1]."""
        return self.score(self.encode_images(images), names)

    def encode_images(self, images: Tensor) -> Regions:
        """Proposals and their embeddings, for images (B, 3, H, W) in [0, 1]: all that does not depend on names."""
        with torch.no_grad(), part("proposals"):
            mask_logits = self.propose(self.padded(images, IMAGENET_MEAN)).float()
        inputs = to_multiple(self.padded(images, self.mean), self.clip.patch_size)
        inputs = normalise(inputs, self.mean, self.std)
        # Before CLIP's pass: severance may be guided by the masks.
        grid = [side // self.clip.patch_size for side in inputs.shape[-2:]]
        masks = F.interpolate(mask_logits, grid, mode="bilinear", align_corners=False).sigmoid()
        with part("clip_visual"):
            patches = self.encode(inputs, masks)
        if self.network.resampling == "release":
            masks = F.interpolate(mask_logits.sigmoid(), grid, mode="bilinear", align_corners=False)
        features = F.normalize(patches.float(), dim=1)
        with part("anchors"):
            if self.anchors is None:
                embeddings, heatmaps = mask_pool(features, masks), masks[:, :, None]
            else:
                heatmaps, embeddings = self.anchors(features, masks)
        if self.network.renormalise_pooled:
            embeddings = F.normalize(embeddings.float(), dim=-1)
        passes = torch.ones(len(images), dtype=torch.int64, device=images.device)
        mask_logits = self.over_image(mask_logits, tuple(images.shape[-2:]))
        return Regions(mask_logits, embeddings, heatmaps, passes)

    def score(self, encoded: Regions, names: list[str]) -> SegmenterOutput:
        """Class logits of the proposals that :meth:`encode_images` found."""
        return self.classify(encoded, self.text_features(names))

    def classify(self, encoded: Regions, text: Tensor) -> SegmenterOutput:
        """As :meth:`score`, of class embeddings (C, D)."""
        with in_float32(text.device):
            class_logits = (
                self.logit_scale * encoded.embeddings.float() @ self._with_no_object(text).float().T
            )
        if not self.network.trained:
            class_logits = torch.cat(
                [class_logits[..., :-1], torch.full_like(class_logits[..., -1:], -torch.inf)], -1
            )
        return SegmenterOutput(encoded.mask_logits, class_logits, encoded.heatmaps, encoded.passes)

    def propose(self, images: Tensor) -> Tensor:
        """Mask logits (B, N, h, w) of images (B, 3, H, W) in [0, 1]."""
        normalised = normalise(images, IMAGENET_MEAN, IMAGENET_STD)
        return self.proposals.decode(normalised, last_only=True)[1][0]

    def encode(self, inputs: Tensor, masks: Tensor) -> Tensor:
        """CLIP's patch features (B, D, h, w), not normalised, in one pass.

        Args:
            inputs: images (B, 3, H, W), normalised, whose sides are multiples of a patch.
            masks: (B, N, h, w), which may guide severance.
        """
        return self.clip.visual(
            inputs,
            severance=self.severance,
            visual_prompts=self.visual_prompts,
            masks=masks,
            antialias=self.network.resampling != "release",
            recompute=self.training and self.gradient_checkpointing,
        ).patches

    def supervised(self, images: Tensor, names: list[str]) -> list[Tensor]:
        """The class logits; masks are frozen."""
        return [self(images, names).class_logits]

    def losses(self, images: Tensor, labels: Tensor, names: list[str]) -> dict[str, Tensor]:
        """Focal and dice loss of the per-pixel class scores (section 3.2), of which ``loss.loss`` says which one.

        With ``labelled`` it is taken at the resolution of the masks, and a pixel without a seen class takes no part,
        whatever the reason; with ``release`` it is taken at that of the labels, and such a pixel is "no object".
        """
        output = self(images, names)
        labels = labels.masked_fill(labels < 0, self.ignore)
        if self.loss.loss == "labelled":
            labels = labels_at(labels, output.mask_logits.shape[-2:])
        return SEGMENTATION_LOSSES[self.loss.loss](
            output.class_logits,
            output.mask_logits,
            labels,
            ignore=self.ignore,
            focal_alpha=self.loss.focal_alpha,
            focal_gamma=self.loss.focal_gamma,
            focal_weight=self.loss.focal_weight,
            dice_weight=self.loss.dice_weight,
        )

    def denominators(self, labels: Tensor) -> dict[str, Tensor]:
        """The focal loss is a mean over labelled pixels, the dice loss over the images that have any.

        Those of the release are means over all pixels and images.
        """
        if self.loss.loss == "release":
            return {}
        size = self.proposals.mask_size(tuple(labels.shape[-2:]))
        labelled = (labels_at(labels.masked_fill(labels < 0, self.ignore), size) != self.ignore).flatten(1)
        return {"focal": labelled.sum(), "dice": labelled.any(1).sum()}

    @staticmethod
    def class_scores(output: SegmenterOutput) -> ClassScores:
        """F_C of section 3.1: class probabilities, "no object" dropped. O = F_C * M is all that is left to do."""
        probabilities = output.class_logits.float().softmax(-1)[..., :-1]
        return ClassScores(probabilities, probabilities.new_zeros(probabilities.shape[-1]))


def build_anchors(
    settings: AnchorSettings, width: int, queries: int
) -> QueryHeatmapDecoder | ConvHeatmapDecoder | None:
    """The heatmap decoder (section 4.2) for D = ``width`` channels and N = ``queries``; None is mask pooling."""
    if settings.kind == "none":
        return None
    if settings.kind == "query":
        return QueryHeatmapDecoder(
            width=width,
            queries=queries,
            layers=settings.layers,
            heads=settings.heads,
            ffn_width=settings.ffn_width,
            dropout=settings.dropout,
            feature_scale=settings.feature_scale,
        )
    return ConvHeatmapDecoder(
        width=width,
        layers=settings.layers,
        softmax_over="image" if settings.kind == "conv_image" else "mask",
        feature_scale=settings.feature_scale,
    )
