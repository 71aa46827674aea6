"""The training loop: killed anywhere, it resumes to the same weights."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap

import pytest
import torch
from safetensors.torch import load_file

from deop.errors import DeopError
from deop.jobs.artifacts import artifact
from deop.jobs.job import Job
from deop.training.loop import fit, make_accelerator
from deop.training.optim import cosine

SCRIPT = textwrap.dedent(
    """
    import os, signal, sys
    from pathlib import Path
    import torch
    from torch import nn
    from deop.jobs.job import Job
    from deop.jobs.artifacts import artifact
    from deop.training.loop import fit, make_accelerator
    from deop.training.optim import cosine
    from deop.models.weight_files import save_weights

    output, kill_at = sys.argv[1], int(sys.argv[2])

    class Step(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))
        def forward(self, batch):
            if kill_at >= 0 and torch.equal(batch, Batches()[kill_at]):
                os.kill(os.getpid(), signal.SIGKILL)
            return {"error": (self.layer(batch) ** 2).mean()}

    class Batches(torch.utils.data.Dataset):
        def __getitem__(self, step):
            return torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
        def __len__(self):
            return 12

    torch.manual_seed(0)
    job = Job(stage="toy", key="0" * 12, output=output)
    step = Step()
    with artifact(job) as workspace:
        fit(step, Batches(), optimizer=torch.optim.AdamW(step.parameters(), lr=0.1), schedule=cosine(12, 2),
            iterations=12, seed=0, workspace=workspace, accelerator=make_accelerator(), description="toy",
            clip_grad_norm=1.0, checkpoint_seconds=0)
        save_weights(step.state_dict(), workspace.path)
    """
)


def run(output, kill_at=-1):
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, str(output), str(kill_at)], capture_output=True, text=True, check=False
    )


@pytest.mark.faults(
    "a training is killed at a step", "resumed from the checkpoint before, it gives bit-identical weights"
)
def test_a_kill_costs_no_more_than_the_last_checkpoint_and_changes_nothing(tmp_path, injected):
    injected(3)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert run(whole).returncode == 0
    for kill_at in (0, 5, 11):
        assert run(broken, kill_at).returncode == -signal.SIGKILL
        assert not broken.exists()
    resumed = run(broken)
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming at step 11" in resumed.stdout
    expected, found = load_file(whole / "model.safetensors"), load_file(broken / "model.safetensors")
    assert expected.keys() == found.keys()
    for name in expected:
        assert torch.equal(expected[name], found[name]), name
    assert sorted(path.name for path in whole.iterdir()) == sorted(path.name for path in broken.iterdir())
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("samples", [8, 10])
def test_a_batch_in_parts_teaches_what_the_whole_does(tmp_path, samples):
    class Step(torch.nn.Linear):
        largest = 0

        def forward(self, batch):
            self.largest = max(self.largest, len(batch["x"]))
            return {"error": ((super().forward(batch["x"]) - batch["y"]) ** 2).mean()}

    generator = torch.Generator().manual_seed(0)
    batches = [
        {"x": torch.randn(samples, 3, generator=generator), "y": torch.randn(samples, 1)} for _ in range(6)
    ]
    weights, largest = [], []
    for micro_batch in (None, 4):
        torch.manual_seed(0)
        step = Step(3, 1)
        with artifact(Job(stage="toy", key="0" * 12, output=str(tmp_path / str(micro_batch)))) as workspace:
            fit(
                step,
                batches,
                optimizer=torch.optim.AdamW(step.parameters(), lr=0.1),
                schedule=cosine(6),
                iterations=6,
                seed=0,
                workspace=workspace,
                accelerator=make_accelerator(),
                description="toy",
                clip_grad_norm=0.5,
                micro_batch=micro_batch,
            )
        weights.append(step.weight.detach().clone())
        largest.append(step.largest)
    assert largest == [samples, 4]
    torch.testing.assert_close(weights[0], weights[1])


class Batches(torch.utils.data.Dataset):
    """Two batches as they travel, and an error."""

    def __getitem__(self, step):
        if step == 2:
            raise DeopError("dog.png: no such image")
        return {
            "image": torch.tensor([0, 51, 255], dtype=torch.uint8),
            "label": torch.tensor([-2, -1, 3], dtype=torch.int16),
        }


def test_batches_arrive_as_networks_take_them_and_errors_as_they_were_raised(tmp_path):
    seen = []

    class Step(torch.nn.Linear):
        def forward(self, batch):
            seen.append(batch)
            return {"error": super().forward(batch["image"]).sum()}

    step = Step(3, 1)
    job = Job(stage="toy", key="0" * 12, output=str(tmp_path / "out"))
    with pytest.raises(DeopError, match=r"^dog\.png: no such image$"), artifact(job) as workspace:
        fit(
            step,
            Batches(),
            optimizer=torch.optim.SGD(step.parameters(), lr=0.0),
            schedule=cosine(4),
            iterations=4,
            seed=0,
            workspace=workspace,
            accelerator=make_accelerator(),
            description="toy",
        )
    torch.testing.assert_close(seen[1]["image"], torch.tensor([0.0, 0.2, 1.0]))
    assert torch.equal(seen[1]["label"], torch.tensor([-2, -1, 3]))


@pytest.mark.faults(
    "a loss is not finite: training diverges",
    "it stops at that step, and names it, its images and the last checkpoint",
)
def test_a_loss_that_is_not_finite_stops_the_run_by_name(tmp_path):
    class Step(torch.nn.Linear):
        def forward(self, batch):
            return {"dice": super().forward(batch).sum() * float("nan")}

    step = Step(2, 1)
    with (
        pytest.raises(FloatingPointError, match=r"toy, step 0: loss is not finite \(dice nan\)"),
        artifact(Job(stage="toy", key="0" * 12, output=str(tmp_path / "out"))) as workspace,
    ):
        fit(
            step,
            [torch.ones(1, 2)],
            optimizer=torch.optim.SGD(step.parameters(), lr=0.1),
            schedule=cosine(1),
            iterations=1,
            seed=0,
            workspace=workspace,
            accelerator=make_accelerator(),
            description="toy",
        )
    assert not (tmp_path / "out").exists()


class Interrupted(Exception):
    pass


@pytest.mark.faults(
    "the loss of a step is not finite, and `skip_not_finite` allows it",
    "the step is left out, in all processes; the provenance has the number of such steps",
)
def test_steps_whose_loss_is_not_finite_are_left_out_up_to_a_limit(tmp_path, capfd, injected):
    injected(2)

    class Step(torch.nn.Linear):
        def forward(self, batch):
            if batch["step"].item() in stop_at:
                raise Interrupted
            return {"error": (super().forward(batch["x"]) ** 2).mean()}

    generator = torch.Generator().manual_seed(0)
    batches = [
        {"x": torch.randn(4, 3, generator=generator), "step": torch.tensor([step])} for step in range(8)
    ]
    for step in (2, 5):
        batches[step]["x"][1, 0] = float("inf")

    def train(folder, limit):
        torch.manual_seed(0)
        step = Step(3, 1)
        with artifact(Job(stage="toy", key="0" * 12, output=str(tmp_path / folder))) as workspace:
            fit(
                step,
                batches,
                optimizer=torch.optim.SGD(step.parameters(), lr=0.1),
                schedule=cosine(8),
                iterations=8,
                seed=0,
                workspace=workspace,
                accelerator=make_accelerator(),
                description="toy",
                checkpoint_seconds=0,
                workers=0,
                files=lambda step: [f"image{step}.jpg"],
                skip_not_finite=limit,
            )
        provenance = json.loads((tmp_path / folder / "provenance.json").read_text())
        assert provenance["skipped_steps"] == 2
        return step.weight.detach().clone()

    stop_at: set[int] = set()
    torch.manual_seed(0)
    expected, schedule = torch.nn.Linear(3, 1), cosine(8)
    for step, batch in enumerate(batches):
        if step not in (2, 5):
            gradients = torch.autograd.grad((expected(batch["x"]) ** 2).mean(), list(expected.parameters()))
            with torch.no_grad():
                for parameter, gradient in zip(expected.parameters(), gradients, strict=True):
                    parameter -= 0.1 * schedule(step) * gradient
    weights = train("whole", 2)
    torch.testing.assert_close(weights, expected.weight)
    told = capfd.readouterr().out
    assert "toy, step 5" in told and "image5.jpg. Skipped, as 2 of at most 2 steps" in told

    # A run that resumes after the first remembers it.
    stop_at = {4}
    with pytest.raises(Interrupted):
        train("broken", 2)
    stop_at = set()
    assert torch.equal(train("broken", 2), weights)
    with pytest.raises(DeopError, match=r"step 5.*image5\.jpg\. The last checkpoint is that of step 5"):
        train("limited", 1)


@pytest.mark.faults(
    "a training in fp16 is interrupted",
    "resumed, it scales its losses as before, and gives bit-identical weights",
)
def test_the_scale_of_losses_in_half_precision_survives_a_kill(tmp_path):
    """fp16 training scales its losses; a run that resumes with another scale skips other steps."""

    class Step(torch.nn.Linear):
        def forward(self, batch):
            if batch["step"].item() in stop_at:
                raise Interrupted
            # Gradients that overflow in step 3 make the scaler halve its scale and skip that step.
            factor = 1e38 if batch["step"].item() == 3 else 1.0
            return {"error": factor * (super().forward(batch["x"]) ** 2).mean()}

    def train(folder):
        torch.manual_seed(0)
        step, accelerator = Step(3, 1), make_accelerator()
        # What Accelerate makes itself under fp16 on a GPU.
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
        with artifact(Job(stage="toy", key="0" * 12, output=str(tmp_path / folder))) as workspace:
            fit(
                step,
                batches,
                optimizer=torch.optim.AdamW(step.parameters(), lr=0.1),
                schedule=cosine(12),
                iterations=12,
                seed=0,
                workspace=workspace,
                accelerator=accelerator,
                description="toy",
                clip_grad_norm=0.5,
                checkpoint_seconds=0,
                workers=0,
            )
        return step.weight.detach().clone(), accelerator.scaler.state_dict()

    generator = torch.Generator().manual_seed(0)
    batches = [
        {"x": torch.randn(4, 3, generator=generator), "step": torch.tensor([step])} for step in range(12)
    ]
    stop_at: set[int] = set()
    weights, scale = train("whole")
    stop_at = {7}
    with pytest.raises(Interrupted):
        train("broken")
    stop_at = set()
    resumed_weights, resumed_scale = train("broken")
    assert torch.equal(weights, resumed_weights) and scale == resumed_scale
    assert scale["scale"] not in (2.0**10, 2.0**11)  # it did change, down and up
