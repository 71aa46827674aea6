"""What goes wrong outside the code is one line that says what to do, and no traceback."""

from __future__ import annotations

import contextlib
import copy
import importlib
import random
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from deop.errors import ConfigError, DeopError
from deop.jobs.job import Job
from deop.jobs.plan import Plan
from deop.models.weight_files import save_weights
from deop.settings.files import read_profile
from deop.training.checkpoint import save_checkpoint
from deop.training.loop import fit

ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def no_room() -> Iterator[None]:
    """No file may grow beyond some kilobytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.faults(
    "there is no room for weights or a checkpoint", "one line; the checkpoints before are left as they are"
)
def test_no_room_for_weights_or_a_checkpoint(tmp_path, injected):
    injected(2)
    state = {"weight": torch.randn(10_000)}
    with no_room(), pytest.raises(DeopError, match=rf"{tmp_path}/model.safetensors cannot be written"):
        save_weights(state, tmp_path)
    save_checkpoint(tmp_path, {"step": torch.zeros(1)}, 1)
    before = {path: path.read_bytes() for path in tmp_path.glob("checkpoint*")}
    with no_room(), pytest.raises(DeopError, match=rf"{tmp_path}: a checkpoint cannot be written"):
        save_checkpoint(tmp_path, state, 2)
    assert before == {path: path.read_bytes() for path in tmp_path.glob("checkpoint*")}
    assert not (tmp_path / ".checkpoint.pt").exists()


@pytest.mark.faults("an output cannot be made where it should be", "one line with its path")
@pytest.mark.parametrize("place", ["file/proposals", "x" * 300])
def test_an_output_that_cannot_be_made(tmp_path, training, run_stage, place):
    (tmp_path / "file").touch()
    status, told = run_stage(training().model_copy(update={"output": str(tmp_path / place)}))
    assert status == 1 and told.startswith(f"deop: {tmp_path / place}") and told.count("\n") == 1


@pytest.mark.faults(
    "out of memory, on the CPU or a GPU; no room; a disk that may only be read",
    "one line with what to change (the error itself is simulated)",
)
@pytest.mark.parametrize(
    "error, words",
    [
        (MemoryError(), "out of memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore"), "micro_batch"),
        (
            OSError(28, "No space left on device", "labels/7.png"),
            "labels/7.png: No space left on device; make room",
        ),
        (OSError(30, "Read-only file system", "results"), "results: Read-only file system"),
    ],
)
def test_a_machine_without_room(training, refused, monkeypatch, error, words):
    def fail(job: Job) -> None:
        raise error

    monkeypatch.setattr(importlib.import_module("deop.stages.train_proposals"), "run", fail)
    assert words in refused(training())


@pytest.mark.faults(
    "a loss is not finite: training diverges",
    "it stops at that step, and names it, its images and the last checkpoint",
)
def test_a_training_that_diverges(training, refused, monkeypatch):
    """Before the loss is computed: the masks cannot be matched."""
    # No checkpoint is saved, however slow the machine.
    monkeypatch.setitem(fit.__kwdefaults__, "checkpoint_seconds", 3600)
    job = training(iterations=50)
    job.settings["proposals"]["lr"] = 1e9
    told = refused(job)
    assert "train_proposals, step " in told and "not finite" in told
    assert (
        told.count(".jpg") == job.settings["proposals"]["batch_size"] and "There is no checkpoint yet" in told
    )


@pytest.mark.faults("a job file is damaged, gone or of another stage", "one line with its path")
@pytest.mark.parametrize("content", [b"\xff\xfe{}", b"", b"[]", b'{"stage": 1}', b'{"stage": "table"'])
def test_a_damaged_job_file(tmp_path, training, content):
    from typer.testing import CliRunner

    from deop.cli import app

    file = tmp_path / "job.json"
    file.write_bytes(content)
    done = CliRunner().invoke(app, ["train-proposals", str(file)])
    assert done.exit_code == 1 and done.stderr.count("\n") == 1 and str(file) in done.stderr


@pytest.mark.faults("a configuration file is not YAML, not UTF-8 or gone", "one line with its path")
@pytest.mark.parametrize("name", ["config.yaml", "tables.yaml", "experiments.yaml"])
def test_a_configuration_file_that_is_not_text(root, config, name):
    (root / "config" / name).write_bytes(b"seeds: [0]\n# \xff\xfe\n")
    with pytest.raises(ConfigError, match=rf"config/{name} is not UTF-8"):
        read_profile(root) if name == "config.yaml" else Plan(config, root)


@pytest.mark.faults(
    "a configuration file brings code in YAML tags", "none of it runs; one line with its path"
)
@pytest.mark.parametrize(
    "tag", ["object/apply:os.mkdir [RAN]", "object/new:os.mkdir [RAN]", "name:os.mkdir", "module:antigravity"]
)
@pytest.mark.parametrize("name", ["config.yaml", "tables.yaml"])
def test_a_configuration_file_with_code(root, config, tmp_path, monkeypatch, name, tag):
    monkeypatch.chdir(tmp_path)
    (root / "config" / name).write_text(f"seeds: !!python/{tag}\n")
    with pytest.raises(ConfigError, match=rf"config/{name} is not YAML"):
        read_profile(root) if name == "config.yaml" else Plan(config, root)
    assert not Path("RAN").exists()


def put(values: dict, place: tuple, value: Any) -> dict:
    """A copy of nested values with one of them replaced or added."""
    values = copy.deepcopy(values)
    at = values
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = value
    return values


def places(values: Any, at: tuple = ()) -> Iterator[tuple]:
    if at:
        yield at
    if isinstance(values, dict):
        for key, value in values.items():
            yield from places(value, (*at, key))


SENSELESS = [
    (("proposals", "lr"), -1),
    (("proposals", "lr"), float("nan")),
    (("proposals", "weight_decay"), float("inf")),
    (("proposals", "out_indices"), [-1, 2]),
    (("proposals", "out_indices"), []),
    (("proposals", "iterations"), 1e30),
    (("proposals", "augmentation", "scale"), [0, -1]),
    (("segmentation", "lr"), -1e-4),
    (("segmentation", "batch_size"), 1e30),
    (("prompts", "momentum"), -0.5),
    (("prompts", "logit_scale"), 0),
    (("datasets", "es20", "train"), 1e30),
    (("datasets", "es20", "val"), 1e30),
    (("datasets", "es20", "kind"), ["emoji_scenes"]),
    (("datasets", "es20", "stands_for"), {"x": 1}),
    (("proposals", "per_dataset"), 1),
    (("proposals", "per_dataset"), {"es20": 1}),
    (("benchmark", "clips"), 1),
    (("benchmark", "speed"), []),
]


@pytest.mark.faults("a value of the configuration is senseless or of another type", "one line with the key")
@pytest.mark.parametrize("place, value", SENSELESS)
def test_a_senseless_value(root, config, place, value):
    with pytest.raises(ConfigError, match=place[-1]):
        Plan(put(config, place, value), root)


JUNK = (None, True, -1, 1, 1e30, float("nan"), "", "x", [], [[]], {}, {"x": 1}, {"x": []})


@pytest.mark.faults(
    "any value of the configuration is replaced by another at random", "it is planned, or refused in one line"
)
@pytest.mark.slow
def test_configurations_changed_at_random(root, config, injected):
    """Each is planned or refused in one line, whatever stands in the place of a value."""
    injected(60, fuzzed=True)
    generator = random.Random(0)
    cases = [(place, value) for place in places(config) for value in JUNK]
    refused = 0
    for place, value in generator.sample(cases, 60):
        try:
            Plan(put(config, place, value), root)
        except DeopError as error:
            refused += 1
            assert "\n" not in str(error), (place, value)
        except Exception as error:
            pytest.fail(f"{'.'.join(map(str, place))}: {value!r} gives {type(error).__name__}: {error}")
    assert refused > 10
