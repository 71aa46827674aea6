"""Figures by class, on evaluations made up: what is drawn is read back from the figure."""

from __future__ import annotations

import csv
import json
import statistics
from pathlib import Path

import numpy as np
import pytest
from figure_jobs import (
    drawn,
    made_job,
    marks,
)

from deop.errors import DeopError
from deop.reporting import plots
from deop.reporting.confusion import confusion_shares
from deop.stages import figure


def test_per_class_iou_has_every_class_once_in_order(tmp_path):
    job = made_job(tmp_path, "per_class_iou", experiments=["baseline", "deop"], classes=171)
    made, text = drawn(job)
    curve, dots = made.axes
    for experiment, marker in (("baseline", "o"), ("deop", "s")):
        seeds = [json.loads(Path(job.inputs[f"{experiment}/es171/{seed}"]).read_text()) for seed in range(3)]
        means = {
            name: statistics.mean(100 * seed["per_class_iou"][name] for seed in seeds)
            for name in list(seeds[0]["per_class_iou"])[1:]  # the first does not occur
        }
        unseen = {name: means.pop(name) for name in seeds[0]["unseen"]}
        assert [y for _, y in marks(curve, marker)] == pytest.approx(sorted(means.values(), reverse=True))
        named = [label.get_text() for label in dots.get_yticklabels()]
        assert [x for x, _ in marks(dots, marker)] == pytest.approx([unseen[name] for name in named])
    assert named == sorted(unseen, key=unseen.get, reverse=True)  # DeOP's order
    ranges = dots.collections[1].get_segments()
    for name, segment in zip(named, ranges):
        values = [100 * seed["per_class_iou"][name] for seed in seeds]
        assert segment[:, 0] == pytest.approx([min(values), max(values)])
    assert "as they do not occur: class 0." in text


def test_confusion_equals_a_literal_count(tmp_path):
    job = made_job(tmp_path, "confusion", experiments=["baseline", "deop"], classes=24)
    counts: dict[tuple[str, int, int], int] = {}
    for role, path in job.inputs.items():
        for line in csv.DictReader(Path(path).with_suffix(".csv").open()):
            pair = (role.split("/")[0], int(line["truth"]), int(line["predicted"]))
            counts[pair] = counts.get(pair, 0) + int(line["pixels"])
    unseen = range(16, 24)
    wrong = {label: 0 for label in range(24)}
    for (_, truth, predicted), pixels in counts.items():
        if truth in unseen and truth != predicted:
            wrong[predicted] += pixels
    top = sorted(wrong, key=wrong.get, reverse=True)[:8]
    made, _ = drawn(job)
    columns = [label.get_text() for label in made.axes[1].get_xticklabels()]
    shown = [f"class {label}" for label in top]
    assert columns == [
        "correct",
        *[name for name, label in zip(shown, top) if label not in unseen],
        "other seen",
        *[name for name, label in zip(shown, top) if label in unseen],
        "other unseen",
    ]
    for axis, experiment in zip(made.axes, ("baseline", "deop")):
        heat = np.asarray(axis.collections[0].get_array()).reshape(8, len(columns))
        assert heat.sum(axis=1) == pytest.approx(100)
        rows = [int(label.get_text().removeprefix("class ")) for label in axis.get_yticklabels()]
        assert sorted(rows) == list(unseen)
        for row, truth in zip(heat, rows):
            total = sum(counts.get((experiment, truth, label), 0) for label in range(24))
            for value, column in zip(row, columns):
                if column == "correct":
                    labels = [truth]
                elif column.startswith("other"):
                    labels = [
                        label
                        for label in range(24)
                        if label not in (*top, truth) and (label in unseen) == (column == "other unseen")
                    ]
                else:
                    labels = [int(column.removeprefix("class "))]
                    labels = [label for label in labels if label != truth]
                pixels = sum(counts.get((experiment, truth, label), 0) for label in labels)
                assert value == pytest.approx(100 * pixels / total)


def test_an_unseen_class_without_pixels_says_so():
    names = ["a", "b", "c"]
    matrix = np.array([[5, 0, 0], [1, 2, 1], [0, 0, 0]])
    [frame] = confusion_shares({"DeOP": matrix}, names, ["b", "c"]).values()
    assert frame.loc["b"].to_list() == [50, 25, 0, 25, 0]
    assert frame.columns.to_list() == [
        ("", "correct"),
        ("seen", "a"),
        ("seen", "other seen"),
        ("unseen", "c"),
        ("unseen", "other unseen"),
    ]
    assert frame.loc["c"].isna().all()
    made = plots.confusion({"DeOP": frame}, title="", notes=[])
    assert [label.get_text() for label in made.axes[0].get_yticklabels()] == ["b", "c (no pixels)"]


def test_a_missing_confusion_is_named(tmp_path):
    job = made_job(tmp_path, "confusion", experiments=["deop"], seeds=[0])
    path = Path(job.inputs["deop/es171/0"]).with_suffix(".csv")
    path.unlink()
    with pytest.raises(DeopError, match=f"{path} is missing"):
        figure.run(job)
