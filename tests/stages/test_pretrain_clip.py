"""What the pre-training of the mini CLIP minimises."""

from __future__ import annotations

import copy

import torch
from open_clip.loss import ClipLoss

from deop.models.clip import load_clip
from deop.stages.pretrain_clip import ContrastiveStep, contrastive_loss


def test_the_contrastive_loss_is_that_of_clip_where_each_image_has_one_caption():
    torch.manual_seed(0)
    images, texts = (torch.nn.functional.normalize(torch.randn(7, 5), dim=1) for _ in range(2))
    loss = contrastive_loss(3 * images @ texts.T, torch.eye(7, dtype=torch.bool))
    torch.testing.assert_close(loss, ClipLoss()(images, texts, torch.tensor(3.0)))


def test_the_contrastive_loss_of_several_captions_counts_every_pair():
    torch.manual_seed(1)
    logits, match = torch.randn(4, 6), torch.rand(4, 6) < 0.4
    per_image, per_caption = [], []
    for image, caption in match.nonzero().tolist():
        pair = logits[image, caption].exp()
        row = sum(logits[image, k].exp() for k in range(6) if not match[image, k])
        column = sum(logits[k, caption].exp() for k in range(4) if not match[k, caption])
        per_image.append(-torch.log(pair / (pair + row)))
        per_caption.append(-torch.log(pair / (pair + column)))
    expected = (torch.stack(per_image).mean() + torch.stack(per_caption).mean()) / 2
    torch.testing.assert_close(contrastive_loss(logits, match), expected)


def test_a_locked_text_tower_gives_the_same_embeddings_and_does_not_learn():
    torch.manual_seed(0)
    clip = load_clip("deop-mini", "bundled")
    batch = {
        "image": torch.rand(2, 3, 96, 96),
        "caption": ["a dog", "snow", "a dog"],
        "match": torch.tensor([[True, False, True], [False, True, False]]),
    }
    learning, locked = (
        ContrastiveStep(copy.deepcopy(clip.model).requires_grad_(True), clip.tokenizer, lock_text=lock)
        for lock in (False, True)
    )
    losses = [step(batch)["contrastive"] for step in (learning, locked, locked)]
    for loss in losses[1:]:
        torch.testing.assert_close(loss, losses[0])
    losses[1].backward()
    assert locked.model.visual.conv1.weight.grad.abs().sum() > 0 and locked.model.logit_scale.grad is not None
    assert locked.model.token_embedding.weight.grad is None and locked.model.text_projection.grad is None
