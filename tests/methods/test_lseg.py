"""SPNet and LSeg against matrix products, pixel by pixel."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from per_pixel import NAMES, batch, small

from deop.models.prompts import template_embeddings


@pytest.fixture
def images() -> torch.Tensor:
    return batch()[0]


def projected(system, images):
    """The features of every pixel as they are compared with names, (B, D, h, w)."""
    return system.project(system.pixel_features(images)).detach()


@torch.no_grad()
def test_lseg_scores_are_cosines_over_the_temperature(mini_clip, images):
    system = small("lseg", mini_clip).eval()
    output = system(images, list(NAMES))
    text = F.normalize(mini_clip.model.encode_text(mini_clip.tokenizer(list(NAMES))), dim=1)
    features = projected(system, images)
    assert output.scores.shape == (2, 3, 8, 8) and output.passes.tolist() == [0, 0]
    for y in range(8):
        for x in range(8):
            feature = features[1, :, y, x]
            expected = text @ feature / feature.norm() / 0.07
            torch.testing.assert_close(output.scores[1, :, y, x], expected, atol=1e-3, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["none", "depthwise", "bottleneck"])
def test_permuted_names_permute_the_scores_of_lseg(mini_clip, images, kind):
    system = small("lseg", mini_clip, regularisation=kind, blocks=2).eval()
    plain = system(images, list(NAMES)).scores
    permuted = system(images, [NAMES[2], NAMES[0], NAMES[1]]).scores
    torch.testing.assert_close(permuted, plain[:, [2, 0, 1]])
    assert not torch.equal(permuted, plain)


@torch.no_grad()
def test_spatial_regularisation_has_one_kernel_for_all_labels(mini_clip, images):
    """Two blocks by loops: a 3x3 kernel, the maximum over labels, and an activation after the first alone."""
    system = small("lseg", mini_clip, regularisation="bottleneck", blocks=2).eval()
    text = template_embeddings(mini_clip, list(NAMES), ("{}",))
    maps = torch.einsum("dhw,cd->chw", F.normalize(projected(system, images)[0], dim=0), text) / 0.07
    for index, block in enumerate(system.blocks):
        kernel, bias = block.convolution.weight[0, 0], block.convolution.bias[0]
        padded, after = F.pad(maps, (1, 1, 1, 1)), torch.empty_like(maps)
        for label in range(3):
            for y in range(8):
                for x in range(8):
                    smoothed = (padded[label, y : y + 3, x : x + 3] * kernel).sum() + bias
                    after[label, y, x] = smoothed + maps[:, y, x].max()
        maps = torch.where(after > 0, after, 0.01 * after) if index == 0 else after
    torch.testing.assert_close(system(images, list(NAMES)).scores[0], maps, atol=1e-3, rtol=1e-4)


@torch.no_grad()
def test_spnet_scores_are_probabilities_with_seen_classes_handicapped(mini_clip, images):
    system = small("spnet", mini_clip, calibration=0.4).eval()
    text = template_embeddings(mini_clip, list(NAMES), ("{}",)).tolist()
    scores, features = system(images, list(NAMES)).scores, projected(system, images)
    for y in range(8):
        feature = features[0, :, y, 5].tolist()
        logits = [sum(a * b for a, b in zip(feature, row)) for row in text]  # the feature is not normalised
        total = sum(math.exp(logit) for logit in logits)
        expected = [
            math.exp(logit) / total - (0.4 if name in ("dog", "grass") else 0)
            for logit, name in zip(logits, NAMES)
        ]
        assert scores[0, :, y, 5].tolist() == pytest.approx(expected, abs=1e-4)


@torch.no_grad()
def test_class_probabilities_are_of_the_kind_that_each_system_has(mini_clip):
    images = batch()[0]
    for name in ("spnet", "lseg", "openseg"):
        system = small(name, mini_clip).eval()
        scores = system(images, list(NAMES)).scores
        found = system.probabilities(scores)
        torch.testing.assert_close(found.sum(1), torch.ones_like(found[:, 0]))
        expected = {
            "spnet": scores,
            "lseg": scores.softmax(1),
            "openseg": scores / scores.sum(1, keepdim=True),
        }
        torch.testing.assert_close(found, expected[name])


@pytest.mark.parametrize("name", ["spnet", "lseg"])
def test_the_loss_counts_labelled_pixels_alone(mini_clip, name):
    system = small(name, mini_clip).eval()
    images, labels = batch()
    seen = ["dog", "grass"]
    loss = system.losses(images, labels, seen)["pixels"]
    logits, total, count = system.logits(system.pixel_features(images), seen).detach(), 0.0, 0
    for image in range(2):
        for y in range(8):
            for x in range(8):
                label = int(labels[image, 4 * y + 2, 4 * x + 2])
                if label >= 0:
                    total -= float(logits[image, :, y, x].log_softmax(0)[label])
                    count += 1
    assert loss.item() == pytest.approx(total / count, rel=1e-4)
    assert system.denominators(labels)["pixels"] == count
    loss.backward()
    assert system.features.backbone.conv1[0].weight.grad.abs().sum() > 0
