from __future__ import annotations

import math
from itertools import permutations

import pytest
import torch

from deop.data.segmentation import HIDDEN
from deop.models.proposals import ProposalNetwork, match, segment_classes, segment_masks

QUERIES, LAYERS, IGNORE, NO_CLASS = 5, 2, 255, -1


def network(**changes) -> ProposalNetwork:
    torch.manual_seed(0)
    arguments = dict(
        backbone="resnet10t",
        backbone_args={"channels": [8, 16, 24, 32], "stem_width": 8},
        pretrained_backbone=False,
        out_indices=[1, 2, 3],
        queries=QUERIES,
        decoder_layers=LAYERS,
        width=32,
        ffn_width=48,
        heads=4,
    )
    return ProposalNetwork(**{**arguments, **changes})


@pytest.fixture
def example():
    """Mask logits of two layers; labels of images with 3, 2 and no segments, all with ignored and unlabelled pixels."""
    torch.manual_seed(1)
    labels = torch.randint(0, 3, (3, 4, 5))
    labels[1] = labels[1].clamp(max=1)
    labels[:, 2, 1:4] = IGNORE
    labels[:, 0, 2] = NO_CLASS
    labels[2] = IGNORE
    return [2 * torch.randn(3, QUERIES, 4, 5) for _ in range(LAYERS)], labels


def literal_pair_losses(logits, segment, kept) -> tuple[float, float]:
    """(focal, dice) of one proposal against one segment by a loop over pixels, in Python floats."""
    focal = intersection = predicted = target = 0.0
    pixels = 0
    for x, hit, valid in zip(logits.flatten().tolist(), segment.flatten(), kept.flatten()):
        if not valid:
            continue
        pixels += 1
        score = 1 / (1 + math.exp(-x))
        focal += -0.25 * (1 - score) ** 2 * math.log(score) if hit else -0.75 * score**2 * math.log(1 - score)
        intersection, predicted, target = intersection + score * hit, predicted + score, target + float(hit)
    return focal / pixels, float(1 - (2 * intersection + 1) / (predicted + target + 1))


def literal_loss(outputs, labels, focal_weight, dice_weight):
    """Weighted focal and dice under the best of all assignments of queries to segments, each tried."""
    focal = dice = 0.0
    named = [image[(image != IGNORE) & (image != NO_CLASS)].unique() for image in labels]
    count = sum(map(len, named))
    for output in outputs:
        for masks, image, present in zip(output, labels, named):
            segments, kept = [image == c for c in present], image != IGNORE
            pairs = [[literal_pair_losses(m, s, kept) for s in segments] for m in masks.double()]
            assigned = (
                [pairs[query][segment] for segment, query in enumerate(order)]
                for order in permutations(range(len(masks)), len(segments))
            )
            best = min(
                assigned, key=lambda losses: sum(focal_weight * f + dice_weight * d for f, d in losses)
            )
            focal, dice = focal + sum(f for f, _ in best), dice + sum(d for _, d in best)
    return focal_weight * focal / count, dice_weight * dice / count


@pytest.mark.parametrize(("focal_weight", "dice_weight"), [(20.0, 1.0), (0.5, 3.0)])
def test_loss_is_the_literal_one_under_the_best_of_all_assignments(example, focal_weight, dice_weight):
    outputs, labels = example
    got = network(focal_weight=focal_weight, dice_weight=dice_weight).loss(outputs, labels, ignore=IGNORE)
    focal, dice = literal_loss(outputs, labels, focal_weight, dice_weight)
    assert got["focal"].item() == pytest.approx(focal, rel=1e-5)
    assert got["dice"].item() == pytest.approx(dice, rel=1e-5)


def test_loss_is_the_same_under_autocast(example):
    outputs, labels = example
    net = network()
    plain = net.loss(outputs, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        autocast = net.loss(outputs, labels)
    assert all(autocast[k].item() == plain[k].item() for k in plain)


def test_ignored_pixels_have_no_influence(example):
    outputs, labels = example
    net = network()
    before = net.loss(outputs, labels)
    ignored = (labels == IGNORE)[:, None].expand_as(outputs[0])
    noise = 60 * torch.randn(int(ignored.sum()))
    changed = [output.masked_scatter(ignored, noise).requires_grad_() for output in outputs]
    after = net.loss(changed, labels)
    assert {k: v.item() for k, v in after.items()} == {k: v.item() for k, v in before.items()}
    sum(after.values()).backward()
    for output in changed:
        assert (output.grad[ignored] == 0).all()
        assert (output.grad[~ignored] != 0).any()


def literal_maskformer_criterion(outputs, labels):
    """MaskFormer's criterion without classes: the best of all assignments, over all pixels, of (focal, dice)."""
    losses = torch.zeros(2, dtype=torch.float64)
    count = 0
    for image, truth in enumerate(labels):
        segments = [truth == c for c in truth.unique() if c not in (IGNORE, NO_CLASS)]
        count += len(segments)
        for output in outputs:
            pairs = torch.empty(QUERIES, len(segments), 2, dtype=torch.float64)
            for query, mask in enumerate(output[image].double()):
                for index, segment in enumerate(segments):
                    target, score = segment.double(), mask.sigmoid()
                    right, weight = torch.where(segment, score, 1 - score), 0.75 - 0.5 * target
                    pairs[query, index, 0] = -(weight * (1 - right) ** 2 * right.log()).mean()
                    overlap = (2 * (score * target).sum() + 1) / (score.sum() + target.sum() + 1)
                    pairs[query, index, 1] = 1 - overlap
            chosen = min(
                (
                    pairs[list(order), range(len(segments))].sum(0)
                    for order in permutations(range(QUERIES), len(segments))
                ),
                key=lambda pair: 20 * pair[0] + pair[1],
            )
            losses = losses + chosen
    return (losses * torch.tensor([20.0, 1.0]) / count).tolist()


def test_ignored_pixels_as_background_are_maskformers_criterion(example):
    outputs, labels = example
    got = network(ignored="background").loss(outputs, labels, ignore=IGNORE)
    assert [got["focal"].item(), got["dice"].item()] == pytest.approx(
        literal_maskformer_criterion(outputs, labels), rel=1e-5
    )
    # With the labels of the datasets, and gradients at ignored pixels.
    outputs = [output.requires_grad_() for output in outputs]
    again = network(ignored="background").loss(
        outputs, labels.masked_fill(labels == IGNORE, HIDDEN), ignore=HIDDEN
    )
    assert {key: value.item() for key, value in again.items()} == {
        key: value.item() for key, value in got.items()
    }
    [slope] = torch.autograd.grad(sum(again.values()), outputs[:1])
    assert slope[:2, :, 2, 1:4].any()


def test_a_proposal_pays_for_leaking_into_pixels_without_a_class(example):
    outputs, labels = example
    net = network()
    labels = labels.masked_fill(labels == IGNORE, NO_CLASS)
    outside = (labels == NO_CLASS)[:, None].expand_as(outputs[0])
    kept, leaked = (
        sum(net.loss([output.masked_fill(outside, fill) for output in outputs], labels).values())
        for fill in (-8.0, 8.0)
    )
    assert leaked > 1.5 * kept


def test_only_matched_proposals_are_supervised(example):
    outputs, labels = example
    outputs = [output.requires_grad_() for output in outputs]
    sum(network().loss(outputs, labels).values()).backward()
    for output in outputs:
        touched = (output.grad.abs().amax((2, 3)) > 0).sum(1)
        assert touched.tolist() == [3, 2, 0]


def test_more_segments_than_proposals_leaves_the_dearest_unmatched():
    labels = torch.tensor([[[0, 1, 2]]])
    logits = torch.tensor([[[[9.0, -9.0, -9.0], [-9.0, -9.0, 9.0]]]])
    classes, counts = segment_classes(labels, IGNORE)
    targets = segment_masks(labels, classes, IGNORE).flatten(2)
    [(_, queries, segments)] = match(logits.flatten(3), targets, torch.ones(1, 3), counts, 20.0, 1.0)
    assert dict(zip(queries.tolist(), segments.tolist())) == {0: 0, 1: 2}


def test_layers_that_leave_different_segments_unmatched_have_their_own_losses():
    torch.manual_seed(2)
    labels, net = torch.tensor([[[0, 0, 1, 1, 2, 2]]]), network()
    of_segment = 9 * (2 * torch.eye(3).repeat_interleave(2, 1) - 1).reshape(3, 1, 6)
    outputs = [of_segment[None, [0, 2]], of_segment[None, [1, 0]] + torch.randn(1, 2, 1, 6)]
    both, first, second = (net.loss(layers, labels) for layers in (outputs, outputs[:1], outputs[1:]))
    for name in both:
        torch.testing.assert_close(both[name], first[name] + second[name])


def test_a_batch_without_segments_has_zero_loss_and_gradient():
    net = network()
    loss = sum(net.loss(net(torch.randn(1, 3, 32, 32)), torch.full((1, 32, 32), IGNORE)).values())
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or not p.grad.any() for p in net.parameters())


@pytest.mark.parametrize(("out_indices", "stride"), [((0, 1, 2, 3), 2), ((1, 2, 3), 4), ((1, 2, 3, 4), 4)])
def test_masks_have_the_stride_of_the_first_backbone_feature(out_indices, stride):
    outputs = network(out_indices=out_indices)(torch.randn(2, 3, 64, 96))
    assert [tuple(output.shape) for output in outputs] == [(2, QUERIES, 64 // stride, 96 // stride)] * LAYERS


def test_paper_scale_backbone_has_the_deep_stem():
    stem = network(backbone="resnet101s", backbone_args={}, out_indices=[1, 2, 3, 4]).backbone["conv1"]
    convolutions = [m for m in stem.modules() if isinstance(m, torch.nn.Conv2d)]
    assert [c.kernel_size for c in convolutions] == [(3, 3)] * 3
    assert convolutions[-1].out_channels == 128


def test_frozen_batch_norms_stay_as_they_were_in_training():
    torch.manual_seed(1)
    images = 3 * torch.randn(2, 3, 32, 32) + 5
    frozen, free = network(frozen_batch_norm=True), network()
    before = {name: value.clone() for name, value in frozen.backbone.named_buffers()}
    optimizer = torch.optim.SGD(frozen.parameters(), lr=0.1)
    for each in (frozen, free):
        each.train()(images)[-1].square().mean().backward()
    optimizer.step()
    assert len(before) > 20 and all(
        torch.equal(value, before[name]) for name, value in frozen.backbone.named_buffers()
    )
    assert any("bn" in name for name, value in free.backbone.named_parameters() if value.grad is not None)
    # So an image means the same whatever it shares a batch with.
    with torch.no_grad():
        torch.testing.assert_close(frozen(images)[-1][:1], frozen(images[:1])[-1], atol=1e-4, rtol=1e-4)


def test_every_layer_is_supervised_and_every_parameter_learns():
    # timm starts residual branches at zero, which would hide their first gradient.
    net = network(backbone_args={"channels": [8, 16, 24, 32], "zero_init_last": False}).train()
    labels = torch.zeros(2, 64, 64, dtype=torch.long)
    labels[:, 20:, 30:] = 1
    outputs = net(torch.randn(2, 3, 64, 64))
    sum(net.loss(outputs, labels).values()).backward()
    still = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    # The targets are zero: the first self-attention sees equal values, so its queries and keys cannot matter.
    assert all("layers.0.self_attn" in name or "k_proj.bias" in name for name in still), still


def test_a_few_steps_fit_one_scene():
    """The whole of it: two squares on a background are each found by some proposal."""
    images, labels = 0.1 * torch.randn(2, 3, 64, 64), torch.zeros(2, 64, 64, dtype=torch.long)
    images[:, 0, 8:28, 8:28] += 2
    labels[:, 8:28, 8:28] = 1
    images[:, 1, 32:60, 24:60] += 2
    labels[:, 32:60, 24:60] = 2
    net = network().train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    for _ in range(60):
        loss = sum(net.loss(net(images), labels).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    masks = net(images)[-1] > 0
    truth = torch.stack([labels == c for c in range(3)], 1)[:, :, ::4, ::4]
    intersection = (masks[:, :, None] & truth[:, None]).sum((3, 4))
    union = (masks[:, :, None] | truth[:, None]).sum((3, 4))
    assert (intersection / union).amax(1).min() > 0.7


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(backbone="resnet10x"), "backbone 'resnet10x' is no timm model; close names: resnet10t"),
        (dict(width=48), r"width 48 must be a multiple of 32 and of heads \(4\)"),
        (dict(heads=5), r"width 32 must be a multiple of 32 and of heads \(5\)"),
    ],
)
def test_bad_settings_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        network(**changes)


def test_dropout_is_the_decoders_and_on_in_training_alone():
    images = torch.rand(2, 3, 32, 32)
    plain, dropped = network(), network(dropout=0.3)
    torch.testing.assert_close(dropped.eval()(images)[-1], plain.eval()(images)[-1])
    dropped.backbone.requires_grad_(False)
    dropped.train().backbone.eval()
    first, second = dropped(images)[-1], dropped(images)[-1]
    assert not torch.allclose(first, second, atol=1e-3)
    without = network(dropout=0.0).train()
    without.backbone.eval()
    assert torch.equal(without(images)[-1], without(images)[-1])


@pytest.mark.parametrize("out_indices", [[0, 1, 2, 3], [1, 2, 3]])
def test_the_size_of_masks_is_known_without_making_them(out_indices):
    proposals = network(out_indices=out_indices).eval()
    for size in ((64, 64), (50, 63), (33, 95)):
        with torch.inference_mode():
            assert proposals(torch.rand(1, 3, *size))[-1].shape[-2:] == proposals.mask_size(size)
