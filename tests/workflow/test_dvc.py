"""DVC over the workflow and its configuration as shipped, with stand-ins for the stages that compute."""

from __future__ import annotations

import json
import re
from collections import Counter

import pytest
import yaml
from asked import Asked

from deop.settings.benchmarks import BENCHMARKS

UP_TO_DATE = "Data and pipelines are up to date."
BEHIND = ("data", "checkpoints", "scores")
"""Stages that keep what Table 3 is made from; what else they keep belongs to other tables."""
COMPLAINT = re.compile("error|warning|failed|exception|traceback", re.IGNORECASE)


@pytest.fixture
def repository(shipped):
    """The workflow in a Git repository of its own, first commit made."""
    with (shipped.path / ".gitignore").open("a") as file:
        file.write("/.bin/\n/.home/\n/ran.txt\n")
    shipped.run("git", "init", "--quiet", "--initial-branch", "main")
    commit(shipped, "start")
    return shipped


def commit(workflow, message: str) -> None:
    workflow.run("git", "add", "--all")
    workflow.run("git", "commit", "--quiet", "--message", message)


def dvc(workflow, *arguments: str) -> str:
    """What a DVC command prints; fails the test if it complains of anything."""
    output = workflow.run("dvc", *arguments)
    assert not COMPLAINT.search(output), output
    return output


def rows(output: str) -> list[list[str]]:
    """A table that DVC prints, without its head."""
    return [line.split() for line in output.splitlines()[1:] if line]


def pushed_and_cloned(workflow, folder, *targets: str) -> None:
    """Push to a store in ``folder``, and go on in a clone that pulls from it: no dates, no records of Snakemake."""
    dvc(workflow, "remote", "add", "--quiet", "--default", "store", str(folder / "store"))
    commit(workflow, "remote")
    dvc(workflow, "push", *targets)
    workflow.run("git", "clone", "--quiet", ".", str(folder / "clone"))
    workflow.path = folder / "clone"
    dvc(workflow, "pull", *targets)


def test_a_fresh_clone_has_parameters_and_a_plan(repository):
    assert dvc(repository, "params", "diff").strip() == ""
    repository.edit("experiments.yaml", experiments__deop__anchors__layers=2)
    repository.edit("config.yaml", network__severance__alpha={"-2": 0, "-1": 1})
    experiments, alpha = "config/experiments.yaml", "network.severance.alpha"
    assert sorted(rows(dvc(repository, "params", "diff"))) == [
        ["config/config.yaml", f"{alpha}.-2", "1", "0"],
        [experiments, "experiments.deop.anchors.layers", "1", "2"],
    ]

    # Nothing is there yet, neither results nor the folders that they go to.
    commands = re.findall(r"^> snakemake (.+)$", dvc(repository, "repro", "--dry"), re.M)
    layouts, config = (
        yaml.safe_load((repository.path / f"config/{name}.yaml").read_text()) for name in ("tables", "config")
    )
    benchmarks = [name for name in BENCHMARKS if name in config["benchmark"]]
    named = [*layouts["tables"], "claims", *benchmarks]
    drawn = [*layouts["figures"], *layouts["pictures"]]
    results = [f"results/{name}.csv" for name in named] + [f"results/figures/{name}.png" for name in drawn]
    # What they share comes last, so that it is kept once it is complete.
    assert commands[: len(results)] == results
    shared = commands[len(results) :]
    assert [line.split()[0] for line in (shared[0], shared[-1])] == ["datasets", "timings"]
    planned = repository.planned(*results)
    assert planned["table"] == len(layouts["tables"])
    # The last stages make nothing that no result needs.
    targets = " ".join(shared).split()
    both = repository.planned(*results, *targets)
    assert {rule: count for rule, count in both.items() if rule not in targets} == planned
    stages = re.findall("Running stage '(.+)'", dvc(repository, "repro", "--dry", "table@table3"))
    assert stages == ["table@table3"]


@pytest.mark.slow
def test_one_table(repository, tmp_path_factory):
    repository.snakemake("results/table3.csv")
    of_table = Asked.in_folder(repository.path).jobs("table3")
    assert repository.ran().count("evaluate") == of_table["evaluate"]
    assert "Nothing to be done" in dvc(repository, "repro", "table@table3")
    assert UP_TO_DATE in dvc(repository, "repro", "table@table3")
    assert UP_TO_DATE in dvc(repository, "status", "table@table3")
    # What was made is DVC's to keep: Git sees the lock file and nothing else.
    assert repository.run("git", "status", "--short").split() == ["??", "dvc.lock"]
    dvc(repository, "commit", "--force", *BEHIND)
    assert repository.ran() == []
    commit(repository, "first")
    first = repository.table()
    rated = {line[0] for line in rows(dvc(repository, "metrics", "show"))}
    layout = yaml.safe_load((repository.path / "config/tables.yaml").read_text())["tables"]["table3"]
    methods = [row["experiment"] for row in layout["rows"] if "experiment" in row]
    assert rated == {f"results/metrics/table3/{method}.json" for method in methods}
    assert dvc(repository, "metrics", "diff").strip() == ""

    repository.edit("experiments.yaml", experiments__deop__anchors__layers=2)
    dvc(repository, "repro", "table@table3")
    of_deop = Asked.in_folder(repository.path).jobs(
        "table3",
        about=lambda shown: shown.experiment == "deop",
        without=("prepare_data", "pretrain_clip", "learn_prompts", "train_proposals"),
    )
    assert Counter(repository.ran()) == of_deop
    changed = rows(dvc(repository, "metrics", "diff"))
    assert {line[0] for line in changed} == {"results/metrics/table3/deop.json"}
    assert len(changed) == len(layout["datasets"]) * len(layout["metrics"])
    dvc(repository, "commit", "--force", *BEHIND)
    commit(repository, "second")
    second = repository.table()
    assert first != second

    for state, table in (("HEAD~1", first), ("main", second)):
        repository.run("git", "checkout", "--quiet", state)
        dvc(repository, "checkout", "table@table3", *BEHIND)
        assert repository.table() == table
        assert UP_TO_DATE in dvc(repository, "repro", "table@table3", *BEHIND)
        assert repository.planned("results/table3.csv") == {}
    # Files of one state, configuration of another: that is something to do.
    repository.run("git", "checkout", "--quiet", "HEAD~1")
    assert repository.planned("results/table3.csv") == {"table": 1}
    repository.run("git", "checkout", "--quiet", "main")

    pushed_and_cloned(repository, tmp_path_factory.mktemp("elsewhere"), "table@table3", *BEHIND)
    assert repository.table() == second
    assert UP_TO_DATE in dvc(repository, "status", "table@table3", *BEHIND)
    assert UP_TO_DATE in dvc(repository, "repro", "table@table3", *BEHIND)
    assert repository.planned("results/table3.csv", "results/figures/components.png") == {"figure": 1}
    assert repository.ran() == []


@pytest.mark.slow
def test_everything(repository, tmp_path_factory):
    repository.snakemake()
    assert Counter(repository.ran()) == Asked.in_folder(repository.path).jobs()
    # Each output of each stage is there: what is missing would be an error.
    dvc(repository, "commit", "--force")
    assert UP_TO_DATE in dvc(repository, "status")
    assert UP_TO_DATE in dvc(repository, "repro")
    assert repository.run("git", "status", "--short").split() == ["??", "dvc.lock"]
    commit(repository, "first")
    # Lost artifacts are made again, and what was made from them is still right.
    next((repository.path / "checkpoints/proposals").glob("es20-*/model.safetensors")).unlink()
    dvc(repository, "repro")
    assert repository.ran() == ["train_proposals"]
    assert repository.run("git", "status", "--short") == ""

    shown = dvc(repository, "metrics", "show")
    pushed_and_cloned(repository, tmp_path_factory.mktemp("elsewhere"))
    assert dvc(repository, "metrics", "show") == shown
    assert UP_TO_DATE in dvc(repository, "status")
    assert UP_TO_DATE in dvc(repository, "repro")
    assert repository.planned() == {} and repository.ran() == []
    assert json.loads((repository.path / "results/table3.json").read_text())["methods"]
