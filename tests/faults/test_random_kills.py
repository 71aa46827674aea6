"""Trainings that are killed at random moments, again and again, end with the weights of one that was left alone."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil
import pytest

from deop.jobs.job import Job
from deop.jobs.plan import LAUNCHED, Plan
from deop.settings.files import read_profile
from deop.utils.files import file_hash

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
STEPS = 40
IMAGES = 48
"""Of each pre-training, which draws them as it goes: a step of these takes longer."""
TRAININGS = {
    "a CLIP": "checkpoints/clip/deop-mini-round2-",
    "a backbone": "checkpoints/backbone/",
    "text prompts": "checkpoints/prompts/es171-",
    "mask proposals": "checkpoints/proposals/es171-",
    "DeOP": "checkpoints/training/es171-deop-",
    "a per-pixel system": "checkpoints/training/es171-lseg-",
    "a later round": "checkpoints/training/es171-zs3net-seed0-round3-",
}
SECONDS = Path("seconds")
"""For how long the last process that was not killed has computed."""
QUICK = ("a backbone", "mask proposals")
"""What ``make test`` kills: other trainings need more to be made before them."""
# Processes that have imported everything start in no time, so that kills hit trainings and not imports.
STARTED = multiprocessing.get_context("forkserver")
STARTED.set_forkserver_preload(
    ["deop.cli", *(f"deop.stages.{stage}" for stage in (*LAUNCHED, "learn_prompts"))]
)


def run(job: str, stage: str) -> None:
    """What ``deop`` does with a job file, on one thread and with a checkpoint five times a second."""
    import torch

    from deop.cli import app
    from deop.training import loop

    torch.set_num_threads(1)
    loop.fit.__kwdefaults__["checkpoint_seconds"] = 0.2
    try:
        app([stage.replace("_", "-"), job])
    finally:
        SECONDS.write_text(f"{time.process_time()}")


def wait_for(process: BaseProcess, seconds: float) -> None:
    """Waits until a process has computed for so long, however busy the machine is, or has ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        running = psutil.Process(process.pid)
        while process.is_alive() and sum(running.cpu_times()[:2]) < seconds:
            time.sleep(0.01)


def start(job: Job) -> BaseProcess:
    file = Path("job.json")
    file.write_text(job.model_dump_json())
    process = STARTED.Process(target=run, args=(str(file), job.stage))
    process.start()
    return process


def finish(job: Job) -> None:
    process = start(job)
    process.join()
    assert process.exitcode == 0, job


def finish_all(output: str, jobs: dict[str, Job]) -> None:
    """Makes an output, and before it those that it is made from, unless they are there."""
    if not Path(output).exists():
        for path in jobs[output].inputs.values():
            finish_all(path, jobs)
        finish(jobs[output])


@pytest.fixture(scope="module")
def plan(tmp_path_factory) -> Iterator[Plan]:
    """The jobs of the tiny profile, with more steps, in a folder of their own."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "config", folder / "config")
    config = read_profile(folder, ROOT / "config/tiny.yaml")
    for section in ("prompts", "proposals", "segmentation"):
        config[section]["iterations"] = STEPS
    for method, rounds in {"lseg": ("training",), "zs3net": ("training", "generator", "classifier")}.items():
        for name in rounds:
            config["methods"][method][name]["iterations"] = STEPS
    config["pretrain_clip"]["rounds"][1]["images"] = config["pretrain_backbone"]["images"] = IMAGES
    for section in ("pretrain_clip", "pretrain_backbone"):
        config[section] |= {"batch_size": 4, "warmup_images": 4}
    with contextlib.chdir(folder):
        yield Plan(config, folder)


@pytest.mark.faults(
    "a training of any stage is killed at random moments (SIGKILL, SIGTERM or SIGINT)",
    "resumed, it ends with bit-identical weights",
)
@pytest.mark.parametrize("training", TRAININGS)
def test_a_training_that_is_killed_at_random_moments_ends_as_one_that_is_not(
    plan, training, thorough, injected
):
    if not thorough and training not in QUICK:
        pytest.skip("killed by make test-faults alone")
    job = next(job for job in plan.jobs.values() if job.output.startswith(TRAININGS[training]))
    made = {job.output: job for job in plan.jobs.values()}
    for path in job.inputs.values():
        finish_all(path, made)
    finish(job)
    seconds = float(SECONDS.read_text())
    weights = Path(job.output) / "model.safetensors"
    whole = file_hash(weights)
    shutil.rmtree(job.output)

    moments = random.Random(training)
    wanted, killed = (3 if thorough else 1), 0
    injected(wanted)
    while killed < wanted:
        process = start(job)
        wait_for(process, moments.uniform(0.1, 0.9) * seconds)
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, moments.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGINT)))
        process.join()
        killed += process.exitcode != 0  # a training that ended a moment before is no kill
        if weights.exists():
            assert file_hash(weights) == whole
            shutil.rmtree(job.output)
    finish(job)
    assert file_hash(weights) == whole
