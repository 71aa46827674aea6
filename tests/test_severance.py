from __future__ import annotations

import math
from collections.abc import Callable

import open_clip
import pytest
import torch
import torch.nn.functional as F

from deop.models.attention import TorchAttention
from deop.models.clip import DenseCLIP, load_clip
from deop.models.severance import Severance, mask_guided_patch_severance, mask_sum

Matrix = Callable[[torch.Tensor], torch.Tensor]
GRID = (5, 7)  # patches of an image of 40 x 56 pixels


@pytest.fixture(scope="module")
def mini() -> DenseCLIP:
    torch.manual_seed(0)
    return load_clip("deop-mini", None)


def literal_layer(block: torch.nn.Module, x: torch.Tensor, severed: Matrix) -> torch.Tensor:
    """A transformer block in float64, from the raw weights, a head and a row at a time.

    ``severed`` turns the self-attention matrix (T, T) of a head into the one that mixes the values.
    """
    p = {name: parameter.double() for name, parameter in block.named_parameters()}
    tokens, width = x.shape
    heads = block.attn.num_heads
    dim = width // heads
    normed = F.layer_norm(x, (width,), p["ln_1.weight"], p["ln_1.bias"])
    w_query, w_key, w_value = p["attn.in_proj_weight"].split(width)
    b_query, b_key, b_value = p["attn.in_proj_bias"].split(width)
    query, key, value = normed @ w_query.T + b_query, normed @ w_key.T + b_key, normed @ w_value.T + b_value
    joined = torch.zeros_like(x)
    for head in range(heads):
        part = slice(head * dim, (head + 1) * dim)
        attn = torch.zeros(tokens, tokens, dtype=torch.float64)
        for i in range(tokens):
            scores = torch.exp(key[:, part] @ query[i, part] / dim**0.5)
            attn[i] = scores / scores.sum()
        joined[:, part] = severed(attn) @ value[:, part]
    x = x + joined @ p["attn.out_proj.weight"].T + p["attn.out_proj.bias"]
    normed = F.layer_norm(x, (width,), p["ln_2.weight"], p["ln_2.bias"])
    hidden = F.gelu(normed @ p["mlp.c_fc.weight"].T + p["mlp.c_fc.bias"])
    return x + hidden @ p["mlp.c_proj.weight"].T + p["mlp.c_proj.bias"]


def equation_2(alpha: float) -> Matrix:
    return lambda attn: alpha * torch.eye(len(attn), dtype=torch.float64) + (1 - alpha) * attn


def with_class_token(masks: torch.Tensor) -> list[list[float]]:
    """Masks (N, h, w) as rows over the tokens: the class token first, in every mask."""
    return [[1.0, *mask.flatten().tolist()] for mask in masks]


def equation_1(masks: torch.Tensor) -> Matrix:
    """M_i = sum_j M_j,i * M_j for every token i, then each row divided by its sum."""
    rows = with_class_token(masks)
    tokens = len(rows[0])
    matrix = torch.zeros(tokens, tokens, dtype=torch.float64)
    for i in range(tokens):
        for mask in rows:
            for p in range(tokens):
                matrix[i, p] += mask[i] * mask[p]
        matrix[i] /= matrix[i].sum()
    return lambda attn: matrix


def softmax_of_equation_1(masks: torch.Tensor) -> Matrix:
    """The release's MPS: the softmax of each row M_i = sum_j M_j,i * M_j."""
    rows = with_class_token(masks)
    matrix = torch.zeros(len(rows[0]), len(rows[0]), dtype=torch.float64)
    for i in range(len(matrix)):
        exponentials = [math.exp(sum(mask[i] * mask[p] for mask in rows)) for p in range(len(matrix))]
        matrix[i] = torch.tensor([value / sum(exponentials) for value in exponentials])
    return lambda attn: matrix


def scaled_by_the_masks(masks: torch.Tensor) -> Matrix:
    """The released last layer: each token keeps to itself, times the sum of the masks there."""
    rows = with_class_token(masks)
    factors = [sum(mask[i] for mask in rows) for i in range(len(rows[0]))]
    return lambda attn: torch.diag(torch.tensor(factors, dtype=torch.float64))


def assert_literal(mini: DenseCLIP, severance: Severance, matrices: dict[int, Matrix]) -> None:
    """The dense features equal the last two layers computed literally, with ``matrices`` where they name a layer."""
    tower = mini.model.visual
    image, masks = torch.randn(1, 3, 40, 56), torch.rand(1, 3, *GRID)
    into_layer_4 = []
    hook = tower.transformer.resblocks[4].ln_1.register_forward_pre_hook(
        lambda module, inputs: into_layer_4.append(inputs[0][0].double())
    )
    features = mini.visual(image, severance=severance, masks=masks)
    hook.remove()
    x = into_layer_4[0]
    for layer in (4, 5):
        severed = matrices.get(layer, lambda masks: lambda attn: attn)(masks[0])
        x = literal_layer(tower.transformer.resblocks[layer], x, severed)
    x = (
        F.layer_norm(x, (192,), tower.ln_post.weight.double(), tower.ln_post.bias.double())
        @ tower.proj.double()
    )
    torch.testing.assert_close(features.patches[0].flatten(1).T.double(), x[1:], atol=1e-5, rtol=0)
    torch.testing.assert_close(features.pooled[0].double(), x[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("alphas", [{-1: 1.0}, {-1: 0.3}, {4: 0.6, 5: 0.25}])
@torch.no_grad()
def test_gps_is_equation_2(mini: DenseCLIP, alphas: dict[int, float]) -> None:
    matrices = {layer % 6: lambda masks, alpha=alpha: equation_2(alpha) for layer, alpha in alphas.items()}
    assert_literal(mini, Severance("gps", alphas), matrices)


@pytest.mark.parametrize("layers", [[-1], [-2], [-2, -1]])
@pytest.mark.parametrize(
    ("kind", "rows", "matrix"),
    [
        ("mps", "share", equation_1),
        ("mps", "softmax", softmax_of_equation_1),
        ("mask_sum", "share", scaled_by_the_masks),
    ],
)
@torch.no_grad()
def test_mps_is_equation_1_and_mask_sum_the_released_layer(
    mini: DenseCLIP, kind: str, rows: str, matrix: Callable, layers: list[int]
) -> None:
    severance = Severance(kind, dict.fromkeys(layers, 1.0) | {-3: 0.0}, rows)
    assert_literal(mini, severance, {layer % 6: matrix for layer in layers})


@torch.no_grad()
def test_under_mps_a_patch_hears_the_patches_of_its_masks_and_the_class_token(mini: DenseCLIP) -> None:
    attention = TorchAttention(mini.model.visual.transformer.resblocks[-1].attn)
    tokens = torch.randn(1, 5, mini.width)  # the class token and 2 x 2 patches
    masks = torch.tensor(
        [[[[1.0, 1.0], [0.0, 0.0]], [[0.0, 1.0], [1.0, 0.0]]]]
    )  # the last patch is in no mask

    def heard(token: int) -> list[int]:
        """The tokens whose output changes with this one."""
        perturbed = tokens.clone()
        perturbed[0, token] += 1
        before, after = (mask_guided_patch_severance(attention, x, masks) for x in (tokens, perturbed))
        return ((after - before).abs().amax(dim=(0, 2)) > 1e-6).nonzero().flatten().tolist()

    assert [heard(token) for token in range(5)] == [[0, 1, 2, 3], [0, 1, 2], [0, 1, 2, 3], [0, 2, 3], []]
    # A token with nothing to attend to adds the output projection's bias alone.
    out = mask_guided_patch_severance(attention, tokens, masks)[0, 4]
    torch.testing.assert_close(out, attention.module.out_proj.bias)


@torch.no_grad()
def test_mps_rows_sum_to_one_and_mask_sums_do_not(mini: DenseCLIP) -> None:
    attention = TorchAttention(mini.model.visual.transformer.resblocks[-1].attn)
    tokens = torch.randn(2, 1, mini.width).expand(
        2, 36, -1
    )  # equal tokens: any weighted mean of them is one of them
    masks = torch.rand(2, 100, *GRID)
    alone = Severance("gps", {0: 1.0}).attentions(1)[0](attention, tokens, None)
    mixed = mask_guided_patch_severance(attention, tokens, masks)
    torch.testing.assert_close(mixed, alone, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(mask_sum(attention, tokens, masks), alone, atol=1e-2)


@pytest.mark.parametrize(("kind", "rows"), [("mps", "share"), ("mps", "softmax"), ("mask_sum", "share")])
def test_guided_kinds_need_masks_on_the_patch_grid(mini: DenseCLIP, kind: str, rows: str) -> None:
    image, severance = torch.randn(2, 3, 40, 56), Severance(kind, {-1: 1.0}, rows)
    with pytest.raises(ValueError, match="needs the proposal masks on the patch grid; got none"):
        mini.visual(image, severance=severance)
    with pytest.raises(ValueError, match=r"masks \(2, 3, 7, 6\) do not fit 35 patches of 2 images"):
        mini.visual(image, severance=severance, masks=torch.rand(2, 3, 7, 6))
    with pytest.raises(ValueError, match=r"masks \(1, 3, 5, 7\) do not fit 35 patches of 2 images"):
        mini.visual(image, severance=severance, masks=torch.rand(1, 3, 5, 7))


@pytest.mark.parametrize(
    "severance",
    [Severance(), Severance("gps", {-1: 0.0, -2: 0.0}), Severance("gps"), Severance("mps", {-1: 0.0})],
)
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
    attention = TorchAttention(mini.model.visual.transformer.resblocks[-1].attn)
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


def test_rows_that_there_are_not_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown severance rows 'sum'; valid rows: share, softmax"):
        Severance("mps", {-1: 1.0}, "sum")


@pytest.mark.parametrize(
    ("kind", "alpha", "message"),
    [
        ("gsp", {}, "unknown severance kind 'gsp'; valid kinds: gps, mask_sum, mps, none"),
        ("gps", {-1: 1.5}, r"alpha of layer -1 is 1.5; it must lie in \[0, 1\]"),
        ("gps", {-1: float("nan")}, r"alpha of layer -1 is nan"),
        ("mps", {-1: 0.5}, "alpha of layer -1 is 0.5; kind 'mps' has none in between"),
        ("mask_sum", {-2: 0.5, -1: 1.0}, "alpha of layer -2 is 0.5; kind 'mask_sum' has none in between"),
        ("none", {-1: 1.0}, "'none' severs nothing, but alpha is {-1: 1.0}"),
        ("gps", {6: 1.0}, "layer 6, but the tower has 6 layers: valid are -6 to 5"),
        ("gps", {-7: 0.0}, "layer -7, but the tower has 6 layers"),
        ("gps", {-1: 1.0, 5: 0.0}, "layers -1 and 5 are the same of 6"),
    ],
)
def test_what_cannot_be_severed(mini: DenseCLIP, kind: str, alpha: dict[int, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mini.visual(torch.randn(1, 3, 64, 64), severance=Severance(kind, alpha))
