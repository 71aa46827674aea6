"""ZegFormer's fusion and calibration against a literal reading of their formulas."""

from __future__ import annotations

import math

import pytest
import torch

from deop.methods.zegformer import ZegFormer, ZegFormerSettings


def softmax(logits: list[float]) -> list[float]:
    weights = [math.exp(logit - max(logits)) for logit in logits]
    return [weight / sum(weights) for weight in weights]


@pytest.mark.parametrize("seen", [("dog", "grass"), (), ("dog", "cow", "grass")], ids=["some", "none", "all"])
def test_scores_are_those_of_the_formula(build, propose, literal_streams, example, seen):
    templates = ("a {} here", "the {}.")
    settings = ZegFormerSettings(calibration=0.25, crop_templates=templates)
    segmenter = propose(build(ZegFormer, settings, seen, prompt=False)).eval()
    scores = segmenter.segment(example.images, example.names)
    with torch.no_grad():
        text = segmenter.clip.encode_text(example.names, "A photo of a {} in the scene")
        crop_text = sum(
            segmenter.clip.encode_text(example.names, template).double() for template in templates
        )
    crop_text = crop_text / crop_text.norm(dim=1, keepdim=True)
    weight = 2 / 3
    expected = torch.zeros(2, 3, 24, 32, dtype=torch.float64)
    for image in range(2):
        for query in range(example.masks.shape[1]):
            of_proposal, of_crop = literal_streams(segmenter, image, query, text, crop_text)
            proposal = softmax(of_proposal)[:-1]
            crop = [1 / 3] * 3 if of_crop is None else softmax([*of_crop, of_proposal[-1]])[:-1]
            of_seen = [crop[c] for c, name in enumerate(example.names) if name in seen]
            for c, name in enumerate(example.names):
                if name in seen:
                    score = proposal[c] ** weight * (sum(of_seen) / len(of_seen)) ** (1 - weight)
                else:
                    score = proposal[c] ** (1 - weight) * crop[c] ** weight
                expected[image, c] += score * torch.sigmoid(example.masks[image, query].double())
    for c, name in enumerate(example.names):
        if name in seen:
            expected[:, c] -= 0.25
    torch.testing.assert_close(scores.double(), expected, atol=1e-5, rtol=1e-4)


def test_calibration_moves_seen_classes_alone(build, propose, example):
    plain, strict = (
        propose(build(ZegFormer, ZegFormerSettings(calibration=value), prompt=False))
        .eval()
        .segment(example.images, example.names)
        for value in (0.0, 0.1)
    )
    torch.testing.assert_close(plain - strict, torch.tensor([0.1, 0, 0.1])[:, None, None].expand_as(plain))


def test_no_object_is_learned_at_any_length(build):
    head = build(ZegFormer, ZegFormerSettings(), prompt=False).class_head
    states, text = torch.randn(4, 32), torch.randn(3, head.no_object.shape[0])
    with torch.no_grad():
        before = head(states, text, 10.0)
        head.no_object *= 2
        after = head(states, text, 10.0)
    torch.testing.assert_close(after[:, :-1], before[:, :-1])
    torch.testing.assert_close(after[:, -1], 2 * before[:, -1])
