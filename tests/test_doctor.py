"""The doctor: what is wrong with a machine is found, named and has a remedy, before days are spent on it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import real_layouts
import yaml
from typer.testing import CliRunner

from deop import doctor, trial_step
from deop.cli import app
from deop.data.sources import find_entry
from deop.doctor import Finding, examine
from deop.trial_step import Trial

SOURCES = ("coco_train2017", "coco_val2017", "coco_stuffthingmaps")


@pytest.fixture
def profile(root: Path, config: dict, monkeypatch) -> Path:
    """A profile of COCO-Stuff in miniature, on the CPU; training steps take 2 seconds."""
    monkeypatch.setattr(trial_step, "try_step", lambda *arguments: Trial(2.0, 4, 0))
    real_layouts.write_coco_stuff(root / "raw")
    holds = {
        name: {pattern: len(list((root / "raw").glob(pattern))) for pattern in find_entry(name).holds}
        for name in SOURCES
    }
    values = yaml.safe_load((root / "config/paper.yaml").read_text())
    values["clip"] = {"model": "deop-mini", "pretrained": "random"}
    values["proposals"] |= {"pretrained_backbone": False, "per_dataset": None, "iterations": 900}
    values["datasets"] = dict.fromkeys([*config["datasets"], *values["datasets"]])
    values["datasets"]["coco"] = {"stands_for": "coco_stuff", "kind": "coco_stuff"}
    values["data"] = {"root": "raw", "sources": {name: {"holds": holds[name]} for name in SOURCES}}
    values["accelerate"], values["precision"] = "single", "fp32"
    values["resources"] = {}
    path = root / "config/paper.yaml"
    path.write_text(yaml.safe_dump(values))
    tables = yaml.safe_load((root / "config/tables.yaml").read_text())
    row = {"label": "DeOP", "experiment": "deop"}
    table = {"caption": "One", "rows": [row], "datasets": ["coco_stuff"], "metrics": ["hIoU"]}
    tables |= {"tables": {"one": table}, "figures": {}, "pictures": {}, "claims": []}
    (root / "config/tables.yaml").write_text(yaml.safe_dump(tables))
    return path


def findings(root: Path, profile: Path) -> dict[str, Finding]:
    return {finding.subject: finding for finding in examine(root, profile)}


def test_a_fit_machine_passes(root, profile):
    found = findings(root, profile)
    assert {finding.status for finding in found.values()} == {"pass"}, found
    assert set(SOURCES) < set(found) and "CLIP deop-mini" in found and "backbone resnet101s" in found
    # 900 steps of 2 seconds
    assert "the longest job takes 0.5 h" in found["train_proposals"].found


def test_what_is_missing_is_named_with_a_remedy(root, profile, monkeypatch, file_server):
    values = yaml.safe_load(profile.read_text())
    values["clip"]["pretrained"] = str(root / "gone.pt")
    (root / "raw/coco/val2017/000000000010.jpg").unlink()
    for path in (root / "raw/coco/train2017").iterdir():
        path.unlink()
    values["data"]["sources"]["coco_train2017"] |= {"urls": [file_server.url("gone.zip")], "bytes": 10**15}
    profile.write_text(yaml.safe_dump(values))
    monkeypatch.setattr(doctor, "PYTHON", (4, 0))
    found = findings(root, profile)
    failed = {subject: finding for subject, finding in found.items() if finding.status == "fail"}
    assert set(failed) == {"Python", "coco_val2017", "coco_train2017", "disk", "CLIP deop-mini"}
    assert all(finding.remedy for finding in failed.values())
    assert "3 of 4 files" in failed["coco_val2017"].found
    assert "gone.zip: answers 404" in failed["coco_train2017"].found
    assert "data.sources.coco_train2017.mirrors" in failed["coco_train2017"].remedy
    assert "gone.pt is not there" in failed["CLIP deop-mini"].found


def test_a_bad_configuration_ends_it_in_one_line(root, profile):
    values = yaml.safe_load(profile.read_text())
    values["evaluation"]["short_syde"] = 1
    profile.write_text(yaml.safe_dump(values))
    found = findings(root, profile)
    assert (
        found["configuration"].status == "fail" and "unknown key 'short_syde'" in found["configuration"].found
    )
    assert "train_proposals" not in found


def test_the_command_says_by_its_status_whether_all_is_well(root, profile, monkeypatch):
    monkeypatch.chdir(root)
    done = CliRunner().invoke(app, ["doctor", str(profile)])
    assert done.exit_code == 0 and "fail" not in done.stdout
    monkeypatch.setattr(doctor, "PYTHON", (4, 0))
    done = CliRunner().invoke(app, ["doctor", str(profile)])
    assert (
        done.exit_code == 1
        and done.stdout.startswith("fail Python: 3.")
        and "to do: use Python 4.0" in done.stdout
    )


@pytest.mark.slow
def test_steps_are_really_taken(root):
    """With random weights and made-up images; in a process of its own, for Accelerate is set up once in each."""
    command = [sys.executable, "-m", "deop", "doctor", "config/tiny.yaml"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for stage in ("train_proposals", "train_segmentation"):
        assert re.search(rf"^pass {stage}: .* s a step \(1 images at once\)", done.stdout, re.M)
