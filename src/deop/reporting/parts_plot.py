"""A speed benchmark as a plot: the time per image by part."""

from __future__ import annotations

import matplotlib
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from deop.reporting.plot_style import HATCHES, PALE, STYLE, finish, grid

PARTS = {
    "proposals_ms": "proposals",
    "clip_visual_ms": "CLIP's image tower",
    "crops_ms": "cutting crops",
    "anchors_ms": "anchors",
    "scoring_ms": "scores and labels",
    "upsampling_ms": "upsampling masks",
    "other_ms": "other",
}
"""Columns of a benchmark that add up to the latency, and their labels in the plot."""


@matplotlib.rc_context(STYLE)
def parts(frame: pd.DataFrame, *, title: str, notes: list[str]) -> Figure:
    """Median latency of each system as a bar stacked from its parts; one panel per CLIP and precision.

    Args:
        frame: the rows of a benchmark; those without parts are left out.
        notes: sentences below the figure.
    """
    frame = frame[frame["proposals_ms"].notna()]
    panels = list(frame.groupby(["clip", "precision"], sort=False))
    rows = max(len(panel) for _, panel in panels)
    figure, axes = grid(len(panels), 1, len(panels) * (0.7 + 0.3 * rows))
    looks = {
        part: {"facecolor": PALE[index % len(PALE)], "hatch": hatch, "edgecolor": "black", "linewidth": 0.2}
        for index, (part, hatch) in enumerate(zip(PARTS, HATCHES * 2))
    }
    for axis, ((clip, precision), panel) in zip(axes, panels):
        labels, left = [_label(row) for row in panel.itertuples()], 0.0
        for part, look in looks.items():
            seconds = panel[part].fillna(0).to_numpy() / 1000
            axis.barh(labels, seconds, left=left, **look)
            left = left + seconds
        for label, end, speed in zip(labels, left, panel["images_per_s"]):
            axis.annotate(
                f"{speed:.3g}/s", (end, label), (3, 0), textcoords="offset points", va="center", fontsize=7
            )
        axis.invert_yaxis()
        axis.use_sticky_edges = False  # otherwise a bar whose last part is empty gets no margin
        axis.margins(x=0.12)
        axis.set_xlim(left=0)
        axis.set_title(f"{clip}, {panel['image'].iloc[0]} pixels, {precision}", loc="left")
    axes[-1].set_xlabel("seconds an image (median); at the end of a bar: images per second")
    legend = [Patch(**look, label=PARTS[part]) for part, look in looks.items() if frame[part].max() > 0]
    finish(figure, title=title, notes=notes, legend=legend)
    return figure


def _label(row) -> str:
    crops = "" if pd.isna(row.crops) else f", {int(row.crops)} crops"
    runtime = "" if row.runtime == "torch" else f", {row.runtime}"
    return f"{row.system}, {int(row.classes)} classes{crops}{runtime}"
