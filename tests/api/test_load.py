"""``deop.load`` and what it gives, with a small CLIP in open_clip's own format and small systems in folders."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import open_clip
import pytest
import systems
import torch
import torch.nn.functional as F
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from PIL import Image
from pycocotools import mask as coco_mask
from safetensors.torch import save_file

import deop
from deop.errors import DeopError
from deop.models.clip import load_clip
from deop.models.severance import Severance
from deop.settings.methods import DeOPSettings
from deop.settings.system import Inference

NAMES = ["bear", "grass", "sky"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A checkpoint as open_clip users have them: a file of tensors under open_clip's names."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("clip") / "clip.safetensors"
    model = open_clip.create_model("deop-mini")
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path)
    return path


@pytest.fixture(scope="module")
def segmenter(weights):
    return deop.load(f"deop-mini/{weights}", short_side=32, templates=["a {}", "the {}"], device="cpu")


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)


def by_hand(weights: Path, picture: np.ndarray, names: list[str], alpha: dict[int, float]) -> np.ndarray:
    """Class probabilities on the patch grid, computed step by step."""
    clip = load_clip("deop-mini", str(weights))
    image = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
    size = [round(side * 32 / 40) for side in image.shape[-2:]]
    image = F.interpolate(image, size, mode="bilinear", antialias=True)
    size = [max(1, round(side / clip.patch_size)) * clip.patch_size for side in size]
    image = F.interpolate(image, size, mode="bilinear", antialias=True)
    for channel in range(3):
        image[:, channel] = (image[:, channel] - clip.mean[channel]) / clip.std[channel]
    with torch.no_grad():
        severance = Severance("gps", alpha) if alpha else None
        patches = F.normalize(clip.visual(image, severance=severance).patches[0], dim=0)
        text = [
            F.normalize(sum(clip.encode_text([name], template)[0] for template in ("a {}", "the {}")), dim=0)
            for name in names
        ]
    scores = np.stack([np.tensordot(one.numpy(), patches.numpy(), 1) for one in text])
    exponents = np.exp(clip.logit_scale * (scores - scores.max(0)))
    return exponents / exponents.sum(0)


@pytest.mark.parametrize(("severance", "alpha"), [(None, {-1: 1.0}), ("none", {})])
def test_a_clip_alone_segments_as_computed_by_hand(weights, picture, severance, alpha):
    segmenter = deop.load(
        f"deop-mini/{weights}", short_side=32, templates=["a {}", "the {}"], severance=severance, device="cpu"
    )
    out = segmenter(picture, NAMES)
    expected = by_hand(weights, picture, NAMES, alpha)
    assert np.allclose(np.stack(list(out.heatmaps.values())), expected, atol=1e-4)
    assert out.labels.shape == (40, 56) and out.classes == NAMES


def test_every_form_of_a_picture_gives_the_same(segmenter, picture, tmp_path, file_server):
    Image.fromarray(picture).save(tmp_path / "a.png")
    file_server.files["a.png"] = (tmp_path / "a.png").read_bytes()
    tensor = torch.from_numpy(picture).permute(2, 0, 1)
    forms = [
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        file_server.url("a.png"),
        Image.fromarray(picture),
        picture.astype(np.float64) / 255,
        tensor,
        tensor.float() / 255,
    ]
    expected = segmenter(picture, NAMES).labels
    assert len(np.unique(expected)) > 1
    for out in segmenter(forms, "bear, grass, sky"):
        assert np.array_equal(out.labels, expected)


def test_pictures_are_turned_as_their_exif_says(segmenter, picture, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.fromarray(picture).save(tmp_path / "turned.png", exif=exif)
    out = segmenter(tmp_path / "turned.png", NAMES)
    assert out.labels.shape == (56, 40)
    assert np.array_equal(out.labels, segmenter(np.rot90(picture, -1), NAMES).labels)


def test_a_picture_is_encoded_once_for_many_vocabularies(segmenter, picture, monkeypatch):
    encoded = segmenter.encode([picture, picture[:30], picture])
    apart = [segmenter(one, NAMES).labels for one in (picture, picture[:30], picture)]

    def again(*_):
        raise AssertionError("the picture was computed again")

    monkeypatch.setattr(segmenter._network, "encode_images", again)
    for out, expected in zip(segmenter(encoded, NAMES), apart, strict=True):
        assert np.array_equal(out.labels, expected)
    assert [out.classes for out in segmenter(encoded, ["dog"])] == [["dog"]] * 3


def test_long_lists_are_shown_to_the_network_a_few_at_a_time(segmenter, picture, monkeypatch):
    shown, encode = [], segmenter._network.encode_images
    monkeypatch.setattr(
        segmenter._network, "encode_images", lambda images: shown.append(len(images)) or encode(images)
    )
    pictures = [picture] * 11 + [picture[:30]] * 2 + [picture] * 6
    results = segmenter(pictures, NAMES)
    assert sorted(shown) == [1, 2, 8, 8]
    assert [out.labels.shape for out in results] == [one.shape[:2] for one in pictures]


def test_a_background_of_a_call_comes_beside_the_classes_that_were_set(weights):
    segmenter = deop.load(f"deop-mini/{weights}", short_side=32, device="cpu")
    own = {"animal": ["bear", "dog"], "plant": ["tree"]}
    segmenter.set_classes(own, background="wall")
    assert segmenter.vocabulary(None, "sky").names == ("bear", "dog", "tree", "sky")
    assert segmenter.vocabulary(None).names == ("bear", "dog", "tree", "wall")


def test_threads_that_share_a_segmenter_have_their_own_templates(segmenter, picture):
    given = [["a {}."], None, ["this is {}."], None] * 2
    apart = [segmenter(picture, NAMES, templates=one).labels for one in given]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda one: segmenter(picture, NAMES, templates=one).labels, given))
    assert all(np.array_equal(*pair) for pair in zip(apart, together, strict=True))
    assert np.array_equal(segmenter(picture, NAMES).labels, apart[1])


def test_a_tensor_that_is_used_again_leaves_results_alone(segmenter):
    frame = torch.zeros(3, 32, 32, dtype=torch.uint8)
    out = segmenter(frame, NAMES)
    frame.fill_(255)
    assert out.picture.max() == 0


def test_a_class_has_the_score_of_its_best_name(segmenter, picture):
    flat = segmenter(picture, ["grizzly", "polar bear", "grass", "sky", "water"])
    out = segmenter(picture, {"bear": ["grizzly", "polar bear"], "grass": []}, background=["sky", "water"])
    assert out.classes == ["bear", "grass", "background"]
    log = {
        name: np.log(values) for name, values in flat.heatmaps.items()
    }  # logits but for a constant of each pixel
    merged = np.stack(
        [np.maximum(log["grizzly"], log["polar bear"]), log["grass"], np.maximum(log["sky"], log["water"])]
    )
    exponents = np.exp(merged)
    found = np.stack(list(out.heatmaps.values()))
    assert np.allclose(found, exponents / exponents.sum(0), atol=1e-4)


def test_templates_of_one_call_are_those_of_loading(segmenter, weights, picture):
    loaded = deop.load(f"deop-mini/{weights}", short_side=32, templates=["this is {}."], device="cpu")
    before = segmenter(picture, NAMES).heatmaps
    out = segmenter(picture, NAMES, templates=["this is {}."]).heatmaps
    expected, after = loaded(picture, NAMES).heatmaps, segmenter(picture, NAMES).heatmaps
    for name in NAMES:
        assert np.allclose(out[name], expected[name], atol=1e-6)
        assert np.array_equal(after[name], before[name]) and not np.allclose(out[name], before[name])
    with pytest.raises(DeopError, match=r"^templates=.*: template 'this' has no \{\}"):
        segmenter(picture, NAMES, templates=["this"])
    with pytest.raises(DeopError, match="unknown set of templates 'clip'"):
        segmenter(picture, NAMES, templates="clip")


def test_pixels_below_a_threshold_are_background(segmenter, picture):
    plain = segmenter(picture, NAMES)
    best = np.stack(list(plain.heatmaps.values())).max(0)
    threshold = float(np.median(best))
    out = segmenter(picture, NAMES, background=threshold)
    assert out.classes[-1] == "background"
    full = F.interpolate(torch.from_numpy(best)[None, None], (40, 56), mode="bilinear")[0, 0].numpy()
    assert np.array_equal(out.labels == 3, full < threshold)
    assert 0.1 < out.areas["background"] < 0.9
    assert np.array_equal(out.labels[full >= threshold], plain.labels[full >= threshold])


def test_results_agree_with_each_other_and_with_other_tools(segmenter, picture, tmp_path):
    out = segmenter(picture, NAMES)
    for name, mask in out.masks.items():
        assert out.areas[name] == pytest.approx(mask.mean())
    assert sum(out.areas.values()) == pytest.approx(1)
    coco = out.to_coco()
    decoded = np.full(out.labels.shape, -1)
    for entry in coco["annotations"]:
        mask = coco_mask.decode(entry["segmentation"]).astype(bool)
        decoded[mask] = entry["category_id"] - 1
        assert entry["area"] == mask.sum()
        assert entry["bbox"] == coco_mask.toBbox(entry["segmentation"]).tolist()
    assert np.array_equal(decoded, out.labels)
    paths = out.save(tmp_path / "out")
    assert np.array_equal(np.asarray(Image.open(paths["png"])), out.labels)
    summary = json.loads(paths["json"].read_text())
    assert {entry["name"]: entry["area"] for entry in summary["classes"]} == pytest.approx(
        {name: area for name, area in out.areas.items() if area}, abs=1e-6
    )
    assert np.asarray(out.plot()).shape[1] > 56


def test_supervision_reads_results(segmenter, picture):
    pytest.importorskip("supervision")
    out = segmenter(picture, NAMES)
    detections = out.to_supervision()
    assert detections.data["class_name"].tolist() == list(out.masks)
    assert np.array_equal(detections.mask, np.stack(list(out.masks.values())))


def test_a_trained_system_is_loaded_saved_and_loaded_again(tmp_path, picture):
    network = systems.build(DeOPSettings(text_prompts="templates", templates=("a {}",)))
    folder = systems.save(network, tmp_path / "system", NAMES, inference=Inference(short_side=32))
    first = deop.load(folder, device="cpu")
    assert first.classes == NAMES
    first.save_pretrained(tmp_path / "saved")
    again = deop.OpenVocabularySegmenter.from_pretrained(tmp_path / "saved", device="cpu")
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "provenance.json",
    ]
    assert np.array_equal(first(picture).labels, again(picture).labels)
    card = (tmp_path / "saved/README.md").read_text()
    assert "Trained on 3 classes: bear, grass, sky." in card and "templates" in card
    again.set_classes("dog, cat")
    assert again(picture).classes == ["dog", "cat"]


def test_a_clip_alone_is_saved_and_loaded_again(weights, picture, tmp_path):
    """Its file of weights is on one machine alone, so they are saved with it."""
    path = shutil.copy(weights, tmp_path / "clip.safetensors")
    segmenter = deop.load(f"deop-mini/{path}", short_side=32, templates=["a {}"], device="cpu")
    segmenter.save_pretrained(tmp_path / "saved")
    Path(path).unlink()
    again = deop.load(tmp_path / "saved", device="cpu")
    assert np.array_equal(again(picture, NAMES).labels, segmenter(picture, NAMES).labels)


@pytest.mark.parametrize("size", [(4, 3000), (3000, 4), (1, 1), (4200, 4000)])
def test_pictures_of_any_shape_are_done_at_their_own_size(segmenter, size):
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    encoded = segmenter.encode(picture)
    shown = encoded.batches[0].encoded  # patch features
    assert shown.shape[-2] * shown.shape[-1] <= 8 * 32 * 32 / segmenter._network.clip.patch_size**2 * 2
    assert segmenter(encoded, NAMES).labels.shape == size


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("deop-mimi", {}, "deop-mimi: no system of that name; nearest: "),
        ("ViT-B-16/opena", {}, "unknown weights 'opena' of CLIP model 'ViT-B-16'"),
        ("deop-mini/gone.safetensors", {}, "gone.safetensors of CLIP model 'deop-mini' are not there"),
        ("deop-mini/bundled", {"proposals": "none", "severance": "mps"}, "is guided by masks"),
        ("deop-mini/bundled", {"severance": "gsp"}, "unknown value 'gsp'"),
        ("deop-mini/bundled", {"templates": ["a photo"]}, "has no {} for the class name"),
        ("deop-mini/bundled", {"device": "gpu"}, "device 'gpu': no such device"),
        ("deop-mini/bundled", {"dtype": "int8"}, "dtype 'int8': valid: float32"),
        ("deop-mini/bundled", {"project": "nowhere"}, "project nowhere: it holds no config/config.yaml"),
    ],
)
def test_what_cannot_be_loaded_is_said(name, options, message):
    with pytest.raises(DeopError) as said:
        deop.load(name, **options)
    assert message in str(said.value)


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        ("gone.jpg", "gone.jpg is not there"),
        (np.zeros((4, 4, 2), np.uint8), "an array of shape"),
        (np.full((4, 4, 3), 255.0), "values from 255 to 255"),
        (np.zeros((4, 4, 3), np.int64), "values of type torch.int64"),
        (torch.zeros(1, 4, 4), "a tensor of shape"),
        (7, "an object of type int"),
    ],
)
def test_what_is_no_picture_is_said(segmenter, picture, message):
    with pytest.raises(DeopError, match=message):
        segmenter(picture, NAMES)


def test_the_package_is_imported_without_torch():
    code = "import sys, deop, deop.tools.segment; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_system_that_the_package_brings_is_found_by_name(tmp_path, picture, monkeypatch):
    from deop.api import places
    from deop.tools import bundle

    network = systems.build(
        DeOPSettings(text_prompts="templates", templates=("a {}",)), clip={"pretrained": "bundled"}
    )
    folder = systems.save(
        network,
        tmp_path / "system",
        NAMES,
        inference=Inference(short_side=32),
        clip={"pretrained": "bundled"},
    )
    bundle.run(str(folder), "deop-tiny", target=tmp_path / "bundled")
    monkeypatch.setattr(places, "BUNDLED_SYSTEMS", tmp_path / "bundled")
    found = deop.load("deop-tiny", device="cpu")
    assert np.array_equal(found(picture).labels, deop.load(folder, device="cpu")(picture).labels)
    held = (tmp_path / "bundled/deop-tiny/model.safetensors").stat().st_size
    assert held == (folder / "model.safetensors").stat().st_size  # CLIP is not in it


def test_results_beside_the_images_are_not_images_of_the_next_run(tmp_path, picture):
    from deop.data.image_places import find_images
    from deop.tools import segment

    Image.fromarray(picture).save(tmp_path / "a.jpg")
    for _ in range(2):
        segment.run("deop-mini/bundled", [tmp_path], tmp_path, classes="a, b", options={"short_side": 32})
        assert list(find_images([tmp_path], tmp_path).values()) == [tmp_path / "a.jpg"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a.jpg",
        "a.json",
        "a.overlay.jpg",
        "a.png",
        "classes.json",
    ]


def test_legends_have_distinct_colours_and_letters_with_accents():
    from deop.reporting.legend_font import legend_font
    from deop.reporting.overlay import legend_colours

    colours = legend_colours(24).astype(int)
    apart = np.abs(colours[:, None] - colours).sum(-1) + 999 * np.eye(24, dtype=int)
    assert apart.min() > 60
    font = legend_font(20)
    box = font.getmask("\uffff").getbbox(), bytes(font.getmask("\uffff"))
    assert all(bytes(font.getmask(letter)) != box[1] for letter in "éßøжλ")


def test_legends_in_other_scripts_use_a_font_of_the_machine(tmp_path, monkeypatch):
    from deop.reporting.legend_font import _font_file, legend_font

    builder = FontBuilder(1000)
    builder.setupGlyphOrder([".notdef", "dog"])
    builder.setupCharacterMap({ord("犬"): "dog"})
    builder.setupGlyf({name: TTGlyphPen(None).glyph() for name in (".notdef", "dog")})
    builder.setupHorizontalMetrics({".notdef": (500, 0), "dog": (800, 0)})
    builder.setupHorizontalHeader()
    builder.setupOS2()
    builder.setupPost()
    builder.save(tmp_path / "b.ttf")
    (tmp_path / "a.ttf").write_text("no font")
    monkeypatch.setattr(
        "matplotlib.font_manager.findSystemFonts", lambda: [str(path) for path in tmp_path.iterdir()]
    )
    try:
        assert legend_font(20, "犬").path == str(tmp_path / "b.ttf")
        assert "DejaVu" in legend_font(20, "犬 dog").path  # in no font: boxes
    finally:
        _font_file.cache_clear()
