"""Revisions of stages, and the check that reminds people to raise them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from deop.cli import STAGES
from deop.errors import DeopError
from deop.jobs import jobs
from deop.jobs.plan import Plan
from deop.jobs.revisions import REVISIONS
from deop.tools.revisions import LOADED_BY_NAME, StageCode

PACKAGE = Path(__file__).parents[1] / "src/deop"


def test_the_record_is_up_to_date():
    """If this fails, its message says what to do."""
    StageCode(PACKAGE, REVISIONS).check()


def test_every_stage_has_a_revision():
    assert set(REVISIONS) == set(STAGES)


def test_a_raised_revision_renames_what_the_stage_makes_and_all_that_is_made_from_it(
    root, config, monkeypatch
):
    before = Plan(config, root)
    monkeypatch.setitem(jobs.REVISIONS, "train_proposals", REVISIONS["train_proposals"] + 1)
    kept = {stage for stage, _ in set(before.jobs) & set(Plan(config, root).jobs)}
    assert {"prepare_data", "learn_prompts", "benchmark"} <= kept
    assert not kept & {"train_proposals", "table", "claims", "picture"}


@pytest.mark.parametrize("stage", ["table", pytest.param("evaluate", marks=pytest.mark.slow)])
def test_what_python_imports_for_a_stage_is_found_in_its_source(stage):
    code = StageCode(PACKAGE, REVISIONS)
    program = f"import sys, deop.stages.{stage}; print(*(name for name in sys.modules if name[:4] == 'deop'))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) <= set(code.modules_of(stage))


def test_methods_that_are_loaded_by_name_are_found():
    code = StageCode(PACKAGE, REVISIONS)
    assert "deop.methods.zegformer" in code.modules_of("evaluate")
    assert "deop.methods.zegformer" not in code.modules_of("table")


def test_no_other_module_is_loaded_by_name():
    """A module that imports others by name must be known to the check, which reads import statements alone."""
    code = StageCode(PACKAGE, REVISIONS)
    run = {name for stage in REVISIONS for name in code.modules_of(stage)}
    loading = {
        name
        for name in run
        for path in (PACKAGE.parent / f"{name.replace('.', '/')}.py",)
        if path.exists() and re.search(r"\bimport_module\(|__import__\(", path.read_text())
    }
    assert loading == {"deop.settings.methods"}
    assert set(LOADED_BY_NAME) == {"method_class"}


FILES = {
    "__init__.py": "",
    "stages/__init__.py": "",
    "jobs/__init__.py": "",
    "stages/train.py": "from lab.shared import step\n\n\ndef run():\n    return step(2)\n",
    "stages/table.py": '"""Writes a table."""\n\n\ndef run():\n    import lab.text\n\n    return lab.text.WIDTH\n',
    "shared.py": '"""Shared."""\n\n\ndef step(x):\n    """Doubles x."""\n    return x + x\n',
    "text.py": "WIDTH = 8\n",
    "unused.py": "X = 1\n",
}


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    """A package with two stages, recorded."""
    for name, text in FILES.items():
        path = tmp_path / "lab" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    code = StageCode(tmp_path / "lab", {"train": 1, "table": 1})
    with pytest.raises(DeopError, match="train: not recorded yet"):
        code.check()
    code.write(same_results=False)
    code.check()
    return tmp_path / "lab"


def test_docstrings_comments_layout_and_other_modules_do_not_count(lab):
    (lab / "shared.py").write_text('"""Other words."""\n# Why.\ndef step( x ):\n    return (x+x)\n')
    (lab / "unused.py").write_text("X = 2\n")
    StageCode(lab, {"train": 1, "table": 1}).check()


def test_changed_code_is_recorded_with_a_raised_revision_or_on_ones_word(lab):
    (lab / "shared.py").write_text("def step(x):\n    return 2 * x\n")
    (lab / "text.py").write_text("WIDTH = 9\n")
    unraised = StageCode(lab, {"train": 1, "table": 1})
    with pytest.raises(DeopError) as check:
        unraised.check()
    message = str(check.value)
    assert "train: revision still 1, but the code changed: lab.shared" in message
    assert "table: revision still 1, but the code changed: lab.text" in message
    assert "lab/jobs/revisions.py" in message and "--record --same-results" in message
    with pytest.raises(DeopError, match="train: revision still 1"):
        unraised.write(same_results=False)

    one_raised = StageCode(lab, {"train": 1, "table": 2})
    with pytest.raises(DeopError, match="train: revision still 1"):
        one_raised.write(same_results=False)
    one_raised.write(same_results=True)
    one_raised.check()
    with pytest.raises(DeopError, match="table: recorded with revision 2, now 1; numbers only go up"):
        StageCode(lab, {"train": 1, "table": 1}).write(same_results=True)

    # A revision may rise without a change of code, such as for another data file; that is recorded too.
    both_raised = StageCode(lab, {"train": 2, "table": 2})
    with pytest.raises(DeopError, match="train: recorded with revision 1, now 2"):
        both_raised.check()
    both_raised.write(same_results=False)
    assert json.loads(both_raised.record.read_text())["stages"] == {"table": 2, "train": 2}


def test_a_record_with_a_merge_conflict_is_made_again_on_ones_word(lab):
    code = StageCode(lab, {"train": 1, "table": 1})
    code.record.write_text("<<<<<<< HEAD\n" + code.record.read_text())
    for call in (code.check, lambda: code.write(same_results=False)):
        with pytest.raises(DeopError, match="is not JSON, perhaps after a merge"):
            call()
    code.write(same_results=True)
    code.check()
