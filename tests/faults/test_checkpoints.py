"""A damaged checkpoint is noticed, and training goes on from the one before it to the same weights."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from deop.jobs.artifacts import Workspace, artifact
from deop.jobs.job import Job
from deop.models.weight_files import read_weights, save_weights
from deop.training.loop import fit, make_accelerator
from deop.training.optim import cosine
from deop.utils.files import file_hash

STEPS, KILLED_AT = 8, 6


class Killed(BaseException):
    """Ends a training as a kill does: nothing is tidied up."""


class Step(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))

    def forward(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"error": (self.layer(batch) ** 2).mean()}


class Batches(torch.utils.data.Dataset):
    def __init__(self, killed_at: int | None) -> None:
        self.killed_at = killed_at

    def __getitem__(self, step: int) -> torch.Tensor:
        if step == self.killed_at:
            raise Killed
        return torch.randn(16, 4, generator=torch.Generator().manual_seed(step))


def train(output: Path, killed_at: int | None = None) -> Path:
    torch.manual_seed(0)
    step = Step()
    with artifact(Job(stage="toy", key="0" * 12, output=str(output))) as workspace:
        fit(
            step,
            Batches(killed_at),
            optimizer=torch.optim.AdamW(step.parameters(), lr=0.1),
            schedule=cosine(STEPS, 2),
            iterations=STEPS,
            seed=0,
            workspace=workspace,
            accelerator=make_accelerator(),
            description="toy",
            checkpoint_seconds=0,
            workers=0,
        )
        save_weights(step.state_dict(), workspace.path)
    return output / "model.safetensors"


def flip(path: Path, at: float = 0.5) -> None:
    content = bytearray(path.read_bytes())
    content[int(at * len(content))] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip_a_weight(path: Path) -> None:
    """A byte of a tensor, which torch.load does not notice."""
    content = path.read_bytes()
    weight = torch.load(path, weights_only=True)["module"]["layer.0.weight"].numpy().tobytes()
    at = content.index(weight)
    path.write_bytes(content[: at + 5] + bytes([content[at + 5] ^ 1]) + content[at + 6 :])


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, torch.Tensor]:
    return read_weights(train(tmp_path_factory.mktemp("whole") / "toy"))


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("killed") / "toy"
    with pytest.raises(Killed):
        train(output, KILLED_AT)
    return output


@pytest.mark.faults(
    "the last checkpoint, or both, has a flipped byte, is truncated or is empty",
    "it is not used; training says so and goes on from the one before, or anew, to bit-identical weights",
)
@pytest.mark.parametrize("damage", [flip, flip_a_weight, truncate, empty])
@pytest.mark.parametrize("damaged", [1, 2])
def test_a_damaged_checkpoint_costs_steps_and_nothing_else(
    tmp_path, capsys, whole, killed, damage: Callable, damaged: int
):
    output = tmp_path / "toy"
    shutil.copytree(f"{killed}.partial", f"{output}.partial")
    checkpoints = sorted(Workspace(output).state.glob("checkpoint*.pt"))
    assert len(checkpoints) == 2
    for path in checkpoints[-damaged:]:
        damage(path)
    found = read_weights(train(output))
    told = capsys.readouterr().out
    for path in checkpoints[-damaged:]:
        assert f"{path} is damaged" in told
    resumed = f"resuming at step {KILLED_AT - 1} of {STEPS}"
    assert (resumed in told) if damaged == 1 else ("resuming" not in told)
    assert found.keys() == whole.keys()
    for name, value in whole.items():
        assert torch.equal(found[name], value), name


@pytest.mark.faults(
    "the last checkpoint, or both, has a flipped byte, is truncated or is empty",
    "it is not used; training says so and goes on from the one before, or anew, to bit-identical weights",
)
def test_after_a_damaged_checkpoint_two_sound_ones_are_kept_again(tmp_path, killed):
    output = tmp_path / "toy"
    shutil.copytree(f"{killed}.partial", f"{output}.partial")
    state = Workspace(output).state
    flip(max(state.glob("checkpoint*.pt")))
    with pytest.raises(Killed):
        train(output, KILLED_AT)  # again, so the same step is saved a second time
    after = list(state.glob("checkpoint*.pt"))
    assert len(after) == 2 and all(file_hash(path) in path.name for path in after)
