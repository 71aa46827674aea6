"""Captions and masks: which word is which region, without being told (OpenSeg)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def grounding_scores(regions: Tensor, words: Tensor, valid: Tensor, temperature: Tensor | float) -> Tensor:
    """How well each caption fits each image, (B, J).

    A word attends to the regions of an image by a softmax of cosines over the temperature; its score is the mean cosine
    under that attention, and a caption's the mean over its words.

    Args:
        regions: (B, N, D) embeddings of the regions of each image.
        words: (J, K, D) embeddings of the words of each caption.
        valid: (J, K) bool, false for padding; a caption without words has score 0.
    """
    with torch.autocast(regions.device.type, enabled=False):
        cosines = torch.einsum(
            "bnd,jkd->bjkn", F.normalize(regions.float(), dim=-1), F.normalize(words.float(), dim=-1)
        )
        of_words = ((cosines / temperature).softmax(-1) * cosines).sum(-1)
        return (of_words * valid).sum(-1) / valid.sum(-1).clamp(min=1)


def grounding_loss(scores: Tensor, captioned: Tensor, temperature: Tensor | float) -> Tensor:
    """Symmetric InfoNCE of scores (B, B), of image b and caption b; 0 if no image is ``captioned`` (B,) bool."""
    kept = scores[captioned][:, captioned] / temperature
    if not len(kept):
        return scores.sum() * 0
    own = torch.arange(len(kept), device=scores.device)
    return (F.cross_entropy(kept, own) + F.cross_entropy(kept.T, own)) / 2


def best_dice_loss(masks: Tensor, targets: Tensor, counts: list[int]) -> Tensor:
    """Mean over labelled masks of one minus the best Dice of any proposal with it; 0 without any.

    Args:
        masks: (B, N, P) proposals in [0, 1].
        targets: (B, K, P) labelled masks in {0, 1}.
        counts: how many of the K are there, of each image.
    """
    overlap = 2 * masks @ targets.transpose(1, 2)
    total = masks.sum(2)[:, :, None] + targets.sum(2)[:, None]
    best = (overlap / total.clamp(min=1e-6)).amax(1)
    there = (
        torch.arange(targets.shape[1], device=masks.device)
        < torch.tensor(counts, device=masks.device)[:, None]
    )
    return ((1 - best) * there).sum() / there.sum().clamp(min=1)
