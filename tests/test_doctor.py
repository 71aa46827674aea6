"""The doctor: what is wrong with a machine is found, named and has a remedy, before days are spent on it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import real_layouts
import torch
import yaml
from typer.testing import CliRunner

from deop.cli import app
from deop.data.downloads.sources import find_entry
from deop.jobs.job import Job
from deop.stages.train_proposals import ProposalStep
from deop.tools import doctor, trial_step
from deop.tools.doctor import Finding, examine
from deop.tools.trial_step import Trial, try_step

SOURCES = ("coco_train2017", "coco_val2017", "coco_stuffthingmaps")


@pytest.fixture
def profile(root: Path, config: dict, monkeypatch) -> Path:
    """A profile of COCO-Stuff in miniature, on the CPU; training steps take 2 seconds."""
    trial = Trial(seconds=2.0, idle_seconds=2.0, share=32, images=32, peak=0)
    monkeypatch.setattr(trial_step, "try_step", lambda *arguments, **more: trial)
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
    assert "2 s a step of 32 images: the one job takes 30 min" in found["train_proposals"].found


def test_a_busy_machine_is_told_and_the_hours_are_corrected_for_it(root, profile, monkeypatch):
    trial = Trial(seconds=2.0, idle_seconds=0.5, share=32, images=32, peak=0)
    monkeypatch.setattr(trial_step, "try_step", lambda *arguments, **more: trial)
    found = findings(root, profile)
    steps = found["train_proposals"]
    assert steps.status == "warn" and steps.remedy == "look again when nothing else runs"
    assert "the one job takes 7.5 min" in steps.found
    assert (
        "Other processes were running: steps took 2 s, of which this one had the CPU for 25%" in steps.found
    )
    assert "at this load they are 4.0 times as long" in steps.found
    assert "on a machine that does nothing else" in found["training"].found


def test_hours_grow_with_what_a_job_trains_on_and_jobs_run_side_by_side(root, config, monkeypatch):
    """Iterations x batch x pixels, of each CLIP apart; as many jobs at once as their threads leave room for."""
    monkeypatch.setattr(doctor, "_cores", lambda: 4)
    config["proposals"] |= {"iterations": 900, "per_dataset": {"es20": {"iterations": 450, "batch_size": 4}}}
    config["resources"]["train_proposals"]["threads"] = 2
    tried = []

    def try_one(job, classes, **more):
        tried.append((job.stage, job.settings.get("clip", {}).get("model"), classes, more["threads"]))
        return Trial(seconds=2.0, idle_seconds=2.0, share=8, images=8, peak=0)

    monkeypatch.setattr(trial_step, "try_step", try_one)
    mine = root / "mine.yaml"
    mine.write_text(yaml.safe_dump(config))
    found = findings(root, mine)
    proposals = found["train_proposals"].found
    assert "the longest of 2 jobs takes 30 min, all one after another 37.5 min" in proposals
    assert "2 side by side at least 30 min" in proposals
    assert set(tried) == {
        ("train_proposals", None, 1, 2),  # one seen class in this test's vocabularies
        *(("train_system", model, 1, 1) for model in ("deop-mini", "deop-mini-large")),
    }
    assert (
        "not counted: build_system, evaluate, learn_prompts, measure_speed, prepare_data"
        in found["training"].found
    )


def test_weights_that_the_model_does_not_have_fail_with_a_remedy(root, profile):
    """A variant's model inherits the tag of the profile, which it does not have."""
    values = yaml.safe_load(profile.read_text())
    values["clip"] = {"model": "deop-mini", "pretrained": "openai"}
    values["proposals"] |= {"backbone": "resnet999", "pretrained_backbone": True, "backbone_args": None}
    profile.write_text(yaml.safe_dump(values))
    found = findings(root, profile)
    assert found["CLIP deop-mini"].status == "fail"
    message = (
        "unknown weights 'openai' of CLIP model 'deop-mini'; valid: a path to .safetensors or .pt, bundled"
    )
    assert message in found["CLIP deop-mini"].found
    assert "clip.pretrained" in found["CLIP deop-mini"].remedy
    assert found["backbone resnet999"].status == "fail"
    assert "timm has no weights of backbone 'resnet999'; closest: " in found["backbone resnet999"].found


def test_a_network_that_cannot_be_built_fails_and_the_others_are_still_tried(root, profile, monkeypatch):
    """Such as severance of a layer that a tower of timm does not have, which no configuration file tells."""
    works = trial_step.try_step

    def try_one(job, *arguments, **more):
        if job.stage == "train_proposals":
            raise ValueError("the tower has 12 layers")
        return works(job, *arguments, **more)

    monkeypatch.setattr(trial_step, "try_step", try_one)
    found = findings(root, profile)
    assert found["train_proposals"].status == "fail"
    assert found["train_proposals"].found == "no step can be taken: the tower has 12 layers"
    assert found["train_system of deop"].status == "pass"
    assert (
        "not counted: build_system, download, evaluate, learn_prompts, prepare_data, train_proposals"
        in found["training"].found
    )


def test_folders_that_cannot_be_written_to_are_not_said_to_be_fit(root, profile):
    (root / "logs").write_text("a file in the place of a folder")
    found = findings(root, profile)
    assert found["logs/"].status == "fail" and "folders" not in found


@pytest.fixture
def small_job() -> Job:
    """A training of proposals whose dataset is not there."""
    proposals = {
        "backbone": "resnet10t",
        "backbone_args": {"channels": [8, 8, 16, 16]},
        "pretrained_backbone": "bundled",
        "queries": 4,
        "decoder_layers": 1,
        "width": 32,
        "ffn_width": 32,
        "heads": 2,
        "iterations": 1000,
        "batch_size": 16,
        "augmentation": {"crop": 64},
    }
    settings = {"proposals": proposals, "machine": {"micro_batch": 4}}
    return Job(stage="train_proposals", key="k", output="x", inputs={"data": "none"}, settings=settings)


def test_a_trial_is_the_stages_own_step(monkeypatch, small_job):
    """The whole batch in parts as configured, few segments an image, as many threads as the job has."""
    seen = []
    forward = ProposalStep.forward

    def watched(self, batch):
        classes = [len(label.unique()) for label in batch["label"]]
        seen.append((tuple(batch["image"].shape), max(classes), torch.get_num_threads()))
        return forward(self, batch)

    monkeypatch.setattr(ProposalStep, "forward", watched)
    before = torch.get_num_threads()
    trial = try_step(small_job, 150, processes=2, threads=before + 1, launch={}, seconds=0.0)
    assert (trial.share, trial.images, trial.peak) == (8, 4, 0)
    assert trial.seconds >= trial.idle_seconds > 0
    assert [shape for shape, _, _ in seen] == [(4, 3, 64, 64)] * 4  # two steps, each of two parts
    assert max(classes for _, classes, _ in seen) <= 8
    assert {threads for _, _, threads in seen} == {before + 1}
    assert torch.get_num_threads() == before


def test_a_step_that_would_try_ones_patience_is_extrapolated_from_one_image(monkeypatch, small_job):
    monkeypatch.setattr(trial_step, "QUICK_PIXELS", 1)
    monkeypatch.setattr(trial_step, "PATIENCE_S", 0.0)
    trial = try_step(small_job, 150, processes=1, threads=1, launch={}, seconds=0.0)
    assert (trial.share, trial.images) == (16, 1)


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
    (root / "changes.yaml").write_text("proposals: {class_term: {weight: 1.0}, ignored: background}")
    command = [sys.executable, "-m", "deop", "doctor", "config/tiny.yaml", "changes.yaml"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for stage in ("train_proposals", "train_system of deop", "train_system of simbaseline"):
        assert re.search(rf"^(pass|warn) {stage}.*: .* s a step of 2 images: the ", done.stdout, re.M)


def test_files_of_word_vectors_and_captions_that_are_not_there_fail(root, profile, tmp_path):
    values = yaml.safe_load(profile.read_text())
    gone = tmp_path / "gone.vec"
    values["experiments"] = {
        "words": {"method": "spnet", "word_vectors": [str(gone)]},
        "captions": {"method": "openseg", "more_captions": str(tmp_path / "gone.csv")},
    }
    rows = [{"label": name, "experiment": name} for name in values["experiments"]]
    values["tables"] = {
        "mine": {"caption": "x", "rows": rows, "datasets": ["coco_stuff"], "metrics": ["pAcc"]}
    }
    profile.write_text(yaml.safe_dump(values))
    found = findings(root, profile)
    words, captions = found["word vectors of spnet"], found["more captions"]
    assert (words.status, captions.status) == ("fail", "fail")
    assert "gone.vec is not there" in words.found and "methods.spnet.word_vectors" in words.remedy
    assert "gone.csv is not there" in captions.found and "more_captions" in captions.remedy
    assert (
        "coco.csv is not there" in found["captions"].found
        and "deop caption-words" in found["captions"].remedy
    )
