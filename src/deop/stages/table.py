"""Stage ``table``: evaluations as a table, beside the values that the paper reports."""

from __future__ import annotations

import json
import time
from pathlib import Path

from deop.errors import validated
from deop.jobs.artifacts import describe
from deop.jobs.freshness import identity
from deop.jobs.job import Job
from deop.reporting import results_table
from deop.reporting.origin import made_by
from deop.reporting.table_settings import TableSettings
from deop.utils.files import write_json, write_text


def run(job: Job) -> None:
    """Writes ``job.output`` (JSON, last), and the same table with suffixes .csv, .md and .tex.

    For ``dvc metrics``, each row is also written to ``metrics/<table>/<experiment>.json`` beside the output.
    The job's input ``<experiment>/<dataset>/<seed>`` is the evaluation of that experiment, a JSON with
    ``metrics`` (fractions in [0, 1]) and ``provenance``; ``speed/<dataset>`` is the measured speed of the experiments.

    Raises:
        DeopError: an evaluation that lacks a metric of the table.
    """
    started = time.monotonic()
    table = validated(TableSettings, job.settings["table"], "table job", ("settings", "table"))
    evaluations = {role: json.loads(Path(path).read_text()) for role, path in job.inputs.items()}
    scores = results_table.measured(table, evaluations, job.inputs)
    origin = made_by(table.profile, table.seeds, evaluations) | {
        "text_prompts": results_table.text_prompts(table, evaluations),
        "wall_time": results_table.wall_time_of(table.artifacts),
    }
    output = Path(job.output)
    write_text(output.with_suffix(".csv"), results_table.to_csv(table, scores, origin))
    write_text(output.with_suffix(".md"), results_table.to_markdown(output.stem, table, scores, origin))
    write_text(output.with_suffix(".tex"), results_table.to_latex(output.stem, table, scores, origin))
    values = results_table.fractions(table, scores)
    for row in table.rows:
        if row.experiment is not None:
            write_json(output.parent / "metrics" / output.stem / f"{row.experiment}.json", values[row.label])
    provenance = describe(job, wall_time_s=round(time.monotonic() - started, 2))
    # From the key and inputs in this file, the workflow tells whether the table is up to date.
    write_json(output, {**identity(job), **origin, "methods": values, "provenance": provenance})
