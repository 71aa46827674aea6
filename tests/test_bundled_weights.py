"""Weights that come with the package and share a text tower."""

from __future__ import annotations

import json
import shutil

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

import deop.models.pretrained as pretrained
from deop.errors import WeightsError
from deop.models.bundled import bundle
from deop.models.clip import load_clip
from deop.utils.files import file_hash, write_json


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A folder of bundled weights with ``deop-mini``, in place of the package's."""
    folder = tmp_path / "weights"
    folder.mkdir()
    for suffix in ("safetensors", "json"):
        shutil.copy(pretrained.BUNDLED / f"deop-mini.{suffix}", folder)
    monkeypatch.setattr(pretrained, "BUNDLED", folder)
    return folder


def made(folder, weights):
    """What a pre-training leaves."""
    folder.mkdir()
    save_file(weights, folder / "model.safetensors")
    write_json(folder / "provenance.json", {"sha256": file_hash(folder / "model.safetensors"), "steps": 3})
    write_json(folder / "accuracy.json", {"top 1": 0.5})
    return folder


def test_a_clip_is_bundled_without_the_text_tower_of_another(package, tmp_path):
    text = {
        name: value
        for name, value in load_file(package / "deop-mini.safetensors").items()
        if not name.startswith("visual.")
    }
    torch.manual_seed(0)
    larger = open_clip.create_model("deop-mini-large").half().state_dict()
    weights = {name: value for name, value in larger.items() if name.startswith("visual.")} | text
    weights["logit_scale"] = torch.tensor(3.0, dtype=torch.float16)
    path = bundle(made(tmp_path / "clip", weights), "deop-mini-large", package, text_tower="deop-mini")
    assert path.stat().st_size < 0.5 * (tmp_path / "clip/model.safetensors").stat().st_size
    about = json.loads(path.with_suffix(".json").read_text())
    assert about["steps"] == 3 and about["accuracy"] == {"top 1": 0.5}
    loaded = load_clip("deop-mini-large", "bundled").model.state_dict()
    assert all(torch.equal(loaded[name], weights[name].float()) for name in weights)

    # The text tower is the one that it was trained with, or none.
    other = text | {"text_projection": 2 * text["text_projection"]}
    save_file(load_file(package / "deop-mini.safetensors") | other, package / "deop-mini.safetensors")
    with pytest.raises(WeightsError, match="trained with another text tower than that of deop-mini"):
        load_clip("deop-mini-large", "bundled")
    with pytest.raises(WeightsError, match="has another text tower than deop-mini"):
        bundle(tmp_path / "clip", "deop-mini-large", package, text_tower="deop-mini")
