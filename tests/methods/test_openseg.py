"""OpenSeg's losses against loops, and captions from labels and files."""

from __future__ import annotations

import math

import pytest
import torch
from per_pixel import NAMES, SEEN, batch, small

from deop.errors import DeopError
from deop.models.grounding import best_dice_loss, grounding_loss, grounding_scores


def literal_score(regions, words, temperature):
    """The score of an image and a caption by three loops."""

    def cosine(x, y):
        dot = sum(a * b for a, b in zip(x, y))
        return dot / math.sqrt(sum(a * a for a in x)) / math.sqrt(sum(b * b for b in y))

    total = 0.0
    for word in words:
        cosines = [cosine(region, word) for region in regions]
        attention = [math.exp(c / temperature) for c in cosines]
        for weight, c in zip(attention, cosines):
            total += weight / sum(attention) * c
    return total / len(words)


def test_grounding_scores_equal_three_loops():
    generator = torch.Generator().manual_seed(0)
    regions, words = torch.randn(2, 4, 6, generator=generator), torch.randn(3, 5, 6, generator=generator)
    valid = torch.arange(5) < torch.tensor([5, 2, 1])[:, None]
    found = grounding_scores(regions, words, valid, 0.2)
    for image in range(2):
        for caption in range(3):
            kept = words[caption][valid[caption]].tolist()
            expected = literal_score(regions[image].tolist(), kept, 0.2)
            assert found[image, caption].item() == pytest.approx(expected, abs=1e-5)


def test_swapped_captions_fit_worse():
    words = torch.eye(6)[:4].view(2, 2, 6)  # two words for each of two images
    regions = words + 0.1 * torch.randn(2, 2, 6, generator=torch.Generator().manual_seed(0))
    valid = torch.ones(2, 2, dtype=torch.bool)
    right = grounding_scores(regions, words, valid, 0.1)
    swapped = grounding_scores(regions, words.flip(0), valid, 0.1)
    assert (right.diagonal() > swapped.diagonal()).all()
    captioned = torch.ones(2, dtype=torch.bool)
    assert grounding_loss(right, captioned, 0.1) < grounding_loss(swapped, captioned, 0.1)


def test_images_without_a_caption_take_no_part():
    scores = torch.randn(3, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    captioned = torch.tensor([True, False, True])
    kept = scores.detach()[[0, 2]][:, [0, 2]]
    expected = -(kept.log_softmax(1).diagonal() + kept.log_softmax(0).diagonal()).mean() / 2
    assert grounding_loss(scores, captioned, 1.0).item() == pytest.approx(expected.item(), rel=1e-5)
    assert grounding_loss(scores, torch.zeros(3, dtype=torch.bool), 1.0).item() == 0


def test_the_mask_loss_is_the_best_dice_of_every_label():
    generator = torch.Generator().manual_seed(0)
    targets = (torch.rand(2, 3, 20, generator=generator) > 0.5).float()
    masks = torch.rand(2, 5, 20, generator=generator)
    counts = [3, 1]
    losses = []
    for image, count in enumerate(counts):
        for target in targets[image, :count]:
            scores = [2 * float((mask * target).sum() / (mask.sum() + target.sum())) for mask in masks[image]]
            losses.append(1 - max(scores))
    found = best_dice_loss(masks, targets, counts)
    assert found.item() == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    masks[:, 1:4] = targets
    assert best_dice_loss(masks, targets, counts).item() == pytest.approx(0, abs=1e-6)
    assert best_dice_loss(masks, targets[:, :0], [0, 0]).item() == 0


@torch.no_grad()
def test_a_pixel_takes_the_classes_of_its_regions(mini_clip):
    system = small("openseg", mini_clip).eval()
    images = batch()[0]
    scores = system(images, list(NAMES)).scores
    from deop.methods.dense import normalised

    logits, regions = system.regions(normalised(images))
    text, temperature = system.embeddings(list(NAMES)), float(system.temperature)
    for y in (0, 5):
        expected = torch.zeros(3)
        for mask, region in zip(logits[0, :, y, 2].sigmoid(), regions[0]):
            expected += mask * (text @ region / region.norm() / temperature).softmax(0)
        torch.testing.assert_close(scores[0, :, y, 2], expected, atol=1e-4, rtol=1e-4)


def test_a_single_image_has_no_captions_to_compare(mini_clip):
    system = small("openseg", mini_clip).train()
    system._lexicon = ["dog", "cow", "grass"]
    images, labels = batch()
    with pytest.raises(DeopError, match=r"micro_batch.* have to be at least 2"):
        system.losses(images[:1], labels[:1], list(SEEN), words=torch.tensor([[0, 2, -1]]))


def test_training_learns_masks_from_labels_and_words_from_captions(mini_clip):
    system = small("openseg", mini_clip, keep_words=1.0).train()
    system._lexicon = ["dog", "cow", "grass"]
    images, labels = batch()
    words = torch.tensor([[0, 2, -1], [1, -1, -1]])
    losses = system.losses(images, labels, list(SEEN), words=words)
    hidden = system.losses(images, torch.full_like(labels, -2), list(SEEN), words=words)
    assert set(losses) == {"masks", "grounding"} and losses["masks"] > 0
    assert hidden["masks"] == 0  # images without labels have captions alone
    torch.testing.assert_close(hidden["grounding"], losses["grounding"])
    losses["grounding"].backward()
    assert system.of_meaning[0].weight.grad.abs().sum() > 0 and system.log_temperature.grad != 0
