"""What enters the key of a job, and what does not."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
from test_plan import jobs, new_jobs

from deop.errors import ConfigError
from deop.jobs.job import Job
from deop.jobs.plan import Plan
from deop.settings.configuration import Configuration

ROOT = Path(__file__).parents[1]


def name_in(job: Job) -> str:
    """The name in a job's output, before its key."""
    return Path(job.output).stem.rpartition("-")[0]


def test_layers_are_quoted_or_not_and_a_profile_may_differ_from_the_defaults(root, config, edit):
    """The shipped files quote them because DVC's reader refuses integer keys."""
    alpha = config["network"]["severance"]["alpha"]
    assert alpha == {"-2": 1, "-1": 1}
    experiments = root / "config/experiments.yaml"
    before = Plan(config, root)
    edit(experiments, "experiments", "gps_05_1", "severance", "alpha", to={-2: 0.5, -1: 1})
    assert set(Plan(config, root).jobs) == set(before.jobs)
    # What Snakemake makes of a profile with integer keys put over the defaults: both spellings, the profile's last.
    spellings = ({"-2": None, "-1": 1}, alpha | {-2: None, -1: 1})
    plans = []
    for spelling in spellings:
        config["network"]["severance"] = {"alpha": spelling}
        plans.append(set(Plan(config, root).jobs))
        networks = Configuration(config, root).experiments
        assert networks["gps"]["es171"].severance.alpha == {-1: 1}
    assert plans[0] == plans[1] != set(before.jobs)
    config["network"]["severance"] = {"alpha": {"last": 1}}
    with pytest.raises(ConfigError, match=r"network\.severance\.alpha\.last.*integer.*'last'"):
        Plan(config, root)


def test_names_on_disk_are_for_readers_and_only_the_key_counts(root, config, edit):
    """Renaming an experiment costs no training, and an interrupted one resumes."""
    before = Plan(config, root)
    trained, evaluated = (
        next(job for job in before.jobs.values() if (job.stage, name_in(job)) == (stage, "es171-deop-seed0"))
        for stage in ("train_system", "evaluate")
    )
    (root / f"{trained.output}.partial").mkdir(parents=True)
    renamed = (root / "config/experiments.yaml").read_text().replace("  deop:", "  ours:")
    (root / "config/experiments.yaml").write_text(renamed)
    layouts = (root / "config/tables.yaml").read_text()
    (root / "config/tables.yaml").write_text(re.sub(r"\bdeop\b", "ours", layouts))
    after = Plan(config, root)
    assert set(new_jobs(before, after)) == {"measure_speed", "table", "claims", "figure"}
    assert after.jobs[trained.stage, trained.key].output == trained.output
    other = after.jobs[evaluated.stage, evaluated.key]
    (system,) = (job for job in after.jobs.values() if job.output == other.inputs["system"])
    assert name_in(other) == "es171-ours-seed0" and system.inputs["trained"] == trained.output
    # A finished artifact counts before an interrupted one.
    finished = f"checkpoints/training/es171-a-seed0-{trained.key}"
    (root / finished).mkdir()
    again = Plan(config, root)
    assert again.jobs[trained.stage, trained.key].output == finished
    assert jobs(again) == jobs(after)


def test_what_a_machine_has_room_for_is_told_and_changes_no_key(root, config):
    before, machine = Plan(config, root), {"micro_batch": 2, "gradient_checkpointing": True}
    config["resources"]["train_system"] |= machine
    after = Plan(config, root)
    assert jobs(before) == jobs(after)
    for (stage, key), job in after.jobs.items():
        told = {"machine": machine} if stage == "train_system" else {}
        assert job.settings == before.jobs[stage, key].settings | told
    del config["resources"]["train_system"]["gradient_checkpointing"]
    config["resources"]["train_proposals"]["gradient_checkpointing"] = True
    with pytest.raises(ConfigError, match=r"resources.train_proposals: unknown key 'gradient_checkpointing'"):
        Plan(config, root)


def test_seeds_enter_only_what_draws_random_numbers(root, config):
    first, second = Plan(config, root), Plan(config | {"seeds": [1]}, root)
    shared = {stage for stage, _ in jobs(first) & jobs(second)}
    assert shared == {"prepare_data", "benchmark"}  # nothing trained is measured there
    assert {job.seed for job in second.jobs.values() if job.stage in ("train_proposals", "evaluate")} == {1}


def test_keys_follow_meaning_not_spelling(root, config, edit):
    before = Plan(config, root)
    spelled = copy.deepcopy(config)
    spelled["segmentation"] = dict(reversed(spelled["segmentation"].items()))
    spelled["segmentation"]["lr"] = str(spelled["segmentation"]["lr"])
    spelled["segmentation"]["focal_gamma"] = 2  # the default, said aloud
    spelled["resources"] = {}
    assert jobs(before) == jobs(Plan(spelled, root))
    edit(root / "config/tables.yaml", "tables", "table3", "rows", 0, "label", to="Plain")
    assert new_jobs(before, Plan(config, root)) == {"table": 1, "claims": 1, "figure": 2}


def test_files_that_a_method_reads_count_by_their_size(root, config, tmp_path):
    vectors, captions = tmp_path / "words.vec", root / "captions.csv"
    config["experiments"] = {
        "spnet": {"word_vectors": [str(vectors)]},
        "openseg": {"captions": "captions.csv"},
        "openseg_more": {"more_captions": "captions.csv"},
    }
    before = Plan(config, root)
    vectors.write_text("1 2\ndog 0 1\n")
    captions.write_text("image,words\na.png,dog\n")
    after = Plan(config, root)
    changed = {name_in(job) for job in after.jobs.values() if job.stage == "train_system"} - {
        name_in(job) for key, job in after.jobs.items() if key in before.jobs
    }
    assert changed and all(re.search("spnet|openseg", name) for name in changed)
    assert jobs(after) == jobs(Plan(config, root))
    captions.write_text("image,words\na.png,cow;grass\n")
    again = {name_in(job) for key, job in Plan(config, root).jobs.items() if key not in after.jobs}
    assert any("openseg" in name for name in again) and not any("spnet" in name for name in again)


def test_weights_in_a_file_count_by_their_content(root, config, tmp_path):
    weights, backbone = tmp_path / "clip.safetensors", tmp_path / "backbone.safetensors"
    weights.write_bytes(b"1234")
    backbone.write_bytes(b"abcd")
    config["clip"] |= {"pretrained": str(weights), "retrain": False, "quick_gelu": False}
    config["proposals"] |= {"pretrained_backbone": str(backbone)}
    before = Plan(config, root)
    assert jobs(before) == jobs(Plan(config, root))
    weights.write_bytes(b"1235")
    other_clip = Plan(config, root)
    changed = new_jobs(before, other_clip)
    assert {"learn_prompts", "build_system"} <= set(changed) and "train_proposals" not in changed
    backbone.write_bytes(b"abce")
    assert "train_proposals" in new_jobs(other_clip, Plan(config, root))
