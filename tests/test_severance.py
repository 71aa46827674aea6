from __future__ import annotations

import open_clip
import pytest
import torch
import torch.nn.functional as F

from deop.clip import DenseCLIP, load_clip
from deop.severance import Severance


@pytest.fixture(scope="module")
def mini() -> DenseCLIP:
    torch.manual_seed(0)
    return load_clip("deop-mini", None)


def literal_layer(block: torch.nn.Module, x: torch.Tensor, alpha: float) -> torch.Tensor:
    """A transformer block with Eq. 2 in it, in float64, from the raw weights, a head and a row at a time."""
    p = {name: parameter.double() for name, parameter in block.named_parameters()}
    tokens, width = x.shape
    heads = block.attn.num_heads
    dim = width // heads
    normed = F.layer_norm(x, (width,), p["ln_1.weight"], p["ln_1.bias"])
    w_query, w_key, w_value = p["attn.in_proj_weight"].split(width)
    b_query, b_key, b_value = p["attn.in_proj_bias"].split(width)
    query, key, value = normed @ w_query.T + b_query, normed @ w_key.T + b_key, normed @ w_value.T + b_value
    joined = torch.zeros_like(x)
    identity = torch.eye(tokens, dtype=torch.float64)
    for head in range(heads):
        part = slice(head * dim, (head + 1) * dim)
        attn = torch.zeros_like(identity)
        for i in range(tokens):
            scores = torch.exp(key[:, part] @ query[i, part] / dim**0.5)
            attn[i] = scores / scores.sum()
        joined[:, part] = (alpha * identity + (1 - alpha) * attn) @ value[:, part]
    x = x + joined @ p["attn.out_proj.weight"].T + p["attn.out_proj.bias"]
    normed = F.layer_norm(x, (width,), p["ln_2.weight"], p["ln_2.bias"])
    hidden = F.gelu(normed @ p["mlp.c_fc.weight"].T + p["mlp.c_fc.bias"])
    return x + hidden @ p["mlp.c_proj.weight"].T + p["mlp.c_proj.bias"]


@pytest.mark.parametrize("alphas", [{-1: 1.0}, {-1: 0.3}, {4: 0.6, 5: 0.25}])
@torch.no_grad()
def test_gps_is_equation_2(mini: DenseCLIP, alphas: dict[int, float]) -> None:
    tower = mini.model.visual
    image = torch.randn(1, 3, 40, 56)
    into_layer_4 = []
    hook = tower.transformer.resblocks[4].ln_1.register_forward_pre_hook(
        lambda module, inputs: into_layer_4.append(inputs[0][0].double())
    )
    # A vanishing alpha in layer 4 keeps the hook's view of the layer without changing it measurably.
    features = mini.visual(image, severance=Severance("gps", {4: 1e-12} | alphas))
    hook.remove()
    x = into_layer_4[0]
    for layer in (4, 5):
        alpha = alphas.get(layer, alphas.get(layer - 6, 0.0))
        x = literal_layer(tower.transformer.resblocks[layer], x, alpha)
    x = (
        F.layer_norm(x, (192,), tower.ln_post.weight.double(), tower.ln_post.bias.double())
        @ tower.proj.double()
    )
    torch.testing.assert_close(features.patches[0].flatten(1).T.double(), x[1:], atol=1e-5, rtol=0)
    torch.testing.assert_close(features.pooled[0].double(), x[1:].mean(dim=0), atol=1e-5, rtol=0)


@pytest.mark.parametrize("severance", [Severance(), Severance("gps", {-1: 0.0, -2: 0.0}), Severance("gps")])
@torch.no_grad()
def test_alpha_0_is_plain_clip(mini: DenseCLIP, severance: Severance) -> None:
    image = torch.randn(2, 3, 64, 64)
    plain, severed = mini.visual(image), mini.visual(image, severance=severance)
    assert torch.equal(severed.pooled, plain.pooled) and torch.equal(severed.patches, plain.patches)


@torch.no_grad()
def test_a_vanishing_alpha_is_plain_clip_with_layer_scale_and_quick_gelu() -> None:
    torch.manual_seed(0)
    config = open_clip.get_model_config("deop-mini")["vision_cfg"] | {"ls_init_value": 0.3}
    model = open_clip.create_model("deop-mini", force_quick_gelu=True, vision_cfg=config)
    clip = DenseCLIP(model, open_clip.get_tokenizer("deop-mini"))
    image = torch.randn(1, 3, 64, 64)
    severed = clip.visual(image, severance=Severance("gps", dict.fromkeys(range(6), 1e-9)))
    torch.testing.assert_close(severed.patches, clip.visual(image).patches, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("alpha", "moved"), [(1.0, [7]), (0.5, list(range(17)))])
@torch.no_grad()
def test_with_alpha_1_no_token_of_a_layer_hears_another(
    mini: DenseCLIP, alpha: float, moved: list[int]
) -> None:
    attend = Severance("gps", {-1: alpha}).attentions(mini.layers)[-1]
    attention = mini.model.visual.transformer.resblocks[-1].attn
    tokens = torch.randn(1, 17, mini.width)
    perturbed = tokens.clone()
    perturbed[0, 7] += 1
    change = (attend(attention, perturbed, None) - attend(attention, tokens, None)).abs().amax(dim=(0, 2))
    assert change.nonzero().flatten().tolist() == moved


@torch.no_grad()
def test_with_every_layer_severed_a_patch_depends_on_its_own_pixels_alone(mini: DenseCLIP) -> None:
    image = torch.randn(1, 3, 64, 64)
    perturbed = image.clone()
    perturbed[..., 16:24, 40:48] += 1  # the patch in row 2, column 5
    severed = Severance("gps", dict.fromkeys(range(mini.layers), 1.0))
    for severance, alone in ((severed, True), (None, False)):
        before, after = (mini.visual(x, severance=severance).patches for x in (image, perturbed))
        moved = ((after - before).abs().amax(dim=1)[0] > 1e-6).nonzero().tolist()
        assert (moved == [[2, 5]]) is alone


@pytest.mark.parametrize(
    ("kind", "alpha", "message"),
    [
        ("gsp", {}, "unknown severance kind 'gsp'; valid kinds: gps, none"),
        ("gps", {-1: 1.5}, r"alpha of layer -1 is 1.5; it must lie in \[0, 1\]"),
        ("gps", {-1: float("nan")}, r"alpha of layer -1 is nan"),
        ("none", {-1: 1.0}, "'none' severs nothing, but alpha is {-1: 1.0}"),
        ("gps", {6: 1.0}, "layer 6, but the tower has 6 layers: valid are -6 to 5"),
        ("gps", {-7: 0.0}, "layer -7, but the tower has 6 layers"),
        ("gps", {-1: 1.0, 5: 0.0}, "layers -1 and 5 are the same of 6"),
    ],
)
def test_what_cannot_be_severed(mini: DenseCLIP, kind: str, alpha: dict[int, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mini.visual(torch.randn(1, 3, 64, 64), severance=Severance(kind, alpha))
