"""Pictures of a small random network, on a dataset written here; what they show is computed again, slowly."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import systems
import torch
import torch.nn.functional as F
from PIL import Image

from deop.data.card import DatasetCard, LabelledClass
from deop.data.emoji import dataset as emoji_scenes
from deop.data.emoji.settings import EmojiScenes
from deop.data.segmentation import (
    IGNORE,
    Entry,
    SegmentationDataset,
    write_card,
    write_label_map,
    write_split,
)
from deop.errors import DeopError
from deop.jobs import artifacts
from deop.jobs.job import Job
from deop.methods.base import normalise
from deop.methods.deop import DeOP
from deop.reporting import anchor_picture
from deop.reporting.picture import DETAIL, for_readers
from deop.settings.datasets import Vocabulary
from deop.settings.methods import AnchorSettings, DeOPSettings
from deop.settings.system import Inference
from deop.stages import picture

QUERIES, SIZE, SHORT_SIDE = 4, (40, 60), 32
GRID = (4, 6)
DOG, COW, RABBIT, GRASS, SKY = range(5)
CLASSES = (
    LabelledClass(name="dog", kind="thing"),
    LabelledClass(name="cow", kind="thing", unseen=True),
    LabelledClass(name="rabbit", kind="thing", unseen=True),
    LabelledClass(name="grass", kind="stuff"),
    LabelledClass(name="sky", kind="stuff", unseen=True),
)
BOXES = (  # of each image: class, top, bottom, left, right; the rest is without a class
    ((COW, 2, 22, 5, 25), (GRASS, 25, 40, 0, 50)),
    ((COW, 10, 30, 30, 59), (DOG, 0, 10, 0, 30), (SKY, 31, 40, 0, 60)),
    ((COW, 0, 8, 10, 50), (DOG, 20, 40, 0, 20), (GRASS, 20, 40, 20, 60)),
    ((RABBIT, 5, 25, 20, 40), (SKY, 0, 5, 0, 60), (COW, 38, 40, 0, 10)),  # the cow is too small to be shown
    ((RABBIT, 0, 40, 0, 55),),  # too large
    ((RABBIT, 10, 30, 3, 23), (DOG, 3, 18, 30, 58)),
)


@pytest.fixture(scope="module")
def segmenter() -> DeOP:
    return systems.build(DeOPSettings(anchors=AnchorSettings(kind="query", layers=1, feature_scale=50)))


@pytest.fixture
def dataset(tmp_path) -> Path:
    root, generator = tmp_path / "data", np.random.default_rng(0)
    (root / "images").mkdir(parents=True)
    entries = []
    for index, boxes in enumerate(BOXES):
        label = np.full(SIZE, IGNORE)
        for segment, top, bottom, left, right in boxes:
            label[top:bottom, left:right] = segment
        entry = Entry(
            root / f"images/{index}.png", root / f"labels-{index}.png", tuple(sorted(box[0] for box in boxes))
        )
        Image.fromarray(generator.integers(0, 256, (*SIZE, 3), np.uint8)).save(entry.image)
        write_label_map(entry.label, label, 255)
        entries.append(entry)
    write_card(root, DatasetCard(name="boxes", classes=CLASSES))
    write_split(root, "val", entries)
    return root


@pytest.fixture
def draw(dataset, segmenter, tmp_path):
    """``draw(kind)``: runs the stage with the system above; the folder of what it wrote."""
    system = systems.save(segmenter, tmp_path / "system", [entry.name for entry in CLASSES])

    def draw(kind: str) -> Path:
        settings = {"picture": {"kind": kind, "short_side": SHORT_SIDE}}
        output = tmp_path / "figures" / f"{kind}.json"
        inputs = {"data": str(dataset), "system": str(system)}
        job = Job(stage="picture", key="k", output=str(output), inputs=inputs, settings=settings)
        picture.run(job)
        return output.parent

    return draw


def test_images_that_lie_elsewhere_are_named_by_their_place_there(draw, dataset, tmp_path):
    """As those of all datasets do that are not generated."""
    elsewhere = tmp_path / "owners"
    elsewhere.mkdir()
    (dataset / "images").rename(elsewhere / "images")
    write_card(dataset, DatasetCard(name="boxes", classes=CLASSES, image_root=str(elsewhere)))
    assert json.loads((draw("scene") / "scene.json").read_text())["image"] == "images/1.png"
    rows = json.loads((draw("anchors") / "anchors.json").read_text())["rows"]
    assert rows and all((elsewhere / row["image"]).is_file() for row in rows)
    assert all(not Path(row["image"]).is_absolute() for row in rows)


@pytest.mark.parametrize("kind", ["scene", "anchors"])
def test_files_are_whole_and_the_same_again_and_json_is_written_last(draw, monkeypatch, kind):
    written = []
    rename = artifacts.os.replace
    monkeypatch.setattr(
        artifacts.os, "replace", lambda old, new: (written.append(Path(new).suffix), rename(old, new))
    )
    folder = draw(kind)
    assert written == [".png", ".svg", ".json"]
    assert {path.name for path in folder.iterdir()} == {f"{kind}.png", f"{kind}.svg", f"{kind}.json"}
    Image.open(folder / f"{kind}.png").verify()
    assert b"<svg" in (folder / f"{kind}.svg").read_bytes()
    values = json.loads((folder / f"{kind}.json").read_text())
    made = values["provenance"]
    assert (values["key"], values["kind"], made["config_hash"]) == ("k", kind, "k")
    assert "rule" in values["rule"] and made["wall_time_s"] > 0
    before = {path.suffix: path.read_bytes() for path in folder.iterdir()}
    draw(kind)
    assert all((folder / f"{kind}{end}").read_bytes() == before[end] for end in (".png", ".svg"))


def test_a_scene_is_the_first_with_most_classes_and_its_segment_unseen(draw):
    values = json.loads((draw("scene") / "scene.json").read_text())
    assert (values["image"], values["class"]) == ("images/1.png", "cow")


def literal_overlaps(segmenter, image: Path, label: Path, segment: int) -> tuple[list[float], object]:
    """IoU of each proposal with a class by loops over pixels, and what the network gave."""
    pixels = torch.from_numpy(np.asarray(Image.open(image)).copy()).permute(2, 0, 1)[None] / 255
    resized = F.interpolate(pixels, (32, 48), mode="bilinear", antialias=True)
    output = segmenter(resized, [entry.name for entry in CLASSES])
    masks = F.interpolate(output.mask_logits.sigmoid(), SIZE, mode="bilinear")[0]
    truth, overlaps = np.asarray(Image.open(label)), []
    for mask in masks:
        both = either = 0
        for y in range(SIZE[0]):
            for x in range(SIZE[1]):
                if truth[y, x] != 255:
                    inside, proposed = truth[y, x] == segment, bool(mask[y, x] > 0.5)
                    both += inside and proposed
                    either += inside or proposed
        overlaps.append(both / either)
    return overlaps, (resized, output)


@torch.no_grad()
def test_rows_and_patches_are_those_of_the_rule(draw, dataset, segmenter):
    rows = json.loads((draw("anchors") / "anchors.json").read_text())["rows"]
    # Three images show dog and cow large enough, two the rabbit and the sky.
    expected = {"dog": (1, 2, 5), "cow": (0, 1, 2), "sky": (1, 3)}
    assert [(row["class"], row["unseen"]) for row in rows] == [("dog", False), ("cow", True), ("sky", True)]
    for row in rows:
        segment = [entry.name for entry in CLASSES].index(row["class"])
        found = {
            index: literal_overlaps(
                segmenter, dataset / f"images/{index}.png", dataset / f"labels-{index}.png", segment
            )
            for index in expected[row["class"]]
        }
        best = max(found, key=lambda index: max(found[index][0]))
        overlaps, (resized, output) = found[best]
        assert len({max(overlaps) for overlaps, _ in found.values()}) == len(found)  # no tie to win by luck
        query = overlaps.index(max(overlaps))
        assert (row["image"], row["proposal"]) == (f"images/{best}.png", query)
        assert row["proposal_iou"] == pytest.approx(max(overlaps), abs=1e-4)

        truth = np.asarray(Image.open(dataset / f"labels-{best}.png")) == segment
        covered = {
            (y, x): truth[10 * y : 10 * y + 10, 10 * x : 10 * x + 10].mean()
            for y in range(GRID[0])
            for x in range(GRID[1])
        }
        inside = [patch for patch, part in covered.items() if part >= 0.5]
        assert len(inside) > 1 and row["grid"] == list(GRID)
        heatmap = sum(output.heatmaps[0, query]) / output.heatmaps.shape[2]
        i = max(inside, key=lambda patch: float(heatmap[patch]))
        j = max(inside, key=lambda patch: (patch[0] - i[0]) ** 2 + (patch[1] - i[1]) ** 2)
        assert (tuple(row["patch_i"]), tuple(row["patch_j"])) == (i, j)

        clip = segmenter.clip
        attention = clip.patch_attention(normalise(resized, clip.mean, clip.std))[0]
        for name, patch in (("attention_i", i), ("attention_j", j)):
            weights = attention[:, 1 + patch[0] * GRID[1] + patch[1], 1:].mean(0)
            share = sum(float(w) * part for w, part in zip(weights, covered.values(), strict=True))
            assert row["on_segment"][name] == pytest.approx(share / float(weights.sum()), abs=1e-3)


@pytest.mark.parametrize(
    ("images", "unseen", "expected"),
    [
        ({DOG: 3, COW: 3, RABBIT: 2, GRASS: 9, SKY: 1}, {COW, RABBIT, SKY}, [DOG, COW, SKY]),
        ({DOG: 3, COW: 2, RABBIT: 3}, {COW, RABBIT, SKY}, [DOG, RABBIT, COW]),  # no unseen stuff
        ({DOG: 3, COW: 2, GRASS: 4}, {COW}, [DOG, COW]),
        ({DOG: 3, COW: 3}, set(), [DOG]),
        ({GRASS: 1, SKY: 2}, {SKY}, [GRASS, SKY]),  # no things
        ({}, {COW}, []),
    ],
)
def test_fewer_classes_give_fewer_rows(images, unseen, expected):
    classes = tuple(entry.model_copy(update={"unseen": i in unseen}) for i, entry in enumerate(CLASSES))
    assert anchor_picture.choose_classes(images, DatasetCard(name="d", classes=classes)) == expected


def test_a_thin_segment_has_two_patches_all_the_same():
    covered = torch.tensor([[0.0, 0.3, 0.2], [0.1, 0.2, 0.0]])
    heatmap = torch.tensor([[0.9, 0.1, 0.2], [0.0, 0.1, 0.8]])
    assert anchor_picture.choose_patches(covered, heatmap) == ((0, 2), (1, 1))


def test_what_cannot_be_shown_is_said(dataset, segmenter):
    val = SegmentationDataset(dataset, "val")
    val.entries = [val.entries[4]]
    with pytest.raises(DeopError, match="no class covers 5% to 35% of a validation image"):
        anchor_picture.draw(segmenter, val, SHORT_SIDE)
    parts = (segmenter.clip, segmenter.proposals, segmenter.text_prompt)
    with pytest.raises(DeopError, match="no classification anchors"):
        anchor_picture.draw(DeOP(*parts, DeOPSettings(), queries=QUERIES), val, SHORT_SIDE)


@pytest.mark.parametrize("kind", ["scene", "anchors"])
def test_how_a_system_is_evaluated_does_not_change_its_pictures(draw, dataset, segmenter, tmp_path, kind):
    """Padding and resized scores, as in the release, would not fit what is drawn over the image."""
    plain = (draw(kind) / f"{kind}.svg").read_bytes()
    names = [entry.name for entry in CLASSES]
    inference = Inference(size_divisibility=64, upsample="scores")
    system = systems.save(segmenter, tmp_path / "padded", names, inference=inference)
    job = Job(
        stage="picture",
        key="k",
        output=str(tmp_path / f"padded/{kind}.json"),
        inputs={"data": str(dataset), "system": str(system)},
        settings={"picture": {"kind": kind, "short_side": SHORT_SIDE}},
    )
    picture.run(job)
    assert (tmp_path / f"padded/{kind}.svg").read_bytes() == plain


def test_generated_scenes_are_shown_larger_than_the_networks_see_them(tmp_path):
    words = Vocabulary(things=("dog", "cow"), stuff=("grass",))
    settings = EmojiScenes(style="twemoji", vocabulary=words, train=0, val=2, image_size=32)
    emoji_scenes.write(tmp_path, "toy", settings)
    dataset = SegmentationDataset(tmp_path, "val")
    assert for_readers(dataset, 1).image.shape == (3, 32, 32)  # nothing says how it was made
    provenance = {"settings": {"dataset": settings.model_dump(mode="json")}}
    (tmp_path / artifacts.PROVENANCE).write_text(json.dumps(provenance))
    shown, seen = for_readers(dataset, 1), dataset[1]
    assert shown.image.shape[1:] == shown.label.shape == (32 * DETAIL, 32 * DETAIL)
    assert (shown.label[DETAIL // 2 :: DETAIL, DETAIL // 2 :: DETAIL] == seen.label).float().mean() > 0.95
