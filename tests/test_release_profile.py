"""config/release.yaml over config/paper.yaml: every choice of the release arrives in the jobs that it is for."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from deop.errors import ConfigError
from deop.jobs.job import Job
from deop.jobs.plan import Plan
from deop.settings.files import read_profile

ROOT = Path(__file__).parents[1]
PAPER, RELEASE = ROOT / "config/paper.yaml", ROOT / "config/release.yaml"


@pytest.fixture(scope="module")
def plans() -> tuple[Plan, Plan]:
    return tuple(Plan(read_profile(ROOT, *files), ROOT) for files in ([PAPER], [PAPER, RELEASE]))


def of(plan: Plan, table: str, role: str) -> tuple[Job, dict[str, Job]]:
    """The evaluation of a table in this role, and what it reads."""
    by_output = {job.output: job for job in plan.jobs.values()}
    job = by_output[plan.tables[table].inputs[role]]
    return job, {role: by_output[path] for role, path in job.inputs.items()}


def test_the_choices_of_the_release_arrive(plans):
    deop, read = of(plans[1], "table3", "deop/coco/0")
    proposals, segmentation = read["proposals"], read["segmentation"]
    assert deop.settings["clip"]["normalisation"] == "imagenet"
    assert deop.settings["network"]["severance"] | {"rows": None} == {
        "kind": "mask_sum",
        "alpha": {"-2": 0.0, "-1": 1.0},
        "rows": None,
    }
    assert (
        deop.settings["evaluation"]["size_divisibility"],
        deop.settings["evaluation"]["upsample"],
    ) == (
        32,
        "scores",
    )
    assert (
        segmentation.settings["segmentation"]["loss"],
        segmentation.settings["segmentation"]["batch_size"],
    ) == (
        "release",
        16,
    )
    assert proposals.settings["proposals"]["ignored"] == "background"
    assert (
        proposals.settings["proposals"]["decay_biases"]
        and segmentation.settings["segmentation"]["decay_biases"]
    )
    assert read["prompts"].settings["prompts"]["crop_fill"] == "release"
    assert read["data"].settings["dataset"]["names"] == "original"
    assert of(plans[1], "table2", "deop/a150/0")[1]["data"].settings["dataset"]["names"] == "detectron2"
    for system in ("simbaseline", "zegformer"):
        network = of(plans[1], "table1", f"{system}/coco/0")[0].settings["network"]
        assert network["crop_resampling"] == "release"
    assert proposals.settings["proposals"]["class_term"] == {
        "weight": 1.0,
        "no_object_weight": 0.1,
        "head_hidden": [1024],
    }
    # The class term compares queries with names in the prompt that DeOP starts from.
    assert proposals.inputs["prompts"] == deop.inputs["prompts"] and "clip" in proposals.settings
    assert proposals.settings["proposals"]["batch_size"] == 32
    _, read = of(plans[1], "table3", "deop/voc/0")
    assert read["proposals"].settings["proposals"]["batch_size"] == 16
    mps, gps = (
        of(plans[1], "table4", f"{name}/coco/0")[0].settings["network"] for name in ("mps", "gps_0_1")
    )
    assert mps["severance"]["rows"] == "softmax" and gps["severance"]["kind"] == "gps"
    assert plans[1].tables["table3"].settings["table"]["profile"] == "release"


def test_the_paper_comes_without_them(plans):
    deop, read = of(plans[0], "table3", "deop/coco/0")
    network, evaluation = deop.settings["network"], deop.settings["evaluation"]
    assert network["severance"]["kind"] == "gps" and deop.settings["clip"]["normalisation"] == "clip"
    assert (evaluation["size_divisibility"], evaluation["upsample"]) == (1, "masks")
    assert read["segmentation"].settings["segmentation"]["loss"] == "labelled"
    proposals = read["proposals"].settings
    assert proposals["proposals"]["ignored"] == "excluded" and proposals["proposals"]["class_term"] is None
    # Where the paper is silent and the release is followed.
    assert proposals["proposals"]["dropout"] == 0.1 and not proposals["proposals"]["decay_biases"]
    assert "prompts" not in proposals and "prompts" not in read["proposals"].inputs
    assert of(plans[0], "table4", "mps/coco/0")[0].settings["network"]["severance"]["rows"] == "share"


def test_how_images_are_padded_is_no_reason_to_train_again(plans):
    after = read_profile(ROOT, PAPER)
    after["evaluation"] |= {"size_divisibility": 32, "upsample": "scores"}
    after["network"]["severance"] |= {"rows": "softmax"}  # nor are the rows of MPS, which is never trained
    changed = {stage for stage, _ in Plan(after, ROOT).jobs.keys() - plans[0].jobs.keys()}
    assert changed == {"evaluate", "measure_speed", "table", "claims", "figure", "picture"}


def test_the_class_term_is_no_setting_of_systems_with_a_class_head(plans):
    after = read_profile(ROOT, PAPER)
    after["proposals"] |= {"class_term": {"weight": 1.0}}
    changed = {stage for stage, _ in Plan(after, ROOT).jobs.keys() - plans[0].jobs.keys()}
    assert "train_proposals" in changed and "train_multipass" not in changed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            "experiments: {doep: {}}",
            "config: experiments: unknown experiment 'doep'; valid: baseline, .*deop",
        ),
        (
            "evaluation: {upsample: both}",
            "evaluation.upsample: unknown value 'both'; valid: 'masks' or 'scores'",
        ),
        ("evaluation: {size_divisibility: 0}", r"evaluation.size_divisibility: .* greater than 0 \(got 0\)"),
        (
            "segmentation: {loss: focal}",
            "segmentation.loss: unknown value 'focal'; valid: 'labelled' or 'release'",
        ),
        (
            "proposals: {ignored: in}",
            "proposals.ignored: unknown value 'in'; valid: 'excluded' or 'background'",
        ),
        ("proposals: {class_term: {weight: 0}}", r"proposals.class_term.weight: .* greater than 0 \(got 0\)"),
        (
            "network: {severance: {rows: sum}}",
            "network.severance.rows: unknown value 'sum'; valid: 'share' or",
        ),
    ],
)
def test_choices_that_there_are_not(tmp_path, changes, message):
    path = tmp_path / "changes.yaml"
    path.write_text(changes)
    assert yaml.safe_load(changes)
    with pytest.raises(ConfigError, match=f"^config error: .*{message}"):
        Plan(read_profile(ROOT, PAPER, path), ROOT)
