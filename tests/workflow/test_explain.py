"""``deop explain``: from a number of a table, whose parts stand-ins made, back to all that made it.

``CELL`` is the example of docs/reading-results.md.
"""

from __future__ import annotations

import json
import re
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deop.cli import app
from deop.jobs.lineage import lineage
from deop.utils.files import file_hash

ROOT = Path(__file__).parents[2]
CELL = ("results/table3.csv", "DeOP", "es171.hIoU")


def explained(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["explain", *arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


def refused(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["explain", *arguments])
    assert done.exit_code == 1 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    return done.stderr


@pytest.fixture
def made(workflow, monkeypatch):
    """A folder in which table 3 was made with two seeds."""
    workflow.snakemake(CELL[0], "--config", "seeds=[0,1]")
    monkeypatch.chdir(workflow.path)
    return workflow


def test_what_cannot_be_explained_is_said_with_the_nearest_names(tmp_path, monkeypatch):
    row = {"label": "DeOP", "experiment": "deop", "reported": {"coco_stuff.hIoU": 38.2}}
    dataset = {
        "name": "es171",
        "images": "drawn",
        "paper": "coco_stuff",
        "place": "here",
        "miou": "occurring",
    }
    table = {"caption": "c", "profile": "p", "seeds": [0], "datasets": [dataset], "metrics": ["hIoU"]}
    table["rows"] = [row, {"label": "LSeg", "reported": {}}]
    of_evaluation = {"path": "results/evaluations/gone-000000000000.json", "sha256": "0"}
    provenance = {"stage": "table", "settings": {"table": table}, "inputs": {"deop/es171/0": of_evaluation}}
    monkeypatch.chdir(tmp_path)
    Path("results").mkdir()
    for name, content in (
        ("table3", {"provenance": provenance}),
        ("claims", {"provenance": {"stage": "claims", "settings": {}}}),
        ("table4", {"key": "made by an earlier version"}),
    ):
        Path(f"results/{name}.json").write_text(json.dumps(content))
        Path(f"results/{name}.csv").write_text("method,es171.hIoU\nDeOP,50.0\nLSeg,not run\n")

    assert "results/tabel3.csv is not there; tables beside it: results/table3.csv" in refused(
        "results/tabel3.csv", *CELL[1:]
    )
    assert "elsewhere/table3.csv is not there" in refused("elsewhere/table3.csv", *CELL[1:])
    assert "claims.json is of stage claims; tables of systems" in refused("results/claims.csv", *CELL[1:])
    assert "`snakemake results/table4.csv`" in refused("results/table4.csv", *CELL[1:])
    assert "no row 'Deop'; nearest: DeOP" in refused(CELL[0], "Deop", CELL[2])
    assert "no column 'es171.hiou'; nearest: es171.hIoU" in refused(*CELL[:2], "es171.hiou")
    of_paper = refused(*CELL[:2], "coco_stuff.hIoU")
    assert "coco_stuff.hIoU = 38.2 is the paper's" in of_paper and "measured here: es171.hIoU" in of_paper
    assert "'LSeg' was not run; nearest that was: DeOP" in refused(CELL[0], "LSeg", CELL[2])
    gone = refused(*CELL)
    assert (
        of_evaluation["path"] in gone and f"`snakemake {of_evaluation['path']} --config 'seeds=[0]'`" in gone
    )


def test_explaining_loads_no_torch():
    code = "import sys, deop.cli, deop.tools.explain; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.slow
def test_a_number_leads_to_everything_that_made_it_and_to_the_command_that_makes_it_again(made):
    text = explained(*CELL)
    evaluations = [next(Path("results/evaluations").glob(f"es171-deop-seed{seed}-*.json")) for seed in (0, 1)]
    values = [100 * json.loads(path.read_text())["metrics"]["hIoU"] for path in evaluations]
    mean, deviation = statistics.mean(values), statistics.stdev(values)
    assert text.startswith(f"{CELL[0]}: DeOP, es171.hIoU = {mean:.1f} ± {deviation:.1f}\n")
    assert f"{values[0]:.2f} (seed 0), {values[1]:.2f} (seed 1)" in text

    # Everything that the planner wrote down for these evaluations, and nothing else.
    jobs = {
        job["output"]: job
        for path in Path(".deop/jobs").glob("*.json")
        for job in [json.loads(path.read_text())]
    }
    below, waiting = set(), [str(path) for path in evaluations]
    while waiting:
        output = waiting.pop()
        below.add(output)
        waiting += jobs[output]["inputs"].values()
    told = set(re.findall(r"^  \w+ +(\S+-[0-9a-f]{12}(?:\.json)?)$", text, re.M))
    assert told == below
    assert {path.split("/")[1] for path in below if path.startswith("checkpoints/")} >= {"clip", "training"}
    clip = next(path for path in below if path.startswith("checkpoints/clip/") and "round1" in path)
    assert json.loads(Path(clip, "provenance.json").read_text())["sha256"] in text
    assert all(Path(log).is_file() for log in re.findall(r"log: (\S+)", text))
    assert len(re.findall(r"log: logs/train_system/\S+deop-seed\d-", text)) == 2

    # The command asks for what is there.
    command = shlex.split(text.splitlines()[-1])
    assert command[0] == "snakemake"
    assert made.planned(*command[1:]) == {}


@pytest.mark.slow
def test_parts_of_different_commits_and_parts_that_were_changed_are_named(made, monkeypatch):
    assert "commit fedcba" not in explained(*CELL)
    gone = next(Path("results/evaluations").glob("es171-deop-seed1-*.json"))
    Path("commit.txt").write_text("fedcba9876543210")
    Path("made.txt").write_text("again")
    gone.unlink()
    made.snakemake(str(gone), "--config", "seeds=[0,1]")
    text = explained(*CELL)
    assert "Parts were made by different commits:" in text
    assert "\n  commit fedcba987654: evaluation\n" in text
    assert re.search(r"\n  commit 0123456789ab: evaluation, system \(2\), .*CLIP", text)
    # The table was not written again since.
    lines = text.splitlines()
    place = next(number for number, line in enumerate(lines) if line.endswith(str(gone)))
    assert "changed or made again" in " ".join(lines[place : place + 3])

    text = explained("results/table3.md", "Baseline", "es20.pAcc")
    csv = Path("results/table3.csv")
    shown = re.search(r"= (\S+)", text)[1]
    csv.write_text(csv.read_text().replace(f",{shown},", ",99.9,"))
    monkeypatch.chdir("results")  # any folder will do
    assert "But the CSV says 99.9" in explained("table3.csv", "Baseline", "es20.pAcc")


def test_a_part_counts_as_made_again_whoever_read_it_before(tmp_path):
    """Data that was made again between the training of a system and its evaluation."""

    def write(path: str, **inputs: tuple[str, str]) -> str:
        made = {
            "stage": path.split("/")[0],
            "inputs": {role: {"path": p, "sha256": h} for role, (p, h) in inputs.items()},
        }
        (tmp_path / path).mkdir(parents=True, exist_ok=True)
        record = tmp_path / path / "provenance.json"
        record.write_text(json.dumps(made))
        return file_hash(record)

    now = write("data/d")
    system = write("systems/s", data=("data/d", "0" * 64))
    evaluation = write("evaluations/e", data=("data/d", now), system=("systems/s", system))
    changed = {part.path: part.changed for part in lineage(tmp_path, "evaluations/e", evaluation)}
    assert changed == {"data/d": True, "systems/s": False, "evaluations/e": False}


@pytest.mark.slow
def test_the_walk_goes_on_where_a_part_is_gone(made):
    system = next(Path("checkpoints/systems").glob("es171-deop-seed0-*"))
    for path in system.iterdir():
        path.unlink()
    system.rmdir()
    text = explained(*CELL)
    assert re.search(rf"{system}\n +not there any more\n", text)
    assert next(Path("checkpoints/training").glob("es171-deop-seed0-*")).name in text


@pytest.mark.slow
def test_profiles_and_values_given_with_config_are_in_the_command_and_weights_of_the_package_are_named(
    workflow, monkeypatch
):
    profile = workflow.path / "mine.yaml"
    profile.write_text("profile: mine\nclip: {retrain: false}\n")
    given = ("--configfile", "mine.yaml", "--config", "seeds=[2]", "evaluation={miou: ground_truth}")
    workflow.snakemake(CELL[0], *given)
    monkeypatch.chdir(workflow.path)
    text = explained(*CELL)
    weights = json.loads((ROOT / "src/deop/models/weights/deop-mini.json").read_text())["sha256"]
    assert re.search(
        rf"^  CLIP +deop-mini, weights of the package\n +weights: SHA-256 {weights}$", text, re.M
    )
    command = text.splitlines()[-1].strip()
    assert command == (
        "snakemake results/table3.csv --configfile mine.yaml "
        """--config 'seeds=[2]' 'evaluation={"miou": "ground_truth"}'"""
    )
    assert workflow.planned(*shlex.split(command)[1:]) == {}
