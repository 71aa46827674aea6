"""Processes that are killed alone, as the out-of-memory killer does it: no orphan lives on, and no lock with it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deop.jobs.job import Job

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc"),
]


def children(pid: int) -> list[int]:
    """The processes of a stage that ``pid`` started: workers that it forked, or those that a launcher runs."""
    found = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            if b"train-proposals" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(int(child))
    return found


def lives(pid: int) -> bool:
    """Whether a process is there and not a zombie that waits to be read."""
    status = Path(f"/proc/{pid}/status")
    try:
        return "\nState:\tZ" not in status.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def rests(pid: int) -> bool:
    """Whether a process did nothing for two seconds."""

    def used() -> list[str]:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]

    before = used()
    time.sleep(2)
    return used() == before


def wait_until(condition: Callable[[], object], seconds: float = 600) -> bool:
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.1)
    return bool(condition())


@pytest.fixture
def ended() -> Iterator[list[int]]:
    """Processes to kill when the test ends."""
    pids: list[int] = []
    yield pids
    for pid in filter(lives, pids):
        os.kill(pid, signal.SIGKILL)


def start(job: Job, file: Path, *launcher: str) -> subprocess.Popen:
    file.write_text(job.model_dump_json())
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", "deop", "train-proposals", str(file)],
        env=os.environ | {"ACCELERATE_USE_CPU": "true"},
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.faults(
    "the main process of a training is killed alone (SIGKILL)",
    "its worker ends, the lock on the job is free, and a rerun goes on",
)
@pytest.mark.slow
def test_a_killed_main_process_leaves_no_worker_and_no_lock(tmp_path, training, ended):
    file, job = tmp_path / "job.json", training(iterations=100_000)
    main = start(job, file)
    ended.append(main.pid)
    assert wait_until(lambda: children(main.pid))
    time.sleep(1)
    os.kill(main.pid, signal.SIGSTOP)  # so the worker has more to hand over than its pipe takes
    workers = children(main.pid)
    ended += workers
    assert wait_until(lambda: all(map(rests, workers)))
    os.kill(main.pid, signal.SIGKILL)
    main.wait()
    assert wait_until(lambda: not any(map(lives, workers)), 60)
    again = start(training(iterations=1), file)
    ended.append(again.pid)
    told = again.communicate(timeout=600)[1]
    assert again.returncode == 0, told
    assert "another process" not in told
    assert (Path(job.output) / "model.safetensors").exists()


@pytest.mark.faults(
    "a training gets SIGTERM, as clusters send it before they kill a job",
    "it finishes the step, saves a checkpoint and ends; a rerun goes on from there",
)
@pytest.mark.slow
def test_a_training_that_is_asked_to_end_saves_its_last_step(tmp_path, training, ended):
    """SIGTERM to all its processes, as clusters send it some seconds before they kill a job."""
    file, job = tmp_path / "job.json", training(iterations=100_000)
    main = start(job, file)
    ended.append(main.pid)
    state = Path(f"{job.output}.partial/state")
    assert wait_until(lambda: children(main.pid) and state.exists())
    time.sleep(3)
    for pid in (*children(main.pid), main.pid):
        os.kill(pid, signal.SIGTERM)
    told = main.communicate(timeout=120)[1]
    assert main.returncode == 1, told
    step = re.search(r"\ndeop: train_proposals: ended by SIGTERM, with a checkpoint of step (\d+)", told)
    assert step and list(state.glob(f"checkpoint-{int(step[1]):09d}-*.pt")), told
    again = start(training(iterations=int(step[1]) + 1), file)
    ended.append(again.pid)
    again.communicate(timeout=600)
    assert again.returncode == 0
    assert json.loads((Path(job.output) / "provenance.json").read_text())["wall_time_s"] > 3


WORKER = """
import multiprocessing, os, sys, time
from concurrent.futures import ProcessPoolExecutor
from deop.utils.processes import end_with_parent

def stay(_):
    print(os.getpid(), flush=True)
    time.sleep(600)

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    with ProcessPoolExecutor(1, context, initializer=end_with_parent) as pool:
        list(pool.map(stay, [0]))
"""


@pytest.mark.faults("the parent of a worker process is killed", "the worker ends, however it was started")
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_a_worker_ends_with_its_parent_however_it_was_started(tmp_path, ended, method):
    script = tmp_path / "work.py"
    script.write_text(WORKER)
    parent = subprocess.Popen([sys.executable, str(script), method], stdout=subprocess.PIPE, text=True)
    ended.append(parent.pid)
    worker = int(parent.stdout.readline())
    ended.append(worker)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    assert wait_until(lambda: not lives(worker), 60)


@pytest.mark.faults("a worker outlives its parent all the same", "it does not hold the lock")
def test_a_lock_is_not_inherited(tmp_path):
    """A worker that outlives its parent all the same, as it may on systems other than Linux, holds no lock."""
    script = (
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from deop.utils.locks import lock, open_to_lock\n"
        "with open_to_lock(Path(sys.argv[1])) as file:\n"
        "    waited = lock(file, lambda: print('waits', flush=True), print)\n"
        "    if len(sys.argv) > 2 and os.fork() == 0:\n"
        "        os.write(1, f'{os.getpid()}\\n'.encode())\n"
        "        time.sleep(600)\n"
        "    os.write(1, f'has it {waited}\\n'.encode())\n"
    )
    file = tmp_path / "job.json"
    file.touch()
    first = subprocess.Popen(
        [sys.executable, "-c", script, str(file), "fork"], stdout=subprocess.PIPE, text=True
    )
    lines = sorted([first.stdout.readline().strip(), first.stdout.readline().strip()])
    orphan = int(lines[0])
    try:
        first.wait(60)
        assert lines[1] == "has it False" and lives(orphan)
        second = subprocess.run(
            [sys.executable, "-c", script, str(file)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert second.stdout == "has it False\n", second.stderr
    finally:
        os.kill(orphan, signal.SIGKILL)


@pytest.mark.faults("the launcher of two processes is killed", "all its processes end, and their workers")
@pytest.mark.slow
def test_a_killed_launcher_takes_all_its_processes_with_it(tmp_path, training, ended):
    job = training(iterations=100_000)
    launcher = start(
        job, tmp_path / "job.json", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"
    )
    ended.append(launcher.pid)
    assert wait_until(lambda: len([rank for rank in children(launcher.pid) if children(rank)]) == 2)
    ranks = children(launcher.pid)
    below = ranks + [worker for rank in ranks for worker in children(rank)]
    ended += below
    os.kill(launcher.pid, signal.SIGKILL)
    launcher.wait()
    assert wait_until(lambda: not any(map(lives, below)), 60)
