"""Decoupled multi-pass systems (figure 1b): proposals that are classified twice, CLIP seeing one crop of each.

One stream is MaskFormer with text embeddings in place of a class layer: it learns masks and, on the names of the seen
classes, their classification. The other is frozen CLIP, which at test is shown every proposal cut out of the image.
SimBaseline and ZegFormer are two ways of training the first and of putting the two together. Where this says [S] and
[Z], the fact is read from their releases: MendelXu/zsseg.baseline and dingjiansw101/ZegFormer.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deop.data.segmentation import HIDDEN
from deop.methods.base import IMAGENET_MEAN, IMAGENET_STD, normalise
from deop.methods.builder import Builder
from deop.methods.masks import ClassScores, MaskSegmenter
from deop.models.clip import DenseCLIP
from deop.models.crops import crop_segments
from deop.models.prompts import TextPrompt, template_embeddings
from deop.models.proposals import Pairs, ProposalNetwork
from deop.settings.methods import MultiPassSettings
from deop.settings.stages import Proposals
from deop.settings.templates import templates_of
from deop.utils.timing import part


class MultiPassOutput(NamedTuple):
    """What a multi-pass system gives for a batch.

    mask_logits: (B, N, h, w) over the image, as :meth:`MaskSegmenter.over_image` has them.
    class_scores: (B, N, C), the two streams put together; no logits, and not normalised over the classes.
    calibration: (C,) what is subtracted from every pixel's score of each class.
    passes: (B,) int64, N' of Table 1: how many crops of each image went through CLIP.
    """

    mask_logits: Tensor
    class_scores: Tensor
    calibration: Tensor
    passes: Tensor


class ClassHead(nn.Module):
    """Query states taken to CLIP's joint space and compared with embeddings of names and of "no object".

    Args:
        width: channels of the query states.
        embed_dim: width D of the joint space.
        hidden: widths of hidden layers, each followed by a ReLU.
        unit_no_object: normalise the row "no object".
    """

    def __init__(self, width: int, embed_dim: int, hidden: Sequence[int], *, unit_no_object: bool) -> None:
        super().__init__()
        layers = [(nn.ReLU(), nn.Linear(*sides)) for sides in pairwise((width, *hidden, embed_dim))]
        self.project = nn.Sequential(*[module for layer in layers for module in layer][1:])
        self.unit_no_object = unit_no_object
        bound = embed_dim**-0.5
        # [S] draws the row from a normal distribution and normalises it, [Z] uniformly and leaves it at that.
        drawn = torch.randn(embed_dim) * bound if unit_no_object else (2 * torch.rand(embed_dim) - 1) * bound
        self.no_object = nn.Parameter(drawn)

    def forward(self, states: Tensor, text: Tensor, scale: float) -> Tensor:
        """Class logits (..., C + 1), the last one "no object", of states (..., width) and names (C, D)."""
        projected = self.project(states)
        with torch.autocast(states.device.type, enabled=False):  # a hundredth of a cosine is a whole logit
            no_object = F.normalize(self.no_object, dim=0) if self.unit_no_object else self.no_object
            rows = torch.cat([text.float(), no_object[None]])
            return scale * F.normalize(projected.float(), dim=-1) @ rows.T


class MultiPass(MaskSegmenter):
    """Proposals classified by their own stream and by CLIP on crops; a system says how the two are put together.

    Args:
        clip: the frozen CLIP.
        proposals: the proposal network, trained or fresh (in the releases, on a pre-trained backbone); it learns here,
            backbone and all, with the class head.
        settings: as above; a system extends them.
        seen_names: the classes that training shows, which the ensemble trusts the proposal stream on.
        text_prompt: the offline learned text prompt, frozen; needed by a stream without templates.
        ignore: label of pixels that take no part in the losses; other negative labels lie outside every segment.

    Raises:
        ValueError: a stream has neither templates nor a text prompt, or the crop size does not fit CLIP's patches.
    """

    compiled_methods = ("decode", "embed_crops")

    def __init__(
        self,
        clip: DenseCLIP,
        proposals: ProposalNetwork,
        settings: MultiPassSettings,
        *,
        seen_names: Sequence[str],
        text_prompt: TextPrompt | None = None,
        ignore: int = HIDDEN,
    ) -> None:
        super().__init__()
        if text_prompt is None and not (settings.proposal_templates and settings.crop_templates):
            raise ValueError("a stream without templates needs a text prompt")
        self.clip, self.proposals = clip, proposals.requires_grad_(True)
        self.text_prompt = None if text_prompt is None else text_prompt.requires_grad_(False)
        self.settings, self.seen_names, self.ignore = settings, frozenset(seen_names), ignore
        self.logit_scale = settings.logit_scale or clip.logit_scale
        self.crop_size = settings.crop_size or clip.pretrain_grid[0] * clip.patch_size
        if self.crop_size % clip.patch_size:
            raise ValueError(
                f"crop_size {self.crop_size} is not a multiple of CLIP's patches, {clip.patch_size} pixels"
            )
        self.class_head = ClassHead(
            proposals.width,
            clip.embed_dim,
            settings.head_hidden,
            unit_no_object=settings.unit_no_object,
        )
        self._text_cache: tuple[tuple, dict[str | tuple[str, ...], Tensor]] = ((), {})

    @classmethod
    def build(cls, builder: Builder) -> MultiPass:
        return cls(
            builder.clip,
            builder.proposals(),
            builder.settings,
            seen_names=builder.seen_names,
            text_prompt=builder.text_prompt() if "prompts" in builder.settings.parts else None,
        )

    def lr_factors(self, schedule: Proposals) -> dict[str, float]:
        """The backbone is pre-trained, and learns more slowly."""
        return {"proposals.backbone.": schedule.backbone_lr_factor}

    def trained_state(self) -> dict[str, Tensor]:
        """All of the proposals: batch norms that are frozen learn nothing, but are not those of a new network."""
        proposals = self.proposals.state_dict(prefix="proposals.")
        return super().trained_state() | proposals

    @staticmethod
    @abstractmethod
    def release_crops(image: Tensor, masks: Tensor, size: int, fill: Tensor, expand: float) -> Tensor:
        """The crops of the system's own release; as :func:`deop.models.crops.crop_segments`."""

    @abstractmethod
    def crop_probabilities(self, crop_logits: Tensor, class_logits: Tensor) -> Tensor:
        """Class probabilities (P, C) of P crops.

        Args:
            crop_logits: (P, C) CLIP's scaled cosines.
            class_logits: (P, C + 1) the proposal stream's logits of the same proposals.
        """

    @abstractmethod
    def ensemble(self, proposal: Tensor, crop: Tensor, seen: Tensor) -> Tensor:
        """Class scores (..., C) from the two streams' probabilities (..., C); ``seen`` is (C,) bool."""

    def calibration(self, seen: Tensor) -> Tensor:
        """What is subtracted from each pixel's class scores, (C,): nothing, unless a system says so."""
        return torch.zeros(seen.shape, device=seen.device)

    def train(self, mode: bool = True) -> MultiPass:
        super().train(mode)
        self._text_cache = ((), {})
        return self

    def embed(self, names: list[str]) -> None:
        for templates in (self.settings.proposal_templates, self.settings.crop_templates):
            self.text_embeddings(names, templates)

    def proposal_stream(
        self, images: Tensor, names: list[str], *, last_only: bool = False
    ) -> tuple[list[Tensor], Tensor]:
        """Mask logits, one (B, N, h, w) a decoder layer, and class logits (layers, B, N, C + 1).

        With ``last_only``, of the last decoder layer alone.
        """
        with part("proposals"):
            states, masks = self.decode(images, last_only=last_only)
        text = self.text_embeddings(names, self.settings.proposal_templates)
        return masks, self.class_head(states, text, self.logit_scale)

    def decode(self, images: Tensor, *, last_only: bool) -> tuple[Tensor, list[Tensor]]:
        """:meth:`deop.models.proposals.ProposalNetwork.decode` of images (B, 3, H, W) in [0, 1]."""
        return self.proposals.decode(normalise(images, IMAGENET_MEAN, IMAGENET_STD), last_only=last_only)

    def embed_crops(self, crops: Tensor) -> Tensor:
        """CLIP's image embeddings (P, D), not normalised, of crops (P, 3, S, S) as :meth:`crops` cuts them."""
        return self.clip.visual(normalise(crops, self.clip.mean, self.clip.std)).pooled

    def supervised(self, images: Tensor, names: list[str]) -> list[Tensor]:
        """The mask logits of every decoder layer, and the class logits of all."""
        masks, class_logits = self.proposal_stream(images, names)
        return [*masks, class_logits]

    def losses(self, images: Tensor, labels: Tensor, names: list[str]) -> dict[str, Tensor]:
        """MaskFormer's set criterion, summed over the decoder layers: ``class``, ``focal`` and ``dice``, weighted.

        Queries are matched with the segments of an image at the least sum of mask costs and ``-probability`` of the
        segment's class, and masks are supervised, as in :meth:`deop.models.proposals.ProposalNetwork.loss`, where it is
        also said what negative labels mean. Queries without a segment learn to be "no object", those on unseen classes
        too, as in MaskFormer. CLIP takes no part.

        Raises:
            ValueError: a label is no index into ``names``, nor negative or ``ignore``.
        """
        strays = labels[(labels != self.ignore) & (labels >= len(names))]
        if strays.numel():
            raise ValueError(
                f"label {strays[0].item()} is no class (0 to {len(names) - 1}), nor negative or ignore ({self.ignore})"
            )
        masks, class_logits = self.proposal_stream(images, names)
        probabilities = class_logits.detach().softmax(-1)[..., :-1]
        mask_losses, pairs = self.proposals.matched_loss(
            masks, labels, ignore=self.ignore, class_costs=-self.settings.class_weight * probabilities
        )
        classification = classification_loss(class_logits, pairs, self.settings.no_object_weight)
        return {"class": self.settings.class_weight * classification, **mask_losses}

    def denominators(self, labels: Tensor) -> dict[str, Tensor]:
        return self.proposals.denominators(
            labels, ignore=self.ignore, no_object_weight=self.settings.no_object_weight
        )

    @torch.no_grad()
    def forward(self, images: Tensor, names: list[str]) -> MultiPassOutput:
        """Proposals of images (B, 3, H, W) in [0, 1] and their class scores; training goes through :meth:`losses`."""
        padded = self.padded(images, IMAGENET_MEAN)
        [mask_logits], [class_logits] = self.proposal_stream(padded, names, last_only=True)
        with part("upsampling"):
            mask_logits = self.over_image(mask_logits.float(), tuple(images.shape[-2:]))
            masks = F.interpolate(mask_logits, images.shape[-2:], mode="bilinear", align_corners=False)
            shown = masks.sigmoid() > self.settings.mask_threshold
        with part("crops"):
            valid = shown.flatten(2).any(2)
            crops = [self.crops(image, of_image[kept]) for image, of_image, kept in zip(images, shown, valid)]
            crops = torch.cat(crops)
        crop_logits = self.crop_logits(crops, names)
        nothing = {"one": 1.0, "uniform": 1 / len(names), "zero": 0.0}[self.settings.without_crop]
        crop = class_logits.new_full((*valid.shape, len(names)), nothing)
        crop[valid] = self.crop_probabilities(crop_logits, class_logits[valid])
        seen = torch.tensor([name in self.seen_names for name in names], device=images.device)
        scores = self.ensemble(class_logits.softmax(-1)[..., :-1], crop, seen)
        return MultiPassOutput(mask_logits, scores, self.calibration(seen), valid.sum(1))

    @staticmethod
    def class_scores(output: MultiPassOutput) -> ClassScores:
        """The two streams' scores of each proposal; the calibration is the pixels' to pay."""
        return ClassScores(output.class_scores, -output.calibration)

    def crops(self, image: Tensor, masks: Tensor) -> Tensor:
        """Crops (M, 3, S, S) of M non-empty masks (M, H, W) of one image in [0, 1], on CLIP's mean colour.

        They are in [0, 1], too, unless ``crop_resampling`` says that bicubic interpolation may overshoot.
        """
        cut = self.release_crops if self.settings.crop_resampling == "release" else crop_segments
        return cut(image, masks, self.crop_size, image.new_tensor(self.clip.mean), self.settings.crop_expand)

    def crop_logits(self, crops: Tensor, names: list[str]) -> Tensor:
        """CLIP's scaled cosines (P, C) of P crops (P, 3, S, S), ``crop_batch`` of them a call; P may be 0."""
        text = self.text_embeddings(names, self.settings.crop_templates).float()
        with part("clip_visual"):
            pooled = [
                self.embed_crops(batch).float()
                for batch in crops.split(self.settings.crop_batch)
                if len(batch)
            ]
        with torch.autocast(crops.device.type, enabled=False):
            embeddings = F.normalize(torch.cat([text.new_empty(0, text.shape[1]), *pooled]), dim=-1)
            return self.logit_scale * embeddings @ text.T

    def text_embeddings(self, names: list[str], templates: str | tuple[str, ...]) -> Tensor:
        """Class embeddings (C, D), L2-normalised, of the templates' mean or of the learned prompt.

        Nothing of them is trained here, so they are computed once for as long as the names stay the same.
        """
        key = (*names, self.clip.device)
        if self._text_cache[0] != key:
            self._text_cache = (key, {})
        embedded = self._text_cache[1]
        if templates not in embedded:
            # Made in inference mode, they could not be used in training afterwards.
            with part("text"), torch.inference_mode(False), torch.no_grad():
                if templates:
                    embedded[templates] = template_embeddings(self.clip, names, templates_of(templates))
                else:
                    embedded[templates] = self.text_prompt(self.clip, names)
        return embedded[templates]


def classification_loss(class_logits: Tensor, pairs: Sequence[Pairs], no_object_weight: float) -> Tensor:
    """Cross-entropy of all queries, those without a segment as "no object", summed over the decoder layers.

    Args:
        class_logits: (layers, B, N, C + 1), the last column "no object".
        pairs: the matching of each layer; queries outside it have no segment.
        no_object_weight: weight of queries without a segment; the others have weight 1. Each layer's loss is the
            weighted mean over all its queries, as in MaskFormer.
    """
    no_object = class_logits.shape[-1] - 1
    weight = class_logits.new_ones(no_object + 1)
    weight[-1] = no_object_weight
    of_layers = []
    for logits, matched in zip(class_logits, pairs, strict=True):
        targets = torch.full(logits.shape[:-1], no_object, device=logits.device)
        targets[matched.image, matched.query] = matched.label
        of_layers.append(F.cross_entropy(logits.flatten(0, 1), targets.flatten(), weight))
    return torch.stack(of_layers).sum()


def geometric_ensemble(proposal: Tensor, crop: Tensor, seen: Tensor, weight: float) -> Tensor:
    """``proposal^w crop^(1-w)`` for seen classes and ``proposal^(1-w) crop^w`` for the others.

    Args:
        proposal, crop: (..., C) probabilities of the two streams.
        seen: (C,) bool.
        weight: w in [0, 1]; above a half, training is trusted on what it showed and CLIP on the rest.
    """
    exponent = torch.where(seen, weight, 1 - weight)
    return proposal**exponent * crop ** (1 - exponent)
