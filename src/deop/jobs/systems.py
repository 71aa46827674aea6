"""Trained systems by the names that people give them: ``es171/deop``, or ``es171/deop/1`` for another seed than 0."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from deop.errors import DeopError
from deop.jobs.integrity import read_json
from deop.jobs.job import Job
from deop.jobs.plan import Plan
from deop.jobs.results import SystemName
from deop.settings.files import read_profile
from deop.settings.system import CONFIG


class TrainedSystem(NamedTuple):
    """A system of the configuration.

    name: ``es171/deop``, with the seed if that is not 0.
    folder: where it is, if it was trained.
    evaluation: what measures it on the dataset that it was trained on, None if no table asks for that.
    scores: that evaluation's metrics, None if it was not measured yet.
    """

    name: str
    folder: Path
    evaluation: Job | None
    scores: dict[str, float | None] | None

    @property
    def trained(self) -> bool:
        return (self.folder / CONFIG).is_file()


def list_systems(root: Path, profiles: Sequence[Path] = ()) -> list[TrainedSystem]:
    """All systems of a configuration, in the order of its tables, trained or not.

    Raises:
        ConfigError: a configuration that cannot be read.
    """
    plan = Plan(read_profile(root, *profiles), root)
    return [_entry(root, plan, name) for name in plan.systems]


def find_system(text: str, root: Path, profiles: Sequence[Path] = ()) -> TrainedSystem:
    """The system that ``text`` names: a folder, or the name of a system of the configuration that was trained.

    Raises:
        DeopError: neither, with what there is.
    """
    if (Path(text) / CONFIG).is_file():
        return TrainedSystem(text, Path(text), None, None)
    if Path(text).is_dir():
        raise DeopError(f"--system {text}: the folder holds no {CONFIG}, so it is no trained system")
    systems = {system.name: system for system in list_systems(root, profiles)}
    found = systems.get(text.removesuffix("/0"))
    if found is None:
        there = [name for name, system in systems.items() if system.trained]
        raise DeopError(
            f"--system {text}: neither a folder nor a system of this configuration; trained: "
            f"{', '.join(there) or 'none'} (deop systems lists all; --profile names another configuration)"
        )
    if not found.trained:
        raise DeopError(
            f"--system {text}: was not trained yet; `snakemake {found.folder / CONFIG}` trains it (with the "
            "--configfile of its profile, if it has one)"
        )
    return found


def _entry(root: Path, plan: Plan, name: SystemName) -> TrainedSystem:
    dataset, experiment, seed = name
    evaluation, scores = plan.evaluations.get(name), None
    if evaluation is not None and (path := root / evaluation.output).is_file():
        scores = read_json(path, f"remove {path} to have it made again").get("metrics")
    told = f"{dataset}/{experiment}" + (f"/{seed}" if seed else "")
    return TrainedSystem(told, root / plan.systems[name].output, evaluation, scores)
