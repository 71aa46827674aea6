"""Whether the configuration in force is the one that is committed: what results say of it beside their commit.

Keys name what was computed whatever the state of the files, so this enters none of them. The Snakefile finds it out
when it is read, and tells the stages that it starts through their environment.
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
"""Keys that the command line may give without a remark: results name their seeds, the others change no result."""
SHOWN = 5
"""How many differences a sentence lists."""


def configuration_state(
    values: dict[str, Any], read: Iterable[str], overlays: Iterable[Path], root: Path
) -> dict[str, Any]:
    """What the configuration in force consists of.

    Args:
        values: the merged configuration.
        read: files below ``root`` that were read, relative to it.
        overlays: files of profiles put over ``config/config.yaml``, the last on top.
        root: the folder that holds ``config/``.

    Returns:
        ``files``: by name, ``"committed"``, ``"modified"``, ``"untracked"`` or, outside a git checkout, ``"unknown"``.
        ``profiles``: the names of the overlays among them.
        ``overrides``: by dotted key, values that no file has, as given with ``--config``; null for what was taken out.
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
    """Puts the state into the environment of this process, and so of all that it starts."""
    os.environ[VARIABLE] = json.dumps(state, default=str)


def told_state() -> dict[str, Any] | None:
    """The state that :func:`tell_stages` put there; None in a stage that the workflow did not start."""
    told = os.environ.get(VARIABLE)
    return None if told is None else json.loads(told)


def describe_state(state: dict[str, Any] | None) -> str:
    """A few words: ``as committed``, or what differs from it."""
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
    """The state of each file in the git checkout that ``root`` lies in."""
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
    # None where nothing is committed yet.
    modified = _git(folder, "diff", "--name-only", "-z", "HEAD", "--", *inside.values())
    states = {}
    for path in paths:
        if inside.get(path) not in tracked or modified is None:
            states[path] = "untracked"
        else:
            states[path] = "modified" if inside[path] in modified.split("\0") else "committed"
    return states


def _git(folder: Path, *arguments: str) -> str | None:
    """What a git command prints, None if it fails or there is no git."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return None
    return done.stdout if done.returncode == 0 else None


def _differences(before: dict[str, Any], after: dict[str, Any], at: str = "") -> dict[str, Any]:
    """The values of ``after`` that are others in ``before``, by dotted key."""
    found: dict[str, Any] = {}
    for key in dict.fromkeys([*before, *after]):
        old, new, name = before.get(key), after.get(key), f"{at}{key}"
        if isinstance(old, dict) and isinstance(new, dict):
            found |= _differences(old, new, f"{name}.")
        elif str(old) != str(new):  # Snakemake hands numbers inside a mapping on as text
            found[name] = new
    return found


def _shown(path: Path, root: Path) -> str:
    """A file's name below ``root``, or without the folders that lead to it elsewhere."""
    path, root = path.resolve(), root.resolve()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
