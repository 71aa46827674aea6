"""The rows of Table 3 as settings of one network."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from deop.data.segmentation import HIDDEN, IGNORE
from deop.methods.base import IMAGENET_MEAN, IMAGENET_STD, normalise, to_multiple
from deop.methods.deop import DeOP
from deop.models.anchors import mask_pool
from deop.models.clip import load_clip
from deop.models.losses import labels_at, release_segmentation_loss, segmentation_loss
from deop.models.prompts import TextPrompt
from deop.settings.methods import AnchorSettings, DeOPSettings, SeveranceSettings
from deop.settings.schedule import Augmentation
from deop.settings.stages import Segmentation

NAMES = ["dog", "cow", "grass"]
QUERIES = 5
PLUS = {"visual_prompts": True, "text_prompts": "online"}
PS = {"severance": SeveranceSettings(kind="gps", alpha={-2: 0.0, -1: 1.0})}
CAL = {"anchors": AnchorSettings(kind="query", layers=1)}
MPS = {"severance": SeveranceSettings(kind="mps", alpha={-1: 1.0})}
MASK_SUM = {"severance": SeveranceSettings(kind="mask_sum", alpha={-1: 1.0})}
CONV = {"anchors": AnchorSettings(kind="conv", layers=3)}
CONV_IMAGE = {"anchors": AnchorSettings(kind="conv_image", layers=1)}
ROWS = {
    "baseline": DeOPSettings(),
    "baseline_plus": DeOPSettings(**PLUS),
    "baseline_plus_ps": DeOPSettings(**PLUS, **PS),
    "baseline_plus_cal": DeOPSettings(**PLUS, **CAL),
    "deop": DeOPSettings(**PLUS, **PS, **CAL),
    "deop_mps": DeOPSettings(**PLUS, **MPS, **CAL),
    "deop_mask_sum": DeOPSettings(**PLUS, **MASK_SUM, **CAL),
    "deop_conv": DeOPSettings(**PLUS, **PS, **CONV),
    "deop_conv_image": DeOPSettings(**PLUS, **PS, **CONV_IMAGE),
}


@pytest.fixture
def build(small_proposals) -> Callable:
    """``build(network)``: the segmenter of these settings, with random weights that are always the same."""

    def build(network: DeOPSettings) -> DeOP:
        torch.manual_seed(0)
        clip = load_clip("deop-mini", None)
        prompt = TextPrompt(2, clip.text_width, clip.embed_dim)
        loss = Segmentation(iterations=1, augmentation=Augmentation(crop=32))
        return DeOP(clip, small_proposals(QUERIES), prompt, network, queries=QUERIES, loss=loss)

    return build


def batch():
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(2, 3, 32, 48, generator=generator)
    labels = torch.randint(-1, len(NAMES), (2, 32, 48), generator=generator)
    return images, labels


@pytest.mark.parametrize("row", ROWS)
def test_training_moves_what_the_row_learns_and_nothing_of_clip_or_the_proposals(build, row):
    network = ROWS[row]
    segmenter = build(network).train()
    before = {name: value.clone() for name, value in segmenter.state_dict().items()}
    learned = {name: value for name, value in segmenter.named_parameters() if value.requires_grad}
    assert bool(learned) == network.trained
    if not learned:
        return
    images, labels = batch()
    optimizer = torch.optim.SGD(learned.values(), lr=1.0)
    sum(segmenter.losses(images, labels, NAMES).values()).backward()
    assert all(value.grad is None for name, value in segmenter.named_parameters() if name not in learned)
    optimizer.step()
    moved = {name for name, value in segmenter.state_dict().items() if not torch.equal(value, before[name])}
    parts = {name.split(".")[0] for name in moved}
    expected = {"text_prompt", "visual_prompts"} | ({"anchors"} if network.anchors.kind != "none" else set())
    assert parts == expected
    assert "text_prompt.context" in moved and "text_prompt.no_object" in moved


def test_pixels_without_a_seen_class_take_no_part_whatever_the_reason(build):
    images, labels = batch()
    segmenter = build(ROWS["deop"]).eval()
    hidden = segmenter.losses(images, labels.masked_fill(labels == IGNORE, HIDDEN), NAMES)
    assert hidden == segmenter.losses(images, labels, NAMES)


def test_the_loss_is_the_chosen_one_at_its_resolution(build):
    images, labels = batch()
    labels[:, :5] = HIDDEN
    segmenter = build(ROWS["deop"]).eval()
    output = segmenter(images, NAMES)
    coarse = labels_at(labels, output.mask_logits.shape[-2:])
    assert coarse.shape != labels.shape
    for name, loss, truth in (
        ("labelled", segmentation_loss, coarse),
        ("release", release_segmentation_loss, labels),
    ):
        segmenter.loss = Segmentation(loss=name, iterations=1, augmentation=Augmentation(crop=32))
        expected = loss(output.class_logits, output.mask_logits, truth.masked_fill(truth < 0, 255))
        got = segmenter.losses(images, labels, NAMES)
        assert {key: value.item() for key, value in got.items()} == {
            key: pytest.approx(value.item(), rel=1e-5) for key, value in expected.items()
        }


def test_baseline_equals_a_literal_reading_of_section_3_1(build):
    segmenter = build(ROWS["baseline"]).eval()
    images, _ = batch()
    scores = segmenter.segment(images, NAMES)
    with torch.no_grad():
        logits = segmenter.proposals(normalise(images, IMAGENET_MEAN, IMAGENET_STD))[-1]
        clip_input = normalise(images, segmenter.clip.mean, segmenter.clip.std)
        patches = segmenter.clip.visual(clip_input).patches.double()
        text = segmenter.text_prompt(segmenter.clip, NAMES).double()
        masks = F.interpolate(logits, patches.shape[-2:], mode="bilinear").sigmoid().double()
        full = F.interpolate(logits, images.shape[-2:], mode="bilinear").sigmoid().double()
        expected = torch.zeros(2, len(NAMES), *images.shape[-2:], dtype=torch.float64)
        for b in range(2):
            for n in range(QUERIES):
                pooled = torch.zeros(patches.shape[1], dtype=torch.float64)
                for y in range(patches.shape[2]):
                    for x in range(patches.shape[3]):
                        patch = patches[b, :, y, x]
                        pooled += masks[b, n, y, x] * patch / patch.norm()
                pooled /= masks[b, n].sum()
                probability = torch.exp(segmenter.logit_scale * text @ pooled)
                probability /= probability.sum()
                for c in range(len(NAMES)):
                    expected[b, c] += probability[c] * full[b, n]
    assert torch.allclose(scores.double(), expected, atol=1e-4)


def test_severance_and_anchors_each_change_the_answer(build):
    images, _ = batch()
    scores = {row: build(network).eval().segment(images, NAMES) for row, network in ROWS.items()}
    assert not torch.allclose(scores["baseline_plus"], scores["baseline_plus_ps"], atol=1e-5)
    assert not torch.allclose(scores["baseline_plus"], scores["baseline_plus_cal"], atol=1e-5)
    variants = [row for row in ROWS if row.startswith("deop")]
    for first, second in itertools.combinations(variants, 2):
        assert not torch.allclose(scores[first], scores[second], atol=1e-5), (first, second)


@torch.no_grad()
@pytest.mark.parametrize("severance", [MPS, MASK_SUM])
def test_severance_is_guided_by_the_masks_that_features_are_pooled_with(build, severance):
    segmenter = build(DeOPSettings(**severance)).eval()
    images = torch.rand(2, 3, 37, 50)  # no multiple of the patch size
    output = segmenter(images, NAMES)
    masks = output.heatmaps[:, :, 0]
    inputs = normalise(
        to_multiple(images, segmenter.clip.patch_size), segmenter.clip.mean, segmenter.clip.std
    )
    patches = segmenter.clip.visual(inputs, severance=segmenter.severance, masks=masks).patches
    pooled = mask_pool(F.normalize(patches, dim=1), masks)
    expected = segmenter.logit_scale * pooled @ segmenter.text_prompt(segmenter.clip, NAMES).T
    torch.testing.assert_close(output.class_logits[..., :-1], expected, atol=1e-3, rtol=1e-4)


def test_any_image_size_and_any_class_list_are_answered(build):
    segmenter = build(ROWS["deop"]).eval()
    scores = segmenter.segment(torch.rand(1, 3, 37, 50), ["a purple dinosaur", "sky"], size=(20, 30))
    assert scores.shape == (1, 2, 20, 30)
    assert torch.isfinite(scores).all()


def test_answers_to_new_classes_are_not_those_of_the_last_ones(build):
    segmenter = build(ROWS["baseline"]).eval()
    images, _ = batch()
    forward = segmenter.segment(images, NAMES)
    backward = segmenter.segment(images, NAMES[::-1])
    assert torch.allclose(forward, backward.flip(1), atol=1e-5)


def test_a_layer_that_clip_does_not_have_is_refused_at_once(build):
    with pytest.raises(ValueError, match="layer -9"):
        build(DeOPSettings(severance=SeveranceSettings(kind="gps", alpha={-9: 1.0})))
