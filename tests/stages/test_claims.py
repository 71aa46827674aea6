"""Claims, on evaluations made up here of label maps."""

from __future__ import annotations

import csv
import itertools
import json
import math
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from deop.data.segmentation import IGNORE
from deop.errors import ConfigError, DeopError
from deop.evaluation import claims as bootstrap
from deop.evaluation.metrics import SegmentationMetrics
from deop.jobs.job import Job
from deop.stages import claims
from deop.stages.evaluate import _confusion_csv, confusion_pairs

NAMES, UNSEEN, LAST = ["dog", "cow", "tea_pot", "sky", "grass"], [1, 3], 4
COMMIT = "0123456789abcdef0123456789abcdef01234567"
COLUMNS = [
    *("claim", "dataset", "metric", "better", "worse", "difference", "low", "high"),
    *("seeds_in_favour", "holds", "paper", "profile", "seeds", "commit", "version", "configuration"),
]
Maps = np.ndarray  # label maps (images, height, width)


def made_truth(images: int = 40, seed: int = 0) -> Maps:
    """Each image has up to three of the classes, and pixels without a label; the last class is rare."""
    rng = np.random.default_rng(seed)
    classes = rng.choice(len(NAMES), (images, 3), p=[0.3, 0.3, 0.2, 0.18, 0.02])
    truth = np.stack([rng.choice(own, (6, 8)) for own in classes])
    return np.where(rng.random(truth.shape) < 0.1, IGNORE, truth)


def guess(truth: Maps, right: float | np.ndarray, seed: int) -> Maps:
    """Predictions that are right with that probability (a number, or one by image), and else any class."""
    rng = np.random.default_rng(seed)
    hit = (rng.random(truth.shape) < np.reshape(right, (-1, 1, 1))) & (truth != IGNORE)
    return np.where(hit, truth, rng.integers(0, len(NAMES), truth.shape))


def scores_of(prediction: Maps, truth: Maps, convention: str = "occurring") -> dict[str, float]:
    metrics = SegmentationMetrics(len(NAMES), UNSEEN, ignore=IGNORE, convention=convention)
    metrics.update(torch.from_numpy(prediction), torch.from_numpy(truth))
    scores = metrics.compute()._asdict()
    return {metric: scores[metric.lower()] for metric in bootstrap.METRICS}


def with_gap(scores: dict[str, float]) -> dict[str, float]:
    """The scores and what claims derive from them: how much better seen classes are than unseen ones."""
    return scores | {"gap": scores["seen"] - scores["unseen"]}


def write_evaluation(path: Path, prediction: Maps, truth: Maps, convention: str = "occurring") -> Path:
    """An evaluation as :mod:`deop.stages.evaluate` writes it."""
    pairs = [confusion_pairs(*maps) for maps in zip(torch.from_numpy(prediction), torch.from_numpy(truth))]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".csv").write_text(_confusion_csv(pairs))
    evaluation = {
        "metrics": scores_of(prediction, truth, convention),
        "per_class_iou": dict.fromkeys(NAMES),
        "unseen": [NAMES[label] for label in UNSEEN],
        "images": len(truth),
        "provenance": {"commit": COMMIT, "dirty": False, "version": "1.2.3"},
    }
    path.write_text(json.dumps(evaluation))
    return path


def made_claim(better: str = "deop", worse: str = "base", **changes: object) -> dict:
    values = {
        "claim": f"{better} beats {worse}",
        "better": better,
        "worse": worse,
        "better_label": better.upper(),
        "worse_label": worse.upper(),
        "dataset": "es20",
        "place": "VOC (es20 stands in for it)",
        "metric": "hIoU",
        "miou": "occurring",
        "reported": 5.2,
    }
    return values | changes


def made_job(
    root: Path, predictions: dict[str, Maps], truth: Maps, made: list[dict], **settings: object
) -> Job:
    """A job on ``predictions`` by ``<experiment>/<seed>``, all of the images of es20."""
    inputs = {}
    for system, prediction in predictions.items():
        experiment, seed = system.split("/")
        path = write_evaluation(
            root / f"evaluations/{experiment}-{seed}.json", prediction, truth, made[0]["miou"]
        )
        inputs[f"{experiment}/es20/{seed}"] = str(path)
    values = {"profile": "mini", "seeds": sorted({int(system.split("/")[1]) for system in predictions})}
    return Job(
        stage="claims",
        key="abc",
        output=str(root / "results/claims.json"),
        inputs=inputs,
        settings={"claims": values | {"resamples": 300, "claims": made} | settings},
    )


def results(job: Job) -> list[dict]:
    claims.run(job)
    return json.loads(Path(job.output).read_text())["claims"]


@pytest.mark.parametrize("convention", ["occurring", "ground_truth"])
def test_scores_of_a_draw_are_those_of_the_images_repeated(tmp_path, convention):
    truth = made_truth(9)
    prediction = np.minimum(guess(truth, 0.6, 1), LAST - 1)
    path = write_evaluation(tmp_path / "x.json", prediction, truth, convention)
    evaluation = json.loads(path.read_text())
    times = bootstrap.draw(len(truth), 600)  # more than one product takes
    assert (times[0] == 1).all() and (times.sum(1) == len(truth)).all()
    unseen = np.isin(range(len(NAMES)), UNSEEN)
    scores = bootstrap.score(bootstrap.read_confusions(path, evaluation), times, unseen, convention)
    for draw in (0, *range(1, 601, 40)):
        chosen = np.repeat(np.arange(len(truth)), times[draw])
        literal = with_gap(scores_of(prediction[chosen], truth[chosen], convention))
        assert {metric: values[draw] for metric, values in scores.items()} == pytest.approx(
            literal, nan_ok=True
        )


def test_conventions_differ_in_a_class_that_is_only_predicted(tmp_path):
    truth = np.zeros((2, 2, 2), int)
    prediction = np.array([[[0, 0], [0, 2]], [[0, 0], [1, 0]]])
    path = write_evaluation(tmp_path / "x.json", prediction, truth)
    confusions = bootstrap.read_confusions(path, json.loads(path.read_text()))
    first_alone, second_alone = np.array([[2, 0], [0, 2]])
    unseen = np.isin(range(len(NAMES)), UNSEEN)
    occurring, in_truth = (
        bootstrap.score(confusions, np.stack([first_alone, second_alone]), unseen, convention)
        for convention in ("occurring", "ground_truth")
    )
    np.testing.assert_allclose(occurring["seen"], [0.375, 0.75])
    np.testing.assert_allclose(occurring["hIoU"], [math.nan, 0])
    np.testing.assert_allclose(in_truth["seen"], [0.75, 0.75])
    assert np.isnan(in_truth["unseen"]).all() and np.isnan(in_truth["hIoU"]).all()


def test_percentiles_and_seeds_are_those_of_a_slow_bootstrap(tmp_path):
    truth = made_truth(12)
    right = {"deop/0": 0.7, "deop/3": 0.6, "base/0": 0.55, "base/3": 0.75}
    predictions = {system: guess(truth, share, place) for place, (system, share) in enumerate(right.items())}
    job = made_job(tmp_path, predictions, truth, [made_claim()], resamples=60)
    [result] = results(job)
    differences = []
    for times in bootstrap.draw(12, 60):
        chosen = np.repeat(np.arange(12), times)
        hiou = {s: scores_of(p[chosen], truth[chosen])["hIoU"] for s, p in predictions.items()}
        differences.append([100 * (hiou[f"deop/{seed}"] - hiou[f"base/{seed}"]) for seed in (0, 3)])
    by_seed, drawn = differences[0], np.mean(differences[1:], axis=1)
    assert by_seed[0] > 0 > by_seed[1]
    assert result["by_seed"] == pytest.approx(by_seed, abs=0.006)
    assert result["difference"] == pytest.approx(np.mean(by_seed), abs=0.006)
    bounds = np.percentile(drawn, [2.5, 97.5])
    assert [result["low"], result["high"]] == pytest.approx(list(bounds), abs=0.006)
    assert (result["seeds_in_favour"], result["images"], result["resamples"]) == ("1 of 2", 12, 60)


def test_a_better_system_holds_turned_round_it_is_reversed_and_an_equal_one_shows_nothing(tmp_path):
    truth = made_truth()
    good, bad = guess(truth, 0.8, 1), guess(truth, 0.5, 2)
    made = [
        made_claim(*pair, metric=metric)
        for metric in bootstrap.METRICS
        for pair in (("deop", "base"), ("base", "deop"), ("deop", "twin"))
    ]
    found = results(made_job(tmp_path, {"deop/0": good, "base/0": bad, "twin/0": good}, truth, made))
    for forward, backward, equal in zip(found[::3], found[1::3], found[2::3]):
        assert (forward["holds"], backward["holds"], equal["holds"]) == ("yes", "no: reversed", "not shown")
        assert forward["low"] == -backward["high"] > 0 and forward["difference"] == -backward["difference"]
        assert equal["low"] == equal["difference"] == equal["high"] == 0
        assert [each["seeds_in_favour"] for each in (forward, backward, equal)] == [
            "1 of 1",
            "0 of 1",
            "0 of 1",
        ]


def test_a_difference_of_few_images_is_not_shown(tmp_path):
    truth = np.random.default_rng(0).integers(0, len(NAMES), (10, 6, 8))
    worse = guess(truth, 0.5, 1)
    better = worse.copy()
    better[0] = truth[0]  # about a third of the draws are without this image
    [result] = results(
        made_job(tmp_path, {"deop/0": better, "base/0": worse}, truth, [made_claim(metric="pAcc")])
    )
    assert result["difference"] > 0 == result["low"] and result["holds"] == "not shown"
    assert result["seeds_in_favour"] == "1 of 1"


def test_the_interval_is_as_wide_as_the_standard_error_says_and_pairing_narrows_it(tmp_path):
    """With images of one size, the difference in pixel accuracy is a mean over images."""
    truth = np.random.default_rng(0).integers(0, len(NAMES), (400, 6, 8))
    easy = np.random.default_rng(1).uniform(0.1, 0.8, 400)  # to both systems
    predictions = {"deop/0": guess(truth, easy + 0.02, 2), "base/0": guess(truth, easy, 3)}
    job = made_job(tmp_path, predictions, truth, [made_claim(metric="pAcc")], resamples=4000)
    [result] = results(job)
    better, worse = (100 * (prediction == truth).mean((1, 2)) for prediction in predictions.values())
    error = (better - worse).std() / math.sqrt(400)
    assert result["difference"] == pytest.approx((better - worse).mean(), abs=0.006)
    assert result["low"] == pytest.approx(result["difference"] - 1.96 * error, abs=0.15 * error)
    assert result["high"] == pytest.approx(result["difference"] + 1.96 * error, abs=0.15 * error)
    unpaired = math.sqrt((better.var() + worse.var()) / 400)
    assert result["high"] - result["low"] < 0.5 * 2 * 1.96 * unpaired


def test_csv_markdown_and_latex_say_what_is_compared_and_what_the_interval_covers(tmp_path):
    truth = made_truth()
    predictions = {
        f"{name}/{seed}": guess(truth, share, 10 * seed + len(name))
        for name, share in (("deop", 0.8), ("baseline", 0.5))
        for seed in (0, 1, 2)
    }
    made = [
        made_claim(worse="baseline", claim="Both parts, at 100%, help base_line"),
        made_claim("baseline", "deop", reported=None),
    ]
    job = made_job(tmp_path, predictions, truth, made)
    first, _ = results(job)
    lines = list(csv.DictReader((tmp_path / "results/claims.csv").open()))
    assert list(lines[0]) == COLUMNS
    assert lines[0] == {
        **{name: made[0][name] for name in ("claim", "dataset", "metric")},
        **{
            "better": "DEOP",
            "worse": "BASELINE",
            "seeds_in_favour": "3 of 3",
            "holds": "yes",
            "paper": "5.2",
        },
        **{bound: f"{first[bound]:.2f}" for bound in ("difference", "low", "high")},
        **{"profile": "mini", "seeds": "0 1 2", "commit": COMMIT[:12], "version": "1.2.3"},
        "configuration": "not recorded",
    }
    assert (lines[1]["paper"], lines[1]["holds"], lines[1]["seeds_in_favour"]) == (
        "",
        "no: reversed",
        "0 of 3",
    )
    text = (tmp_path / "results/claims.md").read_text()
    rows = [
        [cell.strip() for cell in row.strip("|").split("|")] for row in text.splitlines() if row[:1] == "|"
    ]
    shown = dict(zip(rows[0], rows[2]))
    assert shown["compared"] == "DEOP against BASELINE" and shown["paper"] == "*5.2*" and rows[3][-1] == "–"
    assert shown["95% interval"] == f"{first['low']:.2f} to {first['high']:.2f}"
    for words in (
        "40 of es20",
        "averaged over seeds 0, 1 and 2",
        "300 draws",
        "covers the choice of validation images",
        "does not cover the choice of seeds",
        "VOC (es20 stands in for it)",
        f"commit {COMMIT[:12]}",
    ):
        assert words in text
    latex = (tmp_path / "results/claims.tex").read_text()
    body = latex.partition(r"\midrule")[2].partition(r"\bottomrule")[0].strip().splitlines()
    assert len(body) == 2 and all(line.count(" & ") == len(rows[0]) - 1 for line in body)
    assert r"at 100\%, help base\_line" in body[0]
    whole = json.loads(Path(job.output).read_text())
    assert {name: whole[name] for name in ("key", "profile", "seeds", "commit", "version")} == {
        **{"key": "abc", "profile": "mini", "seeds": "0 1 2", "commit": COMMIT[:12], "version": "1.2.3"}
    }


def test_the_same_evaluations_give_the_same_files_and_one_seed_is_said_to_be_one(tmp_path):
    truth = made_truth()
    job = made_job(
        tmp_path, {"deop/7": guess(truth, 0.7, 1), "base/7": guess(truth, 0.6, 2)}, truth, [made_claim()]
    )
    files = [tmp_path / f"results/claims.{suffix}" for suffix in ("csv", "md", "tex")]
    record = files[0].with_suffix(".json")

    def made() -> list[object]:
        claims.run(job)
        values = json.loads(record.read_text())
        assert values.pop("provenance")["stage"] == "claims"  # which has the time
        return [values, *(file.read_bytes() for file in files)]

    assert made() == made()
    text = files[1].read_text()
    assert "differences between seeds are not covered" in text and "averaged over seeds" not in text


def test_draws_without_unseen_classes_are_left_out_and_said_to_be(tmp_path):
    truth = np.zeros((4, 6, 8), int)
    truth[0] = 1  # the only unseen one
    predictions = {"deop/0": np.where(truth == 1, 1, guess(truth, 0.9, 1)), "base/0": guess(truth, 0.5, 2)}
    made = [made_claim(miou="ground_truth"), made_claim(miou="ground_truth", metric="pAcc")]
    of_hiou, of_pacc = results(made_job(tmp_path, predictions, truth, made))
    # Draws of that image alone are without seen classes.
    without = int(np.isin(bootstrap.draw(4, 300)[1:, 0], (0, 4)).sum())
    assert 0 < without == 300 - of_hiou["resamples"] and of_pacc["resamples"] == 300
    assert f"left out: up to {without} a claim" in (tmp_path / "results/claims.md").read_text()

    truth[0] = 0
    [undefined] = results(made_job(tmp_path, predictions, truth, made[:1]))
    assert (undefined["holds"], undefined["difference"], undefined["by_seed"]) == ("undefined", None, [None])
    [line] = csv.DictReader((tmp_path / "results/claims.csv").open())
    assert line["difference"] == line["low"] == line["high"] == ""


@pytest.fixture
def job(tmp_path: Path) -> Job:
    truth = made_truth()
    return made_job(
        tmp_path, {"deop/0": guess(truth, 0.8, 1), "base/0": guess(truth, 0.5, 2)}, truth, [made_claim()]
    )


def test_an_evaluation_with_the_csv_of_another_is_refused(job):
    deop, base = (Path(job.inputs[f"{name}/es20/0"]) for name in ("deop", "base"))
    deop.with_suffix(".csv").write_text(base.with_suffix(".csv").read_text())
    with pytest.raises(
        DeopError, match=rf"{deop} and the CSV beside it disagree.* pAcc is 0\.\d+ in the one and 0"
    ):
        claims.run(job)
    assert not Path(job.output).exists()


def test_a_score_may_differ_by_rounding_alone(job):
    path = Path(job.inputs["base/es20/0"])
    evaluation = json.loads(path.read_text())
    evaluation["metrics"]["unseen"] += 5e-7
    path.write_text(json.dumps(evaluation))
    claims.run(job)
    evaluation["metrics"]["unseen"] += 1e-6
    path.write_text(json.dumps(evaluation))
    with pytest.raises(DeopError, match="unseen is"):
        claims.run(job)


def test_an_evaluation_under_another_convention_is_refused(tmp_path):
    truth = np.minimum(made_truth(), LAST - 1)  # the last class is only predicted
    predictions = {"deop/0": guess(truth, 0.8, 1), "base/0": guess(truth, 0.5, 2)}
    job = made_job(tmp_path, predictions, truth, [made_claim()])
    values = job.settings["claims"] | {"claims": [made_claim(miou="ground_truth")]}
    with pytest.raises(DeopError, match="by mIoU convention 'ground_truth': mIoU is"):
        claims.run(job.model_copy(update={"settings": {"claims": values}}))


@pytest.mark.parametrize("images", [40, 39])
def test_systems_on_different_images_are_refused(job, images):
    deop, base = (Path(job.inputs[f"{name}/es20/0"]) for name in ("deop", "base"))
    others = made_truth(images, seed=1)
    write_evaluation(base, guess(others, 0.5, 2), others)
    with pytest.raises(DeopError, match=f"{deop} and {base} are not of the same images"):
        claims.run(job)


@pytest.mark.parametrize("change", [{"unseen": ["dog", "sky"]}, {"per_class_iou": dict.fromkeys("abcde")}])
def test_systems_on_different_classes_are_refused(job, change):
    path = Path(job.inputs["base/es20/0"])
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DeopError, match="are not of the same images and classes"):
        claims.run(job)


def test_a_missing_csv_and_one_of_other_classes_are_named(job):
    table = Path(job.inputs["deop/es20/0"]).with_suffix(".csv")
    with table.open("a") as file:
        file.write("3,0,5,1\n")
    with pytest.raises(DeopError, match=f"{table}: predicted 5 is not in .*valid are 0 to 4"):
        claims.run(job)
    table.unlink()
    with pytest.raises(DeopError, match=f"deop-0.json has no {table.name} beside it"):
        claims.run(job)


def test_settings_name_what_they_refuse(job):
    wrong = {"claims": job.settings["claims"] | {"claims": [made_claim(metric="FPS")]}}
    with pytest.raises(ConfigError, match=r"claims\.0\.metric: unknown value 'FPS'; valid: 'hIoU'"):
        claims.run(job.model_copy(update={"settings": wrong}))


def test_two_thousand_draws_at_the_size_of_the_mini_profile_take_seconds():
    rng = np.random.default_rng(0)
    counts = bootstrap.Confusions(*rng.integers(1, 50, (3, 400, 171)).astype(float))
    started = time.monotonic()
    times = bootstrap.draw(400, 2000)
    for _ in itertools.repeat(None, 6):  # two systems, three seeds
        bootstrap.score(counts, times, np.arange(171) < 15, "occurring")
    assert time.monotonic() - started < 20
