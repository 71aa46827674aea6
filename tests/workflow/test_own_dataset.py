"""docs/own-dataset.md, followed to the letter on a small park, with every stage for real."""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from park import write_park

from deop.settings.files import merged

ROOT = Path(__file__).parents[2]
COMMANDS = "tested: tests/workflow/test_own_dataset.py"
PAGE = (ROOT / "docs/own-dataset.md").read_text(encoding="utf-8")
# What the test runs is the tiny profile, but for the CLIP, which is the bundled one.
SMALL = {
    "profile": "mini",
    "clip": {"retrain": False},
    "pretrain_backbone": {"retrain": False},
    "proposals": {"pretrained_backbone": False},
}


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """What a clone holds, with short schedules, and a park in data/raw."""
    for name in ("Snakefile", "workflow", "profiles", "config", "environment.yml"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    values, tiny = (yaml.safe_load((ROOT / f"config/{name}.yaml").read_text()) for name in ("config", "tiny"))
    small = merged(merged(values, tiny), SMALL)
    (tmp_path / "config/config.yaml").write_text(yaml.safe_dump(small, sort_keys=False))
    park = tmp_path / "data/raw/park"
    write_park(park)
    names = (park / "validation.txt").read_text().splitlines()
    (park / "winter.txt").write_text("\n".join(names[:3]))
    (park / "classes.csv").write_text("id,name\n1,snowy bench\n2,snow\n5,gravel path\n7,frozen fountain\n")
    return tmp_path


def blocks(mark: str) -> list[str]:
    """The blocks of the page below ``<!-- tested... -->``."""
    return re.findall(rf"<!-- {re.escape(mark)} -->\n```\w*\n(.*?)```", PAGE, re.S)


def trained_files(clone: Path) -> list[Path]:
    """The weights that stages which train have written; systems are put together from these."""
    files = (clone / "checkpoints").rglob("*.safetensors")
    return sorted(path for path in files if "systems" not in path.relative_to(clone).parts)


def run(clone: Path, command: str) -> str:
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        command, shell=True, cwd=clone, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{(done.stdout + done.stderr)[-5000:]}"
    return done.stdout + done.stderr


@pytest.mark.slow
def test_the_page_makes_a_table_of_ones_own_dataset(clone):
    settings, more = (yaml.safe_load(block) for block in blocks("tested: park.yaml"))
    (clone / "park.yaml").write_text(yaml.safe_dump(settings))
    first, second = ([line.partition("  #")[0] for line in block.splitlines()] for block in blocks(COMMANDS))
    for command in first:
        run(clone, command)
    (heading,) = blocks("tested: results/park.csv")
    with (clone / "results/park.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert list(lines[0]) == heading.strip().split(",")
    assert [line["method"] for line in lines] == ["Baseline", "SimBaseline", "DeOP"]
    scores = pd.read_csv(clone / "results/park.csv").filter(like="park.")
    assert scores.notna().all().all() and ((scores >= 0) & (scores <= 100)).all().all()
    assert len(list((clone / "results/evaluations").glob("park-*.json"))) == 3
    assert (next((clone / "data").glob("park-*")) / "contact_sheet.png").exists()
    text = (clone / "results/park.md").read_text()
    assert text.startswith("# park: Systems compared on park\n") and "images of one's own" in text

    # Tested on as they are, in other words, none of which is unseen; without a run of anything that trains.
    (clone / "park.yaml").write_text(yaml.safe_dump(merged(settings, more)))
    trained = trained_files(clone)
    for command in second:
        run(clone, command)
    assert trained_files(clone) == trained
    winter = pd.read_csv(clone / "results/winter.csv", index_col="method")
    assert list(winter.index) == ["Baseline", "Three layers severed"]
    assert winter[["winter.pAcc", "winter.mIoU"]].notna().all().all() and winter["winter.hIoU"].isna().all()
    assert "NaN" not in (clone / "results/winter.json").read_text()
    assert "The systems tested on winter were trained on park" in (clone / "results/winter.md").read_text()

    # Another list is other data, for those that are on it alone.
    park = first[-1].replace("snakemake ", "snakemake -n ")
    (clone / "data/raw/park/winter.txt").write_text("2023/img_0006\n")
    assert "Nothing to be done" in run(clone, park)
    (clone / "data/raw/park/validation.txt").write_text("2023/img_0006\n2024/img_0007\n")
    assert re.search(r"^prepare_data +1$", run(clone, park), re.M)
