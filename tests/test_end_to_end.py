"""The whole pipeline on the tiny profile, every stage for real, and a kill in the middle of a training."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml
from forked_stages import forked_stages
from PIL import Image
from safetensors.torch import load_file

ROOT = Path(__file__).parents[1]
COMMAND = ["snakemake", "--configfile", "config/tiny.yaml", "--cores", "2"]
TABLE, SYSTEMS = "results/table3.csv", "results/table1.csv"
METHODS = ["Baseline", "Baseline+", "Baseline+ w/ PS", "Baseline+ w/ CAL", "DeOP"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A copy of what a clone holds, with all tables and figures made in it."""
    path = tmp_path_factory.mktemp("clone")
    for name in ("Snakefile", "workflow", "profiles", "config", "environment.yml", "requirements.lock"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, path / name)
    with forked_stages(tmp_path_factory.mktemp("bin") / "forked") as commands:
        done = snakemake(path, commands=commands)
    assert done.returncode == 0, done.stdout[-6000:]
    return path


def environment(commands: Path | None = None) -> dict[str, str]:
    folders = [commands, Path(sys.executable).parent, os.environ["PATH"]]
    return os.environ | {"PATH": ":".join(str(folder) for folder in folders if folder), "HF_HUB_OFFLINE": "1"}


def snakemake(path: Path, *arguments: str, commands: Path | None = None) -> subprocess.CompletedProcess:
    """Runs Snakemake, with the commands of this folder before those that are installed."""
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    env = environment(commands)
    return subprocess.run([*COMMAND, *arguments], cwd=path, env=env, text=True, check=False, **both)


@pytest.mark.slow
def test_table_3_has_the_papers_rows_and_columns_measured(folder):
    table = pd.read_csv(folder / TABLE, index_col="method")
    assert list(table.index) == METHODS
    columns = [
        f"{data}.{metric}" for data in ("es171", "es20") for metric in ("pAcc", "hIoU", "seen", "unseen")
    ]
    assert [column for column in table.columns if "." in column] == columns
    assert table[columns].notna().all().all()
    assert ((table[columns] >= 0) & (table[columns] <= 100)).all().all()
    assert set(table["profile"]) == {"tiny"}
    # The paper's numbers stand beside the measured ones and are never taken for them.
    reported = pd.read_csv(ROOT / "config" / "reported.csv")
    paper = reported[
        (reported.table == 3) & (reported.row == "DeOP") & (reported.column == "coco_stuff.hIoU")
    ]
    assert str(paper.value.item()) in (folder / "results/table3.md").read_text()
    assert table.loc["DeOP", "es171.hIoU"] != paper.value.item()


@pytest.mark.slow
def test_table_1_measures_the_multipass_systems_and_counts_their_passes(folder):
    table = pd.read_csv(folder / SYSTEMS, index_col="method")
    coupled = ["SPNet", "LSeg", "ZS3Net", "CaGNet"]
    assert (table.loc[coupled, "decoupled"] == "no").all()
    assert (table.loc[coupled].filter(like=".passes").astype(float) == 0).all().all()
    run = table.drop(coupled)
    assert list(run.index) == ["ZegFormer", "SimBaseline", "DeOP"]
    for dataset in ("es171", "es20"):
        assert float(run.loc["DeOP", f"{dataset}.passes"]) == 1
        assert (run[f"{dataset}.FPS"].astype(float) > 0).all()
        # At most one pass a proposal, of which the profile has six.
        others = run.loc[["ZegFormer", "SimBaseline"], f"{dataset}.passes"].astype(float)
        assert ((others >= 0) & (others <= 6)).all()
    # One checkpoint for both tables.
    ablation = pd.read_csv(folder / TABLE, index_col="method")
    assert float(run.loc["DeOP", "es171.hIoU"]) == ablation.loc["DeOP", "es171.hIoU"]


@pytest.mark.slow
def test_every_table_has_its_rows_and_columns(folder):
    layouts = yaml.safe_load((folder / "config/tables.yaml").read_text())["tables"]
    stand_ins = {"coco_stuff": "es171", "voc": "es20", "voc20": "om20", "pc59": "om59", "a150": "om150"}
    stand_ins |= {"pc459": "om459", "a847": "om847"}
    for name, layout in layouts.items():
        table = pd.read_csv(folder / f"results/{name}.csv", index_col="method")
        assert list(table.index) == [row["label"] for row in layout["rows"]]
        more = layout.get("more_metrics", {})
        columns = [
            f"{stand_ins[d]}.{metric}"
            for d in layout["datasets"]
            for metric in layout["metrics"] + more.get(d, [])
        ]
        assert [column for column in table.columns if "." in column] == columns
        not_run = [row["label"] for row in layout["rows"] if "experiment" not in row]
        assert ((table[columns] == "not run").all(axis=1) == table.index.isin(not_run)).all()
        assert (folder / f"results/{name}.tex").exists()


@pytest.mark.slow
def test_claims_are_compared_on_the_evaluations_of_the_tables(folder):
    claims = pd.read_csv(folder / "results/claims.csv")
    assert set(claims["holds"]) <= {"yes", "not shown", "no: reversed", "undefined"}
    severance = claims[(claims["claim"] == "Patch severance raises hIoU") & (claims["dataset"] == "es171")]
    table = pd.read_csv(folder / TABLE, index_col="method")["es171.hIoU"]
    difference = table["Baseline+ w/ PS"] - table["Baseline+"]
    assert severance["difference"].item() == pytest.approx(difference, abs=0.11)  # the table has one decimal
    assert severance["low"].item() <= severance["difference"].item() <= severance["high"].item()


@pytest.mark.slow
def test_every_figure_is_drawn(folder):
    layouts = yaml.safe_load((folder / "config/tables.yaml").read_text())
    for name in (*layouts["figures"], *layouts["pictures"]):
        width, height = Image.open(folder / f"results/figures/{name}.png").size
        assert width > 600 and height > 200
        assert "<svg" in (folder / f"results/figures/{name}.svg").read_text()


@pytest.mark.slow
def test_numbers_are_those_of_the_evaluations(folder):
    table = pd.read_csv(folder / TABLE, index_col="method")
    found = set()
    for path in (folder / "results/evaluations").glob("es171-*.json"):
        result = json.loads(path.read_text())
        metrics = result["metrics"]
        found.add(round(100 * metrics["pAcc"], 1))
        seen, unseen = metrics["seen"], metrics["unseen"]
        harmonic = 2 * seen * unseen / (seen + unseen) if seen + unseen else 0
        assert metrics["hIoU"] == pytest.approx(harmonic)
        assert {"seed", "version", "wall_time_s", "device", "settings"} <= set(result["provenance"])
    assert {round(value, 1) for value in table["es171.pAcc"]} <= found


@pytest.mark.slow
def test_datasets_come_with_a_picture_to_look_at(folder):
    sheets = list(folder.glob("data/*/contact_sheet.png"))
    assert len(sheets) == 7
    for sheet in sheets:
        width, height = Image.open(sheet).size
        assert width > 6 * 96 and height > 96  # six validation scenes in a row, classes below


@pytest.mark.slow
def test_a_second_run_has_nothing_to_do(folder):
    assert "Nothing to be done" in snakemake(folder).stdout


@pytest.mark.slow
def test_a_number_leads_to_the_clip_and_to_the_command_that_makes_it(folder):
    command = ["deop", "explain", TABLE, "DeOP", "es20.hIoU"]
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, *_, last = done.stdout.splitlines()
    shown = pd.read_csv(folder / TABLE, index_col="method").loc["DeOP", "es20.hIoU"]
    assert first == f"{TABLE}: DeOP, es20.hIoU = {shown:.1f}"
    assert "changed or made again" not in done.stdout and "not there any more" not in done.stdout
    named = re.findall(r"^  (\w+) +(\S+-[0-9a-f]{12})", done.stdout, re.M)
    kinds = ["evaluation", "system", "training", "proposals", "backbone", "prompts", "CLIP", "CLIP", "data"]
    assert [kind for kind, _ in named] == kinds
    last_round, _ = [path for kind, path in named if kind == "CLIP"]
    weights = hashlib.sha256((folder / last_round / "model.safetensors").read_bytes()).hexdigest()
    assert f"weights: SHA-256 {weights}" in done.stdout
    assert f"log: logs/train_system/{Path(dict(named)['training']).name}.log" in done.stdout
    assert last.strip() == f"snakemake {TABLE} --configfile config/tiny.yaml --config 'seeds=[0]'"


def inputs_of(folder: Path, stage: str, artifact: str) -> dict[str, str]:
    """What an artifact was made from, by role."""
    return json.loads((folder / f".deop/jobs/{stage}-{artifact[-12:]}.json").read_text())["inputs"]


@pytest.mark.slow
def test_a_kill_in_a_training_changes_no_number(folder):
    """SIGKILL of everything while a network trains; the same command then gives the same weights and scores."""
    evaluation = next(folder.glob("results/evaluations/es20-deop-seed0-*.json"))
    system = folder / inputs_of(folder, "evaluate", evaluation.stem)["system"]
    output = folder / inputs_of(folder, "build_system", system.name)["trained"]
    model = output / "model.safetensors"
    weights, metrics = load_file(model), json.loads(evaluation.read_text())["metrics"]
    whole = load_file(system / "model.safetensors")
    for made in (output, system):
        shutil.rmtree(made)
    evaluation.unlink()
    (folder / TABLE).unlink()

    process = subprocess.Popen(
        [*COMMAND, TABLE], cwd=folder, env=environment(), start_new_session=True, stdout=subprocess.DEVNULL
    )
    partial = output.with_name(output.name + ".partial")
    deadline = time.monotonic() + 300
    while not partial.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert partial.exists(), "the training did not start"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not model.exists()

    again = snakemake(folder, TABLE)
    assert again.returncode == 0, again.stdout[-6000:]
    for before, after in ((weights, load_file(model)), (whole, load_file(system / "model.safetensors"))):
        assert before.keys() == after.keys()
        assert all(before[name].equal(after[name]) for name in before)
    assert json.loads(evaluation.read_text())["metrics"] == metrics
    assert not partial.exists()
