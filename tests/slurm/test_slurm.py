"""The workflow on a real Slurm: two nodes on this machine (`start`), and what befalls jobs on a cluster.

`make test-slurm` runs these tests. They need the packages slurm-wlm and munge, and take about fifteen minutes.
"""

from __future__ import annotations

import getpass
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest
import yaml

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
COMMAND = re.search(r"^snakemake .*tiny\.yaml.*$", (ROOT / "docs/cluster.md").read_text(), re.M)[0]
# Two nodes without GPUs, one process on each.
NODES2 = {
    "compute_environment": "LOCAL_MACHINE",
    "distributed_type": "MULTI_CPU",
    "num_machines": 2,
    "num_processes": 2,
    "rdzv_backend": "static",
    "same_network": True,
    "use_cpu": True,
}


class Cluster:
    """A Slurm cluster, and Slurm's commands for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = [folder / "bin", Path(sys.executable).parent, os.environ["PATH"]]
        self.environment = os.environ | {"PATH": ":".join(map(str, path)), "PYTHONPATH": str(ROOT / "src")}
        self.start()

    def start(self) -> None:
        """Starts what does not run of it."""
        done = subprocess.run([HERE / "start", self.folder], capture_output=True, text=True, timeout=120)
        if done.returncode:
            pytest.skip(done.stderr.strip())

    def run(self, *command: str) -> str:
        return subprocess.run(
            command, env=self.environment, check=True, stdout=subprocess.PIPE, text=True, timeout=60
        ).stdout

    def jobs(self) -> dict[str, dict[str, str]]:
        """All jobs that Slurm remembers, by their number: what ``scontrol show job`` says."""
        lines = self.run("scontrol", "show", "jobs", "--oneliner").splitlines()
        found = [dict(re.findall(r"(\S+?)=(\S*)", line)) for line in lines]
        return {job["JobId"]: job for job in found if "JobId" in job}

    def running(self, rule: str = "") -> dict[str, dict[str, str]]:
        return {
            number: job
            for number, job in self.jobs().items()
            if job["JobState"] == "RUNNING" and f"rule_{rule}" in job.get("Comment", "")
        }

    def processes(self, node: str) -> list[int]:
        """The daemon of a node, and what it started: the steps of jobs, which are not its children, and their tasks."""
        own = f"SLURMD_NODENAME={node}"
        found = {int((self.folder / f"{node}.pid").read_text())}
        for process in Path("/proc").glob("[0-9]*"):
            try:
                variables = (process / "environ").read_text(errors="replace").split("\0")
                parent = int(re.search(r"^PPid:\s*(\d+)", (process / "status").read_text(), re.M)[1])
                step = Path(f"/proc/{parent}/comm").read_text().strip() == "slurmstepd"
            except OSError:  # it has ended, or is somebody else's
                continue
            if own in variables and any(str(self.folder) in variable for variable in variables):
                found |= {int(process.name), parent} if step else {int(process.name)}
        return sorted(found)


def wait_until(condition: Callable[[], object], what: str, seconds: float = 600) -> object:
    until = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < until, f"{what}: not within {seconds:.0f} seconds"
        time.sleep(0.5)
    return value


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    if find_spec("snakemake_executor_plugin_slurm") is None:
        pytest.skip("snakemake-executor-plugin-slurm is not installed (pip install 'deop[slurm]')")
    folder = tmp_path_factory.mktemp("slurm")
    try:
        yield Cluster(folder)
    finally:
        subprocess.run([HERE / "stop", folder], timeout=120, check=False)


@pytest.fixture
def start(cluster: Cluster, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen]]:
    """``start(*arguments)`` runs the command of docs/cluster.md, with what it says of clusters without accounting."""
    for name in ("Snakefile", "workflow", "profiles", "config", "environment.yml"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    (tmp_path / "config/accelerate/nodes2.yaml").write_text(yaml.safe_dump(NODES2))
    started = []

    def run(*arguments: str, target: str = "results/table3.csv") -> subprocess.Popen:
        command = COMMAND.replace("results/table3.csv", target).split()
        process = subprocess.Popen(
            [*command, "--slurm-status-command", "squeue", *arguments],
            cwd=tmp_path,
            env=cluster.environment,
            stdout=(tmp_path / "said.txt").open("w"),
            stderr=subprocess.STDOUT,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            process.kill()
            cluster.run("scancel", "--user", getpass.getuser())


def ends(process: subprocess.Popen, folder: Path) -> str:
    """What a workflow said, once it is done."""
    status, said = process.wait(1800), (folder / "said.txt").read_text()
    assert status == 0, said[-4000:]
    return said


def test_a_table_is_made_while_jobs_are_cancelled_and_preempted_and_a_node_is_drained(
    cluster, start, tmp_path
):
    workflow = start()
    cluster.run("scontrol", "update", "NodeName=n2", "State=DRAIN", "Reason=test")

    cancelled, job = next(
        iter(wait_until(lambda: cluster.running("prepare_data"), "a job that runs").items())
    )
    assert job["NodeList"] == "n1"
    cluster.run("scancel", cancelled)
    again = wait_until(
        lambda: [
            other
            for number, other in cluster.jobs().items()
            if int(number) > int(cancelled) and other["Comment"] == job["Comment"]
        ],
        "the cancelled job again",
    )
    assert (job["MinMemoryNode"], again[0]["MinMemoryNode"]) == ("1000M", "2000M")
    assert (job["TimeLimit"], again[0]["TimeLimit"]) == ("00:10:00", "00:20:00")

    cluster.run("scontrol", "update", "NodeName=n2", "State=RESUME")
    wait_until(lambda: any(job["NodeList"] == "n2" for job in cluster.running().values()), "a job on n2")

    training = wait_until(lambda: cluster.running("train_proposals"), "a training that runs")
    whole = ("--nodes=2", "--exclusive", "--wrap=true", f"--output={tmp_path}/urgent.txt")
    cluster.run("sbatch", "--partition=urgent", *whole)
    wait_until(
        lambda: any(cluster.jobs()[number]["Restarts"] == "1" for number in training), "a requeued job"
    )

    said = ends(workflow, tmp_path)
    assert len(re.findall("Trying to restart job", said)) == 1  # what Slurm queues again is not a retry
    table = pd.read_csv(tmp_path / "results/table3.csv")
    assert len(table) == 5 and table.notna().all(axis=None)


def test_a_training_over_two_nodes_survives_the_loss_of_one(cluster, start, tmp_path):
    """The node stops as if its power were gone: it says nothing, and closes no connection."""
    workflow = start("--config", "accelerate=nodes2", "proposals={iterations: 200}", target="proposals")
    number, job = next(
        iter(wait_until(lambda: cluster.running("train_proposals"), "a training that runs").items())
    )
    assert job["NodeList"] == "n[1-2]"
    logs = tmp_path / "logs/train_proposals"
    wait_until(lambda: any("train_proposals: " in log.read_text() for log in logs.glob("*.log")), "a step")
    lost = cluster.processes("n2")
    for pid in lost:
        os.kill(pid, signal.SIGSTOP)
    try:
        wait_until(lambda: cluster.jobs()[number]["Restarts"] == "1", "the job to be queued again", 120)
        assert "DOWN" in cluster.run("scontrol", "show", "node", "n2")
    finally:
        for pid in lost:
            os.kill(pid, signal.SIGKILL)
    cluster.start()
    said = ends(workflow, tmp_path)
    assert "Trying to restart job" not in said
    for record in (tmp_path / "checkpoints/proposals").glob("*/provenance.json"):
        assert json.loads(record.read_text())["processes"] == 2
