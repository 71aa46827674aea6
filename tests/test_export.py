"""Systems as graphs: what ONNX Runtime and OpenVINO make of them is what the networks make."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import systems
import torch
import torch.nn.functional as F
from typer.testing import CliRunner

import deop
from deop.cli import app
from deop.errors import DeopError
from deop.methods.base import nearest_multiple
from deop.methods.graph import trace
from deop.models.clip_towers import cubic_matrix
from deop.settings.methods import DeOPSettings
from deop.settings.stages import Inference
from deop.tools import export

NAMES = ["bear", "grass", "sky", "traffic light", "dog"]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    image = np.random.default_rng(0).integers(0, 60, (72, 108, 3), np.uint8)
    image[:30, :50, 0] += 180
    image[40:, 60:, 1] += 150
    return image


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    network = systems.build(DeOPSettings(text_prompts="templates", templates=("a {}",)))
    return systems.save(
        network, tmp_path_factory.mktemp("systems") / "small", NAMES, inference=Inference(short_side=48)
    )


@pytest.fixture(scope="module")
def onnx_graph(folder, tmp_path_factory) -> Path:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    path = tmp_path_factory.mktemp("graphs") / "small.onnx"
    done = CliRunner().invoke(app, ["export", str(folder), "--output", str(path)])
    assert done.exit_code == 0, done.output
    assert "of the pixels of a test image as the network does" in done.output
    assert [file.name for file in path.parent.iterdir()] == ["small.onnx"]
    return path


def test_a_graph_for_any_words_labels_as_its_system(folder, onnx_graph, picture, tmp_path):
    system, graph = deop.load(folder, device="cpu"), deop.load(onnx_graph)
    assert graph.classes == NAMES
    for words in (NAMES, ["cat", "sea"], {"animal": ["bear", "dog"], "plant": ["grass"]}):
        for image in (picture, picture.transpose(1, 0, 2), picture[:48, :48]):
            # With a short side of 48, sides are multiples of CLIP's patches, which graphs need and networks do not.
            out, expected = graph(image, words), system(image, words)
            assert out.classes == expected.classes
            assert (out.labels == expected.labels).mean() >= 0.999
            for name in expected.classes:
                assert np.allclose(out.heatmaps[name], expected.heatmaps[name], atol=2e-3)
    encoded = graph.encode(picture)
    assert np.array_equal(graph(encoded, NAMES).labels, graph(picture, NAMES).labels)
    done = CliRunner().invoke(
        app,
        ["segment", str(folder.parent / "a.png"), "--model", str(onnx_graph), "--output", str(tmp_path)],
    )
    assert done.exit_code == 1 and "a.png" in str(done.output)  # the image is asked for before the graph


def test_it_runs_without_this_package(folder, onnx_graph):
    import onnxruntime

    session = onnxruntime.InferenceSession(onnx_graph)
    network = deop.load(folder, device="cpu").network
    metadata = json.loads(session.get_modelmeta().custom_metadata_map["deop"])
    step = metadata["multiple_of"]
    images = np.random.default_rng(1).random((1, 3, 6 * step, 13 * step), np.float32)
    text = network.text_features(NAMES)
    (labels,) = session.run(["labels"], {"images": images, "text": text.numpy()})
    scores = network.segment(torch.from_numpy(images), NAMES)[0]
    assert labels.shape == scores.shape[1:]
    chosen = scores.gather(0, torch.from_numpy(labels).long()[None])[0]
    assert (
        scores.amax(0) - chosen
    ).max() < 1e-5  # the best class, or as good to rounding: weights are random
    assert (labels == scores.argmax(0).numpy()).mean() > 0.98
    assert metadata["config"]["class_names"] == NAMES


def test_a_frozen_vocabulary_on_openvino(picture, tmp_path, request):
    pytest.importorskip("openvino")
    if not request.getfixturevalue("in_own_process"):
        return
    path, agreement, _ = export.run(
        "deop-mini/bundled",
        tmp_path / "words.xml",
        "openvino",
        classes="bear, grass, sky, traffic light, dog",
        options={"short_side": 48},
    )
    assert agreement >= 0.999
    assert sorted(file.name for file in tmp_path.iterdir()) == ["words.bin", "words.xml"]
    system, graph = deop.load("deop-mini/bundled", short_side=48, device="cpu"), deop.load(path)
    assert (graph(picture).labels == system(picture, NAMES).labels).mean() >= 0.999
    few = ["dog", "grass"]  # of the frozen ones, in another order
    assert (graph(picture, few).labels == system(picture, few).labels).mean() >= 0.999
    with pytest.raises(DeopError, match=r"'dig' is not in the vocabulary .*nearest: dog"):
        graph(picture, ["dig", "grass"])
    with pytest.raises(DeopError, match="is an exported graph, which is no folder"):
        graph.save_pretrained(tmp_path / "saved")
    with pytest.raises(DeopError, match=r"dtype 'float16': valid for a graph: float32, bfloat16"):
        deop.load(path, dtype="float16")
    with pytest.raises(DeopError, match="severance cannot be changed"):
        deop.load(path, severance="none")


def test_what_cannot_be_exported_is_said(tmp_path):
    with pytest.raises(DeopError, match="--to tflite: valid: onnx, openvino"):
        export.run("deop-mini", None, "tflite")
    with pytest.raises(DeopError, match=r"a graph for onnx is called something.onnx"):
        export.run("deop-mini", tmp_path / "a.xml", "onnx")
    with pytest.raises(DeopError, match="shows CLIP other images for other names"):
        trace(torch.nn.Identity(), None)
    (tmp_path / "bad.onnx").write_bytes(b"nothing")
    pytest.importorskip("onnxruntime")
    with pytest.raises(DeopError, match=r"bad.onnx cannot be read as an ONNX graph"):
        deop.load(tmp_path / "bad.onnx")
    with pytest.raises(DeopError, match=r"gone.onnx is not there"):
        deop.load(tmp_path / "gone.onnx")


@pytest.mark.parametrize(("old", "new"), [(14, 9), (14, 37), (6, 6), (12, 5)])
def test_positions_are_resized_by_the_same_numbers(old, new):
    maps = torch.randn(3, old, old)
    expected = F.interpolate(maps[None], (new, new), mode="bicubic", antialias=True)[0]
    matrix = cubic_matrix(old, new)
    assert torch.allclose(matrix @ maps @ matrix.T, expected, atol=1e-5)


@pytest.mark.parametrize("of", [14, 16, 32])
def test_whole_numbers_round_as_floating_point_ones(of):
    for side in range(1, 40 * of):
        assert nearest_multiple(side, of) == max(1, round(side / of)) * of
