"""Jobs on one machine share its GPUs and its memory."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deop.jobs.launch import WITH_GPUS
from deop.utils import machine

ROOT = Path(__file__).parents[1]
HOLD = [sys.executable, "-c", "import os; print(os.environ['CUDA_VISIBLE_DEVICES'], flush=True); input()"]
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of Linux")


@pytest.fixture
def three_gpus(tmp_path, monkeypatch):
    """A machine with three GPUs, as far as nvidia-smi says."""
    tool = tmp_path / "bin/nvidia-smi"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\nprintf '0\\n1\\n2\\n'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    for variable in ("CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID"):
        monkeypatch.delenv(variable, raising=False)
    return tmp_path


def test_gpus_are_those_that_nvidia_smi_lists_or_the_user_names(three_gpus, monkeypatch):
    assert machine.gpus() == ["0", "1", "2"]
    assert machine.shared_resources()["gpu"] == 3
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-8a")
    assert machine.gpus() == ["2", "GPU-8a"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "gpu" not in machine.shared_resources()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("PATH", "")
    assert machine.gpus() == []


def test_memory_is_that_of_the_machine_or_of_the_container(tmp_path):
    everything = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = tmp_path / "memory.max"
    assert machine._memory((str(limit),)) == everything
    limit.write_text("max\n")
    assert machine._memory((str(limit),)) == everything
    limit.write_text(f"{2 * 10**9}\n")
    assert machine._memory((str(limit),)) == min(everything, 2 * 10**9)


@pytest.mark.skipif(shutil.which("flock") is None, reason="with-gpus needs flock")
def test_commands_at_the_same_time_have_gpus_of_their_own(three_gpus):
    def start(count: int, **more) -> subprocess.Popen:
        command = [ROOT / WITH_GPUS, str(count), *HOLD]
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more
        )

    first, second = start(1), start(2)
    had = [process.stdout.readline().strip() for process in (first, second)]
    assert sorted(",".join(had).split(",")) == ["0", "1", "2"] and had[1].count(",") == 1
    third = start(1)
    assert "waiting for 1 of the GPUs 0 1 2" in third.stderr.readline()
    first.communicate("\n")
    assert third.stdout.readline().strip() == had[0]
    for process in (second, third):
        process.communicate("\n")
    chosen = start(1, env=os.environ | {"CUDA_VISIBLE_DEVICES": "7,9"})
    assert chosen.stdout.readline().strip() == "7"
    in_slurm = start(1, env=os.environ | {"CUDA_VISIBLE_DEVICES": "7,9", "SLURM_JOB_ID": "1"})
    assert in_slurm.stdout.readline().strip() == "7,9"
    too_many = start(4, env=os.environ | {"CUDA_VISIBLE_DEVICES": "0,1,2"})
    assert too_many.stdout.readline().strip() == "0,1,2"
    for process in (chosen, in_slurm, too_many):
        process.communicate("\n")
        assert process.returncode == 0
