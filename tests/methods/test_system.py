"""A system's folder alone gives the class scores of the system that was saved, or says what is wrong with it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import systems
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from deop.cli import app
from deop.data.card import DatasetCard, LabelledClass
from deop.data.segmentation import write_card, write_split
from deop.errors import DeopError
from deop.jobs.job import Job
from deop.methods.base import Segmenter
from deop.methods.system import load_system, read_config
from deop.models import pretrained
from deop.settings.methods import (
    AnchorSettings,
    DeOPSettings,
    MethodSettings,
    SeveranceSettings,
    SimBaselineSettings,
    ZegFormerSettings,
)
from deop.settings.system import Inference
from deop.stages.evaluate import load_tested
from deop.utils.files import file_hash

NAMES, UNSEEN = ["dog", "cow", "grass"], ["cow"]
DEOP = DeOPSettings(
    visual_prompts=True,
    text_prompts="online",
    severance=SeveranceSettings(kind="gps", alpha={-2: 0.3, -1: 1.0}),
    anchors=AnchorSettings(kind="query", layers=1, ffn_width=32),
)
METHODS: dict[str, MethodSettings] = {
    "deop": DEOP,
    "conv": DEOP.model_copy(update={"anchors": AnchorSettings(kind="conv", layers=3)}),
    "templates": DeOPSettings(
        visual_prompts=True, text_prompts="templates", templates=("a {}", "the {}"), visual_prompt_grid=5
    ),
    "simbaseline": SimBaselineSettings(head_hidden=(24,)),
    "zegformer": ZegFormerSettings(calibration=0.3),
}


def images() -> torch.Tensor:
    return torch.rand(2, 3, 37, 50, generator=torch.Generator().manual_seed(1))


def scores(segmenter: Segmenter, names: list[str] = NAMES) -> torch.Tensor:
    return segmenter.segment(images(), names)


def seen(names: list[str] = NAMES) -> list[str]:
    return [name for name in names if name not in UNSEEN]


def forgotten(monkeypatch, tmp_path: Path) -> None:
    """From here on no CLIP is bundled."""
    monkeypatch.setattr(pretrained, "BUNDLED", tmp_path / "no weights")


@pytest.mark.parametrize("of", METHODS)
def test_the_folder_gives_the_scores_of_the_system_that_was_saved(tmp_path, monkeypatch, of):
    saved = systems.build(METHODS[of], seen())
    saved.size_divisibility, saved.upsample = 16, "scores"
    inference = Inference(short_side=64, size_divisibility=16, upsample="scores")
    expected = scores(saved)
    assert expected.std() > 1e-4  # they depend on the image and the class
    systems.save(saved, tmp_path / "made", NAMES, unseen=UNSEEN, inference=inference)
    assert {path.name for path in (tmp_path / "made").iterdir()} == {
        "config.json",
        "model.safetensors",
        "provenance.json",
    }
    (tmp_path / "made").rename(tmp_path / "moved")  # nothing in it says where it was
    forgotten(monkeypatch, tmp_path)  # its CLIP is random, so it is in the folder
    torch.manual_seed(7)  # other random weights than those that were saved
    loaded = load_system(tmp_path / "moved")
    assert not loaded.training and torch.equal(scores(loaded), expected)
    assert torch.equal(scores(loaded, ["a cat", "sky"]), scores(saved, ["a cat", "sky"]))
    config = read_config(tmp_path / "moved")
    assert (config.class_names, config.seen_names) == (tuple(NAMES), ("dog", "grass"))
    assert config.inference == inference and config.sections["method"]["method"] == METHODS[of].method


@pytest.fixture
def bundled(tmp_path) -> tuple[Segmenter, Path]:
    """A system on the CLIP that the package ships, and its folder."""
    segmenter = systems.build(DEOP, seen(), clip={"pretrained": "bundled"})
    return segmenter, systems.save(segmenter, tmp_path / "system", NAMES, clip={"pretrained": "bundled"})


def test_a_public_clip_is_a_reference_whose_sha256_is_checked(bundled, tmp_path, monkeypatch):
    segmenter, folder = bundled
    assert not [name for name in load_file(folder / "model.safetensors") if name.startswith("clip.")]
    weights = pretrained.BUNDLED / "deop-mini.safetensors"
    assert json.loads((folder / "config.json").read_text())["clip"]["sha256"] == file_hash(weights)
    assert torch.equal(scores(load_system(folder)), scores(segmenter))

    other = tmp_path / "other/deop-mini.safetensors"
    other.parent.mkdir()
    save_file({name: value * 2 for name, value in load_file(weights).items()}, other)
    other.with_suffix(".json").write_text(json.dumps({"sha256": file_hash(other)}))
    monkeypatch.setattr(pretrained, "BUNDLED", other.parent)
    with pytest.raises(DeopError, match=rf"{other} has SHA-256 .*, not the expected") as error:
        load_system(folder)
    assert "\n" not in str(error.value)
    forgotten(monkeypatch, tmp_path)
    with pytest.raises(DeopError, match="no weights are bundled for CLIP model 'deop-mini'"):
        load_system(folder)


def test_a_packed_system_needs_no_other_file(bundled, tmp_path, monkeypatch):
    segmenter, folder = bundled
    packed = tmp_path / "packed"
    command = ["pack", str(packed), "--system", str(folder)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 1 and f"{packed} is there already" in again.stderr
    expected = scores(segmenter)
    shutil.rmtree(folder)
    forgotten(monkeypatch, tmp_path)
    assert torch.equal(scores(load_system(packed)), expected)
    # As small as the bundled file: its half precision is kept.
    clip = {k: v for k, v in load_file(packed / "model.safetensors").items() if k.startswith("clip.")}
    assert clip and {v.dtype for v in clip.values() if v.ndim > 1} == {torch.float16}
    # It can be packed again, from itself.
    done = CliRunner().invoke(app, ["pack", str(tmp_path / "twice"), "--system", str(packed)])
    assert done.exit_code == 0, done.output
    assert torch.equal(scores(load_system(tmp_path / "twice")), expected)


def flip(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


def edit(folder: Path, *keys: str, to: object) -> None:
    values = place = json.loads((folder / "config.json").read_text())
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = to
    (folder / "config.json").write_text(json.dumps(values))


SPOILED = {
    "a flipped bit": (flip, r"model\.safetensors has SHA-256 [0-9a-f]{64}, not the expected"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), r"model\.safetensors is not there"),
    "no config": (lambda folder: (folder / "config.json").unlink(), r"is no trained system: .*config\.json cannot"),
    "half a config": (lambda folder: (folder / "config.json").write_text("{"), r"config\.json: not JSON"),
    "queries": (
        lambda folder: edit(folder, "sections", "proposals", "queries", to=7),
        r"model\.safetensors does not fit .*queries_embedder\.weight has shape \(4, 32\), not \(7, 32\)",
    ),
    "a part less": (
        lambda folder: edit(folder, "sections", "method", "visual_prompts", to=False),
        r"model\.safetensors does not fit .* it has visual_prompts\.\w+, which the network has not",
    ),
    "a part more": (
        lambda folder: edit(folder, "sections", "proposals", "decoder_layers", to=2),
        r"model\.safetensors does not fit .* it lacks proposals\.transformer\.decoder\.layers\.1",
    ),
    "a wrong value": (
        lambda folder: edit(folder, "sections", "proposals", "queries", to=0),
        r"config\.json: sections\.proposals\.queries: Input should be greater than 0 \(got 0\)",
    ),
    "an unknown key": (
        lambda folder: edit(folder, "sections", "method", "visual_promts", to=True),
        r"config\.json: sections\.method: unknown key 'visual_promts'; valid: .*visual_prompts",
    ),
    "an unknown method": (
        lambda folder: edit(folder, "sections", "method", "method", to="doep"),
        r"config\.json: unknown method 'doep'; valid: deop, simbaseline, zegformer",
    ),
    "no method": (lambda folder: edit(folder, "sections", to={}), r"config\.json: unknown method ''; valid: deop"),
    "no prompts": (
        lambda folder: edit(folder, "sections", "prompts", to=None),
        r"config\.json: sections\.prompts: Input should be an object \(got None\)",
    ),
    "another format": (lambda folder: edit(folder, "format", to=2), r"config\.json: format: unknown value 2; valid: 1"),
}  # fmt: skip


@pytest.mark.parametrize("how", SPOILED)
def test_what_is_wrong_with_a_folder_is_one_clear_error(tmp_path, how):
    spoil, message = SPOILED[how]
    folder = systems.save(systems.build(DEOP), tmp_path / "system", NAMES)
    spoil(folder)
    with pytest.raises(DeopError, match=message) as error:
        load_system(folder)
    assert "\n" not in str(error.value) and str(folder) in str(error.value)


def test_the_command_line_says_it_in_one_line(tmp_path):
    folder = systems.save(systems.build(DEOP), tmp_path / "system", NAMES)
    flip(folder)
    done = CliRunner().invoke(app, ["pack", str(tmp_path / "packed"), "--system", str(folder)])
    assert done.exit_code == 1 and len(done.stderr.splitlines()) == 1
    assert f"{folder / 'model.safetensors'} has SHA-256" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["system"]  # nothing half made is left


@pytest.mark.parametrize("of", ["simbaseline", "zegformer"])
def test_names_count_as_seen_as_in_the_folder_or_as_asked(tmp_path, of):
    folder = systems.save(systems.build(METHODS[of], seen()), tmp_path / "system", NAMES, unseen=UNSEEN)
    as_saved = scores(load_system(folder))
    assert torch.equal(as_saved, scores(systems.build(METHODS[of], ["dog", "grass"])))
    for names in ((), ("cow",)):
        asked = scores(load_system(folder, seen_names=names))
        assert torch.equal(asked, scores(systems.build(METHODS[of], names)))
        assert not torch.allclose(asked, as_saved)


def test_a_transfer_is_tested_with_no_class_seen_and_the_settings_of_where_it_is_tested(tmp_path):
    settings = METHODS["simbaseline"]
    folder = systems.save(systems.build(settings, seen()), tmp_path / "system", NAMES, unseen=UNSEEN)
    data = tmp_path / "data"
    data.mkdir()
    write_card(data, DatasetCard(name="d", classes=(LabelledClass(name="dog", kind="thing"),)))
    write_split(data, "val", [])
    inputs = {"data": str(data), "system": str(folder)}
    at_home = Job(stage="evaluate", key="k", output="o", inputs=inputs)
    changes = {"ensemble_weight": 0.4, "mask_threshold": 0.4}
    transfer = {"transfer": {"trained_on": "es171"}}
    plain, changed = (
        at_home.model_copy(update={"settings": values})
        for values in (transfer, transfer | {"tested": changes})
    )
    assert torch.equal(scores(load_tested(at_home)), scores(systems.build(settings, seen())))
    assert torch.equal(scores(load_tested(plain)), scores(systems.build(settings)))
    other = settings.model_copy(update=changes)
    assert torch.equal(scores(load_tested(changed)), scores(systems.build(other)))
    assert not torch.equal(scores(load_tested(changed)), scores(load_tested(plain)))
    assert torch.equal(
        scores(load_system(folder, changes=changes, seen_names=())), scores(load_tested(changed))
    )
