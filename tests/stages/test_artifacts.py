"""Provenance: which code made an artifact, and what it rests on."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from deop.jobs import artifacts
from deop.jobs.artifacts import code_version, describe
from deop.jobs.job import Job
from deop.jobs.pipeline import WEIGHTS
from deop.jobs.plan import Plan


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """A package folder in a git checkout, for the one that runs."""
    folder = tmp_path / "src/deop"
    (folder / "stages").mkdir(parents=True)
    (folder / "__init__.py").touch()
    git(tmp_path, "init")
    git(tmp_path, "add", "src")
    git(tmp_path, "commit", "--message", "start")
    monkeypatch.setattr(artifacts, "__file__", str(folder / "stages/artifacts.py"))
    return folder


def code() -> dict:
    return code_version.__wrapped__()  # it is asked once in a process


def test_changed_and_new_modules_are_uncommitted_changes(package):
    commit = git(package, "rev-parse", "HEAD")
    assert code() == {"commit": commit, "dirty": False}
    (package.parents[1] / "notes.txt").touch()
    assert code() == {"commit": commit, "dirty": False}
    (package / "stages/new.py").touch()
    assert code() == {"commit": commit, "dirty": True}
    (package / "stages/new.py").unlink()
    (package / "__init__.py").write_text("changed = True\n")
    assert code() == {"commit": commit, "dirty": True}


def test_a_package_installed_into_somebody_elses_checkout_has_no_commit(package):
    git(package, "rm", "--cached", "__init__.py")
    git(package, "commit", "--message", "not ours")
    assert code() == {"commit": None, "dirty": None}


def test_an_artifact_names_everything_under_it_that_uncommitted_code_made(tmp_path):
    clean, dirty = {"commit": "a", "dirty": False}, {"commit": "a", "dirty": True}
    made = {"proposals": clean | {"dirty_inputs": ["data/d-1"]}, "prompts": dirty, "data": clean}
    inputs = {role: str(tmp_path / role) for role in made} | {"gone": str(tmp_path / "gone")}
    for role, provenance in made.items():
        Path(inputs[role]).mkdir()
        (Path(inputs[role]) / "provenance.json").write_text(json.dumps(provenance))
    job = Job(stage="train_system", key="k", output="x", inputs=inputs)
    assert describe(job)["dirty_inputs"] == sorted(["data/d-1", inputs["prompts"]])
    one_file = tmp_path / "evaluation.json"
    one_file.write_text(json.dumps({"provenance": dirty}))
    job = Job(stage="table", key="k", output="x", inputs={"deop/es20/0": str(one_file)})
    assert describe(job)["dirty_inputs"] == [str(one_file)]


def test_provenance_has_the_hash_of_each_input_by_role_and_what_computed_it(tmp_path):
    data, evaluation = tmp_path / "d-1", tmp_path / "evaluation.json"
    data.mkdir()
    (data / "provenance.json").write_text("{}")
    evaluation.write_text("{}")
    inputs = {"data": str(data), "deop/es20/0": str(evaluation), "gone": str(tmp_path / "gone")}
    job = Job(stage="table", key="k", output="x", inputs=inputs, weights={"clip": "0f" * 32})
    made = describe(job)
    empty = hashlib.sha256(b"{}").hexdigest()
    assert made["inputs"] == {
        "data": {"path": str(data), "sha256": empty},
        "deop/es20/0": {"path": str(evaluation), "sha256": empty},
        "gone": {"path": inputs["gone"], "sha256": None},
        "clip": {"sha256": "0f" * 32},
    }
    assert made["cpus"] >= 1 and made["memory_gib"] > 0 and made["platform"]
    assert made["packages"]["timm"] == version("timm")


def test_weights_of_the_package_are_inputs_of_what_is_made_from_them(root, config):
    config["clip"] |= {"pretrained": "bundled"}
    jobs = Plan(config, root).jobs.values()
    of_package = {
        name: json.loads((WEIGHTS / f"{name}.json").read_text())["sha256"]
        for name in ("deop-mini", "resnet10t")
    }
    for stage, role, name in (
        ("learn_prompts", "clip", "deop-mini"),
        ("build_system", "clip", "deop-mini"),
        ("train_proposals", "backbone", "resnet10t"),
    ):
        job = next(job for job in jobs if job.stage == stage)
        assert describe(job)["inputs"][role] == {"sha256": of_package[name]}


def test_a_stage_that_needs_no_torch_is_not_made_to_load_it():
    code = (
        "import sys, json\nfrom deop.jobs.artifacts import describe\nfrom deop.jobs.job import Job\n"
        "made = describe(Job(stage='table', key='k', output='x'))\n"
        "print(json.dumps([made['precision'], made['threads'], 'torch' in sys.modules]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"OMP_NUM_THREADS": "3"},
        capture_output=True,
        text=True,
    )
    assert json.loads(done.stdout) == ["fp32", 3, False], done.stderr
