"""Stage ``claims``: whether one system beats another by more than the choice of validation images would explain."""

from __future__ import annotations

import json
import time
from pathlib import Path

from deop.errors import validated
from deop.evaluation.claims import ClaimsSettings, compare
from deop.jobs.artifacts import describe
from deop.jobs.freshness import identity
from deop.jobs.job import Job
from deop.reporting import claims_table
from deop.reporting.origin import made_by
from deop.utils.files import write_json, write_text


def run(job: Job) -> None:
    """Writes ``job.output`` (JSON, last), and the same with suffixes .csv, .md and .tex.

    The job's input ``<experiment>/<dataset>/<seed>`` is the evaluation of that experiment: a JSON with ``metrics``
    (fractions in [0, 1]), and the confusion matrices of its images in a CSV beside it (:mod:`deop.stages.evaluate`).

    Raises:
        DeopError: an evaluation without its CSV or with another's, or systems evaluated on different images.
    """
    started = time.monotonic()
    settings = validated(ClaimsSettings, job.settings["claims"], "claims job", ("settings", "claims"))
    evaluations = {role: json.loads(Path(path).read_text()) for role, path in job.inputs.items()}
    results = compare(settings, evaluations, job.inputs)
    origin = made_by(settings.profile, settings.seeds, evaluations)
    output = Path(job.output)
    write_text(output.with_suffix(".csv"), claims_table.to_csv(results, origin))
    write_text(output.with_suffix(".md"), claims_table.to_markdown(output.stem, settings, results, origin))
    write_text(output.with_suffix(".tex"), claims_table.to_latex(output.stem, settings, results, origin))
    values = [claims_table.to_values(result) for result in results]
    provenance = describe(job, wall_time_s=round(time.monotonic() - started, 2))
    # From the key and inputs in this file, the workflow tells whether the claims are up to date.
    write_json(output, {**identity(job), **origin, "claims": values, "provenance": provenance})
