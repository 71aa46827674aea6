"""The speed of systems in folders, measured side by side: each as its own evaluation runs it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import systems
from PIL import Image

from deop.data.card import DatasetCard, LabelledClass
from deop.data.segmentation import Entry, write_card, write_label_map, write_split
from deop.errors import DeopError
from deop.jobs.job import Job
from deop.methods.base import Segmenter
from deop.settings.methods import DeOPSettings, ZegFormerSettings
from deop.settings.stages import Evaluation
from deop.stages import measure_speed

NAMES = ["dog", "cow", "grass"]
SIZES = [(24, 36), (30, 30)]


@pytest.fixture
def job(tmp_path: Path) -> Job:
    data = tmp_path / "data"
    (data / "images").mkdir(parents=True)
    entries = []
    for index, size in enumerate(SIZES):
        entry = Entry(data / f"images/{index}.png", data / f"{index}.png", (0,))
        Image.fromarray(np.random.default_rng(index).integers(0, 256, (*size, 3), np.uint8)).save(entry.image)
        write_label_map(entry.label, np.zeros(size, int), 255)
        entries.append(entry)
    classes = tuple(LabelledClass(name=name, kind="thing", unseen=name == "cow") for name in NAMES)
    write_card(data, DatasetCard(name="drawn", classes=classes))
    write_split(data, "val", entries)
    methods = {
        "deop": DeOPSettings(text_prompts="templates", templates=("a {}",)),
        "zegformer": ZegFormerSettings(),
    }
    inputs = {}
    for name, method in methods.items():
        folder = systems.save(systems.build(method), tmp_path / name, NAMES, unseen=["cow"])
        inputs |= {f"{name}/data": str(data), f"{name}/system": str(folder)}
    short_sides = {"deop": 32, "zegformer": 48}
    evaluations = {
        name: {"evaluation": Evaluation(short_side=side).model_dump(mode="json")}
        for name, side in short_sides.items()
    }
    settings = {"speed": {"images": 3, "warmup": 1, "threads": 1}, "systems": evaluations}
    output = str(tmp_path / "speed.json")
    return Job(stage="measure_speed", key="k", output=output, inputs=inputs, settings=settings)


def test_systems_take_turns_each_at_its_size_on_all_names(job, monkeypatch):
    label, asked = Segmenter.label, []

    def watched(self, images, names, size):
        asked.append((type(self).__name__, tuple(images.shape), tuple(names), size))
        return label(self, images, names, size)

    monkeypatch.setattr(Segmenter, "label", watched)
    measure_speed.run(job)
    shapes = {"DeOP": [(1, 3, 32, 48), (1, 3, 32, 32)], "ZegFormer": [(1, 3, 48, 72), (1, 3, 48, 48)]}
    # One image that does not count and three that do, of a set of two.
    assert asked == [
        (system, shapes[system][image], tuple(NAMES), SIZES[image])
        for image in (0, 1, 0, 1)
        for system in ("DeOP", "ZegFormer")
    ]
    found = json.loads(Path(job.output).read_text())
    assert set(found["systems"]) == {"deop", "zegformer"} and found["images"] == 3
    for speed in found["systems"].values():
        assert speed["images_per_s"] == pytest.approx(1000 / speed["latency_median_ms"])


def test_a_system_that_is_damaged_is_named_before_anything_is_measured(job):
    (Path(job.inputs["zegformer/system"]) / "model.safetensors").unlink()
    with pytest.raises(DeopError, match=r"zegformer/model\.safetensors is not there"):
        measure_speed.run(job)
    assert not Path(job.output).exists()
