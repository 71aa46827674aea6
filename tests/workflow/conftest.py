"""Copies of the workflow in temporary folders, with stand-ins for the stages that take no time."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
GIT_IDENTITY = [f"GIT_{who}_{what}" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")]
VOCABULARIES = {
    "es171": {"things": ["dog", "cow"], "stuff": ["grass", "sky"], "unseen": ["cow", "sky"]},
    "es20": {"things": ["dog", "cow", "rabbit"], "unseen": ["cow"]},
}


class Workflow:
    """Runs Snakemake and DVC in ``path``; configuration files are changed there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        bin_folder = path / ".bin"
        bin_folder.mkdir()
        stand_in = Path(__file__).parent / "stand_in.py"
        for name in ("deop", "accelerate"):
            script = bin_folder / name
            script.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{stand_in}" "$@"\n')
            script.chmod(0o755)
        tools = Path(sys.executable).parent
        self.environment = os.environ | {
            "PATH": f"{bin_folder}:{tools}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT / "src"),
            # Identity and settings of whoever runs the tests must not matter.
            "HOME": str(path / ".home"),
            "DVC_NO_ANALYTICS": "true",
            **dict.fromkeys(GIT_IDENTITY, "test@example.org"),
        }
        (path / ".home").mkdir()

    def run(self, *command: str, status: int = 0) -> str:
        """What a command prints (both streams); fails the test unless it ends with ``status``."""
        both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        done = subprocess.run(command, cwd=self.path, env=self.environment, text=True, **both)
        assert done.returncode == status, f"{command} ended with {done.returncode}:\n{done.stdout}"
        return done.stdout

    def snakemake(self, *arguments: str, status: int = 0) -> str:
        return self.run("snakemake", "--cores", "2", *arguments, status=status)

    def planned(self, *arguments: str) -> dict[str, int]:
        """Number of jobs by rule that a dry run announces; empty if there is nothing to be done."""
        output = self.snakemake(*arguments, "--dry-run", "--quiet", "rules")
        stats = output.partition("Job stats:")[2].partition("\n\n")[0]
        counts = dict(re.findall(r"^(\w+) +(\d+)$", stats, re.M))
        return {name: int(count) for name, count in counts.items() if name != "total"}

    def ran(self) -> list[str]:
        """The stages that ran since the last call, in order."""
        log = self.path / "ran.txt"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return [line.split()[0] for line in lines]

    def edit(self, name: str, **changes: object) -> None:
        """Set values of a file in ``config/``; keys are dotted, with ``__`` for the dot."""
        path = self.path / "config" / name
        values = yaml.safe_load(path.read_text())
        for key, value in changes.items():
            *parents, last = key.split("__")
            place = values
            for parent in parents:
                place = place[parent]
            place[last] = value
        path.write_text(yaml.safe_dump(values, sort_keys=False))

    def table(self) -> dict:
        return json.loads((self.path / "results/table3.json").read_text())


@pytest.fixture
def shipped(tmp_path: Path) -> Workflow:
    """The repository's workflow and configuration as they are."""
    for name in ("workflow", "profiles", "config", ".dvc"):
        machine_only = shutil.ignore_patterns("tmp", "cache", "config.local")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=machine_only)
    for name in ("Snakefile", "environment.yml", "dvc.yaml", ".dvcignore", ".gitignore"):
        shutil.copy(ROOT / name, tmp_path)
    # For DVC to watch; the plan uses the package's own.
    weights = tmp_path / "src/deop/models/weights"
    weights.mkdir(parents=True)
    (weights / "deop-mini.json").write_text("{}")
    (tmp_path / "src/deop/jobs").mkdir()
    shutil.copy(ROOT / "src/deop/jobs/revisions.py", tmp_path / "src/deop/jobs")
    return Workflow(tmp_path)


@pytest.fixture
def workflow(shipped: Workflow) -> Workflow:
    """The same with small vocabularies, one seed and a CLIP that is trained."""
    for name, vocabulary in VOCABULARIES.items():
        (shipped.path / "config/vocabularies" / f"{name}.yaml").write_text(yaml.safe_dump(vocabulary))
    shipped.edit("config.yaml", clip__retrain=True, seeds=[0])
    return shipped
