"""Machines that are not as one would like them: a disk that fills up or may only be read, a clock, a locale, a path."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from deop.jobs.job import Job
from deop.training import loop
from deop.utils.files import file_hash

STEPS = 3


@pytest.fixture
def mount(tmp_path) -> Iterator[Callable[[str], Path]]:
    """``mount(options)``: a file system of its own, with other options at a second call; where that is allowed."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(options: str) -> Path:
        how = (
            ["-o", f"remount,{options}"]
            if os.path.ismount(place)
            else ["-t", "tmpfs", "-o", options, "tmpfs"]
        )
        done = subprocess.run(["mount", *how, str(place)], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"nothing can be mounted: {done.stderr.strip()}")
        return place

    yield mount
    if os.path.ismount(place):
        subprocess.run(["umount", str(place)], check=True)


@pytest.fixture
def job(training, monkeypatch) -> Job:
    """A training that saves a checkpoint at each step."""
    monkeypatch.setitem(loop.fit.__kwdefaults__, "checkpoint_seconds", 0)
    return training(STEPS)


@pytest.fixture
def whole(job, run_stage) -> Path:
    """The weights that come of it where all is well."""
    assert run_stage(job)[0] == 0
    return Path(job.output) / "model.safetensors"


def at(job: Job, output: Path) -> Job:
    return job.model_copy(update={"output": str(output)})


@pytest.mark.slow
@pytest.mark.faults(
    "the disk fills up at any moment of a training",
    "one line; when there is room, it goes on to bit-identical weights",
)
def test_a_disk_of_any_size(job, whole, run_stage, mount, thorough, injected):
    """Each disk has room for more than the last one, until there is room for all."""
    kilobytes = whole.stat().st_size // 1024
    for filled in itertools.count():
        injected(filled)
        disk = mount(f"size={8 + kilobytes * filled * (1 if thorough else 3)}k")
        status, told = run_stage(at(job, disk / "proposals"))
        if status == 0:
            break
        assert told.count("\ndeop: ") + told.startswith("deop: ") == 1 and "room" in told, told
        mount(f"size={100 * kilobytes}k")
        assert run_stage(at(job, disk / "proposals"))[0] == 0
        assert file_hash(disk / "proposals/model.safetensors") == file_hash(whole)
        shutil.rmtree(disk / "proposals")
    assert filled > 2


@pytest.mark.faults("the folder of a dataset may only be read", "it is trained on all the same")
def test_data_that_may_only_be_read(job, whole, run_stage, mount, tmp_path):
    disk = mount("size=10m")
    shutil.copytree(job.inputs["data"], disk / "scenes")
    mount("ro")
    there = at(job, tmp_path / "there").model_copy(update={"inputs": {"data": str(disk / "scenes")}})
    assert run_stage(there)[0] == 0
    assert file_hash(tmp_path / "there/model.safetensors") == file_hash(whole)


@pytest.mark.faults(
    "the clock is set back while a training is interrupted", "it goes on to bit-identical weights"
)
def test_files_from_the_future(job, whole, run_stage, tmp_path, monkeypatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("deop.stages.train_proposals.save_weights", interrupt)
        assert run_stage(at(job, tmp_path / "again"))[0] != 0
    tomorrow = time.time() + 86_400
    for path in (tmp_path / "again.partial").rglob("*"):
        os.utime(path, (tomorrow, tomorrow))
    status, told = run_stage(at(job, tmp_path / "again"))
    assert status == 0, told
    assert file_hash(tmp_path / "again/model.safetensors") == file_hash(whole)


@pytest.mark.slow
@pytest.mark.faults(
    "the locale is C, and paths have spaces, quotes and letters of other scripts", "the weights are the same"
)
def test_a_path_in_other_scripts_in_the_plainest_locale(job, whole, tmp_path):
    folder = tmp_path / "it's größer than 数据"
    folder.mkdir()
    shutil.copytree(job.inputs["data"], folder / "scenes")
    there = at(job, folder / "proposals").model_copy(update={"inputs": {"data": str(folder / "scenes")}})
    (folder / "job.json").write_text(there.model_dump_json(), encoding="utf-8")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "deop", "train-proposals", str(folder / "job.json")),
            *("--threads", str(torch.get_num_threads())),  # other numbers of threads round differently
        ],
        env=os.environ | {"ACCELERATE_USE_CPU": "true", "LC_ALL": "C"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert file_hash(folder / "proposals/model.safetensors") == file_hash(whole)
