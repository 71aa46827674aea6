"""That what ``make publish`` copies is of one commit."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from deop.errors import DeopError
from deop.jobs.freshness import identity
from deop.jobs.job import Job
from deop.jobs.jobs import NAMED, done_file
from deop.jobs.plan import Plan
from deop.jobs.revisions import REVISIONS
from deop.tools.published import Commits, check
from deop.tools.revisions import StageCode

PACKAGE = Path(__file__).parents[1] / "src/deop"
HEAD, BEFORE = "a" * 40, "b" * 40


@pytest.fixture
def plan(root, config, monkeypatch) -> Plan:
    """All jobs of a small table, a figure of it and a picture, each made at ``HEAD``."""
    monkeypatch.chdir(root)
    rows = [{"label": "DeOP", "experiment": "deop"}]
    table = {"caption": "One", "rows": rows, "datasets": ["es20"], "metrics": ["hIoU", "FPS"]}
    config["tables"] = {"one": table}
    plan = Plan(config, Path())
    for job in plan.jobs.values():
        make(job, HEAD)
    return plan


def make(job: Job, commit: str | None, *, dirty: bool = False) -> None:
    """Writes the record of an output, as the stages do."""
    output, made = Path(job.output), {"commit": commit, "dirty": dirty}
    if output.suffix == ".json":
        output.parent.mkdir(parents=True, exist_ok=True)
        named = identity(job) if job.stage in NAMED else {}
        output.write_text(json.dumps({**named, "provenance": made}))
    else:
        output.mkdir(parents=True, exist_ok=True)
        (output / "provenance.json").write_text(json.dumps(made))
        Path(done_file(job)).touch()


def of(plan: Plan, stage: str) -> Job:
    return next(job for job in plan.jobs.values() if job.stage == stage)


def refusal(plan: Plan, same_code: Callable[[str, str], bool] = lambda commit, stage: False) -> str:
    """What is said of the parts that are not of ``HEAD``; empty if there are none."""
    try:
        check(plan.jobs.values(), Path(), HEAD, same_code)
    except DeopError as error:
        assert "made from one commit, here aaaaaaaaaaaa" in str(error)
        return "\n".join(str(error).splitlines()[1:-1])
    return ""


def remade(plan: Plan, job: Job, commit: str, **more: bool) -> None:
    """Makes an output at another commit, and results from it at ``HEAD``."""
    make(job, commit, **more)
    for result in plan.jobs.values():
        if result.stage in NAMED and result is not job:
            make(result, HEAD)


@pytest.mark.parametrize("stage", ["evaluate", "measure_speed", "train_system", "prepare_data", "table"])
def test_a_part_of_another_commit_is_named_with_it(plan, stage):
    assert refusal(plan) == ""
    job = of(plan, stage)
    remade(plan, job, BEFORE)
    assert refusal(plan) == f"  {job.output}: commit bbbbbbbbbbbb"


def test_uncommitted_changes_and_unknown_commits_are_not_of_it_either(plan):
    trained, evaluated = of(plan, "train_system"), of(plan, "evaluate")
    remade(plan, trained, HEAD, dirty=True)
    remade(plan, evaluated, None)
    told = refusal(plan, lambda commit, stage: True).splitlines()
    assert sorted(told) == sorted(
        [f"  {trained.output}: commit aaaaaaaaaaaa-dirty", f"  {evaluated.output}: no commit known"]
    )


def test_checkpoints_of_another_commit_with_the_same_code_are_good_but_not_measurements(plan):
    for stage in ("train_system", "prepare_data", "evaluate"):
        remade(plan, of(plan, stage), BEFORE)
    told = refusal(plan, lambda commit, stage: commit == BEFORE)
    assert told == f"  {of(plan, 'evaluate').output}: commit bbbbbbbbbbbb"


def test_results_that_will_be_made_again_do_not_count_and_parts_that_are_gone_do(plan):
    table = of(plan, "table")
    make(table, BEFORE)
    Path(table.output).write_text(Path(table.output).read_text().replace(table.key, "0" * 12))
    assert refusal(plan) == ""
    trained = of(plan, "train_system")
    shutil.rmtree(trained.output)
    assert refusal(plan) == f"  {trained.output}: not there, but what was made from it is"


def test_commits_have_the_same_code_if_no_module_file_or_package_of_the_stage_differs(tmp_path):
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def commit() -> str:
        StageCode(package, REVISIONS).write(same_results=True)
        git("add", "--all")
        git("commit", "--quiet", "--allow-empty", "--message", "change")
        return git("rev-parse", "HEAD")

    def same(before: str) -> tuple[bool, bool]:
        commits = Commits(package)
        return commits.same_code(before, "train_system"), commits.same_code(before, "table")

    package = tmp_path / "src/deop"
    weights = shutil.ignore_patterns("weights", "systems", "__pycache__")
    shutil.copytree(PACKAGE, package, ignore=weights)
    (tmp_path / "requirements.lock").write_text("torch==2.6\n")
    git("init", "--quiet")
    first = commit()
    (tmp_path / "README.md").touch()
    loop = package / "training/loop.py"
    loop.write_text(f"# A remark.\n{loop.read_text()}")
    commit()
    assert same(first) == (True, True)

    loop.write_text(f"{loop.read_text()}\nMORE = 1\n")
    second = commit()
    assert same(first) == (False, True) and same(second) == (True, True)
    (tmp_path / "requirements.lock").write_text("torch==2.7\n")
    third = commit()
    assert same(second) == (False, False)
    (package / "data/classes/pascal_voc.csv").write_text("name\n")
    commit()
    assert same(third) == (False, False)
    assert same("0" * 40) == (False, False)
