"""``deop profile-step`` on a small dataset: what it prints adds up, and nothing is kept."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deop.cli import app
from deop.data.emoji.settings import EmojiScenes
from deop.jobs.job import Job
from deop.settings.datasets import Vocabulary
from deop.stages import prepare_data
from deop.tools.profile_step import profile_step

PROPOSALS = {
    "backbone": "resnet10t",
    "backbone_args": {"channels": [8, 8, 16, 16]},
    "pretrained_backbone": False,
    "queries": 4,
    "decoder_layers": 1,
    "width": 32,
    "ffn_width": 32,
    "heads": 2,
    "iterations": 1,
    "batch_size": 4,
    "augmentation": {"crop": 32},
}
DEOP = {
    "clip": {"model": "deop-mini", "pretrained": None},
    "prompts": {"prefix_tokens": 2, "iterations": 0},
    "proposals": PROPOSALS,
    "round": {"name": "segmentation"},
    "method": {
        "method": "deop",
        "visual_prompts": True,
        "text_prompts": "online",
        "severance": {"kind": "gps", "alpha": {"-1": 1}},
        "anchors": {"kind": "query", "ffn_width": 32},
    },
    "segmentation": {"iterations": 1, "batch_size": 4, "augmentation": {"crop": 32}},
    "machine": {"micro_batch": 2},
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("data") / "scenes"
    vocabulary = Vocabulary(things=("dog", "cow", "rabbit"), stuff=("grass",), unseen=("cow",))
    scenes = EmojiScenes(style="twemoji", vocabulary=vocabulary, train=6, val=2, image_size=64)
    settings = {"dataset": scenes.model_dump(mode="json")}
    prepare_data.run(Job(stage="prepare_data", key="d", output=str(path), settings=settings))
    return str(path)


@pytest.fixture
def job(dataset, tmp_path):
    """``job(stage, settings)``: one that has no input but the dataset."""
    return lambda stage, settings: Job(
        stage=stage,
        key="k",
        output=str(tmp_path / "trained"),
        inputs={"data": dataset},
        settings=settings,
    )


@pytest.mark.parametrize(
    ("stage", "settings", "parts"),
    [
        ("train_proposals", {"proposals": PROPOSALS}, set()),
        ("train_system", DEOP, {"proposals", "clip_visual", "text", "anchors"}),
    ],
)
def test_the_parts_of_a_step_add_up_and_nothing_is_kept(job, tmp_path, stage, settings, parts):
    profile = profile_step(job(stage, settings), steps=3)
    assert set(profile.parts) == {"data", "losses", "backward", "optimizer"} | parts
    assert all(seconds > 0 for seconds in profile.parts.values())
    # Medians of parts, so they add up to the median of the whole in all but the odd step.
    assert sum(profile.parts.values()) + profile.other == pytest.approx(profile.step, rel=0.5)
    assert profile.waiting == profile.parts["data"] / profile.step < 1
    assert profile.ratio == profile.step_beside / profile.bare > 0
    assert not list(tmp_path.iterdir())


def test_the_command_prints_a_line_a_part_and_the_two_figures(job, tmp_path):
    file = tmp_path / "job.json"
    file.write_text(job("train_proposals", {"proposals": PROPOSALS}).model_dump_json())
    done = CliRunner().invoke(app, ["profile-step", str(file), "--steps", "1"])
    assert done.exit_code == 0, done.output
    for name in ("data", "losses", "backward", "optimizer", "other", "step"):
        assert re.search(rf"^{name} +[\d.]+ ms +[\d.]+%$", done.stdout, re.M), name
    assert re.search(r"^waiting for data: [\d.]+% of the step$", done.stdout, re.M)
    assert re.search(r"the step [\d.]+ times that$", done.stdout, re.M)


def test_jobs_that_do_not_train_and_inputs_that_are_not_there_are_named(job, tmp_path):
    file = tmp_path / "job.json"
    file.write_text(job("evaluate", {}).model_dump_json())
    done = CliRunner().invoke(app, ["profile-step", str(file)])
    assert done.exit_code == 1
    assert "stage 'evaluate', not 'train_proposals' or 'train_system'" in done.stderr
    gone = job("train_proposals", {}).model_copy(update={"inputs": {"data": str(Path("no/data"))}})
    file.write_text(gone.model_dump_json())
    done = CliRunner().invoke(app, ["profile-step", str(file)])
    assert done.exit_code == 1 and "no/data is not there, the data of train_proposals k" in done.stderr
    assert "snakemake no/data/dataset.json" in " ".join(done.stderr.split())
