"""Stage ``figure``: a plot of what evaluations or a benchmark measured, as PNG and SVG."""

from __future__ import annotations

import json
import time
from pathlib import Path

from deop.errors import validated
from deop.jobs.artifacts import describe
from deop.jobs.freshness import identity
from deop.jobs.job import Job
from deop.reporting.figures import FigureSettings, draw_figure
from deop.reporting.origin import made_by
from deop.reporting.plot_style import save_figure
from deop.utils.files import write_json


def run(job: Job) -> None:
    """Writes ``job.output`` (JSON, last), and the figure with suffixes .png and .svg.

    The job's inputs depend on the kind of figure. Bars and scatter have the evaluations of their tables, as
    ``<table>/<role>`` with the roles of stage ``table``; parts has a benchmark's output, as ``benchmark``; the other
    kinds have evaluations, as ``<experiment>/<dataset>/<seed>``, each with its confusion CSV beside it.

    Raises:
        ConfigError: settings that do not fit the kind of figure.
        DeopError: an evaluation that lacks what the figure shows.
    """
    started = time.monotonic()
    settings = validated(FigureSettings, job.settings["figure"], "figure job", ("settings", "figure"))
    evaluations = {role: json.loads(Path(path).read_text()) for role, path in job.inputs.items()}
    figure = draw_figure(settings, evaluations, job.inputs)
    output = Path(job.output)
    for suffix in (".png", ".svg"):
        save_figure(figure, output.with_suffix(suffix))
    origin = made_by(settings.profile, settings.seeds, evaluations)
    provenance = describe(job, wall_time_s=round(time.monotonic() - started, 2))
    # From the key and inputs in this file, the workflow tells whether the figure is up to date.
    write_json(output, {**identity(job), **origin, "provenance": provenance})
