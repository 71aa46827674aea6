"""A method whose training has two rounds, from the plan to scores: each learns its part and starts from the other's."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import ClassVar, Literal

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from deop.errors import ConfigError
from deop.jobs.job import Job
from deop.jobs.plan import Plan
from deop.methods.base import PixelOutput, Segmenter, normalise, to_multiple
from deop.methods.builder import Builder
from deop.methods.system import load_system
from deop.models.clip import DenseCLIP
from deop.models.prompts import template_embeddings
from deop.settings.methods import MethodSettings, method
from deop.settings.schedule import Augmentation, Schedule


class TwoRoundsSettings(MethodSettings):
    """The first round has a schedule of the configuration, the second one of its own."""

    method: Literal["test_rounds"] = "test_rounds"
    hidden: int = 24
    sharpening: Schedule = Schedule(
        iterations=2, batch_size=2, lr=0.01, augmentation=Augmentation(crop=32, colour_jitter=0.0)
    )

    @property
    def rounds(self) -> tuple[str, ...]:
        return ("segmentation", "sharpening")


@method(TwoRoundsSettings)
class TwoRounds(Segmenter):
    """CLIP's patch features, through a first layer and a second one, compared with text."""

    started: ClassVar[list[tuple[str, Tensor, Tensor]]] = []
    """Of each round, its name and both layers at its first step."""

    def __init__(self, clip: DenseCLIP, settings: TwoRoundsSettings) -> None:
        super().__init__()
        self.clip, self.settings, self.round = clip, settings, None
        self.first = nn.Linear(clip.embed_dim, settings.hidden)
        self.second = nn.Linear(settings.hidden, clip.embed_dim)

    @classmethod
    def build(cls, builder: Builder) -> TwoRounds:
        return cls(builder.clip, builder.settings)

    def start_round(self, name: str) -> None:
        self.round = name
        self.first.requires_grad_(name == "segmentation")
        self.second.requires_grad_(name == "sharpening")

    def forward(self, images: Tensor, names: list[str]) -> PixelOutput:
        inputs = normalise(to_multiple(images, self.clip.patch_size), self.clip.mean, self.clip.std)
        with torch.no_grad():
            patches = self.clip.visual(inputs).patches.float().movedim(1, -1)
            text = template_embeddings(self.clip, names, ("{}",)).float()
        features = F.normalize(self.second(self.first(patches).relu()), dim=-1)
        return PixelOutput(
            (10 * features @ text.T).movedim(-1, 1), torch.ones(len(images), dtype=torch.int64)
        )

    def losses(self, images: Tensor, labels: Tensor, names: list[str]) -> dict[str, Tensor]:
        if self.round not in [name for name, *_ in self.started]:
            self.started.append((self.round, *(part.weight.detach().clone() for part in self.layers)))
        scores = self.combine(self(images, names), tuple(labels.shape[-2:]))
        return {"pixels": F.cross_entropy(scores, labels.clamp(min=0))}

    @property
    def layers(self) -> tuple[nn.Linear, nn.Linear]:
        return self.first, self.second


@pytest.fixture
def plan(root, config) -> Plan:
    vocabulary = {"things": ["dog", "cow", "rabbit"], "stuff": ["grass"], "unseen": ["cow"]}
    scenes = {"train": 6, "val": 2, "image_size": 64, "vocabulary": vocabulary}
    config["datasets"] = {
        name: values | (scenes if name == "es171" else {}) for name, values in config["datasets"].items()
    }
    config["segmentation"] |= {"iterations": 2, "batch_size": 2, "lr": 0.01}
    config["segmentation"]["augmentation"] = {"crop": 32, "colour_jitter": 0.0}
    config["evaluation"]["short_side"] = 64
    config["experiments"] = {"two": {"method": "test_rounds"}}
    rows = [{"label": "Two rounds", "experiment": "two"}]
    table = {"caption": "Two rounds", "rows": rows, "datasets": ["es171"], "metrics": ["pAcc"]}
    config["tables"] = {"two": table}
    return Plan(config, root)


def of_system(plan: Plan) -> dict[str, Job]:
    """The jobs under the system, by what they are to it."""
    by_output = {job.output: job for job in plan.jobs.values()}
    build = plan.systems["es171", "two", 0]
    second = by_output[build.inputs["trained"]]
    first = by_output[second.inputs["earlier"]]
    return {
        "data": by_output[build.inputs["data"]],
        "first": first,
        "second": second,
        "build": build,
        "evaluate": plan.evaluations["es171", "two", 0],
    }


def test_the_plan_has_a_job_a_round_and_the_second_reads_the_first(plan):
    jobs = of_system(plan)
    trained = [
        job for job in plan.jobs.values() if job.settings.get("method", {}).get("method") == "test_rounds"
    ]
    assert [job.stage for job in trained] == ["train_system", "train_system", "build_system"]
    assert trained == [jobs["first"], jobs["second"], jobs["build"]]
    assert set(jobs["first"].inputs) == {"data"}
    assert set(jobs["second"].inputs) == {"data", "earlier"}
    assert set(jobs["build"].inputs) == {"data", "trained"}
    assert jobs["first"].settings["round"] == {"name": "segmentation"}
    assert jobs["first"].settings["segmentation"]["iterations"] == 2
    assert jobs["second"].settings["round"] == {"name": "sharpening"}
    assert "segmentation" not in jobs["second"].settings
    assert jobs["first"].output != jobs["second"].output and "-round2-" in jobs["second"].output


def test_batches_of_every_round_have_to_divide_among_the_processes(root, config, plan):
    config["accelerate"] = "gpus4"
    for section in ("proposals", "segmentation"):
        config[section] |= {"batch_size": 4, "per_dataset": None}
    message = (
        r"experiments\.two\.sharpening\.batch_size: 2 \(for es171\) does not divide among the 4 processes"
    )
    with pytest.raises(ConfigError, match=message):
        Plan(config, root)


@pytest.mark.slow
def test_each_round_learns_its_part_and_starts_from_the_round_before(plan, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(TwoRounds, "started", [])
    jobs = of_system(plan)
    for job in jobs.values():
        importlib.import_module(f"deop.stages.{job.stage}").run(job)
    one, two = (load_file(Path(jobs[name].output) / "model.safetensors") for name in ("first", "second"))
    assert set(one) == {"first.weight", "first.bias"}
    assert set(two) == {"first.weight", "first.bias", "second.weight", "second.bias"}
    (name, first, second), (later, first_later, second_later) = TwoRounds.started
    assert (name, later) == ("segmentation", "sharpening")
    # The first layer learned in round one, was there when round two began, and stayed as it was.
    assert not torch.equal(one["first.weight"], first)
    assert torch.equal(first_later, one["first.weight"])
    assert torch.equal(two["first.weight"], one["first.weight"])
    # The second layer learned in round two alone.
    assert torch.equal(second_later, second)
    assert not torch.equal(two["second.weight"], second)

    system = load_system(jobs["build"].output)
    images = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(1))
    scores = system(images, ["dog", "grass"]).scores
    clip = system.clip
    with torch.no_grad():
        text = torch.stack(
            [
                F.normalize(clip.model.encode_text(clip.tokenizer([name]))[0], dim=0)
                for name in ("dog", "grass")
            ]
        )
        patches = clip.visual(normalise(images, clip.mean, clip.std)).patches
    for y in range(patches.shape[2]):
        for x in range(patches.shape[3]):
            hidden = (two["first.weight"] @ patches[0, :, y, x] + two["first.bias"]).relu()
            feature = two["second.weight"] @ hidden + two["second.bias"]
            expected = 10 * text @ feature / feature.norm()
            torch.testing.assert_close(scores[0, :, y, x], expected, atol=1e-4, rtol=1e-4)
    measured = json.loads(Path(jobs["evaluate"].output).read_text())
    assert measured["images"] == 2 and measured["passes"] == 1 and measured["proposals"] is None
