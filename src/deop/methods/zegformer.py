"""ZegFormer: CLIP tells unseen classes apart, the proposal stream seen ones, and seen classes are handicapped.

Ding et al., "Decoupling Zero-Shot Semantic Segmentation" (CVPR 2022); released as dingjiansw101/ZegFormer.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from deop.methods.multipass import MultiPass, MultiPassSettings, geometric_ensemble
from deop.settings import Fraction


class ZegFormerSettings(MultiPassSettings):
    """The release's settings for COCO-Stuff and VOC, but for two.

    It averages over eight templates in training on COCO-Stuff and over 32 for the crops; here it is one for each, and
    more are a matter of configuration. And it sends all N proposals through CLIP, an empty one as a plain picture;
    here those are left out, as the DeOP paper counts its passes, and CLIP is taken to be undecided on them.

    ensemble_weight: weight toward the proposal stream for seen classes, and toward CLIP for the others.
    calibration: what is subtracted from every pixel's score of each seen class.
    """

    unit_no_object: bool = False
    proposal_templates: tuple[str, ...] = ("A photo of a {} in the scene",)
    crop_templates: tuple[str, ...] = ("A photo of a {} in the scene",)
    without_crop: Literal["one", "uniform", "zero"] = "uniform"
    ensemble_weight: Fraction = 2 / 3
    calibration: float = 0.1


class ZegFormer(MultiPass):
    """A multi-pass segmenter with ZegFormer's fusion: ``settings`` are :class:`ZegFormerSettings`."""

    settings: ZegFormerSettings

    def crop_probabilities(self, crop_logits: Tensor, class_logits: Tensor) -> Tensor:
        """Softmax over the classes and the proposal stream's logit of "no object", which is then dropped."""
        return torch.cat([crop_logits, class_logits[:, -1:]], dim=1).softmax(-1)[:, :-1]

    def ensemble(self, proposal: Tensor, crop: Tensor, seen: Tensor) -> Tensor:
        """As SimBaseline's, but CLIP does not tell seen classes apart: each has the mean of theirs."""
        if seen.any():
            crop = torch.where(seen, crop[..., seen].mean(-1, keepdim=True), crop)
        return geometric_ensemble(proposal, crop, seen, self.settings.ensemble_weight)

    def calibration(self, seen: Tensor) -> Tensor:
        return self.settings.calibration * seen.float()
