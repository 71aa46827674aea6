"""The set of jobs, each named by a hash of its content, so that work that several results share is planned once."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from deop.jobs.job import Job
from deop.jobs.revisions import REVISIONS
from deop.settings.base import Settings
from deop.settings.precision import Precision

NAMED = ("table", "claims", "figure", "picture", "benchmark")
"""Stages whose outputs have fixed names without a key, see :mod:`deop.jobs.freshness`."""
ONE_FILE = ("download", "evaluate", "measure_speed")
"""Stages whose output is one JSON file with its key in its name."""
Inputs = dict[str, "Job | str"]
"""Inputs of a job by role: a job, or text that is part of the key alone."""

_KEYED = re.compile(r"(?P<name>.+)-(?P<key>[0-9a-f]{12})(?P<suffix>\.json|\.csv|\.partial)?")
"""Names of outputs with a key: a folder or a JSON or CSV file, or the ``.partial`` folder of an interrupted run."""


class Jobs:
    """All jobs planned so far. Jobs come after those whose outputs they read.

    Args:
        root: the folder that outputs are relative to.

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
        """Adds the job with this content, unless it is known, and returns it.

        Args:
            stage: the stage that runs it.
            output: the path of its output without the key. Names in it are for readers and not part of the key: if
                several ask for the same job, the first names it, and an artifact on disk keeps the name it has.
            settings: the settings that determine the output, by section.
            inputs: by role, the jobs whose outputs it reads. An input given as text is the SHA-256 of weights that come
                with the package: part of the key, but not a path to read.
            seed: of the random numbers that it draws.
            local: settings that do not change the output, such as where this machine keeps its data. They are not
                part of the key, and are added to ``settings`` or replace sections of the same name.
            precision: that of the stage's networks, None if the output does not depend on it.
        """
        content = {
            "stage": stage,
            "revision": REVISIONS[stage],
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
            weights = {role: job for role, job in inputs.items() if not isinstance(job, Job)}
            everything = settings | (local or {})
            job = Job(
                stage=stage,
                key=key,
                seed=seed,
                output=output,
                inputs=paths,
                weights=weights,
                settings=everything,
                precision=precision or "fp32",
            )
            self.by_key[stage, key] = self.by_output[output] = job
        return self.by_key[stage, key]

    def _named_on_disk(self, output: str, key: str) -> str:
        """Returns ``output`` or, if an artifact with this key is in its folder under another name, that path."""
        folder, _, name = output.rpartition("/")
        if folder not in self._names:
            paths = (self._root / folder).glob("*-*")
            matches = [match for path in paths if (match := _KEYED.fullmatch(path.name))]
            # The last of several artifacts with the same key wins, so finished ones are sorted after interrupted ones.
            matches.sort(key=lambda match: (match["suffix"] != ".partial", match["name"]))
            self._names[folder] = {match["key"]: match["name"] for match in matches}
        return f"{folder}/{self._names[folder].get(key, name)}"

    def inputs_of(self, job: Job) -> dict[str, Job]:
        """Returns the jobs whose outputs ``job`` reads, by role."""
        return {role: self.by_output[path] for role, path in job.inputs.items()}

    def upstream(self, jobs: Iterable[Job | str]) -> list[str]:
        """Returns the outputs of ``jobs`` and of everything that they are made from, sorted."""
        found: dict[str, None] = {}
        waiting = [job.output for job in jobs if isinstance(job, Job)]
        while waiting:
            output = waiting.pop()
            if output not in found:
                found[output] = None
                waiting.extend(self.by_output[output].inputs.values())
        return sorted(found)


def name_of(*parts: object) -> str:
    """Joins parts such as dataset, experiment and seed to a name for readers that is valid in a file name."""
    return re.sub(r"[^\w.+-]", "_", "-".join(map(str, parts)))[:120]


def done_file(job: Job) -> str:
    """Returns the file that exists when a job is done. Folders appear complete, so one file in them is enough."""
    if job.stage in (*NAMED, *ONE_FILE):
        return job.output
    return f"{job.output}/{'dataset.json' if job.stage == 'prepare_data' else 'model.safetensors'}"


def dump(settings: Settings) -> dict[str, Any]:
    """Returns settings as they are written in a job file."""
    return settings.model_dump(mode="json")
