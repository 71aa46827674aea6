"""docs/adding-an-ablation.md as it is printed: a YAML file makes a table and its plot."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs/adding-an-ablation.md"


@pytest.mark.slow
def test_the_ablation_of_the_page_is_planned(shipped):
    text = PAGE.read_text(encoding="utf-8")
    [profile] = re.findall(r"```yaml\n(.*?)```", text, re.S)
    (shipped.path / "config/depth.yaml").write_text(profile)
    printed = [line.partition(" #")[0] for line in re.findall(r"^snakemake .*", text, re.M)]
    assert len(printed) == 3
    table = {"prepare_data": 1, "build_system": 4, "evaluate": 4, "table": 1}
    for line, wanted in zip(printed, (table, table | {"figure": 1}, None), strict=True):
        arguments = [word for word in shlex.split(line)[1:] if word != "-n"]
        planned = shipped.planned(*arguments)
        assert wanted is None or planned == wanted
        # Nothing of it is trained, but for the CLIP of the tiny profile.
        assert planned["evaluate"] == 4 and not planned.keys() & {"train_system", "train_proposals"}
