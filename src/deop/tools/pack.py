"""A trained system with all its weights in one folder, to be copied to where nothing can be downloaded."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from deop.errors import DeopError
from deop.jobs.artifacts import PROVENANCE, provenance_of
from deop.jobs.integrity import folder_hashes
from deop.methods.system import load_system, read_config, save_system
from deop.utils.files import write_json


def run(system: Path, output: Path) -> None:
    """Copies the folder ``system`` to ``output``, with the weights of its CLIP.

    Raises:
        DeopError: an ``output`` that is there already, or a folder that is no system.
    """
    if output.exists():
        raise DeopError(f"{output} is there already; remove it, or name another folder")
    partial = output.with_name(f".{output.name}.{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        save_system(load_system(system), read_config(system), partial, include_clip=True)
        provenance = provenance_of(system) or {}
        write_json(partial / PROVENANCE, provenance | folder_hashes(partial))
        os.replace(partial, output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
