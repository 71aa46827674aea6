"""Parameter groups and schedules: what is decayed, what learns how fast, and when."""

from __future__ import annotations

import math

import open_clip
import pytest
import timm
import torch
import transformers
from timm.optim import param_groups_weight_decay
from torch import nn

import deop.models.clip  # noqa: F401  registers the package's own model configs
from deop.models.proposals import ProposalNetwork
from deop.settings.schedule import Augmentation
from deop.settings.stages import Proposals
from deop.training.optim import adamw, cosine, parameter_groups, poly


def options(module: nn.Module, groups: list[dict]) -> dict[str, tuple[float, float]]:
    """(learning rate, weight decay) by name of a parameter; each parameter is in one group."""
    found = {id(value): (group["lr"], group["weight_decay"]) for group in groups for value in group["params"]}
    assert len(found) == sum(len(group["params"]) for group in groups)
    return {name: found[id(value)] for name, value in module.named_parameters() if id(value) in found}


@pytest.fixture
def proposals(small_proposals) -> ProposalNetwork:
    return small_proposals(4, 1)


def test_weights_are_decayed_and_norms_embeddings_and_biases_are_not(proposals):
    found = options(proposals, parameter_groups(proposals, lr=1.0, weight_decay=0.1))
    assert found.keys() == dict(proposals.named_parameters()).keys()
    decayed = {name for name, (_, decay) in found.items() if decay == 0.1}
    for name, module in proposals.named_modules():
        own = {f"{name}.{parameter}" for parameter, _ in module.named_parameters(recurse=False)}
        if isinstance(module, nn.Linear | nn.Conv2d):
            assert decayed & own == {f"{name}.weight"}
        else:
            # Norms of all sorts, and the embeddings of the queries.
            assert not decayed & own, name
    assert found["transformer.queries_embedder.weight"] == (1.0, 0.0)


def test_biases_can_be_decayed_as_in_the_release_and_norms_are_not(proposals):
    found = options(proposals, parameter_groups(proposals, lr=1.0, weight_decay=0.1, decay_biases=True))
    kinds = {
        kind: {
            found[f"{name}.bias"][1] for name, module in proposals.named_modules() if isinstance(module, kind)
        }
        for kind in (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm2d)
    }
    assert all(decays == {0.0} for decays in kinds.values())
    assert found["mask_embedding.0.0.bias"] == (1.0, 0.1)


@pytest.mark.parametrize("model", ["deop-mini", "timm"])
def test_positions_and_class_tokens_of_towers_are_not_decayed(model):
    if model == "timm":
        module = timm.create_model("vit_tiny_patch16_224", num_classes=3, depth=1)
        embeddings = {"pos_embed", "cls_token"}
    else:
        module = open_clip.create_model(model)
        embeddings = {
            "positional_embedding",
            "token_embedding.weight",
            "visual.class_embedding",
            "visual.positional_embedding",
        }
    found = options(module, parameter_groups(module, lr=1.0, weight_decay=0.1))
    undecayed = {name for name, (_, decay) in found.items() if not decay}
    assert embeddings <= undecayed
    matrices = {name for name, value in module.named_parameters() if value.ndim >= 2}
    assert matrices & undecayed == {name for name in embeddings if name in matrices}


def test_groups_of_one_learning_rate_are_timms():
    module = open_clip.create_model("deop-mini")
    embeddings = [name for name, _ in module.named_parameters() if "embedding" in name]
    ours = parameter_groups(module, lr=1.0, weight_decay=0.1)
    timms = param_groups_weight_decay(module, 0.1, no_weight_decay_list=embeddings)

    def by_decay(groups: list[dict]) -> dict[float, set[int]]:
        return {group["weight_decay"]: {id(value) for value in group["params"]} for group in groups}

    assert by_decay(ours) == by_decay(timms)


def test_the_backbone_learns_more_slowly_and_what_is_frozen_is_left_out(proposals):
    settings = Proposals(
        backbone="resnet10t",
        pretrained_backbone=False,
        iterations=1,
        lr=0.02,
        backbone_lr_factor=0.5,
        weight_decay=0.3,
        augmentation=Augmentation(crop=32),
    )
    proposals.mask_embedding.requires_grad_(False)
    found = options(
        proposals, adamw(proposals, settings, {"backbone.": settings.backbone_lr_factor}).param_groups
    )
    for name, (rate, decay) in found.items():
        assert rate == (0.01 if name.startswith("backbone.") else 0.02)
        assert decay in (0.0, 0.3)
    assert not any(name.startswith("mask_embedding.") for name in found)
    assert {decay for _, decay in found.values()} == {0.0, 0.3}


def test_shared_parameters_are_in_one_group():
    module = nn.ModuleDict({"one": nn.Linear(3, 3), "other": nn.Linear(3, 3)})
    module["other"].weight = module["one"].weight
    groups = parameter_groups(module, lr=1.0, weight_decay=0.1)
    assert sorted(len(group["params"]) for group in groups) == [1, 2]


@pytest.mark.parametrize("warmup", [0, 4])
def test_poly_is_detectrons_schedule(warmup):
    """A factor ``(1 - t / T) ** 0.9``, times a linear warm-up; the last step still learns."""
    iterations = 20
    weights = [torch.nn.Parameter(torch.zeros(1))]
    reference = torch.optim.lr_scheduler.PolynomialLR(torch.optim.SGD(weights, lr=1.0), iterations, power=0.9)
    for step in range(iterations):
        expected = reference.get_last_lr()[0] * min(1.0, (step + 1) / (warmup + 1))
        assert poly(iterations, warmup)(step) == pytest.approx(expected, rel=1e-9)
        reference.optimizer.step()
        reference.step()
    assert poly(iterations, warmup)(iterations - 1) > 0 == poly(iterations, warmup)(iterations)


def test_cosine_rises_linearly_and_falls_to_zero():
    factor = cosine(110, warmup=10)
    assert [factor(step) for step in range(10)] == pytest.approx([(step + 1) / 11 for step in range(10)])
    falling = [0.5 * (1 + math.cos(math.pi * step / 100)) for step in range(101)]
    assert [factor(step) for step in range(10, 111)] == pytest.approx(falling, abs=1e-6)
    # Without warm-up it is torch's.
    weights = [torch.nn.Parameter(torch.zeros(1))]
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(torch.optim.SGD(weights, lr=1.0), T_max=30)
    for step in range(30):
        assert cosine(30)(step) == pytest.approx(reference.get_last_lr()[0], abs=1e-6)
        reference.optimizer.step()
        reference.step()


def test_cosine_is_transformers_schedule_without_its_first_step_of_no_learning_rate():
    iterations, warmup = 50, 7
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = transformers.get_cosine_schedule_with_warmup(optimizer, warmup + 1, iterations + 1)
    assert reference.get_last_lr() == [0.0]
    for step in range(iterations):
        optimizer.step()
        reference.step()
        assert cosine(iterations, warmup)(step) == pytest.approx(reference.get_last_lr()[0], abs=1e-9)
