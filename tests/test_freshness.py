"""When a table, figure or picture on disk is up to date."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deop.jobs.freshness import identity, is_current
from deop.jobs.job import Job


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """A result of an evaluation (one file) and a system (a folder), written as stages write it."""
    monkeypatch.chdir(tmp_path)
    inputs = {"deop/es20/0": "results/evaluations/deop-0.json", "system": "checkpoints/systems/deop-0"}
    job = Job(stage="picture", key="a" * 12, output="results/figures/scene.json", inputs=inputs)
    for path in ("results/evaluations", "results/figures", "checkpoints/systems/deop-0"):
        Path(path).mkdir(parents=True)
    evaluation(job).write_text('{"metrics": {"mIoU": 0.5}}')
    provenance(job).write_text('{"finished": "then"}')
    Path(job.output).write_text(json.dumps(identity(job)))
    return job


def evaluation(job: Job) -> Path:
    return Path(job.inputs["deop/es20/0"])


def provenance(job: Job) -> Path:
    return Path(job.inputs["system"]) / "provenance.json"


def test_it_is_as_long_as_its_key_and_inputs_are_the_same(job, tmp_path):
    assert is_current(job, tmp_path)
    (Path(job.inputs["system"]) / "model.safetensors").touch()  # dates mean nothing
    evaluation(job).touch()
    assert is_current(job, tmp_path)
    assert not is_current(job.model_copy(update={"key": "b" * 12}), tmp_path)


def test_it_is_not_when_an_input_was_made_again(job, tmp_path):
    before = evaluation(job).read_text()
    evaluation(job).write_text('{"metrics": {"mIoU": 0.6}}')
    assert not is_current(job, tmp_path)
    evaluation(job).write_text(before)
    assert is_current(job, tmp_path)
    provenance(job).write_text('{"finished": "now"}')
    assert not is_current(job, tmp_path)


def test_inputs_that_are_not_on_disk_do_not_count(job, tmp_path):
    evaluation(job).unlink()
    provenance(job).unlink()
    assert is_current(job, tmp_path)
    # Made without a record of the inputs, such as by an earlier version: the key counts.
    Path(job.output).write_text(json.dumps({"key": job.key}))
    evaluation(job).write_text("{}")
    assert is_current(job, tmp_path)


@pytest.mark.parametrize("content", [None, "", "{", "{}", "[]"])
def test_it_is_not_when_it_is_missing_or_says_nothing(job, tmp_path, content):
    Path(job.output).unlink()
    if content is not None:
        Path(job.output).write_text(content)
    assert not is_current(job, tmp_path)
