"""Whether the configuration of a run is the committed one, which results state next to their commit.

The state is found out when the Snakefile is read, and passed to stages in an environment variable. It is no part of
keys, which depend on the values of the configuration wherever they come from.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from deop.settings.files import SOURCE, load_yaml, merged, with_text_keys

VARIABLE = "DEOP_CONFIGURATION"
ORDINARY = ("seeds", "accelerate", "resources", "data.root", "data.keep_archives")
"""Keys whose change on the command line is not reported: results name their seeds, and the others change no result."""
SHOWN = 5
"""How many differences are listed before they are only counted."""


def configuration_state(
    values: dict[str, Any], read: Iterable[str], overlays: Iterable[Path], root: Path
) -> dict[str, Any]:
    """Finds out where the values of a configuration come from.

    Args:
        values: the merged configuration.
        read: the configuration files that were read, relative to ``root``.
        overlays: the profiles merged over ``config/config.yaml``, the last on top.
        root: the folder that holds ``config/``.

    Returns:
        ``files``: by name, ``"committed"``, ``"modified"``, ``"untracked"`` or, outside a git checkout, ``"unknown"``.
        ``profiles``: the names of the overlays among these files.
        ``overrides``: by dotted key, values that differ from the files, as given with ``--config``; null for values
        that were removed.
    """
    values, overlays = with_text_keys(values), list(overlays)
    states = _states([*(root / name for name in sorted(read)), *overlays], root)
    from_files = load_yaml(root / SOURCE / "config.yaml", f"{SOURCE}/config.yaml")
    for overlay in overlays:
        from_files = merged(from_files, load_yaml(overlay, str(overlay)))
    overrides = {
        key: value
        for key, value in _differences(from_files, values).items()
        if not any(key == ordinary or key.startswith(f"{ordinary}.") for ordinary in ORDINARY)
    }
    return {
        "files": {_shown(path, root): state for path, state in states.items()},
        "profiles": [_shown(overlay, root) for overlay in overlays],
        "overrides": overrides,
    }


def tell_stages(state: dict[str, Any]) -> None:
    """Puts the state into the environment of this process, which the stages inherit."""
    os.environ[VARIABLE] = json.dumps(state, default=str)


def told_state() -> dict[str, Any] | None:
    """Returns the state that :func:`tell_stages` passed on, or None in a stage that the workflow did not start."""
    told = os.environ.get(VARIABLE)
    return None if told is None else json.loads(told)


def describe_state(state: dict[str, Any] | None) -> str:
    """Returns ``as committed``, or a short list of what differs from the committed configuration."""
    if state is None:
        return "not recorded"
    told = []
    if "unknown" in state["files"].values():
        told.append("no commit known")
    told += [
        f"{name} {state}" for name, state in state["files"].items() if state in ("modified", "untracked")
    ]
    told += [f"{key}={_value(value)} given by --config" for key, value in state["overrides"].items()]
    if not told:
        return "as committed"
    more = [f"{len(told) - SHOWN} more"] if len(told) > SHOWN else []
    differs = ", ".join([*told[:SHOWN], *more])
    return differs if told[0] == "no commit known" else f"not as committed: {differs}"


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _states(paths: list[Path], root: Path) -> dict[Path, str]:
    """Returns the state of each file in the git checkout that contains ``root``."""
    top = _git(root, "rev-parse", "--show-toplevel")
    if top is None:
        return dict.fromkeys(paths, "unknown")
    folder = Path(top.strip()).resolve()
    inside = {
        path: path.resolve().relative_to(folder).as_posix()
        for path in paths
        if path.resolve().is_relative_to(folder)
    }
    tracked = (_git(folder, "ls-files", "-z", "--", *inside.values()) or "").split("\0")
    # None if the checkout has no commit yet.
    modified = _git(folder, "diff", "--name-only", "-z", "HEAD", "--", *inside.values())
    states = {}
    for path in paths:
        if inside.get(path) not in tracked or modified is None:
            states[path] = "untracked"
        else:
            states[path] = "modified" if inside[path] in modified.split("\0") else "committed"
    return states


def _git(folder: Path, *arguments: str) -> str | None:
    """Returns what a git command prints, or None if it fails or git is not installed."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return None
    return done.stdout if done.returncode == 0 else None


def _differences(before: dict[str, Any], after: dict[str, Any], at: str = "") -> dict[str, Any]:
    """Returns the values of ``after`` that differ from ``before``, by dotted key."""
    found: dict[str, Any] = {}
    for key in dict.fromkeys([*before, *after]):
        old, new, name = before.get(key), after.get(key), f"{at}{key}"
        if isinstance(old, dict) and isinstance(new, dict):
            found |= _differences(old, new, f"{name}.")
        elif str(old) != str(new):  # Snakemake passes numbers inside a mapping on as text
            found[name] = new
    return found


def _shown(path: Path, root: Path) -> str:
    """Returns a path relative to ``root``, or only the file's name if it is outside."""
    path, root = path.resolve(), root.resolve()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
