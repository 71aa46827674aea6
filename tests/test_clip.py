from __future__ import annotations

import hashlib
import json

import open_clip
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from deop.errors import DeopError, WeightsError
from deop.models import pretrained as weights_module
from deop.models.clip import DenseCLIP, load_clip

NAMES = ["dog", "traffic light", "a much longer name of several tokens", "sky"]


@pytest.fixture(scope="module")
def mini() -> DenseCLIP:
    torch.manual_seed(0)
    return load_clip("deop-mini", None)


@pytest.mark.parametrize(
    ("model", "size"),
    [
        ("deop-mini", 96),
        ("deop-mini-avg", 64),
        ("ViT-B-16", 224),
        ("ViT-B-16-quickgelu", 224),
        pytest.param("ViT-L-14-336", 336, marks=pytest.mark.slow),
    ],
)
@torch.no_grad()
def test_plain_image_and_text_embeddings_are_those_of_open_clip(model: str, size: int) -> None:
    torch.manual_seed(0)
    reference = open_clip.create_model(model).eval()
    clip = DenseCLIP(reference, open_clip.get_tokenizer(model))
    image = torch.randn(1, 3, size, size)
    features = clip.visual(image)
    torch.testing.assert_close(features.pooled, reference.encode_image(image), atol=1e-5, rtol=0)
    side = size // clip.patch_size
    assert features.patches.shape == (1, clip.embed_dim, side, side)
    expected = reference.encode_text(clip.tokenize([f"a {name}." for name in NAMES]), normalize=True)
    torch.testing.assert_close(clip.encode_text(NAMES, "a {}."), expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_patches_are_the_tokens_that_average_pooling_averages() -> None:
    """With average pooling after the last norm, the mean of the projected patches is the image embedding."""
    torch.manual_seed(0)
    features = load_clip("deop-mini-avg", None).visual(torch.randn(2, 3, 96, 128))
    torch.testing.assert_close(features.patches.mean(dim=(2, 3)), features.pooled, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "options", [{}, {"final_ln_after_pool": True}, {"no_ln_pre": True, "pool_type": "tok"}]
)
@torch.no_grad()
def test_variants_of_the_towers(options: dict) -> None:
    """Layer scale, pooling and norm orders of image towers; a CustomTextCLIP that pools at a named token."""
    torch.manual_seed(0)
    vision = {
        "image_size": 32,
        "patch_size": 8,
        "layers": 2,
        "width": 64,
        "pool_type": "avg",
        "ls_init_value": 0.5,
    }
    text = {
        "context_length": 12,
        "vocab_size": 49408,
        "width": 32,
        "heads": 2,
        "layers": 2,
        "proj_bias": True,
    }
    reference = open_clip.create_model(
        "deop-mini",
        force_custom_text=True,
        force_quick_gelu=True,
        vision_cfg=vision | options,
        text_cfg=text | {"pool_type": "eos", "eos_id": 49407},
    ).eval()
    clip = DenseCLIP(reference, open_clip.get_tokenizer("deop-mini", context_length=12))
    image = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(clip.visual(image).pooled, reference.encode_image(image), atol=1e-5, rtol=0)
    expected = reference.encode_text(clip.tokenize(NAMES), normalize=True)
    torch.testing.assert_close(clip.encode_text(NAMES), expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_positions_follow_the_image_size_as_open_clip_resizes_them(mini: DenseCLIP) -> None:
    image = torch.randn(1, 3, 128, 128)
    larger = open_clip.create_model("deop-mini", force_image_size=128).eval()
    state = mini.model.state_dict()
    open_clip.model.resize_pos_embed(state, larger)
    larger.load_state_dict(state)
    torch.testing.assert_close(mini.visual(image).pooled, larger.encode_image(image), atol=1e-5, rtol=0)
    assert mini.visual(torch.randn(1, 3, 40, 104)).patches.shape == (1, mini.embed_dim, 5, 13)


def test_an_image_size_off_the_patch_grid_is_an_error(mini: DenseCLIP) -> None:
    with pytest.raises(
        ValueError, match=r"100x64 is not a multiple of the patch size, 8 pixels; 96x64 would"
    ):
        mini.visual(torch.randn(1, 3, 100, 64))


def test_frozen_and_in_evaluation_mode_inside_a_model_that_trains() -> None:
    clip = load_clip("deop-mini", None)
    model = torch.nn.Sequential(clip, torch.nn.Linear(2, 2)).train()
    assert model[1].training and not any(module.training for module in clip.modules())
    assert not any(parameter.requires_grad for parameter in clip.parameters())


def test_text_embedding_reads_nothing_after_the_end_of_text(mini: DenseCLIP) -> None:
    tokens = mini.tokenize(NAMES)
    eot = mini.end_of_text(tokens)
    embeddings = mini.token_embeddings(tokens).requires_grad_()
    mini.encode_text_embeddings(embeddings, eot).sum().backward()
    read = embeddings.grad.abs().sum(dim=-1) > 0
    assert torch.equal(read, torch.arange(tokens.shape[1]) <= eot[:, None])


@pytest.mark.parametrize("layer", [0, 3, -1])
@torch.no_grad()
def test_patch_attention_is_the_softmax_of_queries_and_keys(mini: DenseCLIP, layer: int) -> None:
    image = torch.randn(2, 3, 32, 48)
    attention = mini.patch_attention(image, layer)
    assert attention.shape == (2, 3, 25, 25)

    block = mini.model.visual.transformer.resblocks[layer]
    seen = []
    hook = block.ln_1.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].double()))
    mini.visual(image)
    hook.remove()
    weight, bias = block.attn.in_proj_weight.double(), block.attn.in_proj_bias.double()
    normed = F.layer_norm(seen[0], (192,), block.ln_1.weight.double(), block.ln_1.bias.double())
    query, key, _ = (normed @ weight.T + bias).chunk(3, dim=-1)
    head = slice(64, 128)  # the second of three heads
    expected = (query[..., head] @ key[..., head].transpose(1, 2) / 64**0.5).softmax(dim=-1)
    torch.testing.assert_close(attention[:, 1].double(), expected, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="layer 6, but the tower has 6 layers: valid are -6 to 5"):
        mini.patch_attention(image, 6)


def _save(clip: DenseCLIP, path) -> str:
    save_file({key: value.half().contiguous() for key, value in clip.model.state_dict().items()}, path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


@torch.no_grad()
def test_weights_from_a_file_and_a_wrong_checksum(mini: DenseCLIP, tmp_path) -> None:
    path = tmp_path / "weights.safetensors"
    checksum = _save(mini, path)
    loaded = load_clip("deop-mini", str(path), weights_sha256=checksum)
    image = torch.randn(1, 3, 96, 96)
    torch.testing.assert_close(loaded.visual(image).pooled, mini.visual(image).pooled, atol=0.02, rtol=0)
    with pytest.raises(ValueError) as error:
        load_clip("deop-mini", str(path), weights_sha256="0" * 64)
    assert all(part in str(error.value) for part in (str(path), checksum, "0" * 64))


def test_bundled_weights_are_checked_against_the_json_beside_them(
    mini: DenseCLIP, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(weights_module, "BUNDLED", tmp_path)
    checksum = _save(mini, tmp_path / "deop-mini.safetensors")
    about = tmp_path / "deop-mini.json"
    about.write_text(json.dumps({"sha256": checksum}))
    loaded = load_clip("deop-mini", "bundled")
    assert torch.equal(loaded.model.text_projection, mini.model.text_projection.half().float())
    about.write_text(json.dumps({"sha256": "f" * 64}))
    with pytest.raises(ValueError, match=f"deop-mini.safetensors has SHA-256 {checksum}.*{'f' * 64}"):
        load_clip("deop-mini", "bundled")
    with pytest.raises(WeightsError, match=r"no weights are bundled for CLIP model 'ViT-B-16'.*: deop-mini"):
        load_clip("ViT-B-16", "bundled")


@torch.no_grad()
def test_a_tag_brings_its_activation_and_normalisation(mini: DenseCLIP, tmp_path, monkeypatch) -> None:
    """OpenAI's tags need QuickGELU though the model config they are asked for does not say so."""
    path = tmp_path / "weights.safetensors"
    _save(mini, path)
    tag = {"file": str(path), "quick_gelu": True, "mean": (0.5, 0.4, 0.3), "std": (0.1, 0.2, 0.3)}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "deop-mini", {"quick": tag})
    clip = load_clip("deop-mini", "quick")
    assert (clip.mean, clip.std) == (tag["mean"], tag["std"])
    expected = open_clip.create_model("deop-mini", pretrained=str(path), force_quick_gelu=True).eval()
    image = torch.randn(1, 3, 96, 96)
    assert torch.equal(clip.visual(image).pooled, expected.encode_image(image))


@pytest.mark.parametrize(
    ("model", "pretrained", "message"),
    [
        ("ViT-B16", None, "unknown CLIP model 'ViT-B16'; closest: .*ViT-B-16"),
        (
            "RN50",
            "openai",
            r"'RN50': the image tower \(ModifiedResNet\) is not a ViT; .*, as in ViT-B-16, .*SigLIP",
        ),
        ("convnext_base", None, "'convnext_base': the image tower .* timm's convnext.* is not a ViT"),
        ("MobileCLIP-S1", None, "'MobileCLIP-S1': the image tower .* timm's fastvit.* is not a ViT"),
        (
            "roberta-ViT-B-32",
            None,
            r"'roberta-ViT-B-32': the text tower \(roberta-base\) .* learned prefixes",
        ),
        ("ViT-B-16", "openia", "unknown weights 'openia' of CLIP model 'ViT-B-16'; valid: .*openai"),
        (
            "ViT-B-16",
            "not/there.safetensors",
            "weights not/there.safetensors of CLIP model 'ViT-B-16' are not there",
        ),
    ],
)
def test_what_cannot_be_loaded(model: str, pretrained: str | None, message: str) -> None:
    with pytest.raises(DeopError, match=message):
        load_clip(model, pretrained)


@pytest.mark.parametrize(
    ("tower", "options", "message"),
    [
        ("vision_cfg", {"attentional_pool": True}, "image tower .* pools by attention with many queries"),
        ("vision_cfg", {"qk_norm": True}, "custom attention"),
        ("text_cfg", {"embed_cls": True}, "text tower .* without a class token of its own"),
        (
            "text_cfg",
            {"pool_type": "first"},
            "text tower .*, pooling 'first'.* must be read at the end of the text",
        ),
    ],
)
def test_towers_that_dense_features_or_prompts_cannot_use(tower: str, options: dict, message: str) -> None:
    config = open_clip.get_model_config("deop-mini")
    model = open_clip.create_model("deop-mini", force_custom_text=True, **{tower: config[tower] | options})
    with pytest.raises(ValueError, match=message):
        DenseCLIP(model, open_clip.get_tokenizer("deop-mini"))
