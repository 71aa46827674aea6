"""DVC over the workflow, with stand-ins for the stages that compute (``stand_in.py``)."""

from __future__ import annotations

from collections import Counter

import pytest
import yaml

UP_TO_DATE = "Data and pipelines are up to date."


@pytest.fixture
def repository(workflow):
    """The workflow in a Git repository of its own, first commit made."""
    with (workflow.path / ".gitignore").open("a") as file:
        file.write("/.bin/\n/.home/\n/ran.txt\n")
    workflow.run("git", "init", "--quiet", "--initial-branch", "main")
    commit(workflow, "start")
    return workflow


def commit(workflow, message: str) -> None:
    workflow.run("git", "add", "--all")
    workflow.run("git", "commit", "--quiet", "--message", message)


@pytest.mark.slow
def test_no_state_that_dvc_brings_back_is_made_again(repository, tmp_path_factory):
    repository.run("dvc", "repro")
    stages = repository.ran()
    assert (stages.count("evaluate"), stages.count("table"), stages.count("figure")) == (45, 8, 9)
    assert UP_TO_DATE in repository.run("dvc", "repro")
    assert repository.ran() == [] and repository.planned() == {}
    # What was made is DVC's to keep: Git sees the lock file and nothing else.
    assert repository.run("git", "status", "--short").split() == ["??", "dvc.lock"]
    commit(repository, "first")
    first = repository.table()

    repository.edit("experiments.yaml", experiments__deop__anchors__layers=2)
    difference = repository.run("dvc", "params", "diff")
    assert difference.split()[-4:] == ["config/experiments.yaml", "experiments.deop.anchors.layers", "1", "2"]
    repository.run("dvc", "repro")
    assert Counter(repository.ran()) == {
        "train_segmentation": 2,
        "evaluate": 2 + 5,
        "measure_speed": 2,
        "table": 4,
        "claims": 1,
        "figure": 6,
        "picture": 2,
    }
    changed = [line.split() for line in repository.run("dvc", "metrics", "diff").splitlines()[1:] if line]
    assert {line[0] for line in changed} == {
        f"results/metrics/{name}/deop.json" for name in ("table1", "table2", "table3", "table5")
    }
    assert len(changed) == 6 + 5 + 8 + 4  # passes and speed stay the same
    commit(repository, "second")
    second = repository.table()

    for state, table in (("HEAD~1", first), ("main", second)):
        repository.run("git", "checkout", "--quiet", state)
        repository.run("dvc", "checkout")
        assert repository.table() == table
        assert UP_TO_DATE in repository.run("dvc", "status")
        assert UP_TO_DATE in repository.run("dvc", "repro")
        assert repository.planned("results/table3.csv") == {} and repository.planned() == {}
    assert repository.ran() == []
    # Files of one state, configuration of another: that is something to do.
    repository.run("git", "checkout", "--quiet", "HEAD~1")
    assert repository.planned("results/table3.csv") == {"table": 1}
    repository.run("git", "checkout", "--quiet", "main")

    # A clone has neither dates nor Snakemake's records of earlier runs.
    store, clone = tmp_path_factory.mktemp("store"), tmp_path_factory.mktemp("clone")
    repository.run("dvc", "remote", "add", "--quiet", "--default", "store", str(store))
    commit(repository, "remote")
    repository.run("dvc", "push", "--quiet")
    repository.run("git", "clone", "--quiet", ".", str(clone))
    repository.path = clone
    repository.run("dvc", "pull", "--quiet")
    assert repository.table() == second
    assert repository.planned() == {} and repository.ran() == []


def test_dvc_keeps_every_table(workflow):
    stages = yaml.safe_load((workflow.path / "dvc.yaml").read_text())["stages"]
    tables = yaml.safe_load((workflow.path / "config/tables.yaml").read_text())["tables"]
    assert stages["table"]["foreach"] == list(tables)
