"""What the pre-training of one CLIP takes over from another."""

from __future__ import annotations

import open_clip
import pytest
import torch

from deop.models.clip import DenseCLIP, load_clip
from deop.models.clip_growth import grow_from, start_from
from deop.models.severance import Severance


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return load_clip("deop-mini", "bundled").model.half().state_dict()


def test_a_round_with_fresh_layers_keeps_the_others_at_another_image_size(weights):
    model = open_clip.create_model("deop-mini", force_image_size=64)
    own = {name: value.clone() for name, value in model.state_dict().items()}
    start_from(model, dict(weights), fresh_layers=1)
    after = model.state_dict()
    block = "visual.transformer.resblocks.{}.attn.in_proj_weight"
    assert torch.equal(after[block.format(4)], weights[block.format(4)].float())
    assert torch.equal(after[block.format(5)], own[block.format(5)])
    assert torch.equal(after["visual.proj"], own["visual.proj"])
    assert torch.equal(after["text_projection"], weights["text_projection"].float())
    assert after["visual.positional_embedding"].shape == (65, 192)
    with pytest.raises(ValueError, match="do not fit"):
        start_from(open_clip.create_model("deop-mini-large"), dict(weights), fresh_layers=0)


def deeper(**vision) -> torch.nn.Module:
    config = open_clip.get_model_config("deop-mini")["vision_cfg"]
    return open_clip.create_model("deop-mini", vision_cfg=config | vision).eval()


@torch.no_grad()
def test_a_deeper_tower_computes_what_it_was_grown_from(weights):
    tokenizer, image = open_clip.get_tokenizer("deop-mini"), torch.randn(1, 3, 96, 96)
    small, large = deeper(), deeper(layers=10)
    start_from(small, dict(weights), fresh_layers=0)
    grow_from(large, dict(weights))
    torch.testing.assert_close(large.encode_image(image), small.encode_image(image))
    tokens = tokenizer(["a picture of a dog", "snow"])
    torch.testing.assert_close(large.encode_text(tokens), small.encode_text(tokens))
    # Also where the last two layers are severed: they are the last two of the smaller model.
    severance = Severance("gps", {-2: 1, -1: 1})
    features = [DenseCLIP(model, tokenizer).visual(image, severance=severance) for model in (small, large)]
    torch.testing.assert_close(features[1].patches, features[0].patches)


@torch.no_grad()
def test_smaller_patches_see_nearly_the_same_in_an_enlarged_picture(weights):
    """A picture of 72 pixels in patches of 6 is one of 96 pixels in patches of 8."""
    image = torch.nn.functional.interpolate(torch.rand(1, 3, 12, 12), size=72, mode="bilinear")
    larger = torch.nn.functional.interpolate(image, size=96, mode="bilinear")
    coarse, fine = deeper(), deeper(patch_size=6, image_size=72)
    start_from(coarse, dict(weights), fresh_layers=0)
    grow_from(fine, dict(weights))
    similarity = torch.cosine_similarity(fine.encode_image(image), coarse.encode_image(larger))
    assert similarity.item() > 0.95


@pytest.mark.parametrize(
    ("vision", "message"),
    [
        ({"layers": 5}, "a tower of 5 layers cannot be grown from one of 6"),
        ({"layers": 8, "width": 128}, "do not fit"),
    ],
)
def test_a_smaller_or_narrower_tower_is_refused(weights, vision, message):
    with pytest.raises(ValueError, match=message):
        grow_from(deeper(**vision), weights)
