"""What ``make publish`` copies, and whether all of it was made from one commit.

``python -m deop.tools.published`` lists the files. With ``--check`` it refuses parts of them, of those that exist, that
another commit made.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Collection
from pathlib import Path

from deop.errors import DeopError
from deop.jobs.artifacts import code_version, provenance_of
from deop.jobs.freshness import is_current
from deop.jobs.job import Job
from deop.jobs.jobs import NAMED, done_file
from deop.jobs.plan import Plan
from deop.jobs.revisions import REVISIONS
from deop.reporting.origin import COMMIT_LENGTH, short_commit
from deop.settings.configuration import Configuration
from deop.settings.files import read_profile
from deop.tools.revisions import StageCode

MEASURED = ("evaluate", "measure_speed", *NAMED)
"""Stages whose outputs are, or contain, the numbers that are published."""
PACKAGE = Path(__file__).parents[1]


def published(configuration: Configuration) -> list[str]:
    """The tables, benchmarks, figures and pictures of a configuration in the formats that are read, by path."""
    results = configuration.results
    tables = [*results.tables, *(["claims"] if results.claims else [])]
    return [
        *(f"results/{name}.{suffix}" for name in tables for suffix in ("csv", "md", "tex")),
        *(f"results/{name}.{suffix}" for name in configuration.benchmarks for suffix in ("csv", "md")),
        *(f"results/figures/{name}.png" for name in (*results.figures, *results.pictures)),
    ]


def check(jobs: Collection[Job], root: Path, head: str, same_code: Callable[[str, str], bool]) -> None:
    """Does nothing if all parts that exist are of one commit.

    What was measured or drawn has to be of ``head``, without uncommitted changes. Datasets and checkpoints may also be
    of another commit that would make them with the same code. Results that are out of date are passed over, because
    they are made again before they are published.

    Args:
        jobs: of all results that are published, and of all that these are made from.
        root: the folder of the workflow.
        head: the commit to publish.
        same_code: whether a commit has the same code for a stage as ``head``.

    Raises:
        DeopError: the parts that are not of that commit or, though something was made from them, are gone.
    """
    there = [
        job
        for job in jobs
        if (root / done_file(job)).is_file() and (job.stage not in NAMED or is_current(job, root))
    ]
    outputs, read = {job.output for job in there}, {path for job in there for path in job.inputs.values()}
    wrong = {path: "not there, but what was made from it is" for path in sorted(read - outputs)}
    for job in there:
        made = {"commit": None, "dirty": None} | (provenance_of(root / job.output) or {})
        commit = made["commit"]
        other = commit is not None and job.stage not in MEASURED and same_code(commit, job.stage)
        if made["dirty"] or (commit != head and not other):
            wrong[job.output] = f"commit {short_commit(made)}" if commit else "no commit known"
    if wrong:
        raise DeopError(
            f"what is published is made from one commit, here {head[:COMMIT_LENGTH]}, but these parts are not:\n"
            + "\n".join(f"  {path}: {why}" for path, why in wrong.items())
            + "\nRemove them, and what was made from those that are gone, to have them made again."
        )


class Commits:
    """Compares the code of commits with the code that is checked out.

    Args:
        package: the folder of the package ``deop``, in a git checkout at ``<checkout>/src/deop``.
    """

    def __init__(self, package: Path = PACKAGE) -> None:
        self._package, self._checkout = package, package.parents[1]
        self._code = StageCode(package, REVISIONS)
        self._now = json.loads(self._code.record.read_text(encoding="utf-8"))["modules"]
        self._modules: dict[str, dict[str, str] | None] = {}

    def same_code(self, commit: str, stage: str) -> bool:
        """Whether a stage ran the same code at ``commit``: its modules by their record, data files and packages by git.

        Comments, docstrings and layout do not count (:mod:`deop.tools.revisions`).
        """
        if commit not in self._modules:
            self._modules[commit] = self._of(commit)
        then = self._modules[commit]
        modules = self._code.modules_of(stage)
        return then is not None and all(then.get(name) == self._now.get(name) for name in modules)

    def _of(self, commit: str) -> dict[str, str] | None:
        """The recorded modules of a commit; None if it is unknown, or has other data files or packages."""
        record = self._code.record.relative_to(self._checkout).as_posix()
        beside = ("requirements.lock", "src/deop", ":!*.py", f":!{record}")
        changed = self._git("diff", "--name-only", commit, "HEAD", "--", *beside)
        found = self._git("show", f"{commit}:{record}")
        return None if changed != "" or found is None else json.loads(found)["modules"]

    def _git(self, *arguments: str) -> str | None:
        command = ["git", "-C", str(self._checkout), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stdout if done.returncode == 0 else None


def main() -> None:
    """Lists or checks what the configuration in this folder publishes."""
    parser = argparse.ArgumentParser(prog="python -m deop.tools.published", description=__doc__)
    parser.add_argument(
        "--check", metavar="SEEDS", type=json.loads, help="refuse parts of another commit; seeds as [0,1,2]"
    )
    seeds, values = parser.parse_args().check, read_profile(Path())
    if seeds is None:
        print("\n".join(published(Configuration(values, Path()))))
        return
    try:
        head = code_version()["commit"]
        if head is None:
            raise DeopError("the code is in no git checkout, so no commit could be published")
        check(Plan(values | {"seeds": seeds}).jobs.values(), Path(), head, Commits().same_code)
    except DeopError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
