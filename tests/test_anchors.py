from __future__ import annotations

import math

import pytest
import torch

from deop.models.anchors import ConvHeatmapDecoder, QueryHeatmapDecoder, mask_pool

BATCH, QUERIES, WIDTH, HEADS, HEIGHT, WIDE = 2, 3, 16, 4, 3, 5


@pytest.fixture
def inputs():
    torch.manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(BATCH, WIDTH, HEIGHT, WIDE), dim=1)
    return features, torch.rand(BATCH, QUERIES, HEIGHT, WIDE)


def decoder(layers=1, **arguments) -> QueryHeatmapDecoder:
    torch.manual_seed(1)
    return QueryHeatmapDecoder(
        width=WIDTH, queries=QUERIES, layers=layers, heads=HEADS, ffn_width=24, **arguments
    ).eval()


def softmax(scores: list[float]) -> list[float]:
    exponentials = [math.exp(x - max(scores)) for x in scores]
    return [x / sum(exponentials) for x in exponentials]


def sine_positions(height: int, width: int, channels: int) -> torch.Tensor:
    """DETR's normalised sine positions, (h*w, channels): half the channels for rows, half for columns."""
    table = torch.zeros(height * width, channels, dtype=torch.float64)
    half = channels // 2
    for row in range(height):
        for column in range(width):
            for offset, place, size in ((0, row, height), (half, column, width)):
                angle = 2 * math.pi * (place + 1) / (size + 1e-6)
                for channel in range(half):
                    wave = angle / 10000 ** (2 * (channel // 2) / half)
                    value = math.cos(wave) if channel % 2 else math.sin(wave)
                    table[row * width + column, offset + channel] = value
    return table


def layer_norm(x: torch.Tensor, norm: torch.nn.LayerNorm) -> torch.Tensor:
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
    return (x - mean) / (variance + norm.eps).sqrt() * norm.weight.double() + norm.bias.double()


def literal_heatmaps(net: QueryHeatmapDecoder, features, masks):
    """The heatmap output layer for K = 0 in float64 loops from its raw weights: (heatmaps, embeddings)."""
    weights = {name: value.detach().double() for name, value in net.named_parameters()}
    anchors, size = weights["queries.weight"], WIDTH // HEADS
    slices = [slice(h * size, (h + 1) * size) for h in range(HEADS)]
    # Self-attention over the queries; the targets are zero, so the values are the bias alone.
    value = weights["self_attention.in_proj_bias"][2 * WIDTH :]
    attended = weights["self_attention.out_proj.weight"] @ value + weights["self_attention.out_proj.bias"]
    state = layer_norm(attended.expand(QUERIES, -1), net.norm).detach()
    q = (state + anchors) @ weights["query_projection.weight"].T + weights["query_projection.bias"]
    heatmaps = torch.zeros(BATCH, QUERIES, HEADS, HEIGHT * WIDE, dtype=torch.float64)
    embeddings = torch.zeros(BATCH, QUERIES, WIDTH, dtype=torch.float64)
    for b in range(BATCH):
        patches = features[b].double().flatten(1).T
        located = patches + sine_positions(HEIGHT, WIDE, WIDTH)
        k = located @ weights["key_projection.weight"].T + weights["key_projection.bias"]
        for n in range(QUERIES):
            for h, part in enumerate(slices):
                attention = softmax([float(q[n, part] @ patch[part]) / math.sqrt(size) for patch in k])
                for p, mask in enumerate(masks[b, n].flatten().tolist()):
                    heatmaps[b, n, h, p] = attention[p] * mask
                    embeddings[b, n, part] += heatmaps[b, n, h, p] * patches[p, part]
    return heatmaps.unflatten(-1, (HEIGHT, WIDE)), embeddings


def test_heatmap_output_layer_is_equation_3(inputs):
    net = decoder(layers=0)
    for parameter in net.parameters():  # biases and norms too, else much of the layer would be invisible
        torch.nn.init.normal_(parameter, std=0.4)
    output = net(*inputs)
    heatmaps, embeddings = literal_heatmaps(net, *inputs)
    torch.testing.assert_close(output.heatmaps.double(), heatmaps, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(output.embeddings.double(), embeddings, rtol=1e-4, atol=1e-6)


def test_embeddings_are_the_features_pooled_by_the_heatmaps(inputs):
    features, _ = inputs
    heatmaps, embeddings = decoder(layers=2)(*inputs)
    for h in range(HEADS):
        part = slice(h * WIDTH // HEADS, (h + 1) * WIDTH // HEADS)
        pooled = torch.einsum("bnyx,bdyx->bnd", heatmaps[:, :, h], features[:, part])
        torch.testing.assert_close(embeddings[..., part], pooled)


def test_heatmaps_sum_to_one_under_a_full_mask_and_vanish_outside_a_mask(inputs):
    features, masks = inputs
    net = decoder()
    full = net(features, torch.ones_like(masks)).heatmaps
    torch.testing.assert_close(full.sum((-2, -1)), torch.ones(BATCH, QUERIES, HEADS))
    hard = (masks > 0.5).float()
    cut = net(features, hard).heatmaps
    torch.testing.assert_close(cut, full * hard[:, :, None])


def test_masks_steer_their_own_proposal_alone(inputs):
    features, masks = inputs
    net = decoder(layers=2)
    before = net(features, masks).embeddings
    masks[:, 1] = masks[:, 1].flip(-1)
    after = net(features, masks).embeddings
    assert torch.equal(before[:, [0, 2]], after[:, [0, 2]])
    assert not torch.allclose(before[:, 1], after[:, 1])


def test_every_parameter_learns(inputs):
    net = decoder(layers=2).train()
    embeddings = net(*inputs).embeddings
    (embeddings * torch.randn_like(embeddings)).sum().backward()
    # The targets are zero: the first self-attention sees equal values, so its queries and keys cannot matter.
    still = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert all("layers.0.self_attn" in name or "k_proj.bias" in name for name in still), still


def test_dropout_acts_in_training_only(inputs):
    net = decoder(dropout=0.5)
    assert torch.equal(net(*inputs).embeddings, net(*inputs).embeddings)
    net.train()
    assert not torch.equal(net(*inputs).embeddings, net(*inputs).embeddings)


def test_decoder_names_inputs_that_do_not_fit(inputs):
    features, masks = inputs
    net = decoder()
    with pytest.raises(ValueError, match=r"masks \(2, 2, 3, 5\) do not fit a decoder of 3 queries"):
        net(features, masks[:, :2])
    with pytest.raises(ValueError, match="width 18 must be a multiple of heads"):
        QueryHeatmapDecoder(width=18, queries=3, heads=4)


def conv_decoder(layers: int, **arguments) -> ConvHeatmapDecoder:
    """A decoder with every number of it drawn, as if trained for long."""
    torch.manual_seed(1)
    net = ConvHeatmapDecoder(width=WIDTH, layers=layers, **arguments)
    for name, value in net.state_dict().items():
        if "num_batches" not in name:
            torch.nn.init.uniform_(value, *((0.5, 2) if "var" in name or "norms" in name else (-0.5, 0.5)))
    return net


def literal_convolution(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Zero-padded convolution of one map (D, h, w) by (C, D, k, k), in float64, a number at a time over the patches."""
    reach = weight.shape[-1] // 2
    out = torch.zeros(weight.shape[0], HEIGHT, WIDE, dtype=torch.float64)
    for y in range(HEIGHT):
        for z in range(WIDE):
            for dy in range(-reach, reach + 1):
                for dz in range(-reach, reach + 1):
                    if 0 <= y + dy < HEIGHT and 0 <= z + dz < WIDE:
                        out[:, y, z] += weight[:, :, dy + reach, dz + reach] @ x[:, y + dy, z + dz]
    return out


def literal_conv_heatmaps(net: ConvHeatmapDecoder, features, masks, *, training: bool, over_mask: bool):
    """Eq. 4 in float64 from the raw weights, a masked copy at a time: (heatmaps, embeddings)."""
    state = {name: value.detach().double() for name, value in net.state_dict().items()}
    copies = {
        (b, n): masks[b, n].double() * features[b].double() for b in range(BATCH) for n in range(QUERIES)
    }
    for k in range(len(net.norms)):
        copies = {at: literal_convolution(x, state[f"convolutions.{k}.weight"]) for at, x in copies.items()}
        for c in range(WIDTH):
            values = torch.cat([x[c].flatten() for x in copies.values()])
            mean, variance = state[f"norms.{k}.running_mean"][c], state[f"norms.{k}.running_var"][c]
            if training:
                mean, variance = values.mean(), values.var(unbiased=False)
            for x in copies.values():
                normed = (x[c] - mean) / (variance + 1e-5).sqrt()
                normed = normed * state[f"norms.{k}.weight"][c] + state[f"norms.{k}.bias"][c]
                x[c] = normed.clamp(min=0)
    heatmaps = torch.zeros(BATCH, QUERIES, HEIGHT * WIDE, dtype=torch.float64)
    embeddings = torch.zeros(BATCH, QUERIES, WIDTH, dtype=torch.float64)
    for (b, n), x in copies.items():
        scores = literal_convolution(x, state["score.weight"]).flatten().tolist()
        shares = masks[b, n].flatten().tolist() if over_mask else [1.0] * len(scores)
        weights = [math.exp(score) * share for score, share in zip(scores, shares)]
        for p, weight in enumerate(weights):
            heatmaps[b, n, p] = weight / sum(weights)
            embeddings[b, n] += heatmaps[b, n, p] * features[b].double().flatten(1)[:, p]
    return heatmaps.unflatten(-1, (HEIGHT, WIDE)), embeddings


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("softmax_over", ["mask", "image"])
@pytest.mark.parametrize("layers", [0, 1, 2])
def test_conv_decoder_is_equation_4(inputs, layers, softmax_over, training):
    net = conv_decoder(layers, softmax_over=softmax_over).train(training)
    how = {"training": training, "over_mask": softmax_over == "mask"}
    heatmaps, embeddings = literal_conv_heatmaps(
        net, *inputs, **how
    )  # before a step moves the batch statistics
    output = net(*inputs)
    assert output.heatmaps.shape == (BATCH, QUERIES, 1, HEIGHT, WIDE)
    torch.testing.assert_close(output.heatmaps[:, :, 0].double(), heatmaps, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(output.embeddings.double(), embeddings, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("layers", [0, 1, 3, 5])
@pytest.mark.parametrize("build", [QueryHeatmapDecoder, ConvHeatmapDecoder])
def test_untrained_decoders_of_any_depth_start_from_mask_pooling(inputs, build, layers):
    torch.manual_seed(1)
    features, masks = inputs
    arguments = {"queries": QUERIES, "heads": HEADS, "dropout": 0.0} if build is QueryHeatmapDecoder else {}
    net = build(width=WIDTH, layers=layers, **arguments)
    for mode in (True, False):
        embeddings = net.train(mode)(features, masks).embeddings
        pooled = mask_pool(features, masks)
        assert torch.nn.functional.cosine_similarity(embeddings, pooled, dim=-1).min() > 0.97


def test_conv_heatmaps_sum_to_one_and_lie_inside_a_hard_mask(inputs):
    features, masks = inputs
    hard = (masks > 0.5).float()
    hard[1, 2] = 0
    heatmaps, embeddings = conv_decoder(1)(features, hard)
    torch.testing.assert_close(heatmaps.sum((-2, -1)), torch.ones(BATCH, QUERIES, 1))
    outside = (heatmaps[:, :, 0] * (1 - hard)).sum((-2, -1))
    assert outside[:, :2].max() < 1e-30 and outside[0, 2] < 1e-30
    assert embeddings.isfinite().all()  # also where the mask is empty


def test_every_parameter_of_the_conv_decoder_learns_from_the_first_step(inputs):
    torch.manual_seed(1)
    net = ConvHeatmapDecoder(width=WIDTH, layers=3)
    embeddings = net(*inputs).embeddings
    (embeddings * torch.randn_like(embeddings)).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in net.parameters())


def test_conv_decoder_keeps_two_maps_a_block_for_training(inputs):
    features, masks = (torch.rand(1, WIDTH, 16, 16), torch.rand(1, 40, 16, 16))
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.setdefault(tensor.untyped_storage().data_ptr(), tensor), lambda tensor: tensor
    ):
        ConvHeatmapDecoder(width=WIDTH, layers=3)(features, masks)
    maps = [tensor for tensor in kept.values() if tensor.numel() >= masks.shape[1] * features.numel()]
    assert len(maps) == 2 * 3


def test_conv_decoder_names_inputs_that_do_not_fit(inputs):
    features, masks = inputs
    net = conv_decoder(1)
    assert net(features, masks[:, :2]).embeddings.shape == (BATCH, 2, WIDTH)  # any number of proposals
    with pytest.raises(ValueError, match=r"masks \(2, 3, 2, 5\) do not fit a decoder of width 16"):
        net(features, masks[..., :2, :])
    with pytest.raises(ValueError, match=r"features \(2, 8, 3, 5\)"):
        net(features[:, :8], masks)
    with pytest.raises(ValueError, match="unknown softmax_over 'masks'; valid: mask, image"):
        ConvHeatmapDecoder(width=WIDTH, softmax_over="masks")


def test_mask_pool_is_the_weighted_mean_of_patches(inputs):
    features, masks = inputs
    masks[1, 2] = 0
    pooled = mask_pool(features, masks)
    for b in range(BATCH):
        for n in range(QUERIES):
            total, weight = torch.zeros(WIDTH, dtype=torch.float64), 0.0
            for y in range(HEIGHT):
                for x in range(WIDE):
                    total += float(masks[b, n, y, x]) * features[b, :, y, x].double()
                    weight += float(masks[b, n, y, x])
            expected = total / weight if weight else total
            torch.testing.assert_close(pooled[b, n].double(), expected, rtol=1e-5, atol=1e-7)
