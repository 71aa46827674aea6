from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from deop.evaluation.metrics import SegmentationMetrics, harmonic_mean, mean_best_iou

CLASSES, UNSEEN, IGNORE = 7, (1, 4, 6), 255


@pytest.fixture
def images():
    """Predictions and labels of 4 images: 5 only predicted, 6 nowhere, 4 never predicted right."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, (4, 9, 11))
    prediction = np.where(rng.random(labels.shape) < 0.6, labels, rng.integers(0, 6, labels.shape))
    prediction[labels == 4] = 2
    labels[rng.random(labels.shape) < 0.2] = IGNORE
    return torch.from_numpy(prediction), torch.from_numpy(labels)


def literal_scores(prediction, labels, convention):
    """Every score from sets of pixels, without a confusion matrix."""
    prediction, labels = prediction.numpy(), labels.numpy()
    kept = labels != IGNORE
    iou = {}
    for c in range(CLASSES):
        truth, predicted = (labels == c) & kept, (prediction == c) & kept
        if truth.any() or (convention == "occurring" and predicted.any()):
            iou[c] = (truth & predicted).sum() / (truth | predicted).sum()
    seen, unseen = (np.mean([v for c, v in iou.items() if (c in UNSEEN) == group]) for group in (False, True))
    return {
        "pacc": (prediction == labels)[kept].mean(),
        "miou": np.mean(list(iou.values())),
        "seen": seen,
        "unseen": unseen,
        "hiou": 2 / (1 / seen + 1 / unseen),
    }, [iou.get(c, math.nan) for c in range(CLASSES)]


@pytest.mark.parametrize("convention", ["occurring", "ground_truth"])
def test_scores_are_the_literal_ones_however_images_are_batched(images, convention):
    prediction, labels = images
    metrics = SegmentationMetrics(CLASSES, UNSEEN, ignore=IGNORE, convention=convention)
    metrics.update(prediction[:1], labels[:1])
    metrics.update(prediction[1:], labels[1:])
    scores = metrics.compute()
    expected, iou = literal_scores(prediction, labels, convention)
    assert {name: getattr(scores, name) for name in expected} == pytest.approx(expected, abs=1e-12)
    assert scores.iou == pytest.approx(iou, abs=1e-12, nan_ok=True)


def test_a_class_that_is_only_predicted_lowers_the_occurring_mean_alone(images):
    occurring = SegmentationMetrics(CLASSES, UNSEEN, convention="occurring")
    ground_truth = SegmentationMetrics(CLASSES, UNSEEN, convention="ground_truth")
    occurring.update(*images)
    ground_truth.update(*images)
    assert occurring.compute().iou[5] == 0
    assert math.isnan(ground_truth.compute().iou[5])
    assert occurring.compute().seen < ground_truth.compute().seen


def test_predictions_on_ignored_pixels_do_not_count(images):
    prediction, labels = images
    before, after = SegmentationMetrics(CLASSES, UNSEEN), SegmentationMetrics(CLASSES, UNSEEN)
    before.update(prediction, labels)
    after.update(torch.where(labels == IGNORE, 3, prediction), labels)
    assert before.compute()[:5] == after.compute()[:5]


def test_hiou_is_zero_when_no_unseen_class_is_found_and_nan_without_unseen_classes():
    labels = torch.tensor([[[0, 1]]])
    nothing_found, none_unseen = SegmentationMetrics(2, (1,)), SegmentationMetrics(2)
    nothing_found.update(torch.zeros_like(labels), labels)
    none_unseen.update(labels, labels)
    assert nothing_found.compute().hiou == 0
    assert math.isnan(none_unseen.compute().hiou) and none_unseen.compute().miou == 1


def test_more_classes_than_255_need_another_ignore_label():
    with pytest.raises(ValueError, match="ignore 255 is one of the 847 classes"):
        SegmentationMetrics(847)
    metrics = SegmentationMetrics(847, ignore=65535)
    labels = torch.tensor([[[846, 255, 65535]]])
    metrics.update(torch.tensor([[[846, 255, 0]]]), labels)
    assert metrics.compute().pacc == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(convention="all"), "'all': valid are occurring, ground_truth"),
        (dict(unseen=(2, 9)), r"unseen labels \[9\] are not classes: valid are 0 to 6"),
    ],
)
def test_bad_settings_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        SegmentationMetrics(CLASSES, **arguments)


def test_pixels_out_of_range_are_named(images):
    prediction, labels = images
    with pytest.raises(ValueError, match="label 7 is not a class: valid are 0 to 6"):
        SegmentationMetrics(CLASSES).update(prediction, labels.masked_fill(labels == 0, 7))
    with pytest.raises(ValueError, match="predicted class -1 is not a class"):
        SegmentationMetrics(CLASSES).update(prediction - 1, labels)


def test_mean_best_iou_is_the_literal_one():
    torch.manual_seed(0)
    probabilities, labels = torch.rand(3, 5, 40, 48), torch.randint(0, 4, (3, 40, 48))
    labels[0, :7] = IGNORE
    labels[2] = IGNORE
    expected = []
    for image in range(3):
        kept = labels[image] != IGNORE
        for c in range(4):
            truth = (labels[image] == c) & kept
            if truth.any():
                masks = [(m > 0.5) & kept for m in probabilities[image]]
                expected.append((c, max(((truth & m).sum() / (truth | m).sum()).item() for m in masks)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = mean_best_iou(probabilities, labels, IGNORE)
    assert result.classes.tolist() == [c for c, _ in expected]
    assert result.iou.tolist() == pytest.approx([iou for _, iou in expected])


def test_mean_best_iou_compares_at_label_resolution():
    coarse = torch.zeros(1, 2, 2, 2)
    coarse[0, 1, :, 1] = 1
    labels = torch.zeros(1, 8, 8, dtype=torch.long)
    labels[..., 4:] = 3
    result = mean_best_iou(coarse, labels, IGNORE)
    assert result.classes.tolist() == [0, 3]
    assert result.iou.tolist() == [0.0, 1.0]


def test_the_harmonic_mean_of_arrays_is_that_of_their_elements():
    first, second = [0.2, 0.0, 0.5, math.nan], [0.4, 0.0, 0.0, 0.3]
    expected = [2 / (1 / 0.2 + 1 / 0.4), 0.0, 0.0, math.nan]
    np.testing.assert_allclose(harmonic_mean(first, second), expected)
