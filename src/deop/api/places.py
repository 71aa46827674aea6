"""Where the system is that a name means: a folder, a project's training, this package. Without torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from deop.errors import DeopError
from deop.jobs.systems import TrainedSystem, list_systems
from deop.settings.system import CONFIG

BUNDLED_SYSTEMS = Path(__file__).parents[1] / "models" / "systems"
"""Systems that come with the package, a folder each; ``make bundled`` writes them."""
PROJECT = "DEOP_PROJECT"
"""Environment variable: the folder with ``config/`` where systems were trained."""


def bundled_systems() -> list[str]:
    """The names of the systems that come with the package."""
    return sorted(path.parent.name for path in BUNDLED_SYSTEMS.glob(f"*/{CONFIG}"))


def find_project(given: str | Path | None = None) -> Path | None:
    """The folder with the configuration: the one given, ``DEOP_PROJECT``, or where we are or above; None if none is.

    Raises:
        DeopError: a folder that was named and holds no configuration.
    """
    named = given if given is not None else os.environ.get(PROJECT)
    if named is not None:
        if not _is_project(Path(named)):
            raise DeopError(
                f"project {named}: it holds no config/config.yaml, so it is no folder of a workflow"
            )
        return Path(named)
    here = Path.cwd()
    if _is_project(here):
        return Path()
    # The checkout that an editable installation is of comes last: what is nearer is meant.
    return next((path for path in (*here.parents, Path(__file__).parents[3]) if _is_project(path)), None)


def _is_project(path: Path) -> bool:
    return (path / "config/config.yaml").is_file() and (path / "config/experiments.yaml").is_file()


def systems_of(project: Path | None, profiles: Sequence[Path] = ()) -> list[TrainedSystem]:
    """The systems of a project, trained or not; none without a project."""
    return [] if project is None else list_systems(project, profiles)


def find_folder(name: str, project: Path | None, profiles: Sequence[Path] = ()) -> Path | None:
    """The folder of the system that ``name`` means, None if it is neither a folder, nor bundled, nor of the project.

    Raises:
        DeopError: a folder that holds no system, or a system that was not trained yet.
    """
    folder = Path(name).expanduser()
    if (folder / CONFIG).is_file():
        return folder
    if folder.is_dir():
        raise DeopError(f"{name}: the folder holds no {CONFIG}, so it is no trained system")
    if name in bundled_systems():
        return BUNDLED_SYSTEMS / name
    if "/" not in name:
        return None
    for system in systems_of(project, profiles):
        if system.name == name.removesuffix("/0"):
            if not system.trained:
                raise DeopError(
                    f"{name}: was not trained yet; `snakemake {system.folder / CONFIG}` trains it (with the "
                    "--configfile of its profile, if it has one)"
                )
            return system.folder
    return None
