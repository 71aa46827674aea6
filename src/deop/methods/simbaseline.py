"""SimBaseline: two streams put together geometrically, each trusted on what it knows.

Xu et al., "A Simple Baseline for Open-Vocabulary Semantic Segmentation with Pre-trained Vision-language Model"
(ECCV 2022); released as MendelXu/zsseg.baseline.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor

from deop.methods.multipass import MultiPass, geometric_ensemble
from deop.models.crops import crop_segments
from deop.settings.methods import SimBaselineSettings, method


@method(SimBaselineSettings)
class SimBaseline(MultiPass):
    """A multi-pass segmenter with SimBaseline's ensemble: ``settings`` are :class:`SimBaselineSettings`."""

    settings: SimBaselineSettings
    release_crops = staticmethod(partial(crop_segments, antialias=False))

    def crop_probabilities(self, crop_logits: Tensor, class_logits: Tensor) -> Tensor:
        """Softmax over the classes: CLIP has no say on "no object"."""
        return crop_logits.softmax(-1)

    def ensemble(self, proposal: Tensor, crop: Tensor, seen: Tensor) -> Tensor:
        return geometric_ensemble(proposal, crop, seen, self.settings.ensemble_weight)
