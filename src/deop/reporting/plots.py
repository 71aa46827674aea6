"""Each kind of plot. Measured values are filled marks; values that the paper reports are hollow diamonds."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from deop.reporting.plot_style import (
    COLOURS,
    HATCHES,
    MARKERS,
    PALE,
    REPORTED,
    SEED,
    STYLE,
    finish,
    grid,
    label_points,
)
from deop.reporting.table_settings import COUNTS, SystemRow, TableDataset, TableSettings, deviates, listed

TITLES = {
    "pAcc": "pixel accuracy",
    "seen": "seen IoU",
    "unseen": "unseen IoU",
    "FPS": "images per second",
    "passes": "passes of CLIP per image",
}
"""Axis titles of metrics whose name alone is not clear."""


@matplotlib.rc_context(STYLE)
def bars(
    table: TableSettings, metrics: Sequence[str], values: pd.DataFrame, *, title: str, notes: list[str]
) -> Figure:
    """Metrics of a table's rows as horizontal bars from zero, the mean over seeds.

    With one or two datasets there is a panel per dataset and metric, with one bar per row; with more, a panel per
    metric, with one group of bars per dataset. Rows that were not run have no bar.

    Args:
        values: as :func:`deop.reporting.results_table.by_seed` gives them.
        notes: sentences below the figure.
    """
    rows = [row for row in table.rows if row.experiment is not None]
    grouped = len(table.datasets) > 2
    looks = [
        {"facecolor": PALE[index % len(PALE)], "hatch": hatch, "edgecolor": "black", "linewidth": 0.6}
        for index, hatch in enumerate(HATCHES)
    ]
    if grouped:
        groups = {_place(dataset, "\n"): [(row, dataset) for row in rows] for dataset in table.datasets}
        panels = [(metric, "", groups) for metric in metrics]
        shape = 1, len(metrics)
        legend = [Patch(**look, label=row.label) for row, look in zip(rows, looks)]
        height = 0.7 + 0.2 * len(rows) * len(table.datasets)
    else:
        panels = [
            (metric, _place(dataset), {row.label: [(row, dataset)] for row in rows})
            for dataset in table.datasets
            for metric in metrics
        ]
        shape = (1, len(table.datasets)) if len(metrics) == 1 else (len(table.datasets), len(metrics))
        legend = [Patch(**looks[0], label="measured here")]
        height = 0.7 + 0.3 * len(rows)
    figure, axes = grid(*shape, shape[0] * height, sharex=not set(metrics) & set(COUNTS), sharey=True)
    for place, (axis, (metric, heading, groups)) in enumerate(zip(axes, panels)):
        _bar_panel(axis, groups, metric, values[values["metric"] == metric], looks, deviates(table, metric))
        if len(metrics) == 1 or place % len(metrics) == 0:  # a row of one dataset's metrics has one heading
            axis.set_title(heading, loc="left")
    for axis in axes:  # only once all are drawn, as they may share a scale
        axis.set_xlim(left=0)
    places = [
        dataset.paper_title
        for dataset in table.datasets
        if any(f"{dataset.paper}.{metric}" in row.reported for row in rows for metric in metrics)
    ]
    if places:
        legend.append(Line2D([], [], **REPORTED, label=_reported_on(places)))
    return finish(figure, title, notes, legend)


def _bar_panel(
    axis: Axes,
    groups: dict[str, list[tuple[SystemRow, TableDataset]]],
    metric: str,
    values: pd.DataFrame,
    looks: list[dict],
    spread: bool,
) -> None:
    """Draws groups of bars of one metric from the top down; ``spread`` adds standard deviations and single seeds."""
    for place, group in enumerate(groups.values()):
        height = 0.8 / len(group)
        for index, (row, dataset) in enumerate(group):
            y = place + (index - (len(group) - 1) / 2) * height
            is_bar = (values["method"] == row.label) & (values["dataset"] == dataset.name)
            scores = values[is_bar]["value"]
            mean = scores.mean()
            if np.isnan(mean):  # a missing bar would look like a score of zero
                axis.text(0, y, " undefined", va="center", fontsize=7.5)
            else:
                axis.barh(y, mean, 0.9 * height, **looks[index % len(looks)])
                if spread:
                    error = {"fmt": "none", "ecolor": "black", "elinewidth": 1, "capsize": 2, "zorder": 4}
                    axis.errorbar(mean, y, xerr=scores.std(), **error)
                    axis.plot(scores, y + height * np.linspace(-0.3, 0.3, len(scores)), **SEED, zorder=4)
            reported = row.reported.get(f"{dataset.paper}.{metric}")
            if reported is not None:
                axis.plot(reported, y, **REPORTED, zorder=3)
    axis.set_yticks(range(len(groups)), list(groups))
    axis.set_ylim(len(groups) - 0.45, -0.55)
    axis.set_xlabel(_axis_title(metric))
    axis.xaxis.set_tick_params(labelbottom=True)
    axis.grid(axis="y", visible=False)
    sns.despine(ax=axis, left=True)


@matplotlib.rc_context(STYLE)
def scatter(
    tables: dict[str, TableSettings],
    metrics: tuple[str, str],
    values: dict[str, pd.DataFrame],
    *,
    title: str,
    notes: list[str],
) -> Figure:
    """The second metric against the first (speed on a log scale): a panel per dataset, a mark per table and system.

    A single table with a column ``decoupled`` has marks by that, and a diagonal on which both metrics are equal.

    Args:
        values: of each table, as :func:`deop.reporting.results_table.by_seed` gives them.
        notes: sentences below the figure.
    """
    datasets = {dataset.name: dataset for table in tables.values() for dataset in table.datasets}
    looks = [
        {"marker": marker, "markerfacecolor": colour, "markeredgecolor": "black", "linestyle": "none"}
        for marker, colour in zip(MARKERS, PALE)
    ]
    by_kind = len(tables) == 1 and any(
        row.decoupled is not None for table in tables.values() for row in table.rows
    )
    figure, axes = grid(1, len(datasets), 3.2, sharex=metrics[0] in COUNTS)
    labels: list[list[tuple[str, float, float, str]]] = [[] for _ in axes]
    places: dict[str, None] = {}  # of reported values, in order
    for axis, of_panel, (name, dataset) in zip(axes, labels, datasets.items()):
        for of_table, (table_name, table) in zip(looks, tables.items()):
            frame = values[table_name]
            frame = frame[frame["dataset"] == name].pivot(
                index=["method", "seed"], columns="metric", values="value"
            )
            for row in table.rows:
                if row.experiment is None or dataset not in table.datasets:
                    continue
                xs, ys = (frame.loc[row.label][metric] for metric in metrics)
                x, y = xs.mean(), ys.mean()
                if np.isnan([x, y]).any():
                    continue
                look = looks[not row.decoupled] if by_kind else of_table
                axis.plot(x, y, **look, markersize=7)
                of_panel.append((row.label, x, y, "black"))
                if deviates(table, metrics[1]):
                    axis.errorbar(x, y, yerr=ys.std(), fmt="none", ecolor="black", elinewidth=1, capsize=2)
                    axis.plot(xs, ys, **SEED, zorder=3)
                x, y = (row.reported.get(f"{dataset.paper}.{metric}") for metric in metrics)
                if x is not None and y is not None:
                    axis.plot(x, y, **REPORTED)
                    of_panel.append((row.label, x, y, "0.4"))
                    places[dataset.paper_title] = None
        axis.margins(0.2)  # room for labels
        if metrics[0] in COUNTS:
            axis.set_xscale("log")
            axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.xaxis.set_minor_formatter(NullFormatter())
        elif by_kind:
            axis.set_xlim(left=max(0, axis.get_xlim()[0]))
            axis.axline((0, 0), slope=1, color="0.6", linewidth=0.8, linestyle=":", zorder=0)
        axis.set_ylim(bottom=max(0, axis.get_ylim()[0]))
        axis.set_xlabel(_axis_title(metrics[0]))
        axis.set_title(_place(dataset), loc="left")
        sns.despine(ax=axis)
    axes[0].set_ylabel(_axis_title(metrics[1]))
    if by_kind:
        kinds = (
            "decoupled: masks first, then their classes",
            "coupled: classes of pixels, trained on seen ones",
        )
        legend = [Line2D([], [], **look, label=kind) for look, kind in zip(looks, kinds)]
    else:
        legend = [
            Line2D([], [], **look, label=textwrap.fill(f"{name}: {table.caption}", 90))
            for look, (name, table) in zip(looks, tables.items())
        ]
    if places:
        label = f"{_reported_on(list(places))}\n(grey names){', and on other machines' if metrics[0] in COUNTS else ''}"
        legend.append(Line2D([], [], **REPORTED, label=label))
    finish(figure, title, notes, legend, columns=1)
    for axis, of_panel in zip(axes, labels):
        label_points(axis, of_panel)
    return figure


@matplotlib.rc_context(STYLE)
def per_class_iou(iou: dict[str, pd.DataFrame], unseen: list[str], *, title: str, notes: list[str]) -> Figure:
    """The IoU of every class: seen classes as a curve from best to worst, unseen classes by name.

    Args:
        iou: percentages by system: one row per class, one column per seed, NaN where undefined.
        unseen: the unseen classes.
        notes: sentences below the figure.
    """
    last = list(iou.values())[-1]
    named = last.loc[unseen].mean(axis=1).sort_values(ascending=False, kind="stable").index
    named = [name for name in named if any(frame.loc[name].notna().any() for frame in iou.values())]
    figure, (curve, dots) = grid(1, 2, max(3.2, 0.9 + 0.2 * len(named)), ratios=[1.25, 1])
    legend = []
    for index, (label, frame) in enumerate(iou.items()):
        colour = COLOURS[index]
        look = {
            "marker": MARKERS[index],
            "color": colour,
            # With two systems, the first has hollow marks, so that they differ without colour, too.
            "markerfacecolor": "white" if index == 0 and len(iou) > 1 else colour,
            "linestyle": "none",
        }
        legend.append(Line2D([], [], **look, label=label))
        seen = frame.drop(index=unseen)
        seen = seen.loc[seen.mean(axis=1).dropna().sort_values(ascending=False, kind="stable").index]
        means = seen.mean(axis=1).to_numpy()
        shares = 100 * (np.arange(len(means)) + 0.5) / len(means)
        curve.fill_between(shares, seen.min(axis=1), seen.max(axis=1), color=colour, alpha=0.2, linewidth=0)
        curve.plot(shares, means, **look, markersize=2.8, markeredgewidth=0.6)
        for share in (25, 50, 75):
            value = float(np.quantile(means, 1 - share / 100))
            bold = {"color": colour, "fontweight": "bold", "fontsize": 8}
            curve.annotate(f"{value:.0f}", (share, value), (4, 5), textcoords="offset points", **bold)
        shown = frame.loc[named]
        places = np.arange(len(named)) + 0.36 * (index - (len(iou) - 1) / 2) / max(1, len(iou) - 1)
        if frame.shape[1] > 1:
            dots.hlines(places, shown.min(axis=1), shown.max(axis=1), color=colour, linewidth=1.2)
        dots.plot(shown.mean(axis=1), places, **look, markersize=4.5)
    for share in (25, 50, 75):
        curve.axvline(share, color="0.5", linewidth=0.8, linestyle=":", zorder=0)
    curve.set_title("seen classes", loc="left")
    curve.set(xlabel=f"share of the {len(last) - len(unseen)} seen classes, the best first (%)")
    curve.set(ylabel="IoU (%)", xlim=(0, 100))
    dots.set_title("unseen classes", loc="left")
    dots.set(xlabel="IoU (%)", ylim=(len(named) - 0.4, -0.6))
    dots.set_yticks(range(len(named)), named)
    # Slightly below zero, so that marks at zero are not cut off.
    curve.set_ylim(bottom=-0.03 * curve.get_ylim()[1])
    dots.set_xlim(left=-0.04 * dots.get_xlim()[1])
    for axis in (curve, dots):
        sns.despine(ax=axis)
    notes = [
        *notes,
        "Numbers on the curves: the IoU that a quarter, a half and three quarters of the classes exceed.",
    ]
    return finish(figure, title, notes, legend)


@matplotlib.rc_context(STYLE)
def confusion(shares: dict[str, pd.DataFrame], *, title: str, notes: list[str]) -> Figure:
    """Heatmaps of where the pixels of unseen classes go, one below the other.

    Args:
        shares: by system, as :func:`deop.reporting.confusion.confusion_shares` gives them.
        notes: sentences below the figure.
    """
    first = next(iter(shares.values()))
    # Each heatmap has a title; the slanted column names are below the last one.
    figure, axes = grid(len(shares), 1, 1.2 + len(shares) * (0.5 + 0.2 * len(first)), sharex=True)
    groups = [group for group, _ in first.columns]
    for axis, (label, frame) in zip(axes, shares.items()):
        percent = frame.to_numpy()
        sns.heatmap(
            percent,
            ax=axis,
            vmin=0,
            vmax=100,
            cmap="Blues",
            annot=[[f"{value:.0f}" if value > 0 else "" for value in line] for line in percent],
            fmt="",
            annot_kws={"fontsize": 7.5},
            linewidths=0.4,
            linecolor="0.85",
            cbar=False,
            xticklabels=[name for _, name in frame.columns],
            yticklabels=[
                name if line.notna().all() else f"{name} (no pixels)" for name, line in frame.iterrows()
            ],
        )
        for group in ("seen", "unseen"):
            start, count = groups.index(group), groups.count(group)
            axis.axvline(start, color="black", linewidth=1.5)
            axis.text(start + count / 2, -0.2, group, ha="center", va="bottom", fontsize=8)
        axis.set_title(label, loc="left", fontweight="bold", pad=14)
    figure.supylabel("true class (all unseen)", fontsize="medium")
    axes[-1].set_xlabel("predicted class")
    for text, group in zip(axes[-1].get_xticklabels(), groups):
        text.set(rotation=40, ha="right", rotation_mode="anchor")
        text.set_style("italic" if group == "unseen" else "normal")
    bar = figure.colorbar(axes[0].collections[0], ax=axes, aspect=40, pad=0.01)
    bar.set_label("share of the true class's pixels (%)")
    return finish(figure, title, notes)


def _axis_title(metric: str) -> str:
    return TITLES.get(metric, metric) + ("" if metric in COUNTS else " (%)")


def _place(dataset: TableDataset, between: str = " ") -> str:
    """The dataset's name on axes; the paper's datasets go by their titles."""
    if dataset.stand_in:
        return f"{dataset.name}{between}(for {dataset.paper_title})"
    return dataset.paper_title or dataset.name


def _reported_on(places: list[str]) -> str:
    return textwrap.fill(f"reported by the paper, on {listed(places)}", 70)
