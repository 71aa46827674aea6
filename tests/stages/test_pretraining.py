"""Pre-training against a training loop written by hand."""

from __future__ import annotations

import copy
import json
import math

import torch
from safetensors.torch import load_file
from torch import nn

from deop.jobs.job import Job
from deop.settings.pretraining import PretrainBackbone
from deop.training.pretraining import pretrain


class Step(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"error": self.network(batch).square().mean()}


def test_pretraining_is_adamw_with_a_cosine_schedule_and_writes_weights_in_half_precision(tmp_path):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    by_hand = copy.deepcopy(network)
    batches = [torch.randn(4, 4, generator=torch.Generator().manual_seed(step)) for step in range(10)]
    settings = PretrainBackbone(
        backbone="any", images=40, batch_size=4, warmup_images=8, lr=0.05, weight_decay=0.2
    )
    job = Job(stage="pretrain_backbone", key="0" * 12, output=str(tmp_path / "made"))
    pretrain(
        Step(network),
        batches,
        settings,
        job,
        network=network,
        accuracy=lambda folder: {"tensors": len(load_file(folder / "model.safetensors"))},
        without=("2.",),
        betas=(0.8, 0.9),
        eps=1e-4,
        started_from="nothing",
    )

    matrices = [value for value in by_hand.parameters() if value.ndim == 2]
    vectors = [value for value in by_hand.parameters() if value.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.2}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.05, betas=(0.8, 0.9), eps=1e-4)
    for step, batch in enumerate(batches):
        factor = (step + 1) / 3 if step < 2 else 0.5 * (1 + math.cos(math.pi * (step - 2) / 8))
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * factor
        by_hand(batch).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(by_hand.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    expected = {
        name: value.half()
        for name, value in by_hand.state_dict().items()
        if not name.startswith("2.") and value.is_floating_point()
    }
    found = load_file(tmp_path / "made" / "model.safetensors")
    torch.testing.assert_close(found, expected)

    assert json.loads((tmp_path / "made" / "accuracy.json").read_text()) == {"tensors": len(expected)}
    provenance = json.loads((tmp_path / "made" / "provenance.json").read_text())
    assert {name: provenance[name] for name in ("steps", "images_seen", "started_from")} == {
        "steps": 10,
        "images_seen": 40,
        "started_from": "nothing",
    }
