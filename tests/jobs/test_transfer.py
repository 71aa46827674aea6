"""Systems that are tested on a dataset that they were not trained on: with which settings of their method."""

from __future__ import annotations

import pytest

from deop.jobs.job import Job
from deop.jobs.plan import Plan


@pytest.fixture
def plan(root, config) -> Plan:
    """Systems of es171, tested on om20, for which the profile has settings of its own."""
    config["network"] = config["network"] | {
        "per_dataset": {"om20": {"visual_prompt_grid": 7, "renormalise_pooled": False}}
    }
    config["methods"]["simbaseline"] = {
        "ensemble_weight": 0.8,
        "per_dataset": {"om20": {"ensemble_weight": 0.4, "crop_templates": "vild", "class_weight": 2.0}},
    }
    rows = [{"label": name, "experiment": name} for name in ("deop", "simbaseline")]
    table = {"caption": "Transfer", "rows": rows, "datasets": ["es171", "om20"], "metrics": ["mIoU"]}
    config["tables"] = {"moved": table | {"trained_on": "es171"}}
    return Plan(config, root)


def evaluation(plan: Plan, experiment: str, dataset: str) -> Job:
    by_output = {job.output: job for job in plan.jobs.values()}
    return by_output[plan.tables["moved"].inputs[f"{experiment}/{dataset}/0"]]


def test_a_transfer_tests_the_very_system_that_is_tested_at_home(plan):
    for experiment in ("deop", "simbaseline"):
        home, moved = (evaluation(plan, experiment, dataset) for dataset in ("es171", "om20"))
        assert home.inputs["system"] == moved.inputs["system"]
        assert home.inputs["data"] != moved.inputs["data"]
        assert "transfer" not in home.settings and "tested" not in home.settings
        assert moved.settings["transfer"] == {"trained_on": "es171"}


def test_it_takes_the_settings_of_where_it_is_tested_that_training_does_not_depend_on(plan):
    tested = evaluation(plan, "simbaseline", "om20").settings["tested"]
    assert tested == {"ensemble_weight": 0.4, "crop_templates": "vild"}
    # All of DeOP's matter in training, so a trained one keeps those that it was trained with.
    assert "tested" not in evaluation(plan, "deop", "om20").settings
