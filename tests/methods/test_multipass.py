"""What the multi-pass systems share: training with a class cost, crops, and the count of passes."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
import torch.nn.functional as F

from deop.data.segmentation import HIDDEN, IGNORE
from deop.methods.base import IMAGENET_MEAN, IMAGENET_STD, normalise
from deop.methods.multipass import classification_loss
from deop.methods.simbaseline import SimBaseline, SimBaselineSettings
from deop.methods.zegformer import ZegFormer, ZegFormerSettings
from deop.models.crops import crop_segment, crop_segments, roi_align_segments
from deop.models.proposals import Pairs

SYSTEMS = [(SimBaseline, SimBaselineSettings()), (ZegFormer, ZegFormerSettings())]


def cost_of_pair(logits, segment, kept) -> tuple[float, float]:
    """(focal, dice) of one proposal against one segment in float64."""
    logits, hit = logits.double()[kept], segment[kept].double()
    score = logits.sigmoid()
    focal = -0.25 * hit * (1 - score) ** 2 * score.log() - 0.75 * (1 - hit) * score**2 * (1 - score).log()
    dice = 1 - (2 * (score * hit).sum() + 1) / (score.sum() + hit.sum() + 1)
    return float(focal.mean()), float(dice)


def literal_losses(masks, class_logits, labels, no_object_weight):
    """Class, focal and dice loss under the best of all assignments with a class cost, each tried."""
    focal = dice = entropy = 0.0
    segments_of = [image[image >= 0].unique().tolist() for image in labels]
    for layer_masks, layer_logits in zip(masks, class_logits.double()):
        nll, weights = 0.0, 0.0
        for of_image, logits, image, classes in zip(layer_masks, layer_logits, labels, segments_of):
            kept = image != HIDDEN
            probability = logits.exp() / logits.exp().sum(-1, keepdim=True)
            pairs = [[cost_of_pair(mask, image == c, kept) for c in classes] for mask in of_image]
            best = min(
                permutations(range(len(of_image)), len(classes)),
                key=lambda queries: sum(
                    20 * pairs[q][k][0] + pairs[q][k][1] - float(probability[q, classes[k]])
                    for k, q in enumerate(queries)
                ),
            )
            focal += sum(pairs[q][k][0] for k, q in enumerate(best))
            dice += sum(pairs[q][k][1] for k, q in enumerate(best))
            for query in range(len(of_image)):
                matched = query in best
                target = classes[best.index(query)] if matched else logits.shape[-1] - 1
                weight = 1.0 if matched else no_object_weight
                nll -= weight * float(probability[query, target].log())
                weights += weight
        entropy += nll / weights
    count = sum(map(len, segments_of))
    return {"class": entropy, "focal": 20 * focal / count, "dice": dice / count}


@pytest.mark.parametrize(("system", "settings"), SYSTEMS)
def test_losses_are_the_literal_ones_under_the_best_of_all_assignments(
    build, propose, example, system, settings
):
    segmenter = propose(build(system, settings))
    got = segmenter.losses(example.images, example.labels, example.names)
    with torch.no_grad():
        masks, class_logits = segmenter.proposal_stream(example.images, example.names)
    expected = literal_losses(masks, class_logits, example.labels, settings.no_object_weight)
    assert {name: loss.item() for name, loss in got.items()} == pytest.approx(expected, rel=1e-4)


def test_the_class_cost_decides_between_equal_masks(build, example):
    proposals = build(*SYSTEMS[0]).proposals
    labels = torch.tensor([[[0, 0, 2, 2]]])
    masks = torch.tensor([[[[4.0, 4, -4, -4]], [[4, 4, -4, -4]], [[-4, -4, 4, 4]], [[-4, -4, 4, 4]]]])
    costs = torch.zeros(1, 1, 4, 3)
    costs[0, 0, 1, 0] = costs[0, 0, 3, 2] = -1
    _, [pairs] = proposals.matched_loss([masks], labels, class_costs=costs)
    assert set(zip(pairs.query.tolist(), pairs.label.tolist())) == {(1, 0), (3, 2)}


@pytest.mark.parametrize(("system", "settings"), SYSTEMS)
def test_training_lowers_the_loss_and_leaves_clip_and_the_prompt_alone(build, example, system, settings):
    segmenter = build(system, settings).train()
    frozen = [*segmenter.clip.parameters(), *segmenter.text_prompt.parameters()]
    before = [value.clone() for value in frozen]
    learned = [value for value in segmenter.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=2e-3)
    totals = []
    for _ in range(15):
        losses = segmenter.losses(example.images, example.labels, example.names)
        totals.append(sum(losses.values()))
        optimizer.zero_grad()
        totals[-1].backward()
        optimizer.step()
    assert totals[-1] < 0.9 * totals[0]
    assert all(value.grad is None and torch.equal(value, old) for value, old in zip(frozen, before))
    moved = {name.split(".")[0] for name, value in segmenter.named_parameters() if value.grad is not None}
    assert moved == {"proposals", "class_head"}
    assert all(value.grad is not None for value in segmenter.class_head.parameters())


@pytest.mark.parametrize("label", [IGNORE, HIDDEN])
def test_a_batch_without_segments_trains_no_object_alone(build, example, label):
    segmenter = build(*SYSTEMS[0]).train()
    losses = segmenter.losses(example.images, torch.full_like(example.labels, label), example.names)
    assert losses["focal"] == 0 and losses["dice"] == 0 and losses["class"] > 0


def test_labels_that_name_no_class_are_refused(build, example):
    with pytest.raises(ValueError, match=r"label 2 is no class \(0 to 1\), nor negative or ignore \(-2\)"):
        build(*SYSTEMS[0]).losses(example.images, example.labels, example.names[:2])


def test_masks_pay_for_unlabelled_pixels_and_not_for_unseen_ones(build, propose, example):
    segmenter = propose(build(*SYSTEMS[0]))
    example.labels[:, :4], example.labels[:, 4:8] = IGNORE, HIDDEN
    example.masks.requires_grad_()
    losses = segmenter.losses(example.images, example.labels, example.names)
    (losses["focal"] + losses["dice"]).backward()
    touched = example.masks.grad.abs().amax((0, 1)) > 0
    assert touched[:4].all() and not touched[4:8].any()


@torch.no_grad()
def test_images_are_padded_for_proposals_and_crops_are_of_the_images(build):
    """As the release tests: zeros after normalisation, masks enlarged and cropped, scores resized."""
    segmenter, names = build(SimBaseline, SimBaselineSettings()).eval(), ["dog", "cow"]
    segmenter.size_divisibility, segmenter.upsample = 32, "scores"
    image = torch.rand(1, 3, 37, 50)
    padded = F.pad(normalise(image, IMAGENET_MEAN, IMAGENET_STD), (0, 14, 0, 27))
    states, masks = segmenter.proposals.decode(padded, last_only=True)
    text = segmenter.text_prompt(segmenter.clip, names)
    proposal = segmenter.class_head(states[0], text, segmenter.logit_scale).softmax(-1)[..., :-1]
    full = F.interpolate(masks[0], (64, 64), mode="bilinear")[..., :37, :50].sigmoid()
    scores = torch.zeros(1, 2, 37, 50)
    shown = 0
    for query in range(full.shape[1]):
        mask, crop = full[0, query] > 0.5, torch.ones(2)
        if mask.any():
            shown += 1
            crop = segmenter.crop_logits(segmenter.crops(image[0], mask[None]), names)[0].softmax(-1)
        for c, weight in ((0, 0.8), (1, 0.2)):  # a dog is seen
            of_both = proposal[0, query, c] ** weight * crop[c] ** (1 - weight)
            scores[0, c] += of_both * full[0, query]
    expected = F.interpolate(scores, (60, 81), mode="bilinear")
    torch.testing.assert_close(segmenter.segment(image, names, (60, 81)), expected, atol=1e-5, rtol=1e-4)
    assert shown and segmenter(image, names).passes.tolist() == [shown]


def test_classification_is_a_weighted_mean_of_each_layer():
    logits = torch.randn(2, 1, 3, 3, dtype=torch.float64)
    pairs = [Pairs(*torch.tensor([row]).unbind(1)) for row in [(0, 1, 0), (0, 2, 1)]]
    nll = -logits.log_softmax(-1)
    first = (nll[0, 0, 1, 0] + 0.1 * (nll[0, 0, 0, 2] + nll[0, 0, 2, 2])) / 1.2
    second = (nll[1, 0, 2, 1] + 0.1 * (nll[1, 0, 0, 2] + nll[1, 0, 1, 2])) / 1.2
    torch.testing.assert_close(classification_loss(logits, pairs, 0.1), first + second)


@pytest.mark.parametrize(("system", "settings"), SYSTEMS)
def test_passes_count_the_masks_that_exceed_one_half(build, propose, example, system, settings):
    segmenter = propose(build(system, settings)).eval()
    calls = []
    visual = segmenter.clip.visual
    segmenter.clip.visual = lambda images: calls.append(len(images)) or visual(images)
    try:
        output = segmenter(example.images, example.names)
    finally:
        del segmenter.clip.visual
    assert output.passes.tolist() == [len(queries) for queries in example.shown]
    assert sum(calls) == 4
    assert output.class_scores.shape == (2, 5, 3) and output.mask_logits.shape == (2, 5, 24, 32)
    assert torch.isfinite(segmenter.combine(output, (30, 40))).all()


def test_an_image_without_a_valid_mask_is_answered_by_the_proposal_stream(build, propose, example):
    segmenter = propose(build(*SYSTEMS[0])).eval()
    example.masks = example.masks[1:]
    example.states = example.states[:, 1:]
    output = segmenter(example.images[1:], example.names)
    assert output.passes.tolist() == [0]
    with torch.no_grad():
        logits = segmenter.proposal_stream(example.images[1:], example.names)[1][-1]
    exponent = torch.tensor([0.8, 0.2, 0.8])
    torch.testing.assert_close(output.class_scores, logits.softmax(-1)[..., :-1] ** exponent)


@pytest.mark.parametrize("value", ["uniform", "zero"])
def test_what_stands_for_clip_without_a_crop(build, propose, example, value):
    segmenter = propose(
        build(SimBaseline, SimBaselineSettings(without_crop=value, ensemble_weight=0.5))
    ).eval()
    scores = segmenter(example.images, example.names).class_scores[1]
    with torch.no_grad():
        logits = segmenter.proposal_stream(example.images, example.names)[1][-1, 1]
    crop = {"uniform": 1 / 3, "zero": 0.0}[value]
    torch.testing.assert_close(scores, (crop * logits.softmax(-1)[..., :-1]).sqrt())


def test_batches_change_nothing(build, propose, example):
    """Images one by one, and crops one by one, give what batches of them give."""
    together = propose(build(*SYSTEMS[0])).eval().segment(example.images, example.names)
    one_by_one = propose(build(SimBaseline, SimBaselineSettings(crop_batch=1))).eval()
    torch.testing.assert_close(
        one_by_one.segment(example.images, example.names), together, atol=1e-5, rtol=1e-4
    )
    masks, states = example.masks, example.states
    for image in range(2):
        example.masks, example.states = masks[image : image + 1], states[:, image : image + 1]
        alone = one_by_one.segment(example.images[image : image + 1], example.names)
        torch.testing.assert_close(alone[0], together[image], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("expand", [1.0, 1.6])
def test_crops_of_many_masks_are_those_of_each(example, expand):
    masks, fill = example.masks[0, example.shown[0]] > 0, torch.tensor([0.1, 0.2, 0.3])
    crops = crop_segments(example.images[0], masks, 16, fill, expand)
    for crop, mask in zip(crops, masks, strict=True):
        assert torch.equal(crop, crop_segment(example.images[0], mask, 16, fill, expand))
    assert crop_segments(example.images[0], masks[:0], 16, fill, expand).shape == (0, 3, 16, 16)


def test_crops_are_the_literal_ones(build, example, literal_crop):
    segmenter = build(*SYSTEMS[0])
    masks = example.masks[0, example.shown[0]] > 0
    for crop, mask in zip(segmenter.crops(example.images[0], masks), masks, strict=True):
        expected = literal_crop(example.images[0].double(), mask, segmenter.clip.mean, segmenter.crop_size)
        torch.testing.assert_close(crop.double(), expected, atol=1e-5, rtol=0)


def test_crops_have_the_size_that_clip_was_pretrained_at(build):
    segmenter = build(*SYSTEMS[0])
    assert segmenter.crop_size == segmenter.clip.pretrain_grid[0] * segmenter.clip.patch_size


def test_masks_are_shown_at_the_images_resolution(build, propose, example):
    """A mask of half the image's size is enlarged before it is cut out: the crop has the image's detail."""
    segmenter = propose(build(*SYSTEMS[0])).eval()
    seen = []
    segmenter.crops = lambda image, masks: (
        seen.append(masks) or type(segmenter).crops(segmenter, image, masks)
    )
    segmenter(F.interpolate(example.images, scale_factor=2), example.names)
    # The example's single pixel is thinned out below one half on the way.
    assert [tuple(masks.shape) for masks in seen] == [(3, 48, 64), (0, 48, 64)]


def test_a_whole_untouched_system_answers_any_size_and_any_names(build):
    segmenter = build(*SYSTEMS[1]).eval()
    scores = segmenter.segment(torch.rand(1, 3, 37, 50), ["a purple dinosaur", "sky"], size=(20, 30))
    assert scores.shape == (1, 2, 20, 30) and torch.isfinite(scores).all()


def test_answers_to_new_classes_are_not_those_of_the_last_ones(build, propose, example):
    segmenter = propose(build(*SYSTEMS[0])).eval()
    forward = segmenter.segment(example.images, example.names)
    backward = segmenter.segment(example.images, example.names[::-1])
    torch.testing.assert_close(forward, backward.flip(1), atol=1e-5, rtol=1e-4)
    # What was made for an answer must not get into the way of training.
    sum(segmenter.losses(example.images, example.labels, example.names[::-1]).values()).backward()


def test_bad_settings_are_named(build):
    with pytest.raises(ValueError, match="needs a text prompt"):
        build(SimBaseline, SimBaselineSettings(), prompt=False)
    with pytest.raises(ValueError, match="crop_size 33 is not a multiple of CLIP's patches"):
        build(SimBaseline, SimBaselineSettings(crop_size=33))


def test_a_segment_that_the_masks_are_too_coarse_for_is_learned_all_the_same(build, example):
    segmenter = build(*SYSTEMS[0]).train()
    masks, class_logits = segmenter.proposal_stream(example.images, example.names)
    labels = torch.zeros(2, 24, 32, dtype=torch.long)
    labels[:, 0, 0] = 1
    _, pairs = segmenter.proposals.matched_loss(
        masks, labels, class_costs=-class_logits.detach().softmax(-1)[..., :-1]
    )
    assert masks[0].shape[-1] < labels.shape[-1]
    assert [sorted(of_layer.label.tolist()) for of_layer in pairs] == [[0, 0, 1, 1]] * len(masks)


@pytest.mark.parametrize(("system", "settings"), SYSTEMS)
def test_half_precision_trains_and_answers(build, example, system, settings):
    segmenter = build(system, settings).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = segmenter.losses(example.images, example.labels, example.names)
        sum(losses.values()).backward()
        output = segmenter.eval()(example.images, example.names)
        scores = segmenter.combine(output, (24, 32))
    assert all(torch.isfinite(loss) and loss.dtype == torch.float32 for loss in losses.values())
    assert output.class_scores.dtype == scores.dtype == torch.float32 and torch.isfinite(scores).all()


@pytest.mark.parametrize(("system", "settings"), SYSTEMS)
def test_the_releases_crops_are_a_choice(build, propose, example, system, settings):
    """What CLIP is shown: by default as before, and with ``release`` what the system's own release cuts."""
    masks = example.masks[0, example.shown[0]] > 0
    default, release = (
        propose(build(system, settings.model_copy(update={"crop_resampling": value}))).eval()
        for value in ("antialias", "release")
    )
    fill = torch.tensor(release.clip.mean)
    if system is SimBaseline:
        expected = crop_segments(example.images[0], masks, release.crop_size, fill, antialias=False)
    else:
        expected = roi_align_segments(example.images[0], masks, release.crop_size, fill)
    shown = []
    release.embed_crops = lambda crops: shown.append(crops) or type(release).embed_crops(release, crops)
    scores = release(example.images, example.names).class_scores
    assert torch.equal(torch.cat(shown), expected)
    before = propose(build(system, settings)).eval()
    assert torch.equal(
        default(example.images, example.names).class_scores,
        before(example.images, example.names).class_scores,
    )
    assert not torch.allclose(scores, default(example.images, example.names).class_scores, atol=1e-6)


@pytest.mark.parametrize("settings", [each for _, each in SYSTEMS])
def test_other_crops_are_no_reason_to_train_again(settings):
    other = settings.model_copy(update={"crop_resampling": "release"})
    assert other.for_training() == settings.for_training()
