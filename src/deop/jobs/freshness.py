"""Whether a table, figure or picture on disk is up to date.

Its name does not change with its content, so its JSON records its key and a hash of each input as it was read.
Neither dates nor Snakemake's records of earlier runs count, so that results from a cache or from another clone are
recognised.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from deop.jobs.artifacts import read_inputs
from deop.jobs.job import Job


def identity(job: Job) -> dict[str, Any]:
    """What the JSON of a result must hold for :func:`is_current`.

    Returns:
        ``key``: that of the job. ``inputs``: as :func:`deop.jobs.artifacts.read_inputs` gives them.
    """
    return {"key": job.key, "inputs": read_inputs(job)}


def is_current(job: Job, root: Path) -> bool:
    """Whether the result on disk is that of ``job``, and was made from the inputs that are now on disk.

    An input that is not on disk counts as unchanged: a table may be kept, or fetched, without what is under it.
    """
    try:
        found = json.loads((root / job.output).read_text(encoding="utf-8"))
        key, inputs = found["key"], found.get("inputs", {})
        read = {role: inputs[role]["sha256"] for role in job.inputs if role in inputs}
    except (OSError, ValueError, KeyError, TypeError):
        return False
    here = job.model_copy(update={"inputs": {role: str(root / path) for role, path in job.inputs.items()}})
    now = {role: each["sha256"] for role, each in read_inputs(here).items()}
    return key == job.key and all(
        None in (read.get(role), now[role]) or read[role] == now[role] for role in job.inputs
    )
