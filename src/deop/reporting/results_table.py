"""Tables of results: measured values beside those of the paper, as CSV, Markdown and LaTeX."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Any

import pandas as pd

from deop.errors import DeopError
from deop.jobs.artifacts import provenance_of
from deop.reporting.formats import latex_table, markdown_page
from deop.reporting.origin import ORIGIN_COLUMNS, in_precision
from deop.reporting.table_settings import COUNTS, MIOU, TableSettings, described, deviates, listed, scores_of
from deop.settings.methods import method_settings

NOT_RUN = "not run"


def measured(table: TableSettings, evaluations: dict[str, dict], paths: dict[str, str]) -> pd.DataFrame:
    """Percentages and counts: one line per row label, columns (dataset, metric, "mean" or "std").

    NaN for the deviation of a single seed, and for systems that were not run.
    """
    frame = by_seed(table, evaluations, paths)
    summary = frame.groupby(["method", "dataset", "metric"], sort=False)["value"].agg(["mean", "std"])
    columns = summary.unstack(["dataset", "metric"]).reorder_levels([1, 2, 0], axis=1)
    return columns.reindex([row.label for row in table.rows])


def by_seed(table: TableSettings, evaluations: dict[str, dict], paths: dict[str, str]) -> pd.DataFrame:
    """Percentages and counts in long form: columns method (the row's label), dataset, metric, seed, value.

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
                speed = None
                if "FPS" in table.metrics:  # measured with the first seed only
                    systems = evaluations[f"speed/{dataset.name}"]["systems"]
                    speed = systems[row.experiment]["images_per_s"]
                metrics = scores_of(evaluation, speed)
                for metric in (*table.metrics, *dataset.more_metrics):
                    if metric not in metrics:
                        valid = ", ".join(metrics)
                        raise DeopError(f"{paths[role]} has no metric {metric!r}; it has: {valid}")
                    values.append((row.label, dataset.name, metric, seed, metrics[metric]))
    frame = pd.DataFrame(values, columns=["method", "dataset", "metric", "seed", "value"])
    return frame.astype({"value": float})


def to_csv(table: TableSettings, scores: pd.DataFrame, origin: dict[str, Any]) -> str:
    """One line per method, percentages with one decimal; columns ``.std`` only if there are several seeds."""
    columns: dict[str, Any] = {}
    if _shows_decoupled(table):
        columns["decoupled"] = pd.Series({row.label: _yes(row.decoupled) for row in table.rows})
    for dataset, metric in table.columns():
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
    """The table with the paper's values in rows of their own, and notes on where both come from."""
    frame = _with_reported(table, scores, emphasis="*")
    frame.columns = [" ".join(column).strip() for column in frame.columns]
    return markdown_page(name, table.caption, frame, _notes(table, origin))


def to_latex(name: str, table: TableSettings, scores: pd.DataFrame, origin: dict[str, Any]) -> str:
    """The same table for LaTeX with booktabs."""
    frame = _with_reported(table, scores)
    columns = "".join("r" if dataset else "l" for dataset, _ in frame.columns)
    return latex_table(name, table.caption, frame, _notes(table, origin), columns)


def _with_reported(table: TableSettings, scores: pd.DataFrame, emphasis: str = "") -> pd.DataFrame:
    """Text cells: for each method a row of measured values and, where the paper has any, a row of its own."""
    lines = []
    for row in table.rows:
        head = {("", "method"): row.label}
        if _shows_decoupled(table):
            head["", "decoupled"] = _yes(row.decoupled)
        line = head | {("", "values"): "measured"}
        paper = head | {("", "values"): f"{emphasis}paper{emphasis}"}
        for dataset, metric in table.columns():
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
    if any("mIoU_truth" in dataset.more_metrics for dataset in table.datasets):
        notes.insert(1, f"mIoU_truth: mIoU averaged over {MIOU['ground_truth']} alone.")
    notes[1:1] = table.notes
    if any(row.experiment is None for row in table.rows):
        notes.insert(1, f"*{NOT_RUN}*: not implemented here.")
    if any(row.reported for row in table.rows):
        places = listed([dataset.place for dataset in table.datasets if dataset.paper is not None])
        others = "other images, " if any(dataset.stand_in for dataset in table.datasets) else ""
        note = f"Rows *paper*: as the paper reports them, on {places}: {others}not measured here."
        notes.insert(1, note)
    return notes


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


def wall_time_of(artifacts: tuple[str, ...]) -> str:
    """The total wall time of the artifacts that still exist, in words."""
    found = [provenance_of(path) for path in artifacts]
    known = [provenance["wall_time_s"] for provenance in found if provenance is not None]
    jobs = f"{len(found)} jobs" if len(known) == len(found) else f"{len(known)} of {len(found)} jobs"
    return f"{timedelta(seconds=round(sum(known)))} (h:mm:ss), the sum over {jobs}"


def fractions(table: TableSettings, scores: pd.DataFrame) -> dict[str, dict]:
    """Mean values by method that was run, dataset and metric; scores are in [0, 1]."""
    return {
        row.label: {
            dataset.name: {
                metric: _fraction(scores[dataset.name, metric, "mean"][row.label], metric)
                for metric in (*table.metrics, *dataset.more_metrics)
                if metric != "FPS"  # differs with every measurement
            }
            for dataset in table.datasets
        }
        for row in table.rows
        if row.experiment is not None
    }


def _fraction(value: float, metric: str) -> float | None:
    """A score in [0, 1], or a count as it is; None where it is undefined, as JSON has no NaN."""
    return None if math.isnan(value) else round(float(value) / (1 if metric in COUNTS else 100), 4)
