"""The released checkpoint of the authors: each tensor has its place or is listed, and the network computes the same."""

from __future__ import annotations

import collections
import copy
import dataclasses
import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import real_layouts
import release
import torch
import torch.nn.functional as F
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import load_file
from typer.testing import CliRunner

from deop.cli import app
from deop.data.card import DatasetCard, LabelledClass
from deop.data.segmentation import write_card, write_split
from deop.errors import DeopError
from deop.jobs.job import Job
from deop.methods.base import IMAGENET_MEAN, IMAGENET_STD, normalise
from deop.methods.deop import DeOP
from deop.methods.inference import prepare
from deop.methods.system import load_system
from deop.models.anchors import QueryHeatmapDecoder
from deop.models.prompts import TextPrompt, VisualPrompts
from deop.models.proposals import ProposalNetwork
from deop.settings.stages import Evaluation
from deop.stages import evaluate, prepare_data
from deop.tools import import_authors
from deop.tools.authors import convert
from deop.utils.files import file_hash

SMALL = release.Sizes(
    blocks=(1, 2, 1, 3),
    channels=(8, 8, 16, 24),
    stem=16,
    width=64,
    ffn=48,
    layers=3,
    queries=5,
    embed=64,
    anchor_ffn=1024,
    anchor_layers=2,
    prefix=3,
    vision=128,
    vision_layers=7,
    grid=3,
    learned_grid=5,
    text=64,
    text_layers=2,
)
BACKBONE = {"layers": SMALL.blocks, "channels": SMALL.channels, "stem_width": SMALL.stem // 2}
NAMES = ["mountain range", "green grass", "wine glass"]


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return release.random_state(SMALL)


@pytest.fixture
def checkpoint(state, tmp_path: Path) -> Path:
    """A file as detectron2 writes it, with a scheduler's numbers and counters beside the tensors."""
    path = tmp_path / "model_final.pth"
    scheduler = {"base_lrs": [np.float64(2e-4)], "milestones": collections.Counter([3])}
    torch.save({"model": state, "iteration": 59999, "scheduler": scheduler}, path)
    return path


@pytest.fixture
def small_clip(monkeypatch, tmp_path: Path) -> None:
    """A CLIP of the small sizes that goes by a name, as those of OpenAI do."""
    vision = {"image_size": 48, "patch_size": 16, "width": SMALL.vision, "layers": SMALL.vision_layers}
    text = {
        "context_length": 77,
        "vocab_size": 49408,
        "width": SMALL.text,
        "heads": 1,
        "layers": SMALL.text_layers,
    }
    config = {"embed_dim": SMALL.embed, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "deop-test-release", config)
    monkeypatch.setitem(
        import_authors.CLIP_MODELS, (SMALL.vision, 16, 1 + SMALL.grid**2), "deop-test-release"
    )


def test_every_tensor_of_the_true_checkpoint_has_its_place_or_is_listed() -> None:
    """Names and shapes of our networks at the release's size against those of the release, without numbers."""
    names = release.shapes(release.FULL)
    imported = convert({name: torch.empty(shape, device="meta") for name, shape in names.items()})
    with torch.device("meta"):
        proposals = ProposalNetwork(
            backbone="resnet101s",
            backbone_args={"multi_grid": [1, 2, 4]},
            pretrained_backbone=False,
            out_indices=(1, 2, 3, 4),
            queries=100,
            decoder_layers=6,
            width=256,
            ffn_width=2048,
            heads=8,
        )
        learned = {
            "anchors": QueryHeatmapDecoder(width=512, queries=100),
            "visual_prompts": VisualPrompts(768),
            "text_prompt": TextPrompt(16, 512, 512),
        }
    parts = {
        "proposals": proposals.state_dict(),
        "prompts": learned["text_prompt"].state_dict(),
        "segmentation": {
            f"{name}.{key}": value
            for name, module in learned.items()
            for key, value in module.state_dict().items()
        },
        "clip": open_clip.create_model("ViT-B-16-quickgelu").state_dict(),
    }
    for part, tensors in parts.items():
        expected = {key: tuple(v.shape) for key, v in tensors.items() if "num_batches_tracked" not in key}
        assert {key: tuple(value.shape) for key, value in imported.parts[part].items()} == expected, part
    left_out = sorted(imported.left_out)
    assert left_out == [
        "clip_adapter.prompt_learner.dot_signal",
        "clip_adapter.prompt_learner.end_signal",
        "clip_adapter.prompt_learner.pad_signal",
        "clip_adapter.prompt_learner.start_signal",
        "criterion.empty_weight",
        "decoder.norm.bias",
        "decoder.norm.weight",
        "decoder.outlayer.multihead_attn_my.in_proj_bias (rows 1024 to 1535)",
        "decoder.outlayer.multihead_attn_my.in_proj_weight (rows 1024 to 1535)",
        *(
            f"sem_seg_head.predictor.class_embed.layers.{layer}.{what}"
            for layer in (0, 1)
            for what in ("bias", "weight")
        ),
    ]
    mapped = sum(value.numel() for tensors in imported.parts.values() for value in tensors.values())
    mapped -= sum(value.numel() for value in imported.parts["prompts"].values())  # which are there twice
    unused = sum(torch.Size(names[name]).numel() for name in left_out if " " not in name)
    assert mapped + unused + 512 * 512 + 512 == sum(torch.Size(shape).numel() for shape in names.values())


def imported(checkpoint: Path, output: Path) -> tuple[DeOP, Evaluation]:
    """The network that the import wrote, and how it is to be evaluated."""
    result = CliRunner().invoke(app, ["import-authors", str(checkpoint), str(output)])
    assert result.exit_code == 0, result.output
    assert "13 left out" in result.output and "criterion.empty_weight: class weights" in result.output
    config = with_small_backbone(output)
    assert config["sections"]["method"]["anchors"]["layers"] == 2
    assert config["sections"]["prompts"]["prefix_tokens"] == 3
    return load_system(output), Evaluation(**config["inference"])


def with_small_backbone(system: Path) -> dict:
    """The configuration of an imported system, changed to the size of the backbone that no tensor tells."""
    config = json.loads((system / "config.json").read_text())
    config["sections"]["proposals"]["backbone_args"] |= BACKBONE
    (system / "config.json").write_text(json.dumps(config))
    return config


def token_ids() -> tuple[list[list[int]], list[int]]:
    """Of the names, and of what ends a prompt."""
    tokenizer = SimpleTokenizer()
    return [tokenizer.encode(name) for name in NAMES], [*tokenizer.encode("."), 49407]


@torch.no_grad()
def test_the_imported_network_computes_what_the_release_does(checkpoint, state, small_clip, tmp_path) -> None:
    segmenter, _ = imported(checkpoint, tmp_path / "imported")
    network = release.Release(state, SMALL)
    image = torch.rand(1, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    x = normalise(image, IMAGENET_MEAN, IMAGENET_STD)
    for ours, theirs in zip(segmenter.proposals.backbone(x), network.backbone(x.double()), strict=True):
        torch.testing.assert_close(ours.double(), theirs, atol=1e-4, rtol=1e-4)
    masks = network.masks(x.double())
    # In double precision: in single, what is rounded in six layers shows in one mask or another.
    for ours, theirs in zip(copy.deepcopy(segmenter.proposals).double()(x.double()), masks, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)

    rows = network.classifier(*token_ids(), heads=1)
    torch.testing.assert_close(segmenter.classifier(NAMES).double(), rows, atol=1e-5, rtol=0)

    features = F.normalize(network.dense_clip(x.double(), masks[-1], heads=2), dim=-1)
    logits = 100 * network.pooled(features, masks[-1]) @ rows.T
    output = segmenter(image, NAMES)
    torch.testing.assert_close(output.class_logits[0].double(), logits, atol=1e-2, rtol=1e-3)
    scores = segmenter.segment(image, NAMES)[0]
    full = F.interpolate(masks[-1], (96, 128), mode="bilinear")[0].sigmoid()
    expected = torch.einsum("nc,nhw->chw", logits.softmax(-1)[:, :-1], full)
    torch.testing.assert_close(scores.double(), expected, atol=1e-3, rtol=1e-3)


def with_moderate_scores(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Random weights under which masks differ and are soft, and few proposals are no object."""
    network, images = release.Release(state, SMALL), torch.randn(1, 3, 96, 128).double()
    embeddings, pixels = network.decoded(images)
    centred = embeddings[-1] - embeddings[-1].mean(0)
    scale = torch.einsum("qc,bchw->bqhw", centred, pixels).std()
    bias, last = "sem_seg_head.predictor.mask_embed.layers.2.bias", "sem_seg_head.pixel_decoder.mask_features"
    names = network.classifier(*token_ids(), heads=1)[:-1]
    changes = {
        bias: state[bias] - embeddings[-1].mean(0),
        f"{last}.weight": state[f"{last}.weight"] / scale,
        f"{last}.bias": state[f"{last}.bias"] / scale,
        "clip_adapter.non_object_embedding": -names.sum(0, keepdim=True),
    }
    return state | {name: value.float() for name, value in changes.items()}


@pytest.mark.parametrize("size", [(80, 107), (96, 128)])
@torch.no_grad()
def test_the_imported_network_labels_images_of_any_size_as_the_release_does(
    state, small_clip, tmp_path, size
) -> None:
    """Padded to multiples of 32 for both networks, cropped, and scores resized: the release's way by hand."""
    state = with_moderate_scores(state)
    torch.save({"model": state}, tmp_path / "model_final.pth")
    segmenter, evaluation = imported(tmp_path / "model_final.pth", tmp_path / "imported")
    network, (height, width), original = release.Release(state, SMALL), size, (61, 90)
    image = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    rows = network.classifier(*token_ids(), heads=1)
    of_images = []
    for x in image:
        padded = torch.zeros(1, 3, -(-height // 32) * 32, -(-width // 32) * 32, dtype=torch.float64)
        for channel in range(3):
            normalised = (x[channel].double() - IMAGENET_MEAN[channel]) / IMAGENET_STD[channel]
            padded[0, channel, :height, :width] = normalised
        masks = network.masks(padded)[-1]
        features = F.normalize(network.dense_clip(padded, masks, heads=2), dim=-1)
        classes = (100 * network.pooled(features, masks) @ rows.T).softmax(-1)[:, :-1]
        full = F.interpolate(masks, padded.shape[-2:], mode="bilinear", align_corners=False)
        scores = torch.einsum("nc,nhw->chw", classes, full[0, :, :height, :width].sigmoid())
        of_images.append(F.interpolate(scores[None], original, mode="bilinear", align_corners=False)[0])
    expected = torch.stack(of_images)

    prepared = prepare(segmenter, torch.device("cpu"), **evaluation.inference)
    scores = prepared.segment(image, NAMES, original)
    torch.testing.assert_close(scores.double(), expected, atol=1e-4, rtol=1e-4)
    best = expected.topk(2, dim=1).values
    clear = best[:, 0] - best[:, 1] > 1e-4  # elsewhere rounding may decide
    labels = prepared.label(image, NAMES, original)
    assert clear.double().mean() > 0.9 and len(labels[clear].unique()) > 1
    assert torch.equal(labels[clear], expected.argmax(1)[clear])


def test_an_import_says_where_it_came_from_and_lists_what_is_unknown(state, small_clip, tmp_path) -> None:
    path = tmp_path / "model_final.pth"
    more = state | {
        "backbone.fpn.weight": torch.ones(2),
        "backbone.res2.0.conv1.norm.num_batches_tracked": torch.ones(()),
    }
    torch.save(more, path)
    import_authors.import_checkpoint(path, tmp_path / "imported")
    provenance = json.loads((tmp_path / "imported" / "provenance.json").read_text())
    assert provenance["source"] == "model_final.pth"
    assert provenance["source_sha256"] == file_hash(path)
    assert provenance["tensors"] == {"in_checkpoint": len(more), "left_out": 15}
    assert "no part of the released network" in provenance["left_out"]["backbone.fpn.weight"]
    weights = load_file(tmp_path / "imported" / "model.safetensors")
    learned = state["clip_adapter.clip_model.visual.transformer.resblocks.2.learned_position"]
    assert torch.equal(weights["visual_prompts.class_token"][2], learned[0])
    assert torch.equal(weights["visual_prompts.patches"][2][:, 3, 1], learned[1 + 3 * SMALL.learned_grid + 1])


@pytest.mark.slow
def test_an_imported_network_can_be_measured(state, small_clip, tmp_path) -> None:
    real_layouts.write_ade20k(tmp_path / "raw", train=1, val=1)
    data, folder = tmp_path / "a150-0", tmp_path / "imported"
    settings = {"dataset": {"kind": "ade20k", "complete": False}, "data": {"root": str(tmp_path / "raw")}}
    prepare_data.run(Job(stage="prepare_data", key="0" * 12, output=str(data), settings=settings))
    path = tmp_path / "model_final.pth"
    torch.save(state, path)
    with pytest.raises(DeopError, match=r"dataset\.json: no such file"):
        import_authors.import_checkpoint(path, folder, tmp_path / "raw")
    result = CliRunner().invoke(app, ["import-authors", str(path), str(folder), "--data", str(data)])
    assert result.exit_code == 0, result.output
    said = " ".join(result.output.split())
    assert (
        "Class names: detectron2, as the release has them" in said and "others for 51 of 150 classes" in said
    )
    job = Job.model_validate_json((folder / "evaluate.json").read_text())
    with_small_backbone(folder)
    evaluate.run(job)
    measured = json.loads((folder / "evaluation.json").read_text())
    assert measured["images"] == 1 and 0 <= measured["metrics"]["pAcc"] <= 1
    assert measured["class_names"] == "detectron2" and len(measured["per_class_iou"]) == 150
    # the dataset was prepared with "road" and "windowpane"
    assert {"road, route", "window", "tv"} <= measured["per_class_iou"].keys()


def test_a_dataset_of_ones_own_is_measured_under_its_own_names(state, small_clip, tmp_path) -> None:
    path, data = tmp_path / "model_final.pth", tmp_path / "mine"
    torch.save(state, path)
    data.mkdir()
    write_card(data, DatasetCard(name="mine", classes=(LabelledClass(name="dog", kind="thing", raw_id=1),)))
    write_split(data, "train", [])
    arguments = ["import-authors", str(path), str(tmp_path / "imported"), "--data", str(data)]
    refused = CliRunner().invoke(app, arguments)
    assert refused.exit_code == 1 and "val.csv: no such split" in refused.stderr
    write_split(data, "val", [])
    result = CliRunner().invoke(app, arguments)
    said = " ".join(result.output.split())
    assert (
        result.exit_code == 0 and "Class names: those of" in said and "not a dataset of the release" in said
    )
    job = Job.model_validate_json((tmp_path / "imported" / "evaluate.json").read_text())
    assert job.inputs["data"] == str(data)


class Anything:
    """What a pickle can hold that would run code."""


def test_checkpoints_that_cannot_be_imported(state, small_clip, tmp_path) -> None:
    def told(contents: object) -> str:
        path = tmp_path / "file.pth"
        path.write_text(contents) if isinstance(contents, str) else torch.save(contents, path)
        result = CliRunner().invoke(app, ["import-authors", str(path), str(tmp_path / "out")])
        assert result.exit_code == 1 and not (tmp_path / "out").exists()
        assert "\n" not in result.stderr.strip()
        return result.stderr

    assert "holds objects of kind test_authors.Anything" in told({"model": state, "hook": Anything()})
    assert "cannot be read as weights" in told("<html>quota exceeded</html>")
    assert "holds no state dict" in told({"iteration": 3})
    maskformer = {
        name: value for name, value in state.items() if not name.startswith(("decoder", "query_embedding"))
    }
    message = told({"model": maskformer})
    assert "lacks query_embedding.weight, decoder.outlayer.multihead_attn_my.in_proj_weight" in message
    other = dataclasses.replace(SMALL, patch=8)
    assert "known: ViT-B-32-quickgelu, ViT-B-16-quickgelu" in told({"model": release.random_state(other)})
    (tmp_path / "out").mkdir()
    result = CliRunner().invoke(app, ["import-authors", str(tmp_path / "file.pth"), str(tmp_path / "out")])
    assert result.exit_code == 1 and "is there already" in result.stderr
