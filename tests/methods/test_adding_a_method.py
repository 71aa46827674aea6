"""docs/adding-a-method.md as it is printed: one file and some YAML take a new method to a table."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from PIL import Image

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/adding-a-method.md"


def block(language: str) -> str:
    """The first code block of a language."""
    return re.search(rf"```{language}\n(.*?)```", PAGE.read_text(), re.S)[1]


@pytest.mark.slow
def test_one_file_and_yaml_take_a_method_to_a_table_and_to_pictures_of_ones_own(tmp_path):
    for name in ("Snakefile", "workflow", "profiles", "config", "environment.yml"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    # A method in a package of one's own is called by its whole name.
    code, configuration = (
        text.replace("method: dense_clip", "method: my_lab.dense_clip").replace(
            'Literal["dense_clip"] = "dense_clip"', 'Literal["my_lab.dense_clip"] = "my_lab.dense_clip"'
        )
        for text in (block("python"), block("yaml"))
    )
    assert len(code.strip().splitlines()) <= 50
    (tmp_path / "my_lab").mkdir()
    (tmp_path / "my_lab/__init__.py").touch()
    (tmp_path / "my_lab/dense_clip.py").write_text(code)
    (tmp_path / "config/dense_clip.yaml").write_text(configuration)
    (tmp_path / "config/small.yaml").write_text(yaml.safe_dump({"clip": {"retrain": False}}))
    tools = Path(sys.executable).parent
    environment = os.environ | {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]),
        "HF_HUB_OFFLINE": "1",
    }
    profiles = [f"config/{name}.yaml" for name in ("tiny", "small", "dense_clip")]

    def run(*command: str) -> str:
        both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        done = subprocess.run(command, cwd=tmp_path, env=environment, text=True, check=False, **both)
        assert done.returncode == 0, done.stdout[-4000:]
        return done.stdout

    run("snakemake", "--cores", "2", "results/dense_clip.csv", "--configfile", *profiles)
    table = pd.read_csv(tmp_path / "results/dense_clip.csv", index_col="method")
    assert list(table.index) == ["Plain CLIP", "Last layers severed"]
    # The bundled CLIP, severed, tells the ground from what is on it; plain, it does not.
    assert table.loc["Last layers severed", "es171.pAcc"] > 1.5 * table.loc["Plain CLIP", "es171.pAcc"]

    given = [argument for profile in profiles for argument in ("--profile", profile)]
    assert re.search(r"es171/dense_clip_severed +yes", run("deop", "systems", *given))
    image = next((tmp_path / "data").glob("es171-*/images/val/*.jpg"))
    system = ["--system", "es171/dense_clip_severed", *given]
    run(
        "deop",
        "segment",
        str(image),
        *system,
        "--output",
        "segments",
        "--classes",
        "dog, grass, sky, sand, cow",
    )
    with Image.open(tmp_path / "segments" / f"{image.stem}.png") as labels, Image.open(image) as shown:
        assert labels.size == shown.size
