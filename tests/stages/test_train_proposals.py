"""Proposals trained with the release's class term: its loss, what it moves, and what is left of it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import real_layouts
import torch
from safetensors.torch import load_file

from deop.data.segmentation import HIDDEN, SegmentationDataset
from deop.jobs.job import Job
from deop.jobs.jobs import dump
from deop.settings.schedule import Augmentation
from deop.settings.stages import ClassTerm, Clip, Proposals, TextPrompts
from deop.stages import prepare_data, train_proposals
from deop.stages.train_proposals import ClassLoss, ProposalStep

CLASSES, LAYERS, QUERIES = 3, 2, 5


@pytest.fixture
def step(small_proposals) -> ProposalStep:
    torch.manual_seed(0)
    network = small_proposals(QUERIES, LAYERS)
    text = torch.nn.functional.normalize(torch.randn(CLASSES, 16), dim=-1)
    settings = ClassTerm(weight=0.7, no_object_weight=0.2, head_hidden=(24,))
    return ProposalStep(network, ClassLoss(settings, network.width, text, 20.0)).train()


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    labels = torch.zeros(2, 64, 64, dtype=torch.long)
    labels[:, 20:, 30:] = 1
    labels[1, 40:, :] = 2
    labels[:, :8] = HIDDEN
    return {"image": torch.rand(2, 3, 64, 64), "label": labels}


def test_the_class_term_is_a_cross_entropy_of_the_queries_and_leaves_masks_and_matching_alone(step, batch):
    losses = step(batch)
    without = ProposalStep(step.network)(batch)
    assert {name: losses[name].item() for name in without} == {
        name: value.item() for name, value in without.items()
    }
    with torch.no_grad():
        mean, std = (
            torch.tensor(values).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        )
        states, masks = step.network.decode((batch["image"] - mean) / std)
        _, pairs = step.network.matched_loss(masks, batch["label"], ignore=HIDDEN)
        head = step.class_loss.head
        first, second = head.project[0], head.project[2]
        expected = 0.0
        for layer in range(LAYERS):
            total = weights = 0.0
            for image in range(2):
                for query in range(QUERIES):
                    x = (
                        second.weight @ (first.weight @ states[layer, image, query] + first.bias).relu()
                        + second.bias
                    )
                    rows = [*step.class_loss.text, head.no_object / head.no_object.norm()]
                    logits = [20 * float(x @ row / x.norm()) for row in rows]
                    of_pair = [
                        int(label)
                        for i, q, label in zip(*(values.tolist() for values in pairs[layer]))
                        if (i, q) == (image, query)
                    ]
                    target = of_pair[0] if of_pair else CLASSES
                    weight = 1.0 if of_pair else 0.2
                    total += weight * (math.log(sum(map(math.exp, logits))) - logits[target])
                    weights += weight
            expected += total / weights
    assert losses["class"].item() == pytest.approx(0.7 * expected, rel=1e-4)


def test_the_class_term_moves_its_head_and_the_network_under_it_but_no_name(step, batch):
    step(batch)["class"].backward()
    moved = {
        name.split(".")[0]
        for name, value in step.named_parameters()
        if value.grad is not None and value.grad.any()
    }
    assert moved == {"network", "class_loss"}
    assert step.network.transformer.queries_embedder.weight.grad.any()
    assert all(value.grad is None for value in step.network.mask_embedding.parameters())
    assert not step.class_loss.text.requires_grad and "class_loss.text" not in step.state_dict()


@pytest.mark.slow
def test_a_training_with_the_class_term_leaves_a_network_without_its_head(tmp_path: Path):
    real_layouts.write_coco_stuff(tmp_path / "raw")
    data = tmp_path / "coco-0"
    settings = {"dataset": {"kind": "coco_stuff", "complete": False}, "data": {"root": str(tmp_path / "raw")}}
    prepare_data.run(Job(stage="prepare_data", key="0" * 12, output=str(data), settings=settings))
    names = SegmentationDataset(data, "train", seen_only=True).names
    assert "dog" in names and "giraffe" not in names
    proposals = dict(
        backbone="resnet10t",
        pretrained_backbone=False,
        queries=QUERIES,
        decoder_layers=LAYERS,
        width=32,
        ffn_width=32,
        iterations=1,
        batch_size=2,
        augmentation=Augmentation(crop=64),
    )
    weights = {}
    for weight in (None, 1.0):
        term = None if weight is None else ClassTerm(weight=weight)
        output = tmp_path / f"proposals-{weight}"
        job = Job(
            stage="train_proposals",
            key="1" * 12,
            output=str(output),
            inputs={"data": str(data)},
            settings={
                "proposals": dump(Proposals(class_term=term, **proposals)),
                "clip": dump(Clip(model="deop-mini", pretrained=None)),
                "prompts": dump(TextPrompts(prefix_tokens=2, iterations=0)),
            },
        )
        train_proposals.run(job)
        weights[weight] = load_file(output / "model.safetensors")
    assert weights[None].keys() == weights[1.0].keys()
    changed = {name for name in weights[None] if not torch.equal(weights[None][name], weights[1.0][name])}
    assert any(name.startswith("transformer.") for name in changed)
