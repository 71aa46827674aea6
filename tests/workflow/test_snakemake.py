"""Snakemake as a user runs it, with stand-ins for the stages that compute (``stand_in.py``)."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest
from asked import Asked

ROOT = Path(__file__).parents[2]
TABLE3 = "results/table3.csv"
DATA = ("prepare_data", "pretrain_clip", "pretrain_backbone")
"""Stages whose jobs are shared by all seeds."""
LEARNED = ("learn_prompts", "train_proposals")


def of_deop(shown) -> bool:
    return shown.experiment == "deop"


def test_table3_from_nothing(workflow):
    expected = Asked.in_folder(workflow.path).jobs("table3")
    assert set(expected) >= {
        "prepare_data",
        "pretrain_clip",
        "train_system",
        "build_system",
        "evaluate",
        "table",
    }
    assert workflow.planned(TABLE3) == expected
    tiny = Path("config/tiny.yaml")
    of_tiny = Asked.in_folder(workflow.path, workflow.path / tiny).jobs("table3")
    assert workflow.planned(TABLE3, "--configfile", str(tiny)) == of_tiny != expected
    seeds = workflow.planned(TABLE3, "--config", "seeds=[0,1,2]")
    assert seeds == {
        stage: count if stage in (*DATA, "table") else 3 * count for stage, count in expected.items()
    }


@pytest.mark.slow
def test_second_run_changes_and_lost_files(workflow):
    asked = Asked.in_folder(workflow.path)
    of_table, of_all = Counter(asked.jobs("table3")), Counter(asked.jobs())
    workflow.snakemake(TABLE3)
    assert Counter(workflow.ran()) == of_table
    assert "Nothing to be done" in workflow.snakemake(TABLE3)
    # The other tables share what they can.
    workflow.snakemake()
    assert Counter(workflow.ran()) == of_all - of_table
    assert "Nothing to be done" in workflow.snakemake()

    # A setting of one experiment: its trainings and evaluations and the table, nothing else.
    workflow.edit("experiments.yaml", experiments__deop__anchors__layers=2)
    assert workflow.planned(TABLE3) == asked.jobs("table3", about=of_deop, without=(*DATA, *LEARNED))
    workflow.snakemake()
    assert workflow.planned() == {}
    # The same, one seed more: as much again, with prompts and proposals of that seed.
    workflow.edit("config.yaml", seeds=[0, 1])
    assert workflow.planned(TABLE3) == asked.jobs("table3", without=DATA)
    workflow.edit("config.yaml", seeds=[0])

    # Back again: everything but the table is still there.
    workflow.edit("experiments.yaml", experiments__deop__anchors__layers=1)
    workflow.ran()
    workflow.snakemake(TABLE3)
    assert workflow.ran() == ["table"]
    # What the table says of itself, but not what it is made from.
    workflow.edit("tables.yaml", tables__table3__caption="Another caption")
    workflow.snakemake(TABLE3)
    assert workflow.ran() == ["table"]
    assert "Another caption" in (workflow.path / "results/table3.md").read_text()

    # Dates mean nothing, missing files do; what was made from one that is lost is still right.
    for path in (workflow.path / "data").rglob("*.json"):
        path.touch()
    assert workflow.planned(TABLE3) == {}
    (workflow.path / TABLE3).unlink()
    assert workflow.planned(TABLE3) == {"table": 1}
    next((workflow.path / "checkpoints/proposals").glob("es20-*/model.safetensors")).unlink()
    workflow.snakemake(TABLE3)
    assert workflow.ran() == ["table"]


@pytest.mark.slow
def test_results_are_made_again_when_an_evaluation_under_them_is(workflow):
    results = (TABLE3, "results/table5.csv")
    workflow.snakemake(*results)
    one = next((workflow.path / "results/evaluations").glob("es20-deop-seed0-*.json"))
    other = next((workflow.path / "results/evaluations").glob("es171-deop-seed0-*.json"))
    # A table is kept without its evaluations.
    one.unlink()
    assert workflow.planned(*results) == {}
    # They give other numbers now. In one run, and with the table made later.
    (workflow.path / "made.txt").write_text("again")
    workflow.ran()
    workflow.snakemake(str(one.relative_to(workflow.path)), *results)
    assert workflow.ran() == ["evaluate", "table"]
    assert workflow.planned(*results) == {}
    other.unlink()
    workflow.snakemake(str(other.relative_to(workflow.path)))
    assert workflow.planned(*results) == {"table": 2}
    workflow.snakemake(*results)
    assert workflow.planned(*results) == {}


@pytest.mark.faults("the workflow is killed with everything it started", "the same command does what is left")
@pytest.mark.slow
def test_killed_with_everything_it_started_then_run_again(workflow):
    launcher = workflow.path / ".bin/deop"
    stand_in = launcher.read_text()
    launcher.write_text("#!/bin/sh\ntouch started\nexec sleep 600\n")
    process = subprocess.Popen(
        ["snakemake", "--cores", "2", TABLE3],
        cwd=workflow.path,
        env=workflow.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while not (workflow.path / "started").exists():
        assert process.poll() is None
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    launcher.write_text(stand_in)
    workflow.snakemake(TABLE3)
    assert "Nothing to be done" in workflow.snakemake(TABLE3)


@pytest.mark.faults("a stage fails", "the run fails, and the log has the reason")
@pytest.mark.slow
def test_a_failing_stage_fails_the_run_and_its_log_says_why(workflow):
    launcher = workflow.path / ".bin/deop"
    launcher.write_text("#!/bin/sh\necho the reason >&2\nexit 3\n")
    output = workflow.snakemake(TABLE3, status=1)
    assert "the reason" in output
    logs = [log.read_text() for log in (workflow.path / "logs").rglob("*.log")]
    assert "the reason\n" in logs


@pytest.mark.slow
def test_jobs_share_the_gpus_and_memory_of_the_machine_unless_told_otherwise(workflow):
    (workflow.path / ".bin/deop").write_text("#!/bin/sh\nexit 3\n")
    workflow.environment["CUDA_VISIBLE_DEVICES"] = "0,1"
    for given, gpus in (((), 2), (("--resources", "gpu=1"), 1)):
        output = workflow.snakemake(TABLE3, *given, status=1)
        [provided] = re.findall(r"^Provided resources: (.*)$", output, re.M)
        assert re.search(rf"gpu\D*{gpus}\b", provided) and re.search(r"mem_mb\D*\d+", provided)


def test_configuration_errors_are_one_line_before_any_job(workflow):
    workflow.edit("config.yaml", accelerate="gpus3")
    output = workflow.snakemake(TABLE3, status=1)
    problem = (
        "config: accelerate: unknown file in config/accelerate 'gpus3'; valid: gpus4, gpus8, nodes2x8, single"
    )
    assert output.splitlines()[-1] == f"deop: config error: {problem}"
    assert "Traceback" not in output and workflow.ran() == []


def test_a_profile_of_ones_own_may_lie_anywhere_and_tables_say_what_is_not_committed(workflow):
    for command in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message", "start"]):
        workflow.run("git", *command)
    note = workflow.path / "results/table3.md"
    workflow.snakemake(TABLE3, "--config", "seeds=[3]", "accelerate=gpus4")
    assert "Configuration: as committed." in note.read_text()
    (workflow.path / "mine").mkdir()
    overlay = workflow.path / "mine/longer.yaml"
    overlay.write_text("profile: half as many steps (2)\nsegmentation: {iterations: 250}\n")
    workflow.snakemake(TABLE3, "--configfile", str(overlay), "--config", "segmentation={lr: 0.5}")
    lines = (workflow.path / TABLE3).read_text().splitlines()
    assert all(",half as many steps (2)," in line for line in lines[1:])
    assert "profile half as many steps (2)" in (workflow.path / "results/table3.tex").read_text()
    differs = "not as committed: mine/longer.yaml untracked, segmentation.lr=0.5 given by --config"
    assert f"Configuration: {differs}." in note.read_text()


def test_a_plot_or_table_needs_its_own_jobs_and_what_is_there_is_not_made_again(workflow):
    asked = Asked.in_folder(workflow.path)
    assert workflow.planned("results/figures/severance.png") == asked.jobs("severance")
    # Tables 4 and S3 train nothing end to end, and share the baseline and the profile's own severance.
    both, of_both = ("results/table4.csv", "results/tableS3.csv"), asked.jobs("table4", "tableS3")
    assert workflow.planned(*both) == of_both and "train_system" not in of_both
    of_each = [asked.jobs(name)["evaluate"] for name in ("table4", "tableS3")]
    assert of_both["evaluate"] < sum(of_each)
    assert workflow.planned("results/figures/confusion.png") == asked.jobs("confusion")
    assert workflow.planned("results/figures/figure5.png") == asked.jobs("figure5")
    # Trained on one dataset and tested on others.
    transferred = asked.jobs("table2")
    assert workflow.planned("results/table2.csv") == transferred
    assert transferred["prepare_data"] > transferred["train_proposals"]
    workflow.snakemake(*both)
    assert workflow.planned("results/figures/severance.png") == {"figure": 1}
    workflow.snakemake("results/table3.csv")
    assert workflow.planned("results/figures/components.svg") == {"figure": 1}
    assert workflow.planned("results/figures/confusion.png") == {"figure": 1}
    assert workflow.planned("results/figures/figure5.png") == {"picture": 1}


def test_a_plot_of_a_benchmark_is_drawn_anew_when_that_is_measured_anew(workflow):
    plot = "results/figures/speed.png"
    first = workflow.snakemake(plot)
    assert Counter(workflow.ran()) == {"benchmark": 1, "figure": 1}
    assert "Exception" not in first  # "speed" is no table and no picture
    assert "Nothing to be done" in workflow.snakemake(plot)
    longer = ("--config", "benchmark={rounds: 9}")
    assert workflow.planned(plot, *longer) == {"benchmark": 1, "figure": 1}


def labels(dag: str) -> list[list[str]]:
    """The labels of the nodes that ``--dag`` prints, as lines, without keys."""
    found = re.findall(r'label = "(.+?)"', dag)
    return [[line for line in label.split("\\n") if not line.startswith("key: ")] for label in found]


def test_snakemakes_own_commands_work_as_typed(shipped):
    """Without ``--cores``: the default profile has them."""
    nodes = labels(shipped.run("snakemake", TABLE3, "results/table1.csv", "--dag"))
    assert ["prepare_data", "name: es20"] in nodes
    assert ["learn_prompts", "name: es20-seed0"] in nodes
    assert ["train_system", "name: es171-deop-seed0"] in nodes
    assert ["evaluate", "evaluation: es171-deop-seed0"] in nodes
    assert ["evaluate", "evaluation: es20-baseline_plus_ps-seed0"] in nodes
    assert ["train_system", "name: es20-zegformer-seed0"] in nodes
    systems = "spnet+lseg+zs3net+cagnet+zegformer+simbaseline+deop"
    assert ["measure_speed", f"measurement: es171-{systems}-seed0"] in nodes
    rules = labels(shipped.run("snakemake", "--rulegraph"))
    assert {("evaluate",), ("benchmark",), ("measure_speed",)} <= set(map(tuple, rules))
    summary = shipped.run("snakemake", "--summary")
    assert re.search(r"^results/evaluations/es171-deop-seed0-\w{12}\.json\t.*missing", summary, re.M)
    assert "Congratulations" in shipped.run("snakemake", "--lint")
    # Nothing runs beside a measurement.
    measured = shipped.run(
        "snakemake", "--cores", "7", "results/speed.csv", "results/table1.csv", "--dry-run"
    )
    measurements = Asked.in_folder(shipped.path).jobs("table1")["measure_speed"]
    assert measured.count("threads: 7") == measurements + 1


CLUSTER = """
from dataclasses import dataclass, field
from pathlib import Path
from snakemake.executors import dryrun
from snakemake_interface_executor_plugins.settings import CommonSettings, ExecutorSettingsBase


@dataclass
class ExecutorSettings(ExecutorSettingsBase):
    requeue: bool = field(default=False, metadata={"help": ""})
    init_seconds_before_status_checks: int = field(default=40, metadata={"help": ""})


common_settings = CommonSettings(non_local_exec=True, implies_no_shared_fs=False, job_deploy_sources=False)


class Executor(dryrun.Executor):
    def run_job(self, job):
        with open("submitted.txt", "a") as file:
            asked = ("nodes", "gpu", "gres", "mem_mb", "runtime")
            print(job.name, job.threads, *(job.resources.get(name) for name in asked), file=file)
        for path in (*job.output, job.benchmark):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).touch()
        super().run_job(job)
"""


def test_the_slurm_command_of_the_docs_asks_for_the_resources_of_the_configuration(shipped):
    """With a plugin of Slurm's name that notes what it is asked for. Snakemake has no cores of its own then."""
    plugin = shipped.path / ".bin/snakemake_executor_plugin_slurm"
    plugin.mkdir()
    (plugin / "__init__.py").write_text(CLUSTER)
    shipped.environment["PYTHONPATH"] += f":{plugin.parent}"
    command = re.search(r"^snakemake .+/slurm .+$", (ROOT / "docs/paper-profile.md").read_text(), re.M)[0]
    shipped.run(*command.replace(TABLE3, "results/speed.csv").split())
    submitted = shipped.path / "submitted.txt"
    assert submitted.read_text() == "benchmark 8 None 1 None 16000 120\n"
    for view in ("--dag", "--summary"):
        shipped.run(*command.split(), view)
