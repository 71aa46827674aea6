"""The table of tested claims, as CSV, Markdown and LaTeX."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from deop.evaluation.claims import LEVEL, ClaimsSettings, Result
from deop.reporting.formats import latex_table, markdown_page
from deop.reporting.origin import ORIGIN_COLUMNS, in_precision
from deop.reporting.table_settings import MIOU, distinct

CAPTION = "Differences that the paper claims, measured here"


def to_csv(results: list[Result], origin: dict[str, str]) -> str:
    """One line per claim; differences in percentage points, empty where undefined."""
    of_run = {column: origin[column] for column in ORIGIN_COLUMNS}
    return _texts(results).assign(**of_run).to_csv(index=False, lineterminator="\n")


def to_markdown(name: str, settings: ClaimsSettings, results: list[Result], origin: dict[str, str]) -> str:
    """The claims as a table, and notes on what is compared and what an interval covers."""
    return markdown_page(name, CAPTION, _cells(results, emphasis="*"), _notes(settings, results, origin))


def to_latex(name: str, settings: ClaimsSettings, results: list[Result], origin: dict[str, str]) -> str:
    """The same table for LaTeX with booktabs."""
    columns = r"p{0.25\linewidth}llp{0.2\linewidth}rrllr"  # sentences break
    return latex_table(name, CAPTION, _cells(results), _notes(settings, results, origin), columns)


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


def to_values(result: Result) -> dict[str, Any]:
    """A claim's settings and result; None instead of NaN, which JSON does not have."""
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
