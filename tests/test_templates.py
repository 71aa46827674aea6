"""Template sets as settings, and what CLIP makes of them."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from deop.errors import ConfigError
from deop.methods.builder import Builder
from deop.methods.deop import DeOP
from deop.methods.zegformer import ZegFormer
from deop.models import prompts
from deop.models.clip import load_clip
from deop.models.prompts import TextTemplates
from deop.settings.configuration import Configuration
from deop.settings.methods import DeOPSettings, ZegFormerSettings
from deop.settings.schedule import Augmentation
from deop.settings.stages import Proposals, Segmentation
from deop.settings.templates import templates_of

NAMES = ["dog", "brick {wall}", "sea"]
QUERIES = 4


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    return load_clip("deop-mini", None)


def literal_mean(clip, templates, name) -> torch.Tensor:
    """One class by CLIP's zero-shot recipe, one text at a time, through open_clip's own text tower, in float64."""
    total = torch.zeros(clip.embed_dim, dtype=torch.float64)
    for template in templates:
        before, _, after = template.partition("{}")
        with torch.no_grad():
            embedded = clip.model.encode_text(clip.tokenizer([before + name + after]))[0].double()
        total += embedded / embedded.norm()
    return total / total.norm()


def test_the_named_sets_are_those_of_the_releases():
    imagenet, vild = templates_of("imagenet"), templates_of("vild")
    assert len(imagenet) == 80 and len(vild) == 14
    assert imagenet[0] == "a bad photo of a {}." and imagenet[-1] == "a tattoo of the {}."
    assert "There is the {} in the scene" in vild
    for templates in (imagenet, vild):
        assert len(set(templates)) == len(templates) and all(each.count("{}") == 1 for each in templates)
    assert templates_of(("the {}",)) == ("the {}",)


def test_a_plan_reads_templates_without_loading_anything_heavy():
    loaded = "import deop.jobs.plan, sys; assert not {'torch', 'open_clip'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", loaded], check=True)


@pytest.mark.parametrize("texts", [2, 256])
def test_class_embeddings_are_the_normalised_means_of_the_templates(clip, monkeypatch, texts):
    monkeypatch.setattr(prompts, "_TEXTS", texts)
    templates = templates_of("vild")
    found = TextTemplates(templates, clip.embed_dim)(clip, NAMES)
    expected = torch.stack([literal_mean(clip, templates, name) for name in NAMES])
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=0)


def network(**changes) -> DeOPSettings:
    return DeOPSettings(text_prompts="templates", templates="vild", **changes)


def test_a_one_pass_network_compares_with_the_templates_and_follows_the_names(clip, small_proposals):
    prompt = TextTemplates(templates_of("vild"), clip.embed_dim)
    segmenter = DeOP(clip, small_proposals(QUERIES), prompt, network(), queries=QUERIES).eval()
    for names in (NAMES, NAMES[::-1]):
        with torch.inference_mode():
            rows = segmenter.classifier(names)[:-1].double()
        expected = torch.stack([literal_mean(clip, templates_of("vild"), name) for name in names])
        torch.testing.assert_close(rows, expected, atol=1e-5, rtol=0)
    assert not [name for name, value in segmenter.named_parameters() if value.requires_grad]


def test_a_network_with_templates_can_be_trained_after_it_answered(clip, small_proposals):
    prompt = TextTemplates(("a {}", "the {}"), clip.embed_dim)
    loss = Segmentation(iterations=1, augmentation=Augmentation(crop=32))
    settings = network(visual_prompts=True)
    segmenter = DeOP(clip, small_proposals(QUERIES), prompt, settings, queries=QUERIES, loss=loss).eval()
    images = torch.rand(1, 3, 32, 32)
    segmenter.segment(images, NAMES)
    sum(segmenter.train().losses(images, torch.zeros(1, 32, 32).long(), NAMES).values()).backward()
    moved = {name for name, value in segmenter.named_parameters() if value.grad is not None}
    assert moved == {"text_prompt.no_object", "visual_prompts.class_token", "visual_prompts.patches"}


def test_streams_of_a_multipass_system_may_name_a_set(clip, small_proposals):
    settings = ZegFormerSettings(crop_templates="vild")
    segmenter = ZegFormer(clip, small_proposals(QUERIES), settings, seen_names=[]).eval()
    found = segmenter.text_embeddings(NAMES, settings.crop_templates).double()
    expected = torch.stack([literal_mean(clip, templates_of("vild"), name) for name in NAMES])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_such_a_network_is_built_without_learned_prompts():
    proposals = Proposals(
        backbone="resnet10t",
        backbone_args={"channels": [8, 8, 16, 16]},
        pretrained_backbone=False,
        queries=QUERIES,
        width=32,
        heads=2,
        iterations=0,
        augmentation=Augmentation(crop=32),
    )
    settings = {
        "clip": {"model": "deop-mini", "pretrained": None},
        "method": network().model_dump(mode="json"),
        "proposals": proposals.model_dump(mode="json"),
    }
    assert "prompts" not in network().parts
    assert DeOP.build(Builder(settings, {})).text_prompt.templates == templates_of("vild")


@pytest.mark.parametrize(
    ("experiment", "changes", "message"),
    [
        ("zegformer", {"crop_templates": ["a photo"]}, "crop_templates: template 'a photo' has no {} for the class"),
        ("simbaseline", {"proposal_templates": "imgnet"}, "unknown set of templates 'imgnet'; valid: imagenet, vild"),
        ("baseline_vild", {"templates": ["{}", "a photo"]}, "templates: template 'a photo' has no {}"),
        ("baseline_vild", {"templates": 80}, "baseline_vild.templates: no templates; valid: imagenet, vild, or a list"),
        ("baseline", {"templates": "vild"}, "'templates' if, and only if, templates are given"),
        ("baseline", {"text_prompts": "templates"}, "'templates' if, and only if, templates are given"),
    ],
)  # fmt: skip
def test_templates_that_cannot_be_used_are_named(root, config, edit, experiment, changes, message):
    for key, value in changes.items():
        edit(root / "config/experiments.yaml", "experiments", experiment, key, to=value)
    with pytest.raises(ConfigError) as error:
        Configuration(config, root)
    assert message in str(error.value) and f"experiments.{experiment}" in str(error.value)
