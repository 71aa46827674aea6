from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from deop.errors import ClassNameError
from deop.models.clip import DenseCLIP, load_clip
from deop.models.prompts import TextPrompt, VisualPrompts
from deop.models.severance import Severance

NAMES = ["dog", "traffic light", "playing field"]


@pytest.fixture(scope="module")
def mini() -> DenseCLIP:
    torch.manual_seed(0)
    return load_clip("deop-mini", None)


def test_without_prefix_the_text_prompt_is_plain_clip(mini: DenseCLIP) -> None:
    assert torch.equal(
        TextPrompt(0, mini.text_width, mini.embed_dim)(mini, NAMES), mini.encode_text(NAMES, "{}.")
    )


def test_a_prefix_that_equals_words_is_those_words(mini: DenseCLIP) -> None:
    prompt = TextPrompt(4, mini.text_width, mini.embed_dim)
    words = mini.tokenize(["a photo of a"])[:, 1:5]
    with torch.no_grad():
        prompt.context.copy_(mini.token_embeddings(words)[0])
    expected = mini.encode_text(NAMES, "a photo of a {}.")
    torch.testing.assert_close(prompt(mini, NAMES), expected, atol=1e-6, rtol=0)


def test_a_class_embedding_does_not_depend_on_the_other_names(mini: DenseCLIP) -> None:
    prompt = TextPrompt(16, mini.text_width, mini.embed_dim)
    torch.testing.assert_close(prompt(mini, NAMES)[1], prompt(mini, NAMES[1:2])[0], atol=1e-6, rtol=0)


def test_text_prefix_learns_and_clip_does_not(mini: DenseCLIP) -> None:
    torch.manual_seed(0)
    prompt = TextPrompt(16, mini.text_width, mini.embed_dim)
    assert 0.018 < prompt.context.std() < 0.022
    optimiser = torch.optim.Adam([prompt.context], lr=0.01)
    target = torch.tensor([2, 0, 1])
    features = F.normalize(torch.randn(3, mini.embed_dim), dim=-1)
    losses = []
    for _ in range(5):
        loss = F.cross_entropy(100 * features @ prompt(mini, NAMES).T, target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(parameter.grad is None for parameter in mini.parameters())


def test_a_name_too_long_for_the_context_is_an_error(mini: DenseCLIP) -> None:
    prompt = TextPrompt(16, mini.text_width, mini.embed_dim)
    room = mini.context_length - 19  # the start, 16 prefix tokens, "." and the end
    assert prompt(mini, [" ".join(["dog"] * room)]).shape == (1, mini.embed_dim)
    name = " ".join(["dog"] * (room + 1))
    message = f"'{name}' with 16 prefix tokens does not fit .* context of {mini.context_length} tokens"
    with pytest.raises(ClassNameError, match=message):
        prompt(mini, ["sky", name])


@pytest.mark.parametrize("size", [(64, 64), (48, 104)])
@torch.no_grad()
def test_untrained_visual_prompts_leave_clip_unchanged(mini: DenseCLIP, size: tuple[int, int]) -> None:
    image = torch.randn(2, 3, *size)
    plain = mini.visual(image)
    prompted = mini.visual(image, visual_prompts=VisualPrompts(mini.width, depth=6, grid=24))
    torch.testing.assert_close(prompted.pooled, plain.pooled, atol=1e-6, rtol=0)
    torch.testing.assert_close(prompted.patches, plain.patches, atol=1e-6, rtol=0)


@pytest.mark.parametrize("severance", [None, Severance("gps", {-2: 0.5})])
def test_gradients_reach_every_map_and_no_clip_weight(mini: DenseCLIP, severance: Severance | None) -> None:
    prompts = VisualPrompts(mini.width, depth=5, grid=6)
    features = mini.visual(torch.randn(1, 3, 64, 80), severance=severance, visual_prompts=prompts)
    features.patches.square().sum().backward()
    assert (prompts.class_token.grad.abs().sum(dim=1) > 0).all()
    assert (prompts.patches.grad.abs().sum(dim=1) > 0).all()
    assert all(parameter.grad is None for parameter in mini.parameters())


@torch.no_grad()
def test_maps_are_added_at_the_inputs_of_the_blocks(mini: DenseCLIP) -> None:
    """Layer 0 stands beside the positional embedding; the others change what enters their own block."""
    prompts = VisualPrompts(mini.width, depth=3, grid=12)
    torch.nn.init.normal_(prompts.class_token)
    torch.nn.init.normal_(prompts.patches)
    tower = mini.model.visual
    image = torch.randn(1, 3, 96, 96)
    result = mini.visual(image, visual_prompts=prompts)

    maps = torch.cat([prompts.class_token[:, None], prompts.patches.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)
    patches = tower.conv1(image).flatten(2).mT
    x = torch.cat([tower.class_embedding.expand(1, 1, -1), patches], dim=1)
    x = tower.ln_pre(x + tower.positional_embedding + maps[0])
    for layer, block in enumerate(tower.transformer.resblocks):
        x = block(x + maps[layer] if layer in (1, 2) else x)
    expected = (tower.ln_post(x[:, 1:]) @ tower.proj).mT.unflatten(2, (12, 12))
    torch.testing.assert_close(result.patches, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("width", "depth"), [(128, 6), (192, 7)])
def test_prompts_that_do_not_fit_the_tower(mini: DenseCLIP, width: int, depth: int) -> None:
    message = (
        f"visual prompts of width {width} and depth {depth} do not fit a tower of width 192 and 6 layers"
    )
    with pytest.raises(ValueError, match=message):
        mini.visual(torch.randn(1, 3, 64, 64), visual_prompts=VisualPrompts(width, depth=depth))
