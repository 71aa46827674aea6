"""The stages that pre-train, for a few steps: what they write can be loaded where it is needed."""

from __future__ import annotations

import json

import pytest
import timm
import torch
from safetensors.torch import load_file

from deop.jobs.job import Job
from deop.models.clip import load_clip
from deop.stages import pretrain_backbone, pretrain_clip

SMALL = {"images": 32, "batch_size": 16, "warmup_images": 16, "textures": 1}


@pytest.mark.slow
def test_a_backbone_is_written_in_half_precision_without_its_classifier(tmp_path):
    settings = {
        "backbone": "resnet10t",
        "backbone_args": {"channels": [8, 8, 16, 16]},
        "image_size": 32,
        **SMALL,
    }
    job = Job(
        stage="pretrain_backbone",
        key="k",
        output=str(tmp_path / "out"),
        inputs={},
        settings={"pretrain_backbone": settings},
    )
    pretrain_backbone.run(job)
    weights = load_file(tmp_path / "out/model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float16}
    backbone = timm.create_model("resnet10t", num_classes=0, channels=[8, 8, 16, 16])
    missing, unexpected = backbone.load_state_dict(weights, strict=False)
    assert not unexpected and all(name.endswith("num_batches_tracked") for name in missing)
    provenance = json.loads((tmp_path / "out/provenance.json").read_text())
    assert (provenance["steps"], provenance["images_seen"]) == (2, 32)


@pytest.mark.slow
def test_a_second_round_of_clip_starts_from_the_first(tmp_path):
    settings = {"model": "deop-mini", "accuracy_scenes": 4, **SMALL}
    for output, inputs in (("first", {}), ("second", {"clip": str(tmp_path / "first")})):
        job = Job(
            stage="pretrain_clip",
            key=output,
            output=str(tmp_path / output),
            inputs=inputs,
            settings={"pretrain_clip": settings | ({"lr": 0.0} if inputs else {})},
        )
        pretrain_clip.run(job)
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "second"))
    # Without a learning rate, the second round changes nothing.
    assert all(torch.equal(first[name], second[name]) for name in first)
    provenance = json.loads((tmp_path / "second/provenance.json").read_text())
    assert provenance["started_from"]["config_hash"] == "first"
    load_clip("deop-mini", str(tmp_path / "second/model.safetensors"))
