from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import sigmoid_focal_loss

from deop.models.losses import (
    dice,
    enlarged,
    labels_at,
    mask_losses,
    pairwise_mask_losses,
    release_segmentation_loss,
    segmentation_loss,
)


def literal_focal(logit: float, target: int, alpha: float, gamma: float) -> float:
    """The focal loss of one element as its paper writes it: -alpha_t (1 - p_t)^gamma log(p_t)."""
    score = 1 / (1 + math.exp(-logit))
    p_t, alpha_t = (score, alpha) if target else (1 - score, 1 - alpha)
    return -alpha_t * (1 - p_t) ** gamma * math.log(p_t)


def literal_segmentation_loss(class_logits, mask_logits, labels, ignore, alpha, gamma):
    """Unweighted (focal, dice) by loops over images, pixels and classes, in Python floats."""
    batch, queries, columns = class_logits.shape
    focal, elements, dices = 0.0, 0, []
    for image in range(batch):
        intersection = predicted = target = 0.0
        for row, column in (labels[image] != ignore).nonzero().tolist():
            masks = [1 / (1 + math.exp(-m)) for m in mask_logits[image, :, row, column].tolist()]
            for label in range(columns - 1):
                p = 0.0
                for query in range(queries):
                    exponentials = [math.exp(x) for x in class_logits[image, query].tolist()]
                    p += exponentials[label] / sum(exponentials) * masks[query]
                hit = int(labels[image, row, column] == label)
                focal += literal_focal(3 * p - 3, hit, alpha, gamma)
                elements += 1
                score = 1 / (1 + math.exp(3 - 3 * p))
                intersection, predicted, target = intersection + score * hit, predicted + score, target + hit
        if target:
            dices.append(1 - (2 * intersection + 1) / (predicted + target + 1))
    return focal / elements, sum(dices) / len(dices)


@pytest.fixture
def example():
    torch.manual_seed(0)
    class_logits = 2 * torch.randn(3, 4, 6)
    mask_logits = 3 * torch.randn(3, 4, 5, 6)
    labels = torch.randint(0, 5, (3, 5, 6))
    labels[0, 1:3] = 255
    labels[2] = 255  # an image without a labelled pixel
    return class_logits, mask_logits, labels


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.6, 1.5)])
def test_segmentation_loss_is_the_literal_one(example, alpha, gamma):
    got = segmentation_loss(
        *example, focal_alpha=alpha, focal_gamma=gamma, focal_weight=2.0, dice_weight=0.8, ignore=255
    )
    focal, dice_loss = literal_segmentation_loss(*(x.double() for x in example), 255, alpha, gamma)
    assert got["focal"].item() == pytest.approx(2.0 * focal, rel=1e-5)
    assert got["dice"].item() == pytest.approx(0.8 * dice_loss, rel=1e-5)


def test_segmentation_loss_gives_ignored_pixels_no_influence(example):
    class_logits, mask_logits, labels = example
    before = segmentation_loss(class_logits, mask_logits, labels)
    ignored = (labels == 255)[:, None].expand_as(mask_logits)
    changed = mask_logits.clone().masked_scatter(ignored, 50 * torch.randn(int(ignored.sum())))
    changed.requires_grad_()
    after = segmentation_loss(class_logits, changed, labels)
    assert {k: v.item() for k, v in after.items()} == {k: v.item() for k, v in before.items()}
    sum(after.values()).backward()
    assert (changed.grad[ignored] == 0).all()
    assert (changed.grad[~ignored] != 0).any()


def test_segmentation_loss_compares_masks_with_labels_at_label_resolution(example):
    class_logits, mask_logits, _ = example
    labels = torch.randint(0, 5, (3, 10, 12))
    upsampled = F.interpolate(mask_logits, (10, 12), mode="bilinear", align_corners=False)
    coarse, fine = (segmentation_loss(class_logits, masks, labels) for masks in (mask_logits, upsampled))
    assert coarse["focal"].item() == pytest.approx(fine["focal"].item(), rel=1e-6)
    assert coarse["dice"].item() == pytest.approx(fine["dice"].item(), rel=1e-6)


def test_segmentation_loss_is_computed_in_float32_under_autocast(example):
    plain = segmentation_loss(*example)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        autocast = segmentation_loss(*example)
    assert all(autocast[k].dtype == torch.float32 and autocast[k].item() == plain[k].item() for k in plain)


def test_segmentation_loss_without_a_labelled_pixel_is_zero_and_finite_in_gradient():
    mask_logits = torch.randn(1, 2, 4, 4, requires_grad=True)
    loss = sum(segmentation_loss(torch.randn(1, 2, 4), mask_logits, torch.full((1, 4, 4), 255)).values())
    loss.backward()
    assert loss.item() == 0
    assert (mask_logits.grad == 0).all()


def test_segmentation_loss_names_a_label_that_is_no_class(example):
    class_logits, mask_logits, labels = example
    labels[1, 0, 0] = 5
    with pytest.raises(ValueError, match=r"label 5 is neither a class \(0 to 4\) nor ignore \(255\)"):
        segmentation_loss(class_logits, mask_logits, labels)


def literal_release_loss(class_logits, mask_logits, labels, ignore, alpha, gamma):
    """Unweighted (focal, dice) of the release, pixel by pixel; class logits and masks may need gradients."""
    classes = class_logits.shape[-1] - 1
    probabilities, masks = class_logits.softmax(-1), mask_logits.sigmoid()
    focal, elements, dices = 0.0, 0, []
    for image in range(len(labels)):
        intersection = predicted = target = 0.0
        for row in range(labels.shape[1]):
            for column in range(labels.shape[2]):
                label = int(labels[image, row, column])
                label = classes if label == ignore else label
                for index in range(classes + 1):  # "no object" is one of them
                    p = sum(
                        probabilities[image, query, index] * masks[image, query, row, column]
                        for query in range(masks.shape[1])
                    )
                    score, hit = torch.sigmoid(3 * p - 3), index == label
                    right, weight = (score, alpha) if hit else (1 - score, 1 - alpha)
                    # Where the logarithm is clamped it is a constant.
                    clamped = min(max(right.item(), 1e-4), 1 - 1e-4)
                    inside = clamped == right.item()
                    logarithm = torch.log(right) if inside else math.log(clamped)
                    focal = focal - weight * (1 - right) ** gamma * logarithm
                    elements += 1
                    if index < classes:
                        intersection, predicted = intersection + score * hit, predicted + score
                        target += hit
        dices.append(1 - (2 * intersection + 1) / (predicted + target + 1))
    return focal / elements, sum(dices) / len(dices)


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.6, 1.5)])
def test_the_loss_of_the_release_and_its_gradients_are_the_literal_ones(example, alpha, gamma):
    labels = example[2]
    logits = [2 * torch.randn(3, 6, 6), 3 * torch.randn(3, 6, 5, 6)]
    # Six proposals that agree in a row of pixels: a score of sigmoid(15), whose other side is beyond the clamp.
    logits[0][1, :, 2], logits[1][1, :, 0] = 20.0, 20.0
    found, literal = ([x.double().requires_grad_() for x in logits] for _ in range(2))
    got = release_segmentation_loss(
        *(x.float() for x in found),
        labels,
        focal_alpha=alpha,
        focal_gamma=gamma,
        focal_weight=1,
        dice_weight=1,
    )
    expected = literal_release_loss(*literal, labels, 255, alpha, gamma)
    for name, value in zip(("focal", "dice"), expected):
        assert got[name].item() == pytest.approx(value.item(), rel=1e-5)
        slopes = torch.autograd.grad(got[name], found, retain_graph=True)
        truth = torch.autograd.grad(value, literal, retain_graph=True)
        for slope, of_literal in zip(slopes, truth):
            torch.testing.assert_close(slope, of_literal, rtol=1e-3, atol=1e-7)


def test_under_the_loss_of_the_release_ignored_pixels_call_for_no_object(example):
    class_logits, mask_logits, labels = example
    class_logits = class_logits.requires_grad_()
    ignored = torch.full_like(labels, 255)
    for loss, taught in ((segmentation_loss, False), (release_segmentation_loss, True)):
        [slope] = torch.autograd.grad(sum(loss(class_logits, mask_logits, ignored).values()), class_logits)
        assert (slope[..., -1] < 0).all() if taught else not slope.any()


def test_the_loss_of_the_release_weights_and_enlarges_and_refuses_as_the_other_does(example):
    class_logits, mask_logits, labels = example
    fine = torch.randint(0, 5, (3, 10, 12))
    upsampled = F.interpolate(mask_logits, (10, 12), mode="bilinear", align_corners=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        coarse = release_segmentation_loss(class_logits, mask_logits, fine)
    plain = release_segmentation_loss(class_logits, upsampled, fine, focal_weight=1, dice_weight=1)
    assert coarse["focal"].item() == pytest.approx(2.0 * plain["focal"].item(), rel=1e-6)
    assert coarse["dice"].item() == pytest.approx(0.8 * plain["dice"].item(), rel=1e-6)
    labels[1, 0, 0] = 5
    with pytest.raises(ValueError, match=r"label 5 is neither a class \(0 to 4\) nor ignore \(255\)"):
        release_segmentation_loss(class_logits, mask_logits, labels)


@pytest.fixture
def masks():
    """Logits (3, 7) of masks, their targets, and valid pixels: all, some, none."""
    torch.manual_seed(1)
    logits, targets, valid = 4 * torch.randn(3, 7), torch.randint(0, 2, (3, 7)).float(), torch.ones(3, 7)
    valid[0, 2:5] = 0
    valid[2] = 0
    return logits, targets * valid, valid


def literal_mask_losses(logits, targets, valid, alpha, gamma):
    """(focal, dice) of one mask by a loop over its valid pixels, in Python floats."""
    kept = [(x, t) for x, t, v in zip(logits.tolist(), targets.tolist(), valid.tolist()) if v]
    scores = [(1 / (1 + math.exp(-x)), t) for x, t in kept]
    overlap, total = sum(s * t for s, t in scores), sum(s + t for s, t in scores)
    focal = sum(literal_focal(x, t, alpha, gamma) for x, t in kept) / max(len(kept), 1)
    return focal, 1 - (2 * overlap + 1) / (total + 1)


@pytest.mark.parametrize("gamma", [0.0, 1.5, 2.0])
def test_mask_losses_are_the_literal_ones_over_valid_pixels(masks, gamma):
    focal, overlap = mask_losses(*masks, alpha=0.3, gamma=gamma)
    expected = [literal_mask_losses(*rows, 0.3, gamma) for rows in zip(*masks)]
    assert list(zip(focal.tolist(), overlap.tolist())) == [pytest.approx(pair, rel=1e-5) for pair in expected]


@pytest.mark.parametrize("gamma", [0.0, 1.5, 2.0])
def test_focal_losses_and_their_gradients_are_torchvisions(masks, example, gamma):
    logits, targets, valid = masks
    logits = logits.requires_grad_()
    of_pixels = sigmoid_focal_loss(logits, targets, 0.3, gamma)
    expected = (of_pixels * valid).sum(1) / valid.sum(1).clamp(min=1)
    focal, _ = mask_losses(logits, targets, valid, 0.3, gamma)
    torch.testing.assert_close(focal, expected)
    slopes = (torch.autograd.grad(loss.sum(), logits)[0] for loss in (focal, expected))
    torch.testing.assert_close(*slopes)

    class_logits, mask_logits, labels = example
    inputs = [class_logits.requires_grad_(), mask_logits.requires_grad_()]
    weights = class_logits.softmax(-1)[..., :-1]
    scores = 3 * torch.einsum("bnc,bnhw->bhwc", weights, mask_logits.sigmoid()) - 3
    labelled = labels != 255
    one_hot = F.one_hot(labels[labelled], 5).float()
    whole = sigmoid_focal_loss(scores[labelled], one_hot, 0.3, gamma, reduction="mean")
    found = segmentation_loss(*inputs, labels, focal_alpha=0.3, focal_gamma=gamma, focal_weight=1)["focal"]
    torch.testing.assert_close(found, whole)
    for slope, of_torchvision in zip(*(torch.autograd.grad(loss, inputs) for loss in (found, whole))):
        torch.testing.assert_close(slope, of_torchvision)


@pytest.mark.parametrize("gamma", [0.0, 1.5, 2.0])
def test_the_slopes_of_mask_losses_are_their_derivatives(masks, gamma):
    logits, targets, valid = (values.double() for values in masks)
    assert torch.autograd.gradcheck(
        lambda x: mask_losses(x, targets, valid, 0.3, gamma), logits.requires_grad_()
    )


def test_pairwise_mask_losses_are_those_of_each_pair(masks):
    logits, targets, valid = torch.stack(masks)[:, :2]
    both = torch.stack([logits, -2 * logits]).transpose(0, 1)  # two masks of each image
    [focal, overlap] = pairwise_mask_losses(both, targets[:, None], valid, alpha=0.3)
    for column, masks_of_images in enumerate([logits, -2 * logits]):
        expected = mask_losses(masks_of_images, targets, valid, alpha=0.3)
        torch.testing.assert_close((focal[:, column, 0], overlap[:, column, 0]), expected)


def test_mask_losses_and_their_slopes_stay_finite_for_extreme_logits():
    logits = torch.tensor([[-1e4, -100.0, 0.0, 100.0, 1e4]]).repeat(2, 1).requires_grad_()
    targets, valid = torch.tensor([[0.0], [1.0]]).repeat(1, 5), torch.ones(2, 5)
    losses = torch.stack(mask_losses(logits, targets, valid))
    pairwise = torch.stack(pairwise_mask_losses(logits[None], targets[None], valid[:1]))
    losses.sum().backward()
    assert all(values.isfinite().all() for values in (losses, pairwise))
    # Far on the wrong side the focal loss is linear, of five pixels each; dice does not move.
    wrong, right = logits.grad[0, 3:], logits.grad[1, :2]
    torch.testing.assert_close((wrong, right), (torch.full((2,), 0.75 / 5), torch.full((2,), -0.25 / 5)))
    assert logits.grad[0, :2].abs().max() == logits.grad[1, 3:].abs().max() == 0


def test_dice_of_a_perfect_and_of_an_empty_prediction():
    ten, zero = torch.tensor(10.0), torch.tensor(0.0)
    assert dice(ten, ten, ten).item() == 0
    assert dice(zero, zero, ten).item() == pytest.approx(10 / 11)


def test_labels_at_takes_the_pixel_at_each_centre():
    labels = torch.arange(64).reshape(1, 8, 8)
    assert labels_at(labels, (4, 2)).tolist() == [[[10, 14], [26, 30], [42, 46], [58, 62]]]
    assert labels_at(labels, (8, 8)) is labels


@pytest.mark.parametrize("size", [(12, 20), (6, 10), (31, 17), (4, 7)])
def test_masks_are_enlarged_as_bilinear_interpolation_does_and_their_gradients_with_them(size):
    maps = torch.randn(3, 6, 10, requires_grad=True)
    weight = torch.randn(3, *size)
    found = enlarged(maps, size)
    [slope] = torch.autograd.grad((found * weight).sum(), maps)
    expected = torch.nn.functional.interpolate(maps[None], size, mode="bilinear", align_corners=False)[0]
    [literal] = torch.autograd.grad((expected * weight).sum(), maps)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(slope, literal)
