"""Stage ``claims``: whether one system beats another by more than the choice of validation images would explain."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from pydantic import Field

from deop.errors import DeopError, validated
from deop.evaluation.metrics import MiouConvention, harmonic_mean
from deop.jobs.freshness import identity
from deop.jobs.job import Job
from deop.reporting.origin import ORIGIN_COLUMNS, escaped_for_latex, in_precision, made_by
from deop.reporting.table_settings import MIOU, distinct
from deop.settings.base import Positive, Settings
from deop.utils.files import write_json, write_text

METRICS = ("pAcc", "mIoU", "hIoU", "seen", "unseen")
CAPTION = "Differences that the paper claims, measured here"
LEVEL = 0.95
"""How many of the resampled differences an interval holds."""
DRAW = 0
"""Seed of the draws of images: the same evaluations give the same files."""
ROWS = 256
"""Resamples in one matrix product, which bounds the memory."""
TOLERANCE = 1e-6
"""What a score (in [0, 1]) counted from the CSV may differ by from the JSON's; both are in double precision."""


class Claim(Settings):
    """A sentence of the paper, as a comparison: experiment ``better`` exceeds ``worse`` in ``metric`` on ``dataset``.

    The labels are what tables call the two; ``place`` says which of the paper's datasets ``dataset`` is or stands for,
    and ``reported`` the paper's difference on it, in percentage points. ``miou`` is what the evaluations averaged over.
    """

    claim: str
    better: str
    worse: str
    better_label: str
    worse_label: str
    dataset: str
    place: str
    metric: Literal["hIoU", "seen", "unseen", "mIoU", "pAcc"]
    miou: MiouConvention
    reported: float | None = None


class ClaimsSettings(Settings):
    """What is compared, over which seeds, and how many times the validation images are drawn anew."""

    profile: str
    seeds: Annotated[tuple[int, ...], Field(min_length=1)]
    resamples: Positive = 2000
    claims: Annotated[tuple[Claim, ...], Field(min_length=1)]


class Confusions(NamedTuple):
    """Pixels by image and class, all three (I, C): predicted right, of the class in truth, and predicted as it."""

    correct: np.ndarray
    truth: np.ndarray
    predicted: np.ndarray


class Result(NamedTuple):
    """How a claim fares, in percentage points rounded as they are shown; NaN where a score is undefined.

    Attributes:
        difference: better minus worse on all images, averaged over seeds.
        by_seed: the same of each seed.
        low, high: the bounds of its interval.
        images: how many validation images there are.
        resamples: in how many of the draws of images the difference is defined.
    """

    claim: Claim
    difference: float
    by_seed: tuple[float, ...]
    low: float
    high: float
    images: int
    resamples: int

    @property
    def in_favour(self) -> str:
        return f"{sum(difference > 0 for difference in self.by_seed)} of {len(self.by_seed)}"

    @property
    def holds(self) -> str:
        if math.isnan(self.difference):
            return "undefined"
        return "yes" if self.low > 0 else "no: reversed" if self.high < 0 else "not shown"


def run(job: Job) -> None:
    """Write ``job.output`` (JSON, last), and the same with suffixes .csv, .md and .tex.

    The job's input ``<experiment>/<dataset>/<seed>`` is the evaluation of that experiment: a JSON with ``metrics``
    (fractions in [0, 1]), and the confusion matrices of its images in a CSV beside it (:mod:`deop.stages.evaluate`).

    Raises:
        DeopError: an evaluation without its CSV or with another's, or systems evaluated on different images.
    """
    settings = validated(ClaimsSettings, job.settings["claims"], "claims job", ("settings", "claims"))
    evaluations = {role: json.loads(Path(path).read_text()) for role, path in job.inputs.items()}
    results = compare(settings, evaluations, job.inputs)
    origin = made_by(settings.profile, settings.seeds, evaluations)
    output = Path(job.output)
    write_text(output.with_suffix(".csv"), to_csv(results, origin))
    write_text(output.with_suffix(".md"), to_markdown(output.stem, settings, results, origin))
    write_text(output.with_suffix(".tex"), to_latex(output.stem, settings, results, origin))
    # The workflow takes the claims for up to date by what this file says of their key and inputs.
    write_json(output, {**identity(job), **origin, "claims": [_values(result) for result in results]})


def compare(settings: ClaimsSettings, evaluations: dict[str, dict], paths: dict[str, str]) -> list[Result]:
    """The results of the claims, in their order, by the paired bootstrap.

    An image is drawn for both systems, all seeds and all claims on its dataset alike, so what makes an image easy or
    hard for all of them cancels in the difference. Bounds are percentiles of the resampled differences.

    Raises:
        DeopError: see :func:`run`.
    """
    scores: dict[tuple[str, str], dict[str, np.ndarray]] = {}
    for dataset in dict.fromkeys(claim.dataset for claim in settings.claims):
        scores |= _resampled(settings, dataset, evaluations, paths)
    results = []
    for claim in settings.claims:
        better, worse = (
            [f"{name}/{claim.dataset}/{seed}" for seed in settings.seeds]
            for name in (claim.better, claim.worse)
        )
        differences = [
            100 * (scores[one, claim.miou][claim.metric] - scores[other, claim.miou][claim.metric])
            for one, other in zip(better, worse)
        ]
        results.append(_result(claim, np.stack(differences), evaluations[better[0]]["images"]))
    return results


def _result(claim: Claim, differences: np.ndarray, images: int) -> Result:
    """Of differences (seeds, 1 + resamples) in points, the first of which are those on all images."""
    difference, *resampled = differences.mean(0)
    defined = [value for value in resampled if not math.isnan(value)]
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) if defined else (math.nan, math.nan)
    return Result(
        claim,
        difference=_rounded(difference),
        by_seed=tuple(_rounded(value) for value in differences[:, 0]),
        low=_rounded(low),
        high=_rounded(high),
        images=images,
        resamples=len(defined),
    )


def _rounded(points: float) -> float:
    """Two decimals. What is shown decides, so that no interval that reads 0.00 excludes 0."""
    return round(float(points), 2) + 0.0  # no -0.0


def _resampled(
    settings: ClaimsSettings, dataset: str, evaluations: dict[str, dict], paths: dict[str, str]
) -> dict[tuple[str, str], dict[str, np.ndarray]]:
    """By role and mIoU convention the metrics on a dataset: (1 + resamples,) fractions, on all images and each draw."""
    wanted = dict.fromkeys(
        (f"{name}/{dataset}/{seed}", claim.miou)
        for claim in settings.claims
        if claim.dataset == dataset
        for name in (claim.better, claim.worse)
        for seed in settings.seeds
    )
    first, _ = next(iter(wanted))
    classes = _classes(evaluations[first])
    truth = read_confusions(Path(paths[first]), evaluations[first]).truth
    times = draw(evaluations[first]["images"], settings.resamples)
    scores = {}
    for role, miou in wanted:
        evaluation = evaluations[role]
        confusions = read_confusions(Path(paths[role]), evaluation)
        # Images are told by their truth: the pixels of each class in each of them.
        if _classes(evaluation) != classes or not np.array_equal(confusions.truth, truth):
            raise DeopError(f"{paths[first]} and {paths[role]} are not of the same images and classes")
        unseen = np.isin(list(evaluation["per_class_iou"]), evaluation["unseen"])
        scores[role, miou] = score(confusions, times, unseen, miou)
        for metric, values in scores[role, miou].items():
            stated = evaluation["metrics"].get(metric)
            stated = math.nan if stated is None else stated
            if not np.isclose(values[0], stated, rtol=0, atol=TOLERANCE, equal_nan=True):
                raise DeopError(
                    f"{paths[role]} and the CSV beside it disagree, by mIoU convention {miou!r}: "
                    f"{metric} is {stated:.6f} in the one and {values[0]:.6f} in the other"
                )
    return scores


def _classes(evaluation: dict) -> tuple[list[str], list[str]]:
    return list(evaluation["per_class_iou"]), sorted(evaluation["unseen"])


def draw(images: int, resamples: int) -> np.ndarray:
    """How often each image counts, (1 + resamples, images): once, then as often as drawn with replacement."""
    drawn = np.random.default_rng(DRAW).multinomial(images, np.full(images, 1 / images), size=resamples)
    return np.concatenate([np.ones((1, images), int), drawn]).astype(np.uint16)


def read_confusions(path: Path, evaluation: dict) -> Confusions:
    """What the CSV beside the evaluation at ``path`` counts, in double precision, which holds all counts exactly.

    Raises:
        DeopError: there is none, or it has images or classes that the evaluation has not.
    """
    table = path.with_suffix(".csv")
    if not table.exists():
        raise DeopError(f"{path} has no {table.name} beside it: remove it, and evaluate again")
    pairs = pd.read_csv(table)
    images, classes = evaluation["images"], len(evaluation["per_class_iou"])
    for column, size in (("image", images), ("truth", classes), ("predicted", classes)):
        stray = pairs[column][~pairs[column].between(0, size - 1)]
        if len(stray):
            raise DeopError(f"{table}: {column} {stray.iloc[0]} is not in {path}: valid are 0 to {size - 1}")
    counts = Confusions(*np.zeros((3, images, classes)))
    right = pairs[pairs["truth"] == pairs["predicted"]]
    for count, lines, label in zip(counts, (right, pairs, pairs), ("truth", "truth", "predicted")):
        np.add.at(count, (lines["image"], lines[label]), lines["pixels"])
    return counts


def score(
    confusions: Confusions, times: np.ndarray, unseen: np.ndarray, convention: MiouConvention
) -> dict[str, np.ndarray]:
    """The metrics of :class:`deop.evaluation.metrics.SegmentationMetrics`, on many selections of images at once.

    Args:
        confusions: counts (I, C).
        times: how often each image counts in each of the R selections, (R, I).
        unseen: (C,) whether a class is unseen.
        convention: which classes an mIoU averages over.

    Returns:
        (R,) fractions for each of :data:`METRICS`; NaN where there is nothing to average over.
    """
    parts = [
        _score(confusions, times[first : first + ROWS].astype(float), unseen, convention)
        for first in range(0, len(times), ROWS)
    ]
    return {metric: np.concatenate([part[metric] for part in parts]) for metric in METRICS}


def _score(
    confusions: Confusions, times: np.ndarray, unseen: np.ndarray, convention: MiouConvention
) -> dict[str, np.ndarray]:
    correct, truth, predicted = (times @ counts for counts in confusions)
    union = truth + predicted - correct
    counted = (union if convention == "occurring" else truth) > 0
    iou = np.divide(correct, union, out=np.zeros_like(union), where=counted)
    with np.errstate(invalid="ignore"):  # a mean over no class is NaN
        pacc = correct.sum(1) / truth.sum(1)
        miou, on_seen, on_unseen = (
            iou[:, group].sum(1) / counted[:, group].sum(1) for group in (unseen | True, ~unseen, unseen)
        )
    return dict(zip(METRICS, (pacc, miou, harmonic_mean(on_seen, on_unseen), on_seen, on_unseen)))


def to_csv(results: list[Result], origin: dict[str, str]) -> str:
    """One line a claim; differences in percentage points, nothing where there is none."""
    of_run = {column: origin[column] for column in ORIGIN_COLUMNS}
    return _texts(results).assign(**of_run).to_csv(index=False, lineterminator="\n")


def to_markdown(name: str, settings: ClaimsSettings, results: list[Result], origin: dict[str, str]) -> str:
    """The claims as a table, and notes on what is compared and what an interval covers."""
    body = _cells(results, emphasis="*").to_markdown(index=False, disable_numparse=True, stralign="left")
    return f"# {name}: {CAPTION}\n\n{body}\n\n" + "\n\n".join(_notes(settings, results, origin)) + "\n"


def to_latex(name: str, settings: ClaimsSettings, results: list[Result], origin: dict[str, str]) -> str:
    """The same table for LaTeX with booktabs."""
    notes = _notes(settings, results, origin)
    caption = " ".join((f"{CAPTION}.", *notes))
    return _cells(results).to_latex(
        index=False,
        escape=True,
        column_format=r"p{0.25\linewidth}llp{0.2\linewidth}rrllr",  # sentences break
        caption=escaped_for_latex(caption),
        label=f"tab:{name}",
    )


def _texts(results: list[Result]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "claim": result.claim.claim,
            "dataset": result.claim.dataset,
            "metric": result.claim.metric,
            "better": result.claim.better_label,
            "worse": result.claim.worse_label,
            "difference": _number(result.difference),
            "low": _number(result.low),
            "high": _number(result.high),
            "seeds_in_favour": result.in_favour,
            "holds": result.holds,
            "paper": "" if result.claim.reported is None else f"{result.claim.reported:.1f}",
        }
        for result in results
    )


def _cells(results: list[Result], emphasis: str = "") -> pd.DataFrame:
    """A row for each claim, narrower than the CSV's; the paper's differences in ``emphasis``."""
    texts = _texts(results).replace("", "–")
    cells = texts[["claim", "dataset", "metric"]].assign(
        compared=texts["better"] + " against " + texts["worse"], difference=texts["difference"]
    )
    cells[f"{LEVEL:.0%} interval"] = texts["low"] + " to " + texts["high"]
    cells[["seeds in favour", "holds"]] = texts[["seeds_in_favour", "holds"]]
    cells["paper"] = texts["paper"].where(texts["paper"] == "–", emphasis + texts["paper"] + emphasis)
    return cells


def _number(points: float) -> str:
    return "" if math.isnan(points) else f"{points:.2f}"


def _notes(settings: ClaimsSettings, results: list[Result], origin: dict[str, str]) -> list[str]:
    claims = [result.claim for result in results]
    several = len(settings.seeds) > 1
    seeds = distinct(map(str, settings.seeds))
    sizes = distinct(f"{result.images} of {result.claim.dataset}" for result in results)
    places = distinct(claim.place for claim in claims if claim.reported is not None)
    spread = f"averaged over seeds {seeds}" if several else f"seed {seeds}"
    not_covered = (
        "It does not cover the choice of seeds; *seeds in favour* says with how many the difference is above 0."
        if several
        else "There is one seed: differences between seeds are not covered, and another may give another sign."
    )
    notes = [
        "Difference: the first system's score minus the second's, in percentage points, on all validation images "
        f"({sizes}), profile {settings.profile}, {spread}; "
        f"IoU is averaged over {distinct(MIOU[claim.miou] for claim in claims)}.",
        f"Interval: {LEVEL:.0%}, by the paired bootstrap: percentiles of the difference in {settings.resamples} draws, "
        "with replacement, of as many validation images, the same draws for both systems and every seed. A class that "
        "a draw lacks is not in its mean, so intervals are approximate, and too narrow where many classes are rare. "
        f"They are not widened for the number of claims ({len(claims)}).",
        "The interval covers the choice of validation images, with the networks as they were trained. "
        + not_covered,
        "Holds: *yes* if the whole interval is above 0, *no: reversed* if it is below, *not shown* if 0 is in it.",
        f"Made by deop {origin['version']}, {origin['code']}{in_precision(origin)}. "
        f"Configuration: {origin['configuration']}.",
    ]
    if any(claim.reported is not None for claim in claims):
        note = f"Column *paper*: the difference as the paper reports it, on {places}: other images, not measured here."
        notes.insert(-1, note)
    if left_out := {settings.resamples - result.resamples for result in results} - {0}:
        notes.insert(2, f"Draws without any class of a mean are left out: up to {max(left_out)} a claim.")
    return notes


def _values(result: Result) -> dict[str, Any]:
    """A claim's settings and what came of it; JSON has no NaN."""
    difference, low, high, *by_seed = (
        None if math.isnan(points) else points
        for points in (result.difference, result.low, result.high, *result.by_seed)
    )
    return {
        **result.claim.model_dump(mode="json"),
        "difference": difference,
        "by_seed": by_seed,
        "low": low,
        "high": high,
        "images": result.images,
        "resamples": result.resamples,
        "seeds_in_favour": result.in_favour,
        "holds": result.holds,
    }
