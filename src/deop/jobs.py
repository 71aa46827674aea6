"""Jobs named by their content: each piece of work once, whoever asks for it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from deop.precision import Precision
from deop.settings import Job, Settings

NAMED = ("table", "claims", "figure", "picture", "benchmark")
"""Stages whose outputs keep their names when their content changes."""
ONE_FILE = ("download", "evaluate", "measure_speed")
"""Stages whose output is one JSON, named by its key."""
Inputs = dict[str, "Job | str"]


class Jobs:
    """All jobs known so far, inputs before what needs them.

    Attributes:
        by_key: the jobs by (stage, key).
        by_output: the jobs by output.
    """

    def __init__(self) -> None:
        self.by_key: dict[tuple[str, str], Job] = {}
        self.by_output: dict[str, Job] = {}

    def add(
        self,
        stage: str,
        output: str,
        settings: dict[str, dict],
        inputs: Inputs,
        *,
        seed: int = 0,
        local: dict[str, dict] | None = None,
        precision: Precision | None = None,
    ) -> Job:
        """The job of this content, new or known. An input given as text enters the key and has no path.

        ``precision`` is that of the stage's networks, None where no result depends on it. ``local`` are further
        settings that do not change what comes out, such as where this machine keeps its data.
        """
        content = {
            "stage": stage,
            "settings": settings,
            # An evaluation draws no random numbers; its seed says, as its inputs do, what it measures.
            "seed": 0 if stage == "evaluate" else seed,
            "inputs": {role: job.key if isinstance(job, Job) else job for role, job in inputs.items()},
            "precision": precision,
        }
        key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
        if (stage, key) not in self.by_key:
            output += "" if stage in NAMED else f"-{key}.json" if stage in ONE_FILE else f"-{key}"
            paths = {role: job.output for role, job in inputs.items() if isinstance(job, Job)}
            everything = settings | (local or {})
            job = Job(
                stage=stage,
                key=key,
                seed=seed,
                output=output,
                inputs=paths,
                settings=everything,
                precision=precision or "fp32",
            )
            self.by_key[stage, key] = self.by_output[output] = job
        return self.by_key[stage, key]

    def inputs_of(self, job: Job) -> dict[str, Job]:
        """The jobs whose outputs ``job`` reads, by role."""
        return {role: self.by_output[path] for role, path in job.inputs.items()}

    def upstream(self, jobs: Iterable[Job | str]) -> list[str]:
        """The outputs of all jobs that ``jobs`` came from, their own among them."""
        found: dict[str, None] = {}
        waiting = [job.output for job in jobs if isinstance(job, Job)]
        while waiting:
            output = waiting.pop()
            if output not in found:
                found[output] = None
                waiting.extend(self.by_output[output].inputs.values())
        return sorted(found)


def marker(job: Job) -> str:
    """The file that says that a job is done: folders are renamed into place whole, so one file will do."""
    if job.stage in (*NAMED, *ONE_FILE):
        return job.output
    return f"{job.output}/{'dataset.json' if job.stage == 'prepare_data' else 'model.safetensors'}"


def dump(settings: Settings) -> dict[str, Any]:
    """Settings as they are written in a job."""
    return settings.model_dump(mode="json")
