"""Copies a trained system into the package, where ``deop.load`` finds it by name: ``make bundled``."""

from __future__ import annotations

import sys
from pathlib import Path

from deop.api.places import BUNDLED_SYSTEMS
from deop.errors import DeopError
from deop.jobs.artifacts import PROVENANCE, provenance_of
from deop.jobs.integrity import folder_hashes
from deop.jobs.systems import find_system
from deop.methods.system import load_system, read_config, save_system
from deop.utils.files import write_json


def run(system: str, name: str, root: Path = Path(), target: Path = BUNDLED_SYSTEMS) -> Path:
    """Writes a system as ``target/name`` with its scores; the weights of its CLIP stay a reference.

    Raises:
        DeopError: a system that was not trained, or whose CLIP is neither bundled nor public.
    """
    found = find_system(system, root)
    config = read_config(found.folder)
    if config.clip is not None and config.clip.included:
        raise DeopError(
            f"{system}: the weights of its CLIP are in its folder; only a reference is to be bundled"
        )
    folder = target / name
    folder.mkdir(parents=True, exist_ok=True)
    save_system(load_system(found.folder), config, folder)
    provenance = (provenance_of(found.folder) or {}) | folder_hashes(folder)
    write_json(folder / PROVENANCE, provenance | ({"scores": found.scores} if found.scores else {}))
    return folder


if __name__ == "__main__":
    try:
        print(run(*sys.argv[1:3]))
    except DeopError as problem:
        sys.exit(f"error: {problem}")
