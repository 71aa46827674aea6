"""What pre-training of the mini CLIP starts from."""

from __future__ import annotations

import open_clip
import pytest
import torch

from deop.models.clip import load_clip
from deop.stages.pretrain_clip import _take_text_tower


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
