"""Provenance: which code made an artifact, and what it rests on."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from deop.jobs import artifacts
from deop.jobs.artifacts import code_version, describe
from deop.jobs.job import Job


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


def version() -> dict:
    return code_version.__wrapped__()  # it is asked once in a process


def test_changed_and_new_modules_are_uncommitted_changes(package):
    commit = git(package, "rev-parse", "HEAD")
    assert version() == {"commit": commit, "dirty": False}
    (package.parents[1] / "notes.txt").touch()
    assert version() == {"commit": commit, "dirty": False}
    (package / "stages/new.py").touch()
    assert version() == {"commit": commit, "dirty": True}
    (package / "stages/new.py").unlink()
    (package / "__init__.py").write_text("changed = True\n")
    assert version() == {"commit": commit, "dirty": True}


def test_a_package_installed_into_somebody_elses_checkout_has_no_commit(package):
    git(package, "rm", "--cached", "__init__.py")
    git(package, "commit", "--message", "not ours")
    assert version() == {"commit": None, "dirty": None}


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
