"""One unit of work, as the planner writes it down and a stage reads it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from deop.settings.base import Settings
from deop.settings.precision import Precision


class Job(Settings):
    """One unit of work: a stage, its settings, the paths of its inputs and of its output.

    key: the hash of everything that determines the output.
    inputs: by role (``data``, ``clip``, ``prompts``, ``proposals``, ``system``), the path of an artifact.
    weights: by role (``clip``, ``backbone``), the SHA-256 of weights that come with the package, which it uses instead.
    settings: by section (``clip``, ``proposals``, ``method``), values that the stage validates with the settings model
        of that section.
    precision: what the stage computes in, if it runs networks through Accelerate.
    """

    stage: str
    key: str
    seed: int = 0
    output: str
    inputs: Annotated[dict[str, str], Field(default_factory=dict)]
    weights: Annotated[dict[str, str], Field(default_factory=dict)]
    settings: Annotated[dict[str, dict], Field(default_factory=dict)]
    precision: Precision = "fp32"


def schedule_of(job: Job) -> dict[str, Any]:
    """The settings of the schedule of a job that trains."""
    name = job.settings["round"]["name"] if job.stage == "train_system" else "proposals"
    return job.settings.get("method", {}).get(name) or job.settings[name]
