"""SimBaseline's ensemble against a literal reading of its formula."""

from __future__ import annotations

import math

import pytest
import torch

from deop.methods.simbaseline import SimBaseline, SimBaselineSettings


def softmax(logits: list[float]) -> list[float]:
    weights = [math.exp(logit - max(logits)) for logit in logits]
    return [weight / sum(weights) for weight in weights]


@pytest.mark.parametrize("weight", [0.8, 0.7])
@pytest.mark.parametrize("seen", [("dog", "grass"), ()], ids=["seen", "cross_dataset"])
def test_scores_are_those_of_the_formula(build, propose, literal_streams, example, weight, seen):
    segmenter = propose(build(SimBaseline, SimBaselineSettings(ensemble_weight=weight), seen)).eval()
    scores = segmenter.segment(example.images, example.names)
    with torch.no_grad():
        text = segmenter.text_prompt(segmenter.clip, example.names)
    expected = torch.zeros(2, 3, 24, 32, dtype=torch.float64)
    for image in range(2):
        for query in range(example.masks.shape[1]):
            of_proposal, of_crop = literal_streams(segmenter, image, query, text, text)
            proposal = softmax(of_proposal)[:-1]
            crop = [1.0] * 3 if of_crop is None else softmax(of_crop)
            for c, name in enumerate(example.names):
                w = weight if name in seen else 1 - weight
                score = proposal[c] ** w * crop[c] ** (1 - w)
                expected[image, c] += score * torch.sigmoid(example.masks[image, query].double())
    torch.testing.assert_close(scores.double(), expected, atol=1e-5, rtol=1e-4)


def test_defaults_are_the_releases():
    settings = SimBaselineSettings()
    assert settings.ensemble_weight == 0.8 and settings.mask_threshold == 0.5
    assert settings.no_object_weight == 0.1 and settings.head_hidden == (1024,)


def test_streams_may_have_prompts_of_their_own(build, propose, example):
    """As the release has it on VOC: a template for the proposals, the learned prompt for the crops."""
    settings = SimBaselineSettings(proposal_templates=("a sculpture of a {}.",))
    mixed, learned = (propose(build(SimBaseline, each)).eval() for each in (settings, SimBaselineSettings()))
    crops = torch.rand(2, 3, mixed.crop_size, mixed.crop_size)
    with torch.no_grad():
        assert torch.equal(mixed.crop_logits(crops, example.names), learned.crop_logits(crops, example.names))
        logits = [each.proposal_stream(example.images, example.names)[1] for each in (mixed, learned)]
    assert not torch.allclose(*logits)
