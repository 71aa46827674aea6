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
    """The system that a table shows in this role, and the jobs that it and its evaluation are made from."""
    by_output = {job.output: job for job in plan.jobs.values()}
    evaluation = by_output[plan.tables[table].inputs[role]]
    system = by_output[evaluation.inputs["system"]]
    of_system = {role: by_output[path] for role, path in system.inputs.items()}
    return system, of_system | {"evaluation": evaluation, "tested_on": by_output[evaluation.inputs["data"]]}


def test_the_choices_of_the_release_arrive(plans):
    deop, read = of(plans[1], "table3", "deop/coco/0")
    proposals, segmentation, evaluation = read["proposals"], read["trained"], read["evaluation"]
    assert deop.settings["clip"]["normalisation"] == "imagenet"
    assert deop.settings["method"]["severance"] | {"rows": None} == {
        "kind": "mask_sum",
        "alpha": {"-2": 0.0, "-1": 1.0},
        "rows": None,
    }
    assert (
        evaluation.settings["evaluation"]["size_divisibility"],
        evaluation.settings["evaluation"]["upsample"],
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
    assert of(plans[1], "table2", "deop/a150/0")[1]["tested_on"].settings["dataset"]["names"] == "detectron2"
    for system in ("simbaseline", "zegformer"):
        network = of(plans[1], "table1", f"{system}/coco/0")[0].settings["method"]
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
    mps, gps = (of(plans[1], "table4", f"{name}/coco/0")[0].settings["method"] for name in ("mps", "gps_0_1"))
    assert mps["severance"]["rows"] == "softmax" and gps["severance"]["kind"] == "gps"
    assert plans[1].tables["table3"].settings["table"]["profile"] == "release"


def test_the_paper_comes_without_them(plans):
    deop, read = of(plans[0], "table3", "deop/coco/0")
    network, evaluation = deop.settings["method"], read["evaluation"].settings["evaluation"]
    assert network["severance"]["kind"] == "gps" and deop.settings["clip"]["normalisation"] == "clip"
    assert (evaluation["size_divisibility"], evaluation["upsample"]) == (1, "masks")
    assert read["trained"].settings["segmentation"]["loss"] == "labelled"
    proposals = read["proposals"].settings
    assert proposals["proposals"]["ignored"] == "excluded" and proposals["proposals"]["class_term"] is None
    # Where the paper is silent and the release is followed.
    assert proposals["proposals"]["dropout"] == 0.1 and not proposals["proposals"]["decay_biases"]
    assert "prompts" not in proposals and "prompts" not in read["proposals"].inputs
    assert of(plans[0], "table4", "mps/coco/0")[0].settings["method"]["severance"]["rows"] == "share"


def test_how_images_are_padded_is_no_reason_to_train_again(plans):
    after = read_profile(ROOT, PAPER)
    after["evaluation"] |= {"size_divisibility": 32, "upsample": "scores"}
    after["network"]["severance"] |= {"rows": "softmax"}  # nor are the rows of MPS, which is never trained
    changed = {stage for stage, _ in Plan(after, ROOT).jobs.keys() - plans[0].jobs.keys()}
    assert changed == {"build_system", "evaluate", "measure_speed", "table", "claims", "figure", "picture"}


def test_the_class_term_is_no_setting_of_systems_with_a_class_head(plans):
    after = read_profile(ROOT, PAPER)
    after["proposals"] |= {"class_term": {"weight": 1.0}}
    changed = {stage for stage, _ in Plan(after, ROOT).jobs.keys() - plans[0].jobs.keys()}
    assert "train_proposals" in changed
    # Those of DeOP are trained again, on other proposals.
    by_key = Plan(after, ROOT).jobs
    trained = [by_key[of] for of in by_key.keys() - plans[0].jobs.keys() if of[0] == "train_system"]
    assert {job.settings["method"]["method"] for job in trained} == {"deop"}


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
