"""SimBaseline: two streams put together geometrically, each trusted on what it knows.

Xu et al., "A Simple Baseline for Open-Vocabulary Semantic Segmentation with Pre-trained Vision-language Model"
(ECCV 2022); released as MendelXu/zsseg.baseline.
"""

from __future__ import annotations

from torch import Tensor

from deop.methods.multipass import MultiPass, MultiPassSettings, geometric_ensemble
from deop.settings import Fraction, Positive


class SimBaselineSettings(MultiPassSettings):
    """The release's settings for COCO-Stuff.

    For VOC it has ``ensemble_weight`` 0.7 and the proposal stream's prompt "a sculpture of a {}.". On a dataset that
    it was not trained on, no class counts as seen (give no ``seen_names``); ``ensemble_weight`` and ``mask_threshold``
    are then 0.4 and 0.5 (VOC-20, PC-59), 0.5 and 0.4 (A-150), 0.7 and 0.3 (A-847).

    ensemble_weight: weight toward the proposal stream for seen classes, and toward CLIP for the others.
    """

    head_hidden: tuple[Positive, ...] = (1024,)
    ensemble_weight: Fraction = 0.8


class SimBaseline(MultiPass):
    """A multi-pass segmenter with SimBaseline's ensemble: ``settings`` are :class:`SimBaselineSettings`."""

    settings: SimBaselineSettings

    def crop_probabilities(self, crop_logits: Tensor, class_logits: Tensor) -> Tensor:
        """Softmax over the classes: CLIP has no say on "no object"."""
        return crop_logits.softmax(-1)

    def ensemble(self, proposal: Tensor, crop: Tensor, seen: Tensor) -> Tensor:
        return geometric_ensemble(proposal, crop, seen, self.settings.ensemble_weight)
