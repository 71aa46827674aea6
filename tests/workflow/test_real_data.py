"""The paper profile from download to table, on the paper's datasets in miniature and over a real connection."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from asked import Asked
from forked_stages import forked_stages
from real_archives import served, write_archives

from deop.settings.files import merged

ROOT = Path(__file__).parents[2]
# What makes the paper profile small enough for a test: sizes and schedules, and the bundled CLIP.
SMALL = {
    "precision": "auto",
    "clip": {"model": "deop-mini", "pretrained": "bundled"},
    "network": {"visual_prompt_grid": 8},
    "variants": {"large": {"clip": {"model": "deop-mini-large"}, "prompts": {"crop_size": 66}}},
    "prompts": {"iterations": 2, "warmup": 1, "crop_size": 64, "samples_per_class": 2, "per_dataset": None},
    "proposals": {
        "backbone": "resnet10t",
        "backbone_args": {"channels": [8, 8, 16, 16], "stem_width": 8, "multi_grid": None},
        "pretrained_backbone": False,
        "queries": 6,
        "decoder_layers": 1,
        "width": 32,
        "ffn_width": 32,
        "heads": 2,
        "iterations": 2,
        "batch_size": 4,
        "augmentation": {"crop": 64},
        "per_dataset": None,
    },
    "segmentation": {"iterations": 2, "batch_size": 4, "augmentation": {"crop": 64}, "per_dataset": None},
    "methods": {
        name: {
            "width": 16,
            **({"word_vectors": None} if name in ("spnet", "zs3net", "cagnet") else {}),
            **{name: {"iterations": 2, "batch_size": 4, "augmentation": {"crop": 64}} for name in rounds},
            "per_dataset": None,
        }
        for name, rounds in {
            "spnet": ("training",),
            "lseg": ("training",),
            "zs3net": ("training", "generator", "classifier"),
            "cagnet": ("training", "finetuning"),
            "openseg": ("training",),
        }.items()
    },
    "evaluation": {"short_side": 64},
    "accelerate": "single",
    "resources": {
        stage: {"gpu": 0, "threads": 1} for stage in ("prepare_data", "learn_prompts", "evaluate", "picture")
    }
    | {stage: {"gpu": 0} for stage in ("measure_speed", "benchmark")}
    | {stage: {"gpu": 0, "threads": 1, "micro_batch": 3} for stage in ("train_proposals", "train_system")},
}
DATASETS = ("coco", "voc", "voc20", "pc59", "a150", "pc459", "a847")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """What a clone holds."""
    for name in ("Snakefile", "workflow", "profiles", "config", "environment.yml"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    return tmp_path


def configure(clone: Path, changes: dict) -> None:
    """Changes the paper profile of a clone."""
    path = clone / "config/paper.yaml"
    small = merged(yaml.safe_load(path.read_text()), changes)
    path.write_text(yaml.safe_dump(small, sort_keys=False))


def keep_rows(clone: Path, *labels: str) -> None:
    """Takes the other rows out of all tables, to save time."""
    path = clone / "config/tables.yaml"
    values = yaml.safe_load(path.read_text())
    for name in ("table2", "table3"):
        rows = values["tables"][name]["rows"]
        values["tables"][name]["rows"] = [row for row in rows if row["label"] in labels]
    path.write_text(yaml.safe_dump(values | {"claims": []}, sort_keys=False))


def run(clone: Path, command: str, commands: Path | None = None) -> subprocess.CompletedProcess:
    """Runs a command line, with the commands of the folder ``commands`` before those that are installed."""
    folders = [commands, Path(sys.executable).parent, os.environ["PATH"]]
    environment = os.environ | {
        "PATH": ":".join(str(folder) for folder in folders if folder),
        "HF_HUB_OFFLINE": "1",
    }
    return subprocess.run(
        command,
        shell=True,
        cwd=clone,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def printed_commands() -> list[str]:
    """The commands that docs/paper-profile.md tells the reader to type, in order."""
    text = (ROOT / "docs/paper-profile.md").read_text()
    block = re.search(r"<!-- tested: [^\n]+ -->\n```bash\n(.*?)```", text, re.S).group(1)
    return [line.partition(" #")[0].strip() for line in block.splitlines() if line.strip()]


TABLES = yaml.safe_load((ROOT / "config/tables.yaml").read_text())["tables"]


@pytest.mark.slow
@pytest.mark.parametrize("tables", [("table3",), tuple(TABLES)], ids=["table 3", "all"])
def test_every_table_of_the_paper_is_planned(clone, tables):
    """As config/paper.yaml stands; nothing is downloaded that the tables do not show."""
    files = " ".join(f"results/{table}.csv" for table in tables)
    done = run(clone, f"snakemake -n --cores 8 {files} --configfile config/paper.yaml")
    assert done.returncode == 0, done.stdout[-3000:]
    stats = done.stdout.partition("Job stats:")[2].partition("\n\n")[0]
    counts = {name: int(count) for name, count in re.findall(r"^(\w+) +(\d+)$", stats, re.M)}
    asked = Asked.in_folder(clone, clone / "config/paper.yaml").jobs(*tables)
    assert {name: count for name, count in counts.items() if name != "total"} == asked


@pytest.mark.slow
def test_the_commands_of_the_docs_make_the_papers_tables(clone, tmp_path_factory):
    archives = tmp_path_factory.mktemp("served") / "archives"
    sources = write_archives(archives)
    with served(archives) as address:
        for name, source in sources.items():
            if name == "ade20k_full":
                source["path"] = str(archives / "ADE20K_2021_17_01.zip")
            else:
                source["mirrors"] = [f"{address}/{archive_of(name)}"]
        datasets = {name: {"complete": False} for name in DATASETS}
        configure(clone, SMALL | {"datasets": datasets, "data": {"sources": sources}})
        keep_rows(clone, "Baseline", "LSeg", "DeOP")
        with forked_stages(tmp_path_factory.mktemp("bin") / "forked") as commands:
            for command in printed_commands():
                done = run(clone, command, commands)
                assert done.returncode == 0, (command, done.stdout[-5000:])
    table = pd.read_csv(clone / "results/table3.csv", index_col="method")
    assert [column for column in table.columns if "." in column] == [
        f"{name}.{metric}" for name in ("coco", "voc") for metric in ("pAcc", "hIoU", "seen", "unseen")
    ]
    text = (clone / "results/table3.md").read_text()
    assert "COCO-Stuff 164k, cleaned class names" in text and "COCO-Stuff (here coco)" in text
    abroad = pd.read_csv(clone / "results/table2.csv", index_col="method")
    for system in ("LSeg", "DeOP"):
        assert abroad.loc[system, [f"{name}.mIoU" for name in DATASETS[2:]]].notna().all()
    assert abroad.loc["LSeg", ["pc459.mIoU_truth", "a847.mIoU_truth"]].notna().all()
    # Images were read where they lie; what was downloaded is known by its hash.
    card = json.loads(next((clone / "data").glob("coco-*/dataset.json")).read_text())
    assert len(card["classes"]) == 171 and Path(card["image_root"]) == (clone / "data/raw").resolve()
    record = json.loads(next((clone / "data/sources").glob("sbd-*.json")).read_text())
    assert record["archive"]["sha256"] == sources["sbd"]["hash"].removeprefix("sha256:")


def archive_of(source: str) -> str:
    from deop.data.downloads.sources import find_entry

    return find_entry(source).archive
