"""Stage ``table``: evaluations side by side, as CSV, Markdown, LaTeX and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd

from deop.errors import DeopError, validated
from deop.jobs.artifacts import provenance_of, write_json, write_text
from deop.jobs.freshness import identity
from deop.jobs.job import Job
from deop.reporting.origin import ORIGIN_COLUMNS, escaped_for_latex, in_precision, made_by
from deop.settings.base import Settings
from deop.settings.methods import method_settings

MIOU = {
    "occurring": "classes that occur in the ground truth or in the prediction",
    "ground_truth": "classes that occur in the ground truth",
}
COUNTS = {
    "FPS": "images a second, one at a time, from the median latency of systems that take turns in one run",
    "passes": "how many pictures of an image CLIP is shown (mean over the images)",
}
"""Columns that are no fractions, and what they count."""
NOT_RUN = "not run"


class TableDataset(Settings):
    """A group of columns: the dataset measured on, and the paper's, in whose place it stands if it is another.

    ``images`` says what its images are, ``place`` which of the paper's datasets it is or stands for, if any.
    ``trained_on`` is the dataset that systems were trained on, if that is another.
    """

    name: str
    images: str
    paper: str | None = None
    paper_title: str | None = None
    place: str
    stand_in: bool = False
    miou: str
    trained_on: str | None = None


class TableRow(Settings):
    """A row. ``reported`` maps the paper's columns (``coco_stuff.pAcc``) to percentages.

    Without an experiment it is a system that is not implemented here, of which nothing is measured.
    """

    label: str
    experiment: str | None = None
    decoupled: bool | None = None
    reported: dict[str, float]


class TableSettings(Settings):
    """What a table shows. ``artifacts`` are all outputs behind it, of which it sums the wall time."""

    caption: str
    profile: str
    seeds: tuple[int, ...]
    datasets: tuple[TableDataset, ...]
    metrics: tuple[str, ...]
    rows: tuple[TableRow, ...]
    artifacts: tuple[str, ...] = ()


def run(job: Job) -> None:
    """Write ``job.output`` (JSON, last), and the same table with suffixes .csv, .md and .tex.

    For ``dvc metrics``, each row is also ``metrics/<table>/<experiment>.json`` in the folder of the output.
    The job's input ``<experiment>/<dataset>/<seed>`` is the evaluation of that experiment, a JSON with
    ``metrics`` (fractions in [0, 1]) and ``provenance``; ``speed/<dataset>`` is how fast the experiments are.

    Raises:
        DeopError: an evaluation that lacks a metric of the table.
    """
    table = validated(TableSettings, job.settings["table"], "table job", ("settings", "table"))
    evaluations = {role: json.loads(Path(path).read_text()) for role, path in job.inputs.items()}
    scores = measured(table, evaluations, job.inputs)
    origin = made_by(table.profile, table.seeds, evaluations) | {
        "text_prompts": text_prompts(table, evaluations),
        "wall_time": _wall_time_of(table.artifacts),
    }
    output = Path(job.output)
    write_text(output.with_suffix(".csv"), to_csv(table, scores, origin))
    write_text(output.with_suffix(".md"), to_markdown(output.stem, table, scores, origin))
    write_text(output.with_suffix(".tex"), to_latex(output.stem, table, scores, origin))
    values = _fractions(table, scores)
    for row in table.rows:
        if row.experiment is not None:
            write_json(output.parent / "metrics" / output.stem / f"{row.experiment}.json", values[row.label])
    # The workflow takes a table for up to date by what this file says of its key and inputs.
    write_json(output, {**identity(job), **origin, "methods": values})


def measured(table: TableSettings, evaluations: dict[str, dict], paths: dict[str, str]) -> pd.DataFrame:
    """Percentages, and counts, by row label, and by (dataset, metric, "mean" or "std"); one seed deviates by NaN.

    What is not run is NaN.
    """
    frame = by_seed(table, evaluations, paths)
    summary = frame.groupby(["method", "dataset", "metric"], sort=False)["value"].agg(["mean", "std"])
    columns = summary.unstack(["dataset", "metric"]).reorder_levels([1, 2, 0], axis=1)
    return columns.reindex([row.label for row in table.rows])


def by_seed(table: TableSettings, evaluations: dict[str, dict], paths: dict[str, str]) -> pd.DataFrame:
    """Percentages, and counts, in long form: columns method (the row's label), dataset, metric, seed, value.

    Systems that are not implemented have no lines. Speed is measured once and is the same for all seeds.

    Raises:
        DeopError: an evaluation that lacks a metric of the table.
    """
    values = []
    for row in table.rows:
        if row.experiment is None:
            continue
        for dataset in table.datasets:
            for seed in table.seeds:
                role = f"{row.experiment}/{dataset.name}/{seed}"
                evaluation = evaluations[role]
                counts = {"passes": evaluation["passes"]} if "passes" in evaluation else {}
                if "FPS" in table.metrics:  # of the first seed, whatever the seed
                    speed = evaluations[f"speed/{dataset.name}"]
                    counts["FPS"] = speed["systems"][row.experiment]["images_per_s"]
                percent = {
                    name: None if value is None else 100 * value
                    for name, value in evaluation["metrics"].items()
                }
                metrics = percent | counts
                for metric in table.metrics:
                    if metric not in metrics:
                        valid = ", ".join(metrics)
                        raise DeopError(f"{paths[role]} has no metric {metric!r}; it has: {valid}")
                    values.append((row.label, dataset.name, metric, seed, metrics[metric]))
    frame = pd.DataFrame(values, columns=["method", "dataset", "metric", "seed", "value"])
    return frame.astype({"value": float})


def to_csv(table: TableSettings, scores: pd.DataFrame, origin: dict[str, Any]) -> str:
    """One line a method, percentages with one decimal; columns ``.std`` only if there are several seeds."""
    columns: dict[str, Any] = {}
    if _shows_decoupled(table):
        columns["decoupled"] = pd.Series({row.label: _yes(row.decoupled) for row in table.rows})
    for dataset in table.datasets:
        for metric in table.metrics:
            columns[f"{dataset.name}.{metric}"] = scores[dataset.name, metric, "mean"]
            if deviates(table, metric):
                columns[f"{dataset.name}.{metric}.std"] = scores[dataset.name, metric, "std"]
    frame = pd.DataFrame(columns).rename_axis("method").reindex([row.label for row in table.rows])
    run = [row.experiment is not None for row in table.rows]
    for column in frame.columns.drop("decoupled", errors="ignore"):
        frame[column] = [
            NOT_RUN if not of_system else "" if math.isnan(value) else f"{value:.1f}"
            for value, of_system in zip(frame[column], run, strict=True)
        ]
    return frame.assign(**{column: origin[column] for column in ORIGIN_COLUMNS}).to_csv(lineterminator="\n")


def to_markdown(name: str, table: TableSettings, scores: pd.DataFrame, origin: dict[str, Any]) -> str:
    """The table with the paper's values in rows of their own, and notes that tell the two apart."""
    frame = _with_reported(table, scores, emphasis="*")
    frame.columns = [" ".join(column).strip() for column in frame.columns]
    body = frame.to_markdown(index=False, disable_numparse=True, stralign="left")
    return f"# {name}: {table.caption}\n\n{body}\n\n" + "\n\n".join(_notes(table, origin)) + "\n"


def to_latex(name: str, table: TableSettings, scores: pd.DataFrame, origin: dict[str, Any]) -> str:
    """The same table for LaTeX with booktabs."""
    frame = _with_reported(table, scores)
    caption = " ".join((f"{table.caption}.", *_notes(table, origin)))
    return frame.to_latex(
        index=False,
        escape=True,
        multicolumn_format="c",
        column_format="".join("r" if dataset else "l" for dataset, _ in frame.columns),
        caption=escaped_for_latex(caption),
        label=f"tab:{name}",
    )


def _with_reported(table: TableSettings, scores: pd.DataFrame, emphasis: str = "") -> pd.DataFrame:
    """Text cells: for each method a row of measured values and, where the paper has any, a row of its own."""
    lines = []
    for row in table.rows:
        head = {("", "method"): row.label}
        if _shows_decoupled(table):
            head["", "decoupled"] = _yes(row.decoupled)
        line = head | {("", "values"): "measured"}
        paper = head | {("", "values"): f"{emphasis}paper{emphasis}"}
        for dataset in table.datasets:
            for metric in table.metrics:
                column = (dataset.name, metric)
                mean, deviation = (scores[(*column, statistic)][row.label] for statistic in ("mean", "std"))
                deviation = deviation if deviates(table, metric) else None
                line[column] = _number(mean, deviation) if row.experiment else NOT_RUN
                reported = row.reported.get(f"{dataset.paper}.{metric}")
                paper[column] = "–" if reported is None else f"{emphasis}{_number(reported)}{emphasis}"
        lines += [line, paper] if row.reported else [line]
    frame = pd.DataFrame(lines)
    frame.columns = pd.MultiIndex.from_tuples(frame.columns)
    return frame


def _shows_decoupled(table: TableSettings) -> bool:
    return any(row.decoupled is not None for row in table.rows)


def deviates(table: TableSettings, metric: str) -> bool:
    """Whether a metric has a deviation over seeds. Speed is measured once, on the networks of the first."""
    return len(table.seeds) > 1 and metric != "FPS"


def _yes(value: bool | None) -> str:
    return "" if value is None else "yes" if value else "no"


def _number(value: float, deviation: float | None = None) -> str:
    if math.isnan(value):
        return "–"
    return f"{value:.1f}" if deviation is None else f"{value:.1f} ± {deviation:.1f}"


def _notes(table: TableSettings, origin: dict[str, Any]) -> list[str]:
    names = listed([dataset.name for dataset in table.datasets])
    kinds = described(table.datasets)
    seeds = listed([str(seed) for seed in table.seeds])
    spread = f"mean ± standard deviation of seeds {seeds}" if len(table.seeds) > 1 else f"seed {seeds}"
    conventions = list(dict.fromkeys(MIOU.get(dataset.miou, dataset.miou) for dataset in table.datasets))
    notes = [
        f"Scores in percent. Rows *measured*: here, on {names} ({kinds}, profile {table.profile}), {spread}; "
        f"IoU is averaged over {listed(conventions)}.",
        f"Text prompts: {origin['text_prompts']}.",
        f"Made by deop {origin['version']}, {origin['code']}{in_precision(origin)}; wall time {origin['wall_time']}.",
        f"Configuration: {origin['configuration']}.",
    ]
    transfers: dict[str, list[str]] = {}
    for dataset in table.datasets:
        if dataset.trained_on is not None:
            transfers.setdefault(dataset.trained_on, []).append(dataset.name)
    for trained_on, tested in transfers.items():
        notes.insert(
            1,
            f"The systems tested on {listed(tested)} were trained on {trained_on}, and not trained further.",
        )
    notes[1:1] = [f"{metric}: {COUNTS[metric]}." for metric in table.metrics if metric in COUNTS]
    if "FPS" in table.metrics:
        notes.insert(1, f"Speed was measured on {origin['speed_measured_on']}.")
    if any(row.experiment is None for row in table.rows):
        notes.insert(1, f"*{NOT_RUN}*: not implemented here.")
    if any(row.reported for row in table.rows):
        places = listed([dataset.place for dataset in table.datasets if dataset.paper is not None])
        others = "other images, " if any(dataset.stand_in for dataset in table.datasets) else ""
        note = f"Rows *paper*: as the paper reports them, on {places}: {others}not measured here."
        notes.insert(1, note)
    return notes


def listed(words: list[str]) -> str:
    """``a, b and c``."""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def distinct(words: Iterable[str]) -> str:
    """The same of words each of which is named once."""
    return listed(list(dict.fromkeys(words)))


def described(datasets: tuple[TableDataset, ...]) -> str:
    """What kinds of images these are."""
    return distinct(dataset.images for dataset in datasets)


def text_prompts(table: TableSettings, evaluations: dict[str, dict]) -> str:
    """Which prompts each row used: ``learned offline (Baseline, MPS); the 80 ImageNet templates (ImageNet)``."""
    rows: dict[str, list[str]] = {}
    for row in table.rows:
        if row.experiment is None:
            continue
        first = evaluations[f"{row.experiment}/{table.datasets[0].name}/{table.seeds[0]}"]
        method = first["method"]
        prompts = method_settings(method["method"]).model_validate(method).described_prompts
        if prompts is not None:
            rows.setdefault(prompts, []).append(row.label)
    return "; ".join(f"{prompts} ({', '.join(labels)})" for prompts, labels in rows.items())


def _wall_time_of(artifacts: tuple[str, ...]) -> str:
    """What the artifacts took that are still there."""
    found = [provenance_of(path) for path in artifacts]
    known = [provenance["wall_time_s"] for provenance in found if provenance is not None]
    jobs = f"{len(found)} jobs" if len(known) == len(found) else f"{len(known)} of {len(found)} jobs"
    return f"{timedelta(seconds=round(sum(known)))} (h:mm:ss), the sum over {jobs}"


def _fractions(table: TableSettings, scores: pd.DataFrame) -> dict[str, dict]:
    """Mean values by method that was run, dataset and metric; scores are in [0, 1]."""
    return {
        row.label: {
            dataset.name: {
                metric: _fraction(scores[dataset.name, metric, "mean"][row.label], metric)
                for metric in table.metrics
                if metric != "FPS"  # another measurement is no other result
            }
            for dataset in table.datasets
        }
        for row in table.rows
        if row.experiment is not None
    }


def _fraction(value: float, metric: str) -> float | None:
    """A score in [0, 1], or a count as it is; None where it is undefined, as JSON has no NaN."""
    return None if math.isnan(value) else round(float(value) / (1 if metric in COUNTS else 100), 4)
