"""Networks built from settings, with pre-trained and bundled weights."""

from __future__ import annotations

import json

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from deop.errors import DeopError
from deop.methods import builder
from deop.methods.builder import build_proposals
from deop.models.bundled import bundle
from deop.settings.stages import Proposals
from deop.utils.files import file_hash, write_json

CHANNELS = {"channels": [8, 8, 16, 16], "stem_width": 8}


def settings(pretrained_backbone: bool | str = "bundled", **arguments: object) -> Proposals:
    return Proposals(
        backbone="resnet10t",
        backbone_args=CHANNELS | arguments,
        pretrained_backbone=pretrained_backbone,
        out_indices=(1, 2, 3),
        queries=3,
        decoder_layers=1,
        width=32,
        ffn_width=32,
        heads=2,
        iterations=1,
        augmentation={"crop": 32},
    )


@pytest.fixture
def pretrained(tmp_path):
    """What a pre-training of the backbone leaves: every stage, the last of which the proposal network does not use."""
    torch.manual_seed(3)
    folder = tmp_path / "backbone"
    folder.mkdir()
    state = timm.create_model("resnet10t", num_classes=0, **CHANNELS).state_dict()
    write({k: v.half() for k, v in state.items() if v.is_floating_point()}, folder)
    write_json(folder / "accuracy.json", {"top 1": 0.5})
    return folder


def write(state, folder) -> None:
    """The weights of an artifact with their hash."""
    save_file(state, folder / "model.safetensors")
    sha256 = file_hash(folder / "model.safetensors")
    write_json(folder / "provenance.json", {"stage": "pretrain_backbone", "sha256": sha256})


def assert_loaded(network, folder) -> None:
    weights = load_file(folder / "model.safetensors")
    for name, value in network.backbone.state_dict().items():
        if value.is_floating_point():
            assert torch.equal(value, weights[name].float()), name


def test_proposals_start_from_the_backbone_of_an_earlier_stage(pretrained):
    assert_loaded(build_proposals(settings(), backbone=str(pretrained)), pretrained)


def test_bundled_backbone_is_checked_and_loaded(pretrained, tmp_path, monkeypatch):
    package = tmp_path / "weights"
    monkeypatch.setattr(builder, "BUNDLED", package)
    path = bundle(pretrained, "resnet10t", package)
    assert json.loads(path.with_suffix(".json").read_text())["accuracy"] == {"top 1": 0.5}
    assert_loaded(build_proposals(settings()), pretrained)

    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"resnet10t\.safetensors has SHA-256 .*, not the expected"):
        build_proposals(settings())


def test_a_backbone_of_other_stages_is_refused(pretrained):
    weights = load_file(pretrained / "model.safetensors")
    kept = {name: value for name, value in weights.items() if not name.startswith("layer2")}
    write(kept, pretrained)
    with pytest.raises(ValueError, match="does not fit backbone resnet10t: it lacks layer2"):
        build_proposals(settings(), backbone=str(pretrained))


def test_backbone_weights_by_path(pretrained, tmp_path):
    """timm's own files are named so: with the classifier, which is not used, as .safetensors or .pth."""
    weights = load_file(pretrained / "model.safetensors") | {"fc.weight": torch.zeros(10, 16)}
    save_file(weights, tmp_path / "resnet.safetensors")
    torch.save({"state_dict": weights}, tmp_path / "resnet.pth")
    for name in ("resnet.safetensors", "resnet.pth"):
        assert_loaded(build_proposals(settings(str(tmp_path / name))), pretrained)


def test_backbone_weights_by_path_that_do_not_fit(pretrained, tmp_path):
    with pytest.raises(
        DeopError, match=r"pretrained_backbone: file .*/none\.pth is not there; valid: true .*path"
    ):
        build_proposals(settings(str(tmp_path / "none.pth")))
    (tmp_path / "page.pth").write_text("<html>")
    with pytest.raises(DeopError, match=r"page\.pth cannot be read as weights"):
        build_proposals(settings(str(tmp_path / "page.pth")))
    path = str(pretrained / "model.safetensors")
    message = (
        r"does not fit backbone resnet10t: conv1\.0\.weight has shape \(6, 3, 3, 3\), not \(12, 3, 3, 3\)"
    )
    with pytest.raises(DeopError, match=message):
        build_proposals(settings(path, stem_width=16))


def test_dilations_of_a_last_stage_that_is_not_there():
    with pytest.raises(
        ValueError, match=r"multi_grid \[1, 2, 4\] does not fit backbone 'resnet10t'.* the 0 blocks"
    ):
        build_proposals(settings(False, multi_grid=[1, 2, 4]))
