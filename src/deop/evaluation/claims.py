"""Claims of the paper, tested by a paired bootstrap over validation images."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
import pandas as pd
from pydantic import Field

from deop.errors import DeopError
from deop.evaluation.metrics import MiouConvention, harmonic_mean
from deop.settings.base import Positive, Settings

METRICS = ("pAcc", "mIoU", "hIoU", "seen", "unseen")
DERIVED = ("gap",)
"""Seen minus unseen mIoU, which evaluations do not state."""
LEVEL = 0.95
"""Share of the resampled differences that an interval covers."""
DRAW = 0
"""Seed of the draws of images, so that the same evaluations give the same files."""
ROWS = 256
"""Resamples per matrix product, to bound memory."""
TOLERANCE = 1e-6
"""Largest difference between a score (in [0, 1]) from the CSV and that in the JSON; both are in double precision."""


class Claim(Settings):
    """A sentence of the paper, as a comparison: experiment ``better`` exceeds ``worse`` in ``metric`` on ``dataset``.

    The labels are the names of the two in tables. ``place`` says which of the paper's datasets ``dataset`` is or stands
    for, and ``reported`` is the paper's difference on it, in percentage points. ``miou`` is the mIoU convention of the
    evaluations.
    """

    claim: str
    better: str
    worse: str
    better_label: str
    worse_label: str
    dataset: str
    place: str
    metric: Literal["hIoU", "seen", "unseen", "mIoU", "pAcc", "gap"]
    miou: MiouConvention
    reported: float | None = None


class ClaimsSettings(Settings):
    """What is compared, over which seeds, and how many bootstrap resamples of the validation images are drawn."""

    profile: str
    seeds: Annotated[tuple[int, ...], Field(min_length=1)]
    resamples: Positive = 2000
    claims: Annotated[tuple[Claim, ...], Field(min_length=1)]


class Confusions(NamedTuple):
    """Pixel counts (I, C) by image and class: correctly predicted, in the ground truth, and predicted."""

    correct: np.ndarray
    truth: np.ndarray
    predicted: np.ndarray


class Result(NamedTuple):
    """The result of a claim, in percentage points rounded as shown; NaN where a score is undefined.

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


def compare(settings: ClaimsSettings, evaluations: dict[str, dict], paths: dict[str, str]) -> list[Result]:
    """The results of the claims, in their order, by the paired bootstrap.

    The same images are drawn for both systems, all seeds and all claims on a dataset, so what makes an image easy or
    hard for all of them cancels in the difference. Bounds are percentiles of the resampled differences.

    Raises:
        DeopError: an evaluation without its CSV or with another's, or systems evaluated on different images.
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
    """Rounds to two decimals. Claims are decided on rounded values, so that no interval shown with 0.00 excludes 0."""
    return round(float(points), 2) + 0.0  # no -0.0


def _resampled(
    settings: ClaimsSettings, dataset: str, evaluations: dict[str, dict], paths: dict[str, str]
) -> dict[tuple[str, str], dict[str, np.ndarray]]:
    """Metrics on a dataset by role and mIoU convention: (1 + resamples,) fractions, on all images and on each draw."""
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
        # Images are compared by their ground truth: the number of pixels of each class.
        if _classes(evaluation) != classes or not np.array_equal(confusions.truth, truth):
            raise DeopError(f"{paths[first]} and {paths[role]} are not of the same images and classes")
        unseen = np.isin(list(evaluation["per_class_iou"]), evaluation["unseen"])
        scores[role, miou] = score(confusions, times, unseen, miou)
        for metric in METRICS:
            values = scores[role, miou][metric]
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
    """How often each image counts, (1 + resamples, images): once in the first row, then as drawn with replacement."""
    drawn = np.random.default_rng(DRAW).multinomial(images, np.full(images, 1 / images), size=resamples)
    return np.concatenate([np.ones((1, images), int), drawn]).astype(np.uint16)


def read_confusions(path: Path, evaluation: dict) -> Confusions:
    """The counts of the CSV beside the evaluation at ``path``, in double precision, which represents them exactly.

    Raises:
        DeopError: there is none, or it has images or classes that the evaluation does not have.
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
        (R,) fractions for each of :data:`METRICS` and :data:`DERIVED`; NaN where there is nothing to average over.
    """
    parts = [
        _score(confusions, times[first : first + ROWS].astype(float), unseen, convention)
        for first in range(0, len(times), ROWS)
    ]
    return {metric: np.concatenate([part[metric] for part in parts]) for metric in (*METRICS, *DERIVED)}


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
    values = (pacc, miou, harmonic_mean(on_seen, on_unseen), on_seen, on_unseen, on_seen - on_unseen)
    return dict(zip((*METRICS, *DERIVED), values))
