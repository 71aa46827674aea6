"""Style, marks, layout and saving of figures; legible in print, in greyscale and with colour blindness."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import seaborn as sns
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from deop.utils.files import whole_file

STYLE = (
    sns.axes_style("whitegrid")
    | sns.plotting_context("paper")
    # Text stays text in SVG, and equal values give equal files.
    | {"svg.fonttype": "none", "svg.hashsalt": "deop", "hatch.linewidth": 0.6}
)
WIDTH = 7.2  # inches: two columns of print
COLOURS = sns.color_palette("colorblind").as_hex()
PALE = [sns.light_palette(colour, 3).as_hex()[1] for colour in COLOURS]
"""Colours of areas, pale enough for black marks on top."""
HATCHES = ("", "///", "...", "\\\\\\", "xxx", "---", "+++", "ooo", "**", "||")
MARKERS = ("o", "s", "^", "v", "P", "X")
REPORTED = {
    "marker": "D",
    "markersize": 5.5,
    "markerfacecolor": "white",
    "markeredgecolor": "black",
    "markeredgewidth": 1.1,
    "linestyle": "none",
}
"""The mark of values that the paper reports; nothing else uses it."""
SEED = {"marker": ".", "markersize": 4, "color": "black", "markeredgewidth": 0, "linestyle": "none"}
_FOOTER = 142  # characters in a line


def grid(
    rows: int,
    columns: int,
    height: float,
    *,
    sharex: bool = False,
    sharey: bool = False,
    ratios: Sequence[float] | None = None,
) -> tuple[Figure, list[Axes]]:
    """A figure and its rows x columns axes, row by row.

    Args:
        height: total height of all rows, in inches.
        ratios: relative widths of the columns.
    """
    figure = Figure((WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=sharex, sharey=sharey, width_ratios=ratios)
    return figure, list(axes.flat)


def finish(
    figure: Figure, title: str, notes: list[str], legend: Sequence[Artist] = (), columns: int = 2
) -> Figure:
    """Lays the axes out and puts the title above them, the legend and the notes below.

    These are outside the figure's box; :func:`save_figure` makes room for them.
    """
    figure.canvas.draw()
    figure.set_layout_engine("none")  # later additions must not move the axes
    figure.text(0.5, 1.02, textwrap.fill(title, 85), ha="center", va="bottom", fontsize=11, fontweight="bold")
    below = 0.0
    if legend:
        key = figure.legend(
            handles=legend, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=columns, frameon=False
        )
        below = key.get_window_extent(figure.canvas.get_renderer()).y0 / figure.bbox.height
    footer = textwrap.fill(" ".join(notes), _FOOTER)
    figure.text(0.01, below - 0.01, footer, ha="left", va="top", fontsize=7, color="0.25")
    return figure


_SIDES = [
    (dx * distance, dy * distance, ha, va)
    for distance in (6, 12)
    for dx, dy, ha, va in (
        (1, 0, "left", "center"),
        (-1, 0, "right", "center"),
        (0, 1, "center", "bottom"),
        (0, -1, "center", "top"),
        (0.7, 0.7, "left", "bottom"),
        (0.7, -0.7, "left", "top"),
        (-0.7, 0.7, "right", "bottom"),
        (-0.7, -0.7, "right", "top"),
    )
]
"""Candidate positions of a label: offset from its point, in typographic points, and alignment; best first."""


def label_points(axis: Axes, points: list[tuple[str, float, float, str]]) -> None:
    """Writes labels beside points (label, x, y, colour), each where it overlaps points, labels and the edge least."""
    renderer = axis.figure.canvas.get_renderer()
    radius = axis.figure.dpi * 4 / 72
    centres = [axis.transData.transform((x, y)) for _, x, y, _ in points]
    taken = [Bbox([centre - radius, centre + radius]) for centre in centres]
    for label, x, y, colour in points:
        note = axis.annotate(label, (x, y), (0, 0), textcoords="offset points", fontsize=7.5, color=colour)

        def covered(side: tuple[float, float, str, str], note=note) -> float:
            dx, dy, ha, va = side
            note.set(ha=ha, va=va)
            note.xyann = dx, dy
            box = note.get_window_extent(renderer)
            outside = box.width * box.height - _shared(box, axis.bbox)
            return outside + sum(_shared(box, other) for other in taken)

        covered(min(_SIDES, key=covered))
        taken.append(note.get_window_extent(renderer))


def _shared(one: Bbox, other: Bbox) -> float:
    """Area of the intersection, in pixels."""
    both = Bbox.intersection(one, other)
    return both.width * both.height if both else 0.0


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a figure in the format of the path's suffix."""
    metadata = (
        {"Date": None} if path.suffix == ".svg" else None
    )  # the same values make the same file on any day
    with matplotlib.rc_context(STYLE), whole_file(path) as temporary:
        figure.savefig(temporary, dpi=200, bbox_inches="tight", pad_inches=0.08, metadata=metadata)
