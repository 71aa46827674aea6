"""ZegFormer: CLIP tells unseen classes apart, the proposal stream seen ones, and seen classes are handicapped.

Ding et al., "Decoupling Zero-Shot Semantic Segmentation" (CVPR 2022); released as dingjiansw101/ZegFormer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deop.methods.multipass import MultiPass, geometric_ensemble
from deop.models.crops import roi_align_segments
from deop.settings.methods import ZegFormerSettings, method


@method(ZegFormerSettings)
class ZegFormer(MultiPass):
    """A multi-pass segmenter with ZegFormer's fusion: ``settings`` are :class:`ZegFormerSettings`."""

    settings: ZegFormerSettings
    release_crops = staticmethod(roi_align_segments)

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
