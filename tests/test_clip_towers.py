"""Image and text towers beside open_clip's own: small variants of what open_clip takes from timm, random weights."""

from __future__ import annotations

import open_clip
import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models import register_model

from deop.methods.deop import DeOP
from deop.models.attention import SelfAttention
from deop.models.clip import DenseCLIP, load_clip
from deop.models.prompts import TextPrompt, VisualPrompts
from deop.models.severance import Severance
from deop.settings.methods import DeOPSettings, SeveranceSettings

SMALL = {"img_size": 64, "embed_dim": 64, "depth": 3, "num_heads": 2}
NAMES = ["dog", "traffic light", "sky"]


@register_model
def deop_test_siglip(pretrained: bool = False, **options) -> torch.nn.Module:
    return timm.create_model("vit_base_patch16_siglip_224", **SMALL | options)


@register_model
def deop_test_eva02_base(pretrained: bool = False, **options) -> torch.nn.Module:
    """Joint projection of queries, keys and values; rotary positions, scaled to a reference grid."""
    return timm.create_model("eva02_base_patch16_clip_224", **SMALL | options)


@register_model
def deop_test_eva02_large(pretrained: bool = False, **options) -> torch.nn.Module:
    """Separate projections, and a norm between the mixing of values and the output projection."""
    return timm.create_model("eva02_large_patch14_clip_224", **SMALL | {"patch_size": 16} | options)


@register_model
def deop_test_pe(pretrained: bool = False, **options) -> torch.nn.Module:
    """A class token and an attention pool besides, and rotary positions of another kind of attention."""
    return timm.create_model("vit_pe_core_base_patch16_224", **SMALL | options)


@register_model
def deop_test_mobileclip(pretrained: bool = False, **options) -> torch.nn.Module:
    """Patches embedded by a few convolutions; the class token has no position."""
    return timm.create_model("vit_base_mci_224", **{"img_size": 64, "depth": 2} | options)


@register_model
def deop_test_average(pretrained: bool = False, **options) -> torch.nn.Module:
    return timm.create_model("vit_medium_patch16_gap_256", **SMALL | options)


CAUSAL = {}
SIGLIP = {"no_causal_mask": True, "pool_type": "last", "proj_bias": True}
BIDIRECTIONAL = {"no_causal_mask": True}
KINDS = {
    "siglip": ("map", "none", 64, SIGLIP),
    "eva02_base": ("token", None, 48, CAUSAL),
    "eva02_large": ("token", None, 48, CAUSAL),
    "pe": ("map", None, 48, CAUSAL),
    "mobileclip": ("token", None, 48, BIDIRECTIONAL),
    "average": ("", "linear", 48, CAUSAL),
}


def build(kind: str) -> DenseCLIP:
    pool, proj, embed_dim, text = KINDS[kind]
    torch.manual_seed(0)
    size = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    model = open_clip.create_model(
        "ViT-B-16",
        force_custom_text=True,
        embed_dim=embed_dim,
        vision_cfg={
            "timm_model_name": f"deop_test_{kind}",
            "timm_pool": pool,
            "timm_proj": proj,
            "image_size": 64,
        },
        text_cfg=size | text,
    ).eval()
    with torch.no_grad():  # timm starts some blocks and heads almost at zero
        for parameter in model.visual.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return DenseCLIP(model, open_clip.get_tokenizer("ViT-B-16", context_length=16))


@pytest.fixture(scope="module", params=KINDS)
def clip(request) -> DenseCLIP:
    return build(request.param)


@torch.no_grad()
def test_plain_image_and_text_embeddings_are_those_of_open_clip(clip: DenseCLIP) -> None:
    image = torch.randn(2, 3, 64, 64)
    features = clip.visual(image)
    torch.testing.assert_close(features.pooled, clip.model.encode_image(image), atol=1e-4, rtol=1e-4)
    assert features.patches.shape == (2, clip.embed_dim, 4, 4)
    expected = clip.model.encode_text(clip.tokenize(NAMES), normalize=True)
    torch.testing.assert_close(clip.encode_text(NAMES), expected, atol=1e-5, rtol=0)
    prompt = TextPrompt(0, clip.text_width, clip.embed_dim)
    expected = clip.model.encode_text(clip.tokenize([f"{name}." for name in NAMES]), normalize=True)
    torch.testing.assert_close(prompt(clip, NAMES), expected, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("kind", [*KINDS, "open_clip"])
@pytest.mark.parametrize("severance", ["gps", "mps"])
def test_converted_weights_give_the_same_features(severance: str, kind: str, dtype: torch.dtype) -> None:
    """Of towers whose weights are all of a lower precision, at another size than their own."""
    clip = load_clip("deop-mini", "bundled") if kind == "open_clip" else build(kind)
    patch = clip.patch_size
    image, masks = torch.randn(2, 3, 6 * patch, 5 * patch), torch.rand(2, 3, 6, 5)
    severance = Severance(severance, {-1: 1, -2: 1 if severance == "mps" else 0.5})
    expected = clip.visual(image, severance=severance, masks=masks).patches, clip.encode_text(NAMES)
    clip.to(dtype)
    found = clip.visual(image.to(dtype), severance=severance, masks=masks.to(dtype)).patches
    text = clip.encode_text(NAMES)
    assert found.dtype == text.dtype == dtype
    assert F.cosine_similarity(found.float(), expected[0], dim=1).min() > 0.99
    assert F.cosine_similarity(text.float(), expected[1], dim=1).min() > 0.99


@pytest.mark.parametrize("kind", ["siglip", "eva02_base", "pe", "average"])
@torch.no_grad()
def test_positions_follow_the_image_size_as_timm_resizes_them(kind: str) -> None:
    clip = build(kind)
    image = torch.randn(1, 3, 48, 96)
    pooled = clip.visual(image).pooled
    plain = torch.randn(1, 3, 64, 64)
    before = clip.visual(plain).pooled
    torch.testing.assert_close(before, clip.model.encode_image(plain), atol=1e-4, rtol=1e-4)
    clip.model.visual.trunk.set_input_size((48, 96))
    torch.testing.assert_close(pooled, clip.model.encode_image(image), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_patch_alone_is_pooled_like_an_image_of_equal_tokens() -> None:
    """SigLIP's attention pool: a weighted mean of equal values is that value, so patch and image embedding agree."""
    clip = build("siglip")
    image = torch.randn(3, 16, 16).repeat(1, 4, 4)[None]  # every patch shows the same
    clip.model.visual.trunk.pos_embed.zero_()
    features = clip.visual(image)
    expected = features.pooled[..., None, None].expand_as(features.patches)
    torch.testing.assert_close(features.patches, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_alpha_0_and_a_vanishing_alpha_are_plain_clip(clip: DenseCLIP) -> None:
    image = torch.randn(1, 3, 64, 64)
    plain = clip.visual(image)
    severed = clip.visual(image, severance=Severance("gps", {-1: 0.0}))
    assert torch.equal(severed.patches, plain.patches) and torch.equal(severed.pooled, plain.pooled)
    severed = clip.visual(image, severance=Severance("gps", dict.fromkeys(range(clip.layers), 1e-9)))
    torch.testing.assert_close(severed.patches, plain.patches, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_severed_layers_mix_nothing(clip: DenseCLIP) -> None:
    """Of a layer: a token's output depends on it alone. Of all layers: a patch depends on its own pixels alone."""
    attention: SelfAttention = clip._tower.attention(clip.layers - 1, (4, 4))
    tokens = torch.randn(1, clip.prefix + 16, clip.width)
    perturbed = tokens.clone()
    perturbed[0, 7] += torch.randn(clip.width)
    for alpha, moved in ((1.0, [7]), (0.5, list(range(clip.prefix + 16)))):
        attend = Severance("gps", {-1: alpha}).attentions(clip.layers)[-1]
        change = attend(attention, perturbed, None) - attend(attention, tokens, None)
        assert (change.abs().amax(dim=(0, 2)) > 1e-6).nonzero().flatten().tolist() == moved
    if isinstance(clip.model.visual.trunk.patch_embed, timm.layers.HybridEmbed):
        return  # its convolutions look beyond the patch before the first layer
    image = torch.randn(1, 3, 64, 64)
    other = image.clone()
    other[..., 16:32, 32:48] += torch.randn(16, 16)
    severed = Severance("gps", dict.fromkeys(range(clip.layers), 1.0))
    for severance, alone in ((severed, True), (None, False)):
        before, after = (clip.visual(x, severance=severance).patches for x in (image, other))
        moved = ((after - before).abs().amax(dim=1)[0] > 1e-5).nonzero().tolist()
        assert (moved == [[1, 2]]) is alone


@torch.no_grad()
def test_the_attention_shown_is_the_one_that_mixes_the_values(clip: DenseCLIP) -> None:
    """Self-attention with the shown matrix in the place of softmax(QK) is the library's own attention."""
    image = torch.randn(1, 3, 64, 64)
    trunk = clip.model.visual.trunk
    seen: dict[str, torch.Tensor] = {}
    module = trunk.blocks[-1].attn
    hook = module.register_forward_hook(lambda _, inputs, output: seen.update(tokens=inputs[0], out=output))
    trunk(image)
    hook.remove()
    attention = clip._tower.attention(clip.layers - 1, (4, 4))
    value = attention.project(seen["tokens"])[2]
    mixed = attention.merge(clip.patch_attention(image, -1) @ value)
    torch.testing.assert_close(mixed, seen["out"], atol=1e-4, rtol=1e-4)
    both = torch.stack([attention.values(seen["tokens"]), value.transpose(1, 2).flatten(2)])
    torch.testing.assert_close(both[0], both[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["siglip", "eva02_base"])
@torch.no_grad()
def test_mask_sum_weighs_each_patch_by_its_masks(kind: str) -> None:
    """With masks of ones everywhere, and so with N of them, the factor is N for every token, class token or not."""
    clip = build(kind)
    attention = clip._tower.attention(0, (4, 4))
    tokens, masks = torch.randn(1, clip.prefix + 16, clip.width), torch.rand(1, 3, 4, 4)
    attend = Severance("mask_sum", {0: 1.0}).attentions(1)[0]
    values = attention.values(tokens)[0]
    factors = torch.cat([torch.full((clip.prefix,), 3.0), masks[0].sum(0).flatten()])
    expected = attention.output(values * factors[:, None])
    torch.testing.assert_close(attend(attention, tokens, masks)[0], expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match=r"masks \(1, 3, 4, 5\) do not fit 16 patches of 1 images"):
        attend(attention, tokens, torch.rand(1, 3, 4, 5))


@pytest.mark.parametrize("kind", ["siglip", "eva02_base", "mobileclip"])
def test_learned_prefixes_and_visual_prompts_get_gradients(kind: str) -> None:
    clip = build(kind)
    prompt = TextPrompt(3, clip.text_width, clip.embed_dim)
    visual = VisualPrompts(clip.width, depth=2, grid=3, prefix=clip.prefix)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        plain = clip.visual(image).patches
        torch.testing.assert_close(clip.visual(image, visual_prompts=visual).patches, plain)
    (clip.visual(image, visual_prompts=visual).patches.sum() + prompt(clip, NAMES).sum()).backward()
    assert prompt.context.grad.abs().sum(-1).gt(0).all()
    assert all(parameter.grad.abs().sum() > 0 for parameter in visual.parameters())
    with pytest.raises(ValueError, match=f"visual prompts for {1 - clip.prefix} class tokens"):
        clip.visual(image, visual_prompts=VisualPrompts(clip.width, depth=2, prefix=1 - clip.prefix))


def sentencepiece_like(texts: list[str]) -> torch.Tensor:
    """SigLIP's way: no start token, one end token that is also the padding, 16 tokens."""
    rows = torch.ones(len(texts), 16, dtype=torch.long)
    for row, text in zip(rows, texts, strict=True):
        ids = [100 + ord(letter) for letter in text.rstrip(".")]
        row[: len(ids)] = torch.tensor(ids)
    return rows


@torch.no_grad()
def test_a_prefix_before_names_of_a_tokenizer_without_start_token() -> None:
    clip = DenseCLIP(build("siglip").model, sentencepiece_like)
    assert clip.text_start == 0
    assert clip.end_of_text(sentencepiece_like(["dog", "sky!"])).tolist() == [3, 4]
    torch.testing.assert_close(
        clip.word_embeddings("cat"), clip.token_embeddings(sentencepiece_like(["cat"]))[0, :3]
    )
    prompt = TextPrompt(0, clip.text_width, clip.embed_dim, words=clip.word_embeddings("my "))
    expected = clip.model.encode_text(sentencepiece_like(["my dog", "my sky"]), normalize=True)
    torch.testing.assert_close(prompt(clip, ["dog", "sky"]), expected, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="'a long nameplate' with 3 prefix tokens does not fit"):
        prompt(clip, ["dog", "a long nameplate"])


def test_the_whole_system_runs_on_a_siglip(small_proposals) -> None:
    clip = build("siglip")
    network = DeOPSettings(visual_prompts=True, severance=SeveranceSettings(kind="gps", alpha={-1: 1.0}))
    prompt = TextPrompt(2, clip.text_width, clip.embed_dim)
    segmenter = DeOP(clip, small_proposals(3), prompt, network, queries=3).eval()
    scores = segmenter.segment(torch.rand(1, 3, 64, 80), NAMES)
    assert scores.shape == (1, 3, 64, 80) and scores.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("model", ["EVA02-B-16", "MobileCLIP-B", "PE-Core-T-16-384"])
@torch.no_grad()
def test_full_size_models_by_name(model: str) -> None:
    clip = load_clip(model, None)
    side = clip.patch_size * clip.pretrain_grid[0]
    image = torch.randn(1, 3, side, side)
    torch.testing.assert_close(
        clip.visual(image).pooled, clip.model.encode_image(image), atol=1e-4, rtol=1e-4
    )
