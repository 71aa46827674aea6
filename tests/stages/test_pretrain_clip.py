"""What pre-training of the mini CLIP starts from."""

from __future__ import annotations

import copy

import open_clip
import pytest
import torch
from open_clip.loss import ClipLoss

from deop.models.clip import load_clip
from deop.stages.pretrain_clip import ContrastiveStep, _start_from, _take_text_tower, contrastive_loss


def test_a_larger_model_starts_from_the_text_tower_of_the_bundled_one():
    torch.manual_seed(0)
    small, large = load_clip("deop-mini", "bundled"), open_clip.create_model("deop-mini-large")
    image = large.visual.conv1.weight.clone()
    tokens = small.tokenize(["a picture of a dog", "snow"])
    assert not torch.allclose(large.encode_text(tokens), small.model.encode_text(tokens))
    _take_text_tower(large, "deop-mini")
    torch.testing.assert_close(large.encode_text(tokens), small.model.encode_text(tokens))
    assert torch.equal(large.visual.conv1.weight, image)


def test_a_text_tower_of_another_size_is_refused():
    model = open_clip.create_model("ViT-B-32")
    with pytest.raises(
        ValueError, match="text_from: the text tower of 'deop-mini' does not fit: positional_emb"
    ):
        _take_text_tower(model, "deop-mini")


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
        "image": torch.rand(2, 3, 64, 64),
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


def test_a_round_with_fresh_layers_keeps_the_others_at_another_image_size():
    torch.manual_seed(0)
    weights = load_clip("deop-mini", "bundled").model.half().state_dict()
    model = open_clip.create_model("deop-mini", force_image_size=96)
    own = {name: value.clone() for name, value in model.state_dict().items()}
    _start_from(model, dict(weights), fresh_layers=1)
    after = model.state_dict()
    block = "visual.transformer.resblocks.{}.attn.in_proj_weight"
    assert torch.equal(after[block.format(4)], weights[block.format(4)].float())
    assert torch.equal(after[block.format(5)], own[block.format(5)])
    assert torch.equal(after["visual.proj"], own["visual.proj"])
    assert torch.equal(after["text_projection"], weights["text_projection"].float())
    assert after["visual.positional_embedding"].shape == (145, 192)
    with pytest.raises(ValueError, match="do not fit"):
        _start_from(open_clip.create_model("deop-mini-large"), dict(weights), fresh_layers=0)
