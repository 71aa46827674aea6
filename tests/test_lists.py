"""Lists that are written down twice, in dvc.yaml, the rules or the settings, agree with each other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from deop.cli import STAGES
from deop.jobs.plan import LAUNCHED, Plan
from deop.settings.benchmarks import BENCHMARKS
from deop.settings.configuration import Configuration
from deop.settings.files import MainFile, Resources, read_profile
from deop.tools.published import published

ROOT = Path(__file__).parents[1]
DVC = yaml.safe_load((ROOT / "dvc.yaml").read_text())
CONFIG = yaml.safe_load((ROOT / "config/config.yaml").read_text())
NOT_IN_RESULTS = {"data", "accelerate", "resources"}
"""Sections that say where data lies and how jobs run."""
OF_PROFILES = {"experiments", "tables", "figures", "pictures"}
"""Sections by which profiles change other files, which DVC watches themselves."""


def test_dvc_has_a_stage_for_each_benchmark() -> None:
    assert DVC["stages"]["benchmark"]["foreach"] == [
        name for name in BENCHMARKS if name in CONFIG["benchmark"]
    ]


def watched(stage: str) -> dict[str, set[str]]:
    """By file, the parameters that DVC watches for a stage."""
    description = DVC["stages"][stage]
    found: dict[str, set[str]] = {}
    for entry in description.get("do", description)["params"]:
        for path, names in entry.items():
            found.setdefault(path, set()).update(names)
    return found


@pytest.mark.parametrize("stage", [name for name in DVC["stages"] if name != "benchmark"])
def test_dvc_watches_every_section_that_results_depend_on(stage: str) -> None:
    sections = set(MainFile.model_fields) - NOT_IN_RESULTS - OF_PROFILES
    # Of the others, figures alone may show a benchmark.
    expected = sections if stage == "figure" else sections - {"benchmark"}
    assert watched(stage)["config/config.yaml"] == expected


def test_every_stage_has_resources_and_one_rule() -> None:
    assert set(Resources.model_fields) == set(STAGES)
    assert set(LAUNCHED) <= set(STAGES)
    rules = [path.read_text() for path in (ROOT / "workflow/rules").glob("*.smk")]
    commands = [
        found
        for text in rules
        for found in re.findall(r"^ +\"(?:deop|\{params\.launch\}) ([\w-]+) ", text, re.M)
    ]
    assert sorted(commands) == sorted(stage.replace("_", "-") for stage in STAGES)


def test_all_that_readers_get_is_published() -> None:
    values = read_profile(ROOT)
    plan = Plan(values, ROOT)
    made = {Path(job.output).with_suffix("") for jobs in plan.named.values() for job in jobs.values()}
    assert {Path(path).with_suffix("") for path in published(Configuration(values, ROOT))} == made


def test_every_rule_file_is_included() -> None:
    included = re.findall(r'^include: "workflow/rules/(.+)"$', (ROOT / "Snakefile").read_text(), re.M)
    assert sorted(included) == sorted(path.name for path in (ROOT / "workflow/rules").glob("*.smk"))
