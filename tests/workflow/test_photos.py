"""The profile for photographs: planned as it stands, and run on VOC 2012 in miniature over a real connection."""

from __future__ import annotations

import re
import subprocess
import sys

import pandas as pd
import pytest
import yaml
from real_archives import served, write_archives
from test_real_data import ROOT, archive_of, clone, run

from deop.settings.files import merged

TABLES = ("photos3", "photos4", "photosS1", "photosS3")
__all__ = ["clone"]


@pytest.mark.slow
def test_the_profile_is_planned_as_it_stands(clone):
    targets = " ".join(f"results/{table}.csv" for table in TABLES)
    done = run(clone, f"snakemake -n --cores 2 {targets} --configfile config/photos.yaml")
    assert done.returncode == 0, done.stdout[-3000:]
    stats = done.stdout.partition("Job stats:")[2].partition("\n\n")[0]
    assert "train_" not in stats and "learn_prompts" not in stats
    # One of each experiment: nothing is measured twice.
    assert re.search(r"^evaluate +15$", stats, re.M)


def test_planning_it_does_not_import_torch():
    code = (
        "import sys; from pathlib import Path; from deop.jobs.plan import Plan; from deop.settings.files import "
        "read_profile; Plan(read_profile(Path(), Path('config/photos.yaml')), Path()); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.slow
def test_it_makes_a_table_of_a_miniature(clone, tmp_path_factory):
    pytest.importorskip("skimage")
    archives = tmp_path_factory.mktemp("served") / "archives"
    sources = write_archives(archives)
    path = clone / "config/photos.yaml"
    with served(archives) as address:
        wanted = {name: source for name, source in sources.items() if name in ("voc2012", "sbd")}
        assert len(wanted) == 2, sorted(sources)
        for name, source in wanted.items():
            source["mirrors"] = [f"{address}/{archive_of(name)}"]
        small = {
            "clip": {"model": "deop-mini", "pretrained": "bundled"},
            "datasets": {"voc": {"complete": False}},
            "data": {"sources": wanted},
            "evaluation": {"short_side": 64},
            "resources": {"prepare_data": {"threads": 1}, "evaluate": {"threads": 1}},
        }
        path.write_text(yaml.safe_dump(merged(yaml.safe_load(path.read_text()), small), sort_keys=False))
        done = run(clone, "snakemake --cores 2 results/photos3.csv --configfile config/photos.yaml")
        assert done.returncode == 0, done.stdout[-5000:]
    table = pd.read_csv(clone / "results/photos3.csv", index_col="method")
    assert len(table) == 4 and table["voc.pAcc"].between(0, 100).all()
