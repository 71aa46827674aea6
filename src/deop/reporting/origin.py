"""Where the numbers of a table or figure come from: code, configuration and machine."""

from __future__ import annotations

from typing import Any

from deop.jobs.artifacts import code_version
from deop.jobs.configuration_state import describe_state, told_state

COMMIT_LENGTH = 12
ORIGIN_COLUMNS = ("profile", "seeds", "commit", "version", "configuration")
"""Columns for the origin in every CSV; keys of :func:`made_by`."""


def made_by(profile: str, seeds: tuple[int, ...], evaluations: dict[str, dict]) -> dict[str, str]:
    """Code and configuration behind the numbers shown; also precision, if not fp32, and machine, if speed is shown.

    ``commit`` is machine-readable, with ``-dirty`` for uncommitted changes, as in ``git describe``; ``code`` and
    ``configuration`` are sentences for readers.
    """
    provenances = [evaluation["provenance"] for evaluation in evaluations.values()]
    speeds = [evaluation["provenance"] for evaluation in evaluations.values() if "systems" in evaluation]
    machines = {f"{speed['device']}, threads: {speed['threads']}" for speed in speeds}
    precisions = {provenance.get("precision", "fp32") for provenance in provenances}
    return {
        "profile": profile,
        "seeds": " ".join(map(str, seeds)),
        "commit": " ".join(sorted({short_commit(provenance) for provenance in provenances})),
        "version": " ".join(sorted({provenance["version"] for provenance in provenances})),
        "code": described_code(provenances),
        "configuration": describe_state(told_state()),
        **({"precision": ", ".join(sorted(precisions))} if precisions != {"fp32"} else {}),
        **({"speed_measured_on": "; ".join(sorted(machines))} if machines else {}),
    }


def in_precision(origin: dict[str, str]) -> str:
    """The note on precision; empty if everything was computed in fp32."""
    return f", computed in {origin['precision']}" if "precision" in origin else ""


def short_commit(provenance: dict[str, Any]) -> str:
    """``0123456789ab``, ``0123456789ab-dirty``, or ``unknown``."""
    return (provenance["commit"] or "unknown")[:COMMIT_LENGTH] + ("-dirty" if provenance["dirty"] else "")


def described_code(provenances: list[dict[str, Any]]) -> str:
    """In words: the commits that measured, uncommitted changes in their inputs, and the present code if it differs."""
    commits = {}
    for provenance in sorted(provenances, key=short_commit):
        commits[short_commit(provenance)] = _commit_in_words(provenance)
    told = " and ".join(commits.values())
    upstream = {path for provenance in provenances for path in provenance.get("dirty_inputs", [])}
    if upstream:
        told += f"; {len(upstream)} of their inputs were made with uncommitted changes"
    here = code_version()
    if here["dirty"] or (here["commit"] is not None and short_commit(here) not in commits):
        told += f"; written by {_commit_in_words(here)}"
    return told


def _commit_in_words(provenance: dict[str, Any]) -> str:
    if provenance["commit"] is None:
        return "no commit known"
    changed = " with uncommitted changes" if provenance["dirty"] else ""
    return f"commit {provenance['commit'][:COMMIT_LENGTH]}{changed}"
