"""Figures, on evaluations made up here: what is drawn is read back from the figure."""

from __future__ import annotations

import csv
import json
import os
import statistics
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from made_figures import DATASETS, SPEEDS, TABLES, drawn, error_bars, made_job, marks, percentages
from matplotlib.colors import same_color

from deop.errors import ConfigError, DeopError
from deop.reporting import plots
from deop.reporting.confusion import confusion_shares
from deop.stages import figure


def test_bars_are_means_with_deviations_seeds_and_reported_values(tmp_path):
    made, text = drawn(made_job(tmp_path, "bars", ["ablation"], ["hIoU", "seen"]))
    assert len(made.axes) == 4
    panels = [(dataset, metric) for dataset in ("es171", "es20") for metric in ("hIoU", "seen")]
    for axis, (dataset, metric) in zip(made.axes, panels):
        values = [percentages(experiment, dataset, metric) for experiment in ("baseline", "deop")]
        means = [statistics.mean(seeds) for seeds in values]
        assert [bar.get_width() for bar in axis.patches] == pytest.approx(means)
        assert {bar.get_x() for bar in axis.patches} == {0}
        spread = [number for seeds in values for number in (statistics.mean(seeds), statistics.stdev(seeds))]
        assert np.ravel(error_bars(axis, 0)) == pytest.approx(spread)
        assert [x for x, _ in marks(axis, ".")] == pytest.approx([*values[0], *values[1]])
        low, high = axis.get_xlim()
        assert low == 0 and high > max(map(max, values))
    assert [label.get_text() for label in made.axes[0].get_yticklabels()] == ["Baseline", "DeOP"]
    # What the paper reports has a mark that nothing else has, on the row it belongs to.
    assert [marks(axis, "D") for axis in made.axes] == [[(7.0, 0), (38.2, 1)], [], [(80.8, 1)], []]
    for line in (line for axis in made.axes for line in axis.lines if line.get_marker() == "D"):
        assert same_color(line.get_markerfacecolor(), "white")
    for words in (
        "reported by the paper, on COCO-Stuff and PASCAL VOC 2012",
        "profile mini, seeds 0, 1 and 2, on es171 and es20",
        "error bars: standard deviation",
        "Left out, not run: Other.",
    ):
        assert words in text


def test_one_seed_has_no_error_bars(tmp_path):
    for kind, name, metrics in (("bars", "ablation", ["hIoU"]), ("scatter", "speeds", ["FPS", "hIoU"])):
        made, text = drawn(made_job(tmp_path, kind, [name], metrics, seeds=[1]))
        for axis in made.axes:
            assert not error_bars(axis, 0) and not error_bars(axis, 1) and not marks(axis, ".")
        assert "seed 1, on" in text and "One seed" in text and "deviation" not in text
    assert made.axes[0].lines


def test_many_datasets_make_groups_of_bars(tmp_path):
    made, text = drawn(made_job(tmp_path, "bars", ["across"], ["hIoU"]))
    [axis] = made.axes
    expected = [
        statistics.mean(percentages(experiment, dataset, "hIoU"))
        for dataset in DATASETS
        for experiment in ("baseline", "deop")
    ]
    assert [bar.get_width() for bar in axis.patches] == pytest.approx(expected)
    assert len({bar.get_hatch() for bar in axis.patches}) == 2
    # Each diamond is on its system's bar.
    middles = [bar.get_y() + bar.get_height() / 2 for bar in axis.patches]
    reported = [(7.0, middles[0]), (38.2, middles[1]), (80.8, middles[3])]
    assert np.ravel(marks(axis, "D")) == pytest.approx(np.ravel(reported))
    assert "Baseline DeOP" in text and "PASCAL Context" not in text.partition("reported")[2]


def test_a_dataset_that_stands_for_none_of_the_papers_goes_by_its_name(tmp_path, monkeypatch):
    park = {"name": "park", "images": "photographs", "place": "park", "miou": "occurring"}
    rows = [{"label": "DeOP", "experiment": "deop", "reported": {}}]
    monkeypatch.setitem(TABLES, "park", TABLES["ablation"] | {"datasets": [park], "rows": rows})
    made, text = drawn(made_job(tmp_path, "bars", ["park"], ["hIoU"]))
    [axis] = made.axes
    assert axis.get_title(loc="left") == "park" and "on park (photographs)" in text
    assert not marks(axis, "D") and "paper" not in text


def test_undefined_scores_have_no_bar_and_say_so(tmp_path):
    job = made_job(tmp_path, "bars", ["across"], ["hIoU"], seeds=[0])
    path = Path(job.inputs["across/deop/es20/0"])
    path.write_text(json.dumps(json.loads(path.read_text()) | {"metrics": {"hIoU": None}}))
    [axis] = drawn(job)[0].axes
    assert len(axis.patches) == 5
    assert [text.get_text().strip() for text in axis.texts] == ["undefined"]


def test_scatter_has_a_point_a_system_told_apart_by_table(tmp_path):
    made, text = drawn(made_job(tmp_path, "scatter", ["speeds", "large"], ["FPS", "hIoU"]))
    [axis] = made.axes
    expected = {
        experiment: (SPEEDS[experiment], statistics.mean(percentages(experiment, "es171", "hIoU")))
        for experiment in SPEEDS
    }
    small, large = marks(axis, "o"), marks(axis, "s")
    assert np.ravel(small) == pytest.approx(np.ravel([expected["simbaseline"], expected["deop"]]))
    assert np.ravel(large) == pytest.approx(np.ravel(expected["deop_large"]))
    spread = [
        number
        for experiment in SPEEDS
        for number in (
            expected[experiment][1],
            statistics.stdev(percentages(experiment, "es171", "hIoU")),
        )
    ]
    assert np.ravel(error_bars(axis, 1)) == pytest.approx(spread)
    assert marks(axis, "D") == [(4.4, 38.2)]
    assert [label.get_text() for label in axis.texts] == ["SimBaseline", "DeOP", "DeOP", "DeOP"]
    assert axis.get_xscale() == "log" and axis.get_ylabel() == "hIoU (%)"
    renderer = made.canvas.get_renderer()
    boxes = [label.get_window_extent(renderer) for label in axis.texts]
    assert not any(one.overlaps(other) for i, one in enumerate(boxes) for other in boxes[:i])
    for words in (
        "speeds: Comparison with other systems",
        "large: A larger CLIP",
        "cpu (abacus), threads: 7",
    ):
        assert words in text
    assert "Left out, not run: CaGNet." in text


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


def test_files_are_the_same_for_the_same_input_and_the_json_is_last(tmp_path, monkeypatch):
    order = []
    rename = os.replace
    monkeypatch.setattr(os, "replace", lambda old, new: (order.append(Path(new).name), rename(old, new)))
    job = made_job(tmp_path, "bars", ["ablation"], ["hIoU"])
    figure.run(job)
    folder = tmp_path / "results/figures"
    assert order == ["made.png", "made.svg", "made.json"]
    assert {path.name for path in folder.iterdir()} == set(order)
    made = json.loads((folder / "made.json").read_text())
    assert made.pop("code").startswith("commit 0123456789ab")
    assert made.pop("inputs").keys() == job.inputs.keys()
    assert made.pop("provenance")["stage"] == "figure"
    assert made == {
        "key": "abc123",
        "profile": "mini",
        "seeds": "0 1 2",
        "commit": "0123456789ab",
        "version": "1.2.3",
        "configuration": "not recorded",
    }
    first = {suffix: (folder / f"made{suffix}").read_bytes() for suffix in (".png", ".svg")}
    figure.run(job)
    assert first == {suffix: (folder / f"made{suffix}").read_bytes() for suffix in (".png", ".svg")}
    text = " ".join(ElementTree.fromstring(first[".svg"]).itertext())
    for words in ("A figure", "hIoU (%)", "Baseline", "reported by the paper, on COCO-Stuff"):
        assert words in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tables": {}}, "a figure of kind 'bars' needs one table, and metrics"),
        ({"kind": "scatter"}, "a figure of kind 'scatter' needs tables, and two metrics"),
        ({"kind": "confusion"}, "a figure of kind 'confusion' needs rows and a dataset"),
        ({"metrics": ["FPS"]}, "ablation has no metric 'FPS'; it has: hIoU, seen"),
        ({"kind": "pie"}, "unknown value 'pie'"),
    ],
)
def test_settings_that_do_not_fit_the_kind_are_named(tmp_path, change, message):
    job = made_job(tmp_path, "bars", ["ablation"], ["hIoU"], seeds=[0])
    changed = job.model_copy(update={"settings": {"figure": job.settings["figure"] | change}})
    with pytest.raises(ConfigError, match=message):
        figure.run(changed)
    assert not Path(job.output).parent.exists()


def test_a_missing_confusion_is_named(tmp_path):
    job = made_job(tmp_path, "confusion", experiments=["deop"], seeds=[0])
    path = Path(job.inputs["deop/es171/0"]).with_suffix(".csv")
    path.unlink()
    with pytest.raises(DeopError, match=f"{path} is missing"):
        figure.run(job)


def test_scatter_of_decoupled_and_coupled_systems_tells_them_apart(tmp_path, monkeypatch):
    """Seen against unseen classes: marks by kind, linear axes, and a diagonal on which both are equal."""
    rows = [
        {"label": "SimBaseline", "experiment": "simbaseline", "decoupled": True, "reported": {}},
        {
            "label": "CaGNet",
            "experiment": "cagnet",
            "decoupled": False,
            "reported": {"coco_stuff.seen": 35.5, "coco_stuff.unseen": 12.2},
        },
    ]
    kinds = TABLES["ablation"] | {"metrics": ["seen", "unseen"], "rows": rows}
    monkeypatch.setitem(TABLES, "kinds", kinds | {"datasets": kinds["datasets"][:1]})
    made, text = drawn(made_job(tmp_path, "scatter", ["kinds"], ["seen", "unseen"]))
    [axis] = made.axes
    for mark, experiment in (("o", "simbaseline"), ("s", "cagnet")):
        [point] = marks(axis, mark)
        means = [statistics.mean(percentages(experiment, "es171", metric)) for metric in ("seen", "unseen")]
        assert list(point) == pytest.approx(means)
    assert marks(axis, "D") == [(35.5, 12.2)]
    assert axis.get_xscale() == "linear" and axis.get_xlabel() == "seen IoU (%)"
    assert [line.get_linestyle() for line in axis.lines].count(":") == 1
    assert "decoupled: masks first" in text and "coupled: classes of pixels" in text
    assert "other machines" not in text
