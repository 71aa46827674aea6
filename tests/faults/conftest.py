"""A small dataset and a small training on it, for faults to befall."""

from __future__ import annotations

from pathlib import Path

import pytest

PROPOSALS = {
    "backbone": "resnet10t",
    "backbone_args": {"channels": [8, 8, 16, 16], "stem_width": 8},
    "pretrained_backbone": False,
    "out_indices": [1, 2, 3],
    "queries": 4,
    "decoder_layers": 1,
    "width": 32,
    "ffn_width": 32,
    "heads": 2,
    "iterations": 1,
    "batch_size": 4,
    "augmentation": {"crop": 96, "scale": [1.0, 1.0], "flip": 0.0, "colour_jitter": 0.0},
}


@pytest.fixture
def thorough(request) -> bool:
    """Whether a test may take its time, as in ``make test-faults``."""
    return request.config.getoption("--hypothesis-profile") == "thorough"


@pytest.fixture(scope="session")
def made_scenes(tmp_path_factory) -> Path:
    from deop.data.emoji.settings import EmojiScenes
    from deop.jobs.job import Job
    from deop.settings.datasets import Vocabulary
    from deop.stages import prepare_data

    vocabulary = Vocabulary(things=("dog", "cow", "rabbit"), stuff=("grass",), unseen=("cow",))
    scenes = EmojiScenes(style="twemoji", vocabulary=vocabulary, train=4, val=2, image_size=64)
    output = tmp_path_factory.mktemp("data") / "scenes-d"
    settings = {"dataset": scenes.model_dump(mode="json")}
    prepare_data.run(Job(stage="prepare_data", key="d", output=str(output), settings=settings))
    return output


@pytest.fixture
def scenes(made_scenes: Path, tmp_path: Path) -> Path:
    """A prepared dataset of four training and two validation images, to damage."""
    import shutil

    return Path(shutil.copytree(made_scenes, tmp_path / "scenes-d"))


@pytest.fixture
def training(scenes: Path, tmp_path: Path):
    """``training(iterations)``: the job of a training on it."""
    from deop.jobs.job import Job

    def job(iterations: int = 1) -> Job:
        return Job(
            stage="train_proposals",
            key="p",
            output=str(tmp_path / "proposals"),
            inputs={"data": str(scenes)},
            settings={"proposals": PROPOSALS | {"iterations": iterations}},
        )

    return job


@pytest.fixture
def run_stage(tmp_path: Path, monkeypatch):
    """``run_stage(job)`` runs a job as ``deop`` does, and returns its exit status and what it says."""
    from typer.testing import CliRunner

    from deop.cli import app

    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")

    def run(job) -> tuple[int, str]:
        file = tmp_path / f"{job.stage}.json"
        file.write_text(job.model_dump_json())
        done = CliRunner().invoke(app, [job.stage.replace("_", "-"), str(file)])
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done.exit_code, done.stderr

    return run


@pytest.fixture
def refused(run_stage):
    """``refused(job)`` runs a job that must end in one line, and returns that line."""

    def run(job) -> str:
        status, told = run_stage(job)
        lines = [line for line in told.splitlines() if line.startswith("deop: ")]
        assert status == 1 and len(lines) == 1, told
        assert told.rstrip().endswith(lines[0])
        assert not Path(job.output).exists()
        return lines[0]

    return run
