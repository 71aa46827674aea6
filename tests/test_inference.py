"""Systems made ready for images answer as they did before, and so does training that is made cheaper."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import get_args

import pytest
import systems
import torch

import deop
from deop.methods.deop import DeOP
from deop.methods.inference import folded, prepare
from deop.models.clip import load_clip
from deop.models.prompts import TextPrompt
from deop.settings.methods import AnchorSettings, DeOPSettings, SeveranceSettings
from deop.settings.precision import Runtime
from deop.settings.schedule import Augmentation
from deop.settings.stages import Segmentation
from deop.stages.train_system import SystemStep
from deop.training.accumulation import accumulate
from deop.training.loop import make_accelerator

NAMES = ["dog", "cow", "grass"]
QUERIES = 5
CPU = torch.device("cpu")
DEOP = DeOPSettings(
    visual_prompts=True,
    text_prompts="online",
    severance=SeveranceSettings(kind="gps", alpha={-1: 1.0}),
    anchors=AnchorSettings(kind="query", layers=1, dropout=0.0),
)


@pytest.fixture
def build(small_proposals) -> Callable:
    def build(network: DeOPSettings = DEOP, *, gradient_checkpointing: bool = False) -> DeOP:
        torch.manual_seed(0)
        clip = load_clip("deop-mini", None)
        loss = Segmentation(iterations=1, augmentation=Augmentation(crop=32))
        proposals = small_proposals(QUERIES)
        for module in proposals.modules():  # as after training: random ones would be next to the identity
            if isinstance(module, torch.nn.BatchNorm2d):
                for values in (module.weight, module.running_var):
                    torch.nn.init.uniform_(values, 0.5, 2.0)
                for values in (module.bias, module.running_mean):
                    torch.nn.init.normal_(values)
        prompt = TextPrompt(2, clip.text_width, clip.embed_dim)
        segmenter = DeOP(clip, proposals, prompt, network, queries=QUERIES, loss=loss)
        segmenter.gradient_checkpointing = gradient_checkpointing
        return segmenter

    return build


@pytest.mark.parametrize(
    "runtime", ["torch", *(pytest.param(name, marks=pytest.mark.slow) for name in get_args(Runtime)[1:])]
)
def test_a_prepared_system_gives_the_same_masks_and_logits(build, runtime, request):
    if runtime in ("onnxruntime", "openvino"):
        pytest.importorskip(runtime)
        if not request.getfixturevalue("in_own_process"):
            return
    plain = build().eval()
    ready = prepare(copy.deepcopy(plain), CPU, runtime=runtime)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in ready.proposals.modules())
    assert any(isinstance(module, torch.nn.BatchNorm2d) for module in plain.proposals.modules())
    for size in ((32, 48), (64, 40)):
        images = torch.rand(2, 3, *size)
        with torch.inference_mode():
            expected, found = plain(images, NAMES), ready(images, NAMES)
        torch.testing.assert_close(found.mask_logits, expected.mask_logits, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(found.class_logits, expected.class_logits, rtol=1e-3, atol=1e-3)
        agree = ready.label(images, NAMES) == plain.label(images, NAMES)
        assert agree.double().mean() >= 0.999


def test_a_backbone_without_batch_norms_is_left_as_it_is():
    backbone = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.GroupNorm(2, 4))
    assert folded(backbone) is backbone


def gradients(segmenter: DeOP) -> tuple[dict[str, torch.Tensor], int]:
    """What a step teaches, and the bytes that are kept for the backward pass."""
    generator, kept = torch.Generator().manual_seed(1), []
    images = torch.rand(2, 3, 32, 48, generator=generator)
    labels = torch.randint(-1, len(NAMES), (2, 32, 48), generator=generator)

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        losses = segmenter.losses(images, labels, NAMES)
    sum(losses.values()).backward()
    learned = {name: value.grad for name, value in segmenter.named_parameters() if value.requires_grad}
    return learned, sum(kept)


def test_gradient_checkpointing_teaches_the_same_with_less_memory(build):
    (plain, bytes_plain), (again, bytes_again) = (
        gradients(build(gradient_checkpointing=flag).train()) for flag in (False, True)
    )
    assert plain.keys() == again.keys() and any(name.startswith("visual_prompts") for name in plain)
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, msg=name)
    assert bytes_again < 0.6 * bytes_plain


def test_gradient_checkpointing_trains_in_the_loop_of_the_stages(build):
    """The loop chooses how attention is computed, for the second time as for the first."""
    batch = {"image": torch.rand(2, 3, 32, 48), "label": torch.randint(0, len(NAMES), (2, 32, 48))}
    learned = []
    for flag in (False, True):
        step = SystemStep(build(gradient_checkpointing=flag).train(), NAMES)
        accumulate(step, batch, None, make_accelerator())
        learned.append(
            {name: value.grad for name, value in step.named_parameters() if value.grad is not None}
        )
    plain, again = learned
    assert plain.keys() == again.keys() and any("visual_prompts" in name for name in plain)
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, msg=name)


@pytest.mark.parametrize(("prompts", "passes"), [("offline", 1), ("online", 3)])
def test_text_that_does_not_learn_is_embedded_once_in_training(build, monkeypatch, prompts, passes):
    segmenter = build(DEOP.model_copy(update={"text_prompts": prompts})).train()
    embed, calls = segmenter.text_prompt.forward, []
    monkeypatch.setattr(segmenter.text_prompt, "forward", lambda *asked: calls.append(1) or embed(*asked))
    for _ in range(3):
        gradients(segmenter)
    assert len(calls) == passes


@torch.no_grad()
@pytest.mark.parametrize("kind", ["deop", "training_free"])
def test_class_scores_are_products_in_float32_under_autocast(kind):
    """In bfloat16, neighbouring scores become equal, and the first class of them wins."""
    if kind == "deop":
        network = systems.build(DeOPSettings(text_prompts="templates", templates=("a {}",))).eval()
    else:
        network = deop.load("deop-mini/bundled", device="cpu").network
    with torch.autocast("cpu", dtype=torch.bfloat16):
        encoded, text = network.encode_images(torch.rand(1, 3, 32, 48)), network.text_features(NAMES)
        found = network.classify(encoded, text)
    exact = network.classify(encoded, text)
    scores = "class_logits" if kind == "deop" else "scores"
    assert getattr(found, scores).dtype == torch.float32
    assert torch.equal(getattr(found, scores), getattr(exact, scores))
