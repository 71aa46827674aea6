"""Stage ``figure``: a plot of what evaluations or a benchmark measured, as PNG and SVG."""

from __future__ import annotations

import json
from pathlib import Path

from deop.errors import validated
from deop.jobs.freshness import identity
from deop.jobs.job import Job
from deop.reporting.figures import FigureSettings, draw_figure
from deop.reporting.origin import made_by
from deop.reporting.plot_style import save_figure
from deop.utils.files import write_json


def run(job: Job) -> None:
    """Writes ``job.output`` (JSON, last), and the figure with suffixes .png and .svg.

    The job's inputs are evaluations: for bars and scatter ``<table>/<role>``, with the roles of stage ``table``; for
    parts ``benchmark``, a benchmark's; for the other kinds ``<experiment>/<dataset>/<seed>``. Beside each evaluation
    lies its confusion, with suffix .csv.

    Raises:
        ConfigError: settings that do not fit the kind of figure.
        DeopError: an evaluation that lacks what the figure shows.
    """
    settings = validated(FigureSettings, job.settings["figure"], "figure job", ("settings", "figure"))
    evaluations = {role: json.loads(Path(path).read_text()) for role, path in job.inputs.items()}
    figure = draw_figure(settings, evaluations, job.inputs)
    output = Path(job.output)
    for suffix in (".png", ".svg"):
        save_figure(figure, output.with_suffix(suffix))
    # The workflow takes a figure for up to date by what this file says of its key and inputs.
    write_json(output, {**identity(job), **made_by(settings.profile, settings.seeds, evaluations)})
