"""How stages are started: with and without Accelerate's launcher, a process gets the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from deop.jobs.launch import launch_command
from deop.jobs.plan import Plan

ROOT = Path(__file__).parents[1]
TELL = "from accelerate import Accelerator as A; a = A(); print(a.mixed_precision, a.device, a.num_processes)"


def launched(folder: Path, command: str) -> str:
    """What Accelerate makes of ``command``, with a ``deop`` that only tells that."""
    (folder / "deop.py").write_text(TELL)
    script = folder / "deop"
    script.write_text(f"#!/bin/sh\nexec {sys.executable} {folder / 'deop.py'}\n")
    script.chmod(0o755)
    path = f"{folder}:{Path(sys.executable).parent}:/usr/bin:/bin"
    done = subprocess.run(
        command,
        shell=True,
        cwd=folder,
        env={"PATH": path, "HOME": str(folder)},
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"use_cpu": True}])
def test_one_process_is_what_the_launcher_makes_it(tmp_path, changes):
    values = yaml.safe_load((ROOT / "config/accelerate/single.yaml").read_text()) | changes
    path = tmp_path / "launch.yaml"
    path.write_text(yaml.safe_dump(values))
    direct = launch_command(str(path), values)
    assert "accelerate launch" not in direct
    assert launched(tmp_path, direct) == launched(tmp_path, f"accelerate launch --config_file {path} -m deop")


@pytest.mark.parametrize("name", ["gpus4", "gpus8"])
def test_several_processes_go_through_the_launcher(name):
    path = ROOT / f"config/accelerate/{name}.yaml"
    command = launch_command(str(path), yaml.safe_load(path.read_text()))
    assert command == f"accelerate launch --config_file {path} -m deop"
    # But not for a stage that has nothing to share out.
    alone = launch_command(str(path), yaml.safe_load(path.read_text()), alone=True)
    assert alone == "ACCELERATE_USE_CPU=False deop"


def test_commands_of_one_machine_claim_their_gpus(root, config):
    config |= {"accelerate": "gpus4"}
    config["resources"]["train_system"]["gpu"] = config["resources"]["evaluate"]["gpu"] = 1
    plan = Plan(config, root)
    four = "accelerate launch --config_file config/accelerate/gpus4.yaml -m deop"
    assert plan.launch("train_system") == f"workflow/scripts/with-gpus 4 {four}"
    assert plan.launch("evaluate") == "ACCELERATE_USE_CPU=False workflow/scripts/with-gpus 1 deop"
    assert plan.launch("learn_prompts") == "ACCELERATE_USE_CPU=False deop"  # asks for none here
    path = ROOT / "config/accelerate/nodes2x8.yaml"
    assert "with-gpus" not in launch_command(str(path), yaml.safe_load(path.read_text()), gpus=8)


def test_processes_on_cpus_are_joined_without_mpi():
    values = {"distributed_type": "MULTI_CPU", "num_processes": 2, "use_cpu": True}
    command = launch_command("own.yaml", values)
    assert command == "ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --config_file own.yaml -m deop"


def test_several_nodes_are_joined_through_slurm(tmp_path):
    """Slurm's and Accelerate's commands are stand-ins that note how they were called; tests/slurm has the real ones."""
    path = ROOT / "config/accelerate/nodes2x8.yaml"
    values = yaml.safe_load(path.read_text())
    # With any other way to meet, the launcher would not use the address that it is given.
    assert values["rdzv_backend"] == "static" and values["same_network"]
    command = launch_command(str(path), values)
    scripts = {
        "srun": 'echo "srun $1 $2" >> {log}; shift 4; for SLURM_NODEID in 0 1; do export SLURM_NODEID; "$@"; done',
        "scontrol": 'case $2 in hostnames) echo "first$3"; echo "second$3";; '
        'node) echo "NodeName=$3 Arch=x86_64 NodeAddr=address-of-$3 NodeHostName=other";; esac',
        "accelerate": 'echo "accelerate $*" >> {log}',
    }
    for name, script in scripts.items():
        (tmp_path / name).write_text("#!/bin/sh\n" + script.format(log=tmp_path / "log") + "\n")
        (tmp_path / name).chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_STEP_NODELIST": "-of-two",
        "SLURM_JOB_ID": "1230042",
    }
    subprocess.run(
        f"{command} train-proposals job.json --threads 4", shell=True, check=True, cwd=ROOT, env=environment
    )
    called = (tmp_path / "log").read_text().splitlines()
    assert called[0] == "srun --nodes=2 --ntasks-per-node=1"
    assert called[1:] == [
        f"accelerate launch --machine_rank {node} --main_process_ip address-of-first-of-two "
        f"--main_process_port 20042 --config_file {path} -m deop train-proposals job.json --threads 4"
        for node in (0, 1)
    ]


def test_a_training_on_two_nodes_asks_for_both_and_a_failed_one_for_more(root, config):
    """Memory is that of each node, GPUs are those of both; stages of one process are left as they are."""
    launch = yaml.safe_load((root / "config/accelerate/nodes2x8.yaml").read_text()) | {"num_processes": 8}
    (root / "config/accelerate/nodes2x4.yaml").write_text(yaml.safe_dump(launch))
    config["accelerate"], config["resources"] = "nodes2x4", {}
    for stage in ("train_system", "evaluate"):
        config["resources"][stage] = {"threads": 2, "mem_mb": 3000, "gpu": 1, "runtime": 60}
    plan = Plan(config, root)
    asked = {stage: plan.asked(stage) for stage in ("train_system", "evaluate")}
    of_attempt = {
        stage: [each[name]({}, attempt) for attempt in (1, 3) for name in ("mem_mb", "runtime")]
        for stage, each in asked.items()
    }
    assert of_attempt == {"train_system": [12000, 60, 36000, 180], "evaluate": [3000, 60, 9000, 180]}
    assert {name: asked["train_system"][name] for name in ("nodes", "tasks", "gpu", "gres")} == {
        "nodes": 2,
        "tasks": 2,
        "gpu": 8,
        "gres": "gpu:4",
    }
    assert asked["evaluate"]["gpu"] == 1 and "nodes" not in asked["evaluate"]
