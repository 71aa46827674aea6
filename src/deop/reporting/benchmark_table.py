"""The table of a speed benchmark."""

from __future__ import annotations

from typing import Any

import pandas as pd

from deop.evaluation.benchmark_measure import MATMUL
from deop.settings.benchmarks import Rounds, SpeedBenchmark

COST_NOTES = (
    "Random weights; images and masks are drawn, so that every multi-pass system shows CLIP just so many crops.",
    "latency: one image in memory to its label map, class names embedded already; text_ms is what embedding them took, "
    "once. Systems took turns; medians over `runs` runs.",
    "peak_mb: weights of the system, and what a run holds at most beyond them (10^6 bytes).",
    "matmul_share: GFLOP counted in matrix products and convolutions, over latency, over what a product of square "
    f"matrices ({MATMUL['cpu']} a side, on a GPU {MATMUL['cuda']}) of the same precision reached in the same run.",
)
SPEED_NOTE = (
    "ratio_to_simbaseline: how many times faster than SimBaseline on the same runtime in the same precision ({crops}). "
    "ratio_to_bare: latency over the sum of the two rows *alone* in {precision}."
)


def to_markdown(name: str, settings: Rounds, frame: pd.DataFrame, code: str) -> str:
    """The rows as a Markdown page. Columns with one value throughout move to a note; ``code`` names the code used."""
    origin = frame[["machine", "torch", "commit", "configuration"]].drop_duplicates()
    shown = frame.drop(
        columns=[*origin.columns, *(column for column in frame if frame[column].nunique(dropna=False) < 2)]
    )
    constant = {
        column: frame[column].iloc[0]
        for column in frame.columns.drop(origin.columns)
        if frame[column].nunique(dropna=False) == 1 and frame[column].notna().all()
    }
    body = shown.astype(object).where(shown.notna(), "").to_markdown(index=False, floatfmt=".4g")
    notes = [*COST_NOTES]
    if isinstance(settings, SpeedBenchmark):
        compared = "; ".join(f"{model}: at {clip.base_crops} crops" for model, clip in settings.clips.items())
        notes.append(SPEED_NOTE.format(crops=compared, precision=settings.precisions[0]))
    if constant:
        notes.insert(
            0, "In all rows: " + ", ".join(f"{key} {value}" for key, value in constant.items()) + "."
        )
    [of_run] = origin.itertuples()
    made = f"{of_run.machine}; torch {of_run.torch}; {code}. Configuration: {of_run.configuration}"
    title = "Systems side by side" if name == "speed" else "DeOP by what varies"
    return f"# {name}: {title}\n\n{body}\n\n" + "\n\n".join([*notes, f"Measured on {made}."]) + "\n"


def to_rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows for JSON, with null for values that were not measured."""
    return frame.astype(object).where(frame.notna(), None).to_dict("records")
