"""Jobs named by their content: each piece of work once, whoever asks for it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from deop.jobs.job import Job
from deop.settings.base import Settings
from deop.settings.precision import Precision

NAMED = ("table", "claims", "figure", "picture", "benchmark")
"""Stages whose outputs keep their names when their content changes."""
ONE_FILE = ("download", "evaluate", "measure_speed")
"""Stages whose output is one JSON, named by its key."""
Inputs = dict[str, "Job | str"]


_KEYED = re.compile(r"(?P<name>.+)-(?P<key>[0-9a-f]{12})(?P<suffix>\.json|\.csv|\.partial)?")
"""What outputs are called that carry a key: finished ones, the parts of one, and those that were interrupted."""


class Jobs:
    """All jobs known so far, inputs before what needs them.

    Args:
        root: the folder that receives the outputs.

    Attributes:
        by_key: the jobs by (stage, key).
        by_output: the jobs by output.
    """

    def __init__(self, root: Path) -> None:
        self.by_key: dict[tuple[str, str], Job] = {}
        self.by_output: dict[str, Job] = {}
        self._root = root
        self._names: dict[str, dict[str, str]] = {}

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

        ``output`` is its path without the key. The name in it is for readers and no part of the key: of several that
        ask for the same job, the first names it, and an artifact that is on disk under another name keeps that.
        ``precision`` is that of the stage's networks, None where no result depends on it. ``local`` are settings that
        do not change what comes out, such as where this machine keeps its data. They are added to ``settings``, or
        replace sections of it that they name.
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
            if stage not in NAMED:
                output = f"{self._named_on_disk(output, key)}-{key}{'.json' if stage in ONE_FILE else ''}"
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

    def _named_on_disk(self, output: str, key: str) -> str:
        """``output`` or, if an artifact with this key lies beside it under another name, that."""
        folder, _, name = output.rpartition("/")
        if folder not in self._names:
            paths = (self._root / folder).glob("*-*")
            matches = [match for path in paths if (match := _KEYED.fullmatch(path.name))]
            # Of several the last one counts: finished ones come after interrupted ones.
            matches.sort(key=lambda match: (match["suffix"] != ".partial", match["name"]))
            self._names[folder] = {match["key"]: match["name"] for match in matches}
        return f"{folder}/{self._names[folder].get(key, name)}"

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


def name_of(*parts: object) -> str:
    """A name for readers, of parts such as a dataset, an experiment and a seed, that can be part of a file's name."""
    return re.sub(r"[^\w.+-]", "_", "-".join(map(str, parts)))[:120]


def marker(job: Job) -> str:
    """The file that says that a job is done: folders are renamed into place whole, so one file will do."""
    if job.stage in (*NAMED, *ONE_FILE):
        return job.output
    return f"{job.output}/{'dataset.json' if job.stage == 'prepare_data' else 'model.safetensors'}"


def dump(settings: Settings) -> dict[str, Any]:
    """Settings as they are written in a job."""
    return settings.model_dump(mode="json")
