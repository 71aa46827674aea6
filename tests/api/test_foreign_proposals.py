"""Proposals of others: superpixels, and small MaskFormers as transformers saves them, in a folder and on a hub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import deop
from deop.errors import DeopError, WeightsError
from deop.models.foreign_proposals import PointMasks, Superpixels, transformers_proposals

NAMES = ["bear", "grass", "sky"]


@pytest.fixture
def picture() -> np.ndarray:
    """Four plain quarters with a little noise."""
    image = np.zeros((64, 96, 3))
    image[:32, :48], image[:32, 48:], image[32:, :48] = (200, 30, 30), (30, 200, 30), (30, 30, 200)
    return (image + np.random.default_rng(0).integers(0, 20, image.shape)).astype(np.uint8)


def save_maskformer(folder: Path) -> Path:
    from transformers import (
        MaskFormerConfig,
        MaskFormerForInstanceSegmentation,
        MaskFormerImageProcessor,
        SwinConfig,
    )

    torch.manual_seed(0)
    backbone = SwinConfig(
        image_size=64,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 1, 1],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = MaskFormerConfig(backbone_config=backbone, fpn_feature_size=32, mask_feature_size=32)
    config.decoder_config.update(
        {
            "num_queries": 6,
            "d_model": 32,
            "decoder_layers": 1,
            "decoder_ffn_dim": 32,
            "decoder_attention_heads": 2,
            "encoder_layers": 1,
        }
    )
    MaskFormerForInstanceSegmentation(config).save_pretrained(folder)
    MaskFormerImageProcessor(image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.25, 0.3]).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def maskformer(tmp_path_factory) -> Path:
    return save_maskformer(tmp_path_factory.mktemp("maskformer"))


def test_superpixels_divide_the_picture_along_its_edges(picture):
    pytest.importorskip("skimage")
    image = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
    masks = Superpixels(12)(image).sigmoid()[0]
    assert torch.allclose(masks.sum(0), torch.ones(64, 96), atol=1e-4)  # each pixel in one
    for mask in masks:
        colours = picture[mask.numpy() > 0.5]
        assert colours.std(0).max() < 30  # no superpixel lies in two quarters


def test_classes_of_superpixels_are_whole(picture):
    pytest.importorskip("skimage")
    segmenter = deop.load("deop-mini/bundled", proposals="slic", short_side=64, device="cpu")
    labels = segmenter(picture, NAMES).labels
    masks = Superpixels(150)(torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255)[0] > 0
    assert all(len(np.unique(labels[mask.numpy()])) == 1 for mask in masks if mask.any())


def test_masks_of_a_maskformer_are_its_own(maskformer, picture):
    from transformers import MaskFormerForInstanceSegmentation

    image = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
    found = transformers_proposals(str(maskformer))(image)
    model = MaskFormerForInstanceSegmentation.from_pretrained(maskformer).eval()
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.3])
    with torch.no_grad():
        expected = model((image - mean.view(3, 1, 1)) / std.view(3, 1, 1)).masks_queries_logits
    assert found.shape[1] == 6 and torch.allclose(found, expected, atol=1e-5)


def test_masks_of_a_mask2former_are_its_own(tmp_path, picture):
    from transformers import (
        Mask2FormerConfig,
        Mask2FormerForUniversalSegmentation,
        Mask2FormerImageProcessor,
        SwinConfig,
    )

    torch.manual_seed(0)
    stages = ["stage1", "stage2", "stage3", "stage4"]
    backbone = SwinConfig(
        image_size=64,
        embed_dim=8,
        depths=[1] * 4,
        num_heads=[1] * 4,
        window_size=4,
        out_features=stages,
    )
    config = Mask2FormerConfig(
        backbone_config=backbone,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=32,
        dim_feedforward=32,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        num_queries=5,
    )
    model = Mask2FormerForUniversalSegmentation(config).eval()
    model.save_pretrained(tmp_path)
    Mask2FormerImageProcessor(image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.25, 0.3]).save_pretrained(
        tmp_path
    )
    image = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.3])
    with torch.no_grad():
        expected = model((image - mean.view(3, 1, 1)) / std.view(3, 1, 1)).masks_queries_logits
    found = transformers_proposals(str(tmp_path))(image)
    assert found.shape[1] == 5 and torch.allclose(found, expected, atol=1e-5)


def test_a_sam_gives_the_masks_it_finds_and_the_rest(tmp_path, picture):
    from transformers import (
        SamConfig,
        SamImageProcessor,
        SamMaskDecoderConfig,
        SamModel,
        SamPromptEncoderConfig,
        SamVisionConfig,
        pipeline,
    )

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "mlp_dim": 32}
    config = SamConfig(
        vision_config=SamVisionConfig(
            **sizes,
            image_size=64,
            patch_size=16,
            output_channels=16,
            window_size=2,
            global_attn_indexes=[0],
            num_pos_feats=8,
        ),
        prompt_encoder_config=SamPromptEncoderConfig(
            hidden_size=16, image_size=64, patch_size=16, mask_input_channels=4
        ),
        mask_decoder_config=SamMaskDecoderConfig(**sizes, iou_head_hidden_dim=16),
    )
    SamModel(config).save_pretrained(tmp_path)
    side = {"height": 64, "width": 64}
    SamImageProcessor(size={"longest_edge": 64}, pad_size=side).save_pretrained(tmp_path)
    image = torch.from_numpy(picture).permute(2, 0, 1).float() / 255

    # Random weights find no mask that they are sure of: the one mask is the whole image.
    assert (transformers_proposals(str(tmp_path))(image[None]) > 0).all()
    segmenter = deop.load("deop-mini/bundled", proposals=str(tmp_path), short_side=64, device="cpu")
    assert len(np.unique(segmenter(picture, NAMES).labels)) == 1

    generator = pipeline("mask-generation", model=str(tmp_path), device="cpu")
    sure = partial(generator, pred_iou_thresh=-10, stability_score_thresh=-1)
    sure.model = generator.model
    masks = PointMasks(sure)(image[None])[0] > 0
    expected = torch.stack(sure(Image.fromarray(picture))["masks"])
    assert torch.equal(masks[:-1], expected)
    assert torch.equal(masks[-1], ~expected.any(0))


@pytest.mark.parametrize("severance", ["none", "gps", "mps", "mask_sum"])
def test_it_segments_with_every_kind_of_severance(maskformer, picture, severance):
    segmenter = deop.load(
        "deop-mini/bundled", proposals=str(maskformer), severance=severance, short_side=64, device="cpu"
    )
    output = segmenter._network.score(segmenter.encode(picture).batches[0].encoded, NAMES)
    probabilities = output.class_logits[0, :, :-1].softmax(-1).numpy()
    masks = F.interpolate(output.mask_logits, (64, 96), mode="bilinear")[0].sigmoid().numpy()
    scores = sum(np.multiply.outer(of_one, mask) for of_one, mask in zip(probabilities, masks, strict=True))
    assert (segmenter(picture, NAMES).labels == scores.argmax(0)).mean() > 0.999


def test_other_models_are_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(WeightsError, match="a model of type 'bert'; valid: none, slic"):
        transformers_proposals(str(tmp_path))


def test_proposals_are_for_a_clip(tmp_path, maskformer):
    segmenter = deop.load("deop-mini/bundled", proposals=str(maskformer), short_side=64)
    segmenter.save_pretrained(tmp_path / "saved")
    assert str(maskformer) in (tmp_path / "saved/config.json").read_text()
    with pytest.raises(DeopError, match="proposals cannot be changed"):
        deop.load(tmp_path / "saved", proposals="slic")


class _Hub(BaseHTTPRequestHandler):
    """Serves ``folder`` as the repository me/masks, as the Hugging Face hub does."""

    folder: Path

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        name = self.path.partition("?")[0].removeprefix("/me/masks/resolve/main/")
        path = self.folder / name
        there = "/" not in name and path.is_file()
        self.send_response(200 if there else 404)
        self.send_header("X-Repo-Commit", "0" * 40)
        content = path.read_bytes() if there else b""
        if there:
            self.send_header("ETag", f'"{len(content)}-{name}"')
        else:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


def test_a_maskformer_comes_from_a_hub_by_name(maskformer, picture, tmp_path):
    """Downloaded once; then without the hub; and without either, one error says what to do."""
    np.save(tmp_path / "picture.npy", picture)
    code = (
        "import sys, numpy as np, deop\n"
        "from deop.errors import DeopError\n"
        "try: s = deop.load('deop-mini/bundled', proposals='me/masks', short_side=64, device='cpu')\n"
        "except DeopError as error: sys.exit(str(error))\n"
        "np.save('labels.npy', s(np.load('picture.npy'), ['bear', 'grass', 'sky']).labels)"
    )
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Hub", (_Hub,), {"folder": maskformer}))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    hub = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_address[1]}", "HF_HUB_DISABLE_XET": "1"}

    def load(**more: str) -> subprocess.CompletedProcess:
        environment = os.environ | hub | {"HF_HOME": str(tmp_path / "cache")} | more
        return subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
        )

    first = load()
    assert first.returncode == 0, first.stderr[-2000:]
    server.shutdown()
    server.server_close()
    local = deop.load("deop-mini/bundled", proposals=str(maskformer), short_side=64, device="cpu")
    assert np.array_equal(np.load(tmp_path / "labels.npy"), local(picture, NAMES).labels)
    assert load(HF_HUB_OFFLINE="1").returncode == 0
    nowhere = load(HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "empty"))
    assert nowhere.returncode == 1
    said = nowhere.stderr.strip().splitlines()[-1]
    assert "proposals 'me/masks' could not be loaded" in said and "hf download me/masks" in said
