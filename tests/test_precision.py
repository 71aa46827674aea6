"""The precision that networks compute in: decided when jobs are planned, part of their keys, kept or refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from deop.errors import ConfigError, DeopError
from deop.jobs import artifacts
from deop.jobs.job import Job
from deop.jobs.plan import Plan
from deop.settings.precision import resolve
from deop.training.loop import make_accelerator

XEON = "processor\t: 0\nmodel name\t: Abacus 3000\nflags\t\t: fpu avx512f{}\n"
GRAVITON = "processor\t: 0\nBogoMIPS\t: 2100.00\nFeatures\t: fp asimd{}\n"


@pytest.mark.parametrize(
    ("cpu", "devices", "use_cpu", "expected"),
    [
        (XEON.format(" avx512_bf16"), [], False, "bf16"),
        (XEON.format(" amx_bf16"), [], True, "bf16"),
        (XEON.format(""), [], False, "fp32"),
        (XEON.format(""), ["nvidia0", "nvidiactl"], False, "bf16"),
        (XEON.format(""), ["nvidia0", "nvidiactl"], True, "fp32"),
        (XEON.format(""), ["nvidiactl"], False, "fp32"),  # left by a driver without a GPU
        (GRAVITON.format(" bf16"), [], False, "bf16"),
        (GRAVITON.format(""), [], False, "fp32"),
        (None, [], False, "fp32"),  # no Linux
    ],
)
def test_auto_is_what_the_machine_has(tmp_path: Path, cpu, devices, use_cpu, expected) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    if cpu is not None:
        cpuinfo.write_text(cpu)
    for device in devices:
        (tmp_path / device).touch()
    found = {
        asked: resolve(asked, use_cpu=use_cpu, cpuinfo=cpuinfo, devices=tmp_path)
        for asked in ("auto", "fp16")
    }
    assert found == {"auto": expected, "fp16": "fp16"}


def test_hosts_that_compute_differently_share_data_and_no_result(root, config, monkeypatch) -> None:
    plans = {}
    for precision in ("bf16", "fp32"):
        monkeypatch.setattr(
            "deop.settings.configuration.resolve", lambda *_, precision=precision, **__: precision
        )
        plans[precision] = Plan(config, root)
    stages = {stage for stage, _ in plans["bf16"].jobs}
    keys = {
        precision: {stage: {key for other, key in plan.jobs if other == stage} for stage in stages}
        for precision, plan in plans.items()
    }
    same = {stage for stage in stages if keys["bf16"][stage] == keys["fp32"][stage]}
    assert same == {"prepare_data", "benchmark"}
    of_benchmarks = {"figure"}  # of which one plots a benchmark alone
    assert not any(keys["bf16"][stage] & keys["fp32"][stage] for stage in stages - same - of_benchmarks)
    # And each job says what it is to compute in, also one that was planned on another machine.
    job = next(job for job in plans["bf16"].jobs.values() if job.stage == "train_system")
    assert Job.model_validate_json(job.model_dump_json()).precision == "bf16"


def test_a_launch_file_does_not_contradict_the_configuration(root, config, edit) -> None:
    path = root / "config/accelerate/single.yaml"
    edit(path, "mixed_precision", to="no")  # as `accelerate config` writes
    config["precision"] = "bf16"
    plan = Plan(config, root)
    assert plan.launch("train_system") == "ACCELERATE_USE_CPU=False deop"
    edit(path, "mixed_precision", to="fp16")
    with pytest.raises(
        ConfigError, match=r"single\.yaml: mixed_precision: 'fp16', .*precision: bf16.*remove the key"
    ):
        Plan(config, root)
    config["precision"] = "half"
    valid = "'auto', 'fp32', 'bf16' or 'fp16'"
    with pytest.raises(ConfigError, match=f"config: precision: unknown value 'half'; valid: {valid}"):
        Plan(config, root)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_without_the_arithmetic_is_an_error_with_what_it_has(monkeypatch) -> None:
    # The environment of a host that was set up for another precision changes nothing.
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert make_accelerator().mixed_precision == "no"
    with pytest.raises(DeopError, match=r"computes in fp16, for which cpu \(.*set precision .*fp32"):
        make_accelerator("fp16")
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    with pytest.raises(DeopError, match=r"computes in bf16, .*\(fp32\)"):
        make_accelerator("bf16")


# Where there is a GPU, nothing of it may appear in what a CPU made; where there is none, this one is made up.
STAGE = """
import json, sys, torch
from deop.jobs.job import Job
from deop.jobs.artifacts import describe
from deop.training.loop import make_accelerator
torch.cuda.is_available = lambda: True
torch.cuda.get_device_name = lambda *device: "NVIDIA Example"
accelerator = make_accelerator(sys.argv[1])
with accelerator.autocast():
    dtype = str((torch.ones(2, 2) @ torch.ones(2, 2)).dtype)
accelerator.wait_for_everyone()
if accelerator.is_main_process:
    print(json.dumps(describe(Job(stage="toy", key="k", output="o"), dtype=dtype)))
"""


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_provenance_says_what_a_stage_computed_with(tmp_path: Path, processes: int) -> None:
    script = tmp_path / "stage.py"
    script.write_text(STAGE)
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        str(processes),
    ]
    precision = "bf16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "fp32"
    done = subprocess.run(
        [*launch, str(script), precision],
        env=os.environ | {"ACCELERATE_USE_CPU": "true"},
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["dtype"] == {"bf16": "torch.bfloat16", "fp32": "torch.float32"}[precision]
    assert (found["precision"], found["processes"]) == (precision, processes)
    assert found["device"].startswith("cpu (")


def test_a_stage_without_networks_is_of_the_cpu(monkeypatch) -> None:
    monkeypatch.setattr(artifacts, "cpu_name", lambda: "Abacus 3000")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    found = artifacts.describe(Job(stage="prepare_data", key="0" * 12, output="data"))
    assert (found["device"], found["precision"], found["processes"]) == ("cpu (Abacus 3000)", "fp32", 1)
