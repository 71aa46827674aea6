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
    for name in ("deop-mini.safetensors", "deop-mini.json", "deop-mini-text.safetensors"):
        shutil.copy(pretrained.BUNDLED / name, folder)
    monkeypatch.setattr(pretrained, "BUNDLED", folder)
    return folder


def made(folder, weights):
    """What a pre-training leaves."""
    folder.mkdir()
    save_file(weights, folder / "model.safetensors")
    write_json(folder / "provenance.json", {"sha256": file_hash(folder / "model.safetensors"), "steps": 3})
    write_json(folder / "accuracy.json", {"top 1": 0.5})
    return folder


def test_clips_share_the_file_of_their_text_tower(package, tmp_path):
    text = load_file(package / "deop-mini-text.safetensors")
    torch.manual_seed(0)
    larger = open_clip.create_model("deop-mini-large").half().state_dict()
    weights = {name: value for name, value in larger.items() if name.startswith("visual.")} | text
    weights["logit_scale"] = torch.tensor(3.0, dtype=torch.float16)
    path = bundle(made(tmp_path / "clip", weights), "deop-mini-large", package, text_tower="deop-mini-text")
    assert path.stat().st_size < 0.5 * (tmp_path / "clip/model.safetensors").stat().st_size
    about = json.loads(path.with_suffix(".json").read_text())
    assert about["steps"] == 3 and about["accuracy"] == {"top 1": 0.5}
    loaded = load_clip("deop-mini-large", "bundled").model.state_dict()
    assert all(torch.equal(loaded[name], weights[name].float()) for name in weights)

    # The text tower is the one that it was trained with, or none.
    save_file(text | {"text_projection": 2 * text["text_projection"]}, package / "deop-mini-text.safetensors")
    with pytest.raises(WeightsError, match=r"deop-mini-text.safetensors has SHA-256"):
        load_clip("deop-mini-large", "bundled")
    with pytest.raises(WeightsError, match=r"has another text tower than .*deop-mini-text.safetensors"):
        bundle(tmp_path / "clip", "deop-mini-large", package, text_tower="deop-mini-text")


def test_the_first_clip_of_a_text_tower_writes_its_file(package, tmp_path):
    before = load_clip("deop-mini", "bundled").model.state_dict()
    made(tmp_path / "clip", {name: value.half() for name, value in before.items()})
    (package / "deop-mini-text.safetensors").unlink()
    bundle(tmp_path / "clip", "deop-mini", package, text_tower="deop-mini-text")
    after = load_clip("deop-mini", "bundled").model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
