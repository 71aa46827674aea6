"""From a number in a table back to what made it: seeds, evaluations, systems, trainings, data, weights and commits."""

from __future__ import annotations

import csv
import json
import shlex
import statistics
from collections.abc import Iterable, Iterator
from datetime import timedelta
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from deop.errors import DeopError, validated
from deop.jobs.artifacts import record_of
from deop.jobs.configuration_state import describe_state
from deop.jobs.integrity import read_json
from deop.jobs.lineage import Part, lineage, logs_of
from deop.jobs.pipeline import WEIGHTS
from deop.reporting.origin import short_commit
from deop.reporting.table_settings import SystemRow, TableDataset, TableSettings, deviates, scores_of
from deop.settings.system import CONFIG

NAMES = {
    "table": "table",
    "evaluate": "evaluation",
    "measure_speed": "speed",
    "build_system": "system",
    "train_system": "training",
    "train_proposals": "proposals",
    "pretrain_backbone": "backbone",
    "learn_prompts": "prompts",
    "pretrain_clip": "CLIP",
    "prepare_data": "data",
    "download": "archive",
}
"""What readers call the output of a stage."""
WIDTH = 12
"""Of the first column."""


class Cell(NamedTuple):
    """A number of a table that was measured here.

    root: the folder of the workflow. record: the table's JSON, relative to it.
    made: the table's provenance.
    """

    root: Path
    record: Path
    made: dict[str, Any]
    table: TableSettings
    row: SystemRow
    dataset: TableDataset
    metric: str

    @property
    def column(self) -> str:
        return f"{self.dataset.name}.{self.metric}"


def find_cell(file: Path, row: str, column: str) -> Cell:
    """The cell of a table in one of its files.

    Raises:
        DeopError: no such table, row or column, or a cell that was not measured here, with the nearest names.
    """
    record = file.with_suffix(".json")
    if not file.is_file() or not record.is_file():
        tables = [path.with_suffix(".csv").as_posix() for path in sorted(file.parent.glob("table*.json"))]
        missing = file if not file.is_file() else record
        raise DeopError(
            f"{missing} is not there; tables beside it: {_nearest(file.as_posix(), tables)}"
            if tables
            else f"{missing} is not there, nor a table beside it that the workflow made, such as results/table3.csv"
        )
    remedy = f"remove it and run `snakemake {file.absolute().parent.name}/{record.stem}.csv`"
    made = read_json(record, remedy).get("provenance") or {}
    if "table" not in made.get("settings", {}):
        what = f"is of stage {made['stage']}" if "stage" in made else "does not say what it shows"
        raise DeopError(f"{record} {what}; tables of systems can be explained, and if it is one, {remedy}")
    table = validated(
        TableSettings, made["settings"]["table"], str(record), ("provenance", "settings", "table")
    )
    rows = {each.label: each for each in table.rows}
    if row not in rows:
        raise DeopError(f"{file}: no row {row!r}; nearest: {_nearest(row, rows)}")
    columns = {f"{dataset.name}.{metric}": (dataset, metric) for dataset, metric in table.columns()}
    if column not in columns:
        of_paper = rows[row].reported.get(column)
        if of_paper is None:
            raise DeopError(f"{file}: no column {column!r}; nearest: {_nearest(column, columns)}")
        here = [name for name, (dataset, metric) in columns.items() if column == f"{dataset.paper}.{metric}"]
        raise DeopError(
            f"{file}: {column} = {of_paper} is the paper's, quoted from config/reported.csv; measured here: "
            f"{', '.join(here) or 'nothing like it'}"
        )
    if rows[row].experiment is None:
        measured = [each.label for each in table.rows if each.experiment is not None]
        raise DeopError(f"{file}: {row!r} was not run; nearest that was: {_nearest(row, measured)}")
    root = record.absolute().parents[1]
    return Cell(root, record.absolute().relative_to(root), made, table, rows[row], *columns[column])


def explain(file: Path, row: str, column: str) -> str:
    """The walk from a cell to everything that made it, for people, and the command that makes it again.

    Raises:
        DeopError: as :func:`find_cell`; a record on the way that is damaged or gone.
    """
    cell = find_cell(file, row, column)
    seeds = cell.table.seeds if cell.metric != "FPS" else cell.table.seeds[:1]
    chains = {seed: _chain(cell, seed) for seed in seeds}
    values = {seed: _value(cell, chain[0]) for seed, chain in chains.items()}
    parts = {part.path: part for chain in chains.values() for part in chain}
    told: set[str] = set()
    lines = [*_headline(cell, values)]
    for seed, chain in chains.items():
        lines += ["", f"seed {seed}: {_number(values[seed], 2)}"]
        for part in chain:
            lines += _lines(cell.root, part, above=part.path in told)
            told.add(part.path)
        for sha256, of_weights in _weights(cell.root, chain).items():
            lines += of_weights if sha256 not in told else []
            told.add(sha256)
    table = Part(cell.record.as_posix(), "table", cell.made, there=True, changed=False, weights={})
    lines += ["", *_commits([table, *parts.values()]), "", *_again(cell)]
    return "\n".join(lines)


def _nearest(name: str, valid: Iterable[str]) -> str:
    valid = list(valid)
    return ", ".join(get_close_matches(name, valid, n=5, cutoff=0.4) or valid)


def _chain(cell: Cell, seed: int) -> list[Part]:
    """What one seed's value comes from, the evaluation or the measurement of speed first.

    Raises:
        DeopError: that is gone, or a record on the way is damaged.
    """
    of_speed = cell.metric == "FPS"
    role = f"speed/{cell.dataset.name}" if of_speed else f"{cell.row.experiment}/{cell.dataset.name}/{seed}"
    read = cell.made["inputs"][role]
    if not record_of(cell.root / read["path"]).is_file():
        raise DeopError(
            f"{read['path']}, from which {cell.record} has this number, is not there; "
            f"`{_command(cell, read['path'])}` makes it again"
        )
    return lineage(cell.root, read["path"], read["sha256"], f"{cell.row.experiment}/" if of_speed else "")


def _value(cell: Cell, part: Part) -> float | None:
    """The value that an evaluation or a measurement of speed now has; None if it is undefined."""
    found = json.loads((cell.root / part.path).read_text(encoding="utf-8"))
    if cell.metric == "FPS":
        return found["systems"][cell.row.experiment]["images_per_s"]
    return scores_of(found)[cell.metric]


def _headline(cell: Cell, values: dict[int, float | None]) -> Iterator[str]:
    """The number, how it is made of those of the seeds, and whether the CSV has another."""
    known = [value for value in values.values() if value is not None]
    mean = statistics.mean(known) if known else None
    spread = deviates(cell.table, cell.metric) and len(known) > 1
    deviation = f" ± {statistics.stdev(known):.1f}" if spread else ""
    yield f"{cell.record.with_suffix('.csv')}: {cell.row.label}, {cell.column} = {_number(mean)}{deviation}"
    if cell.metric == "FPS":
        yield f"images a second, measured once, with the system of seed {cell.table.seeds[0]}"
    elif len(values) > 1:
        listed = ", ".join(f"{_number(value, 2)} (seed {seed})" for seed, value in values.items())
        yield f"mean and standard deviation of {listed}"
    written = _in_csv(cell)
    if written != _number(mean):
        yield (
            f"But the CSV says {written or 'nothing'}: it or the evaluations were changed since it was written. "
            f"Remove it and run `{_command(cell)}` to have it written again."
        )


def _in_csv(cell: Cell) -> str:
    path = (cell.root / cell.record).with_suffix(".csv")
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = {row["method"]: row for row in csv.DictReader(file)}
        return rows[cell.row.label][cell.column] or _number(None)
    except (OSError, KeyError) as error:
        raise DeopError(
            f"{path} has no {cell.row.label!r}, {cell.column} ({error}); remove it and run `{_command(cell)}`"
        ) from None


def _number(value: float | None, decimals: int = 1) -> str:
    return "–" if value is None else f"{value:.{decimals}f}"


def _lines(root: Path, part: Part, *, above: bool) -> Iterator[str]:
    """An artifact: where it is, who made it and how, what it logged, and weights that no job made."""
    yield f"  {NAMES.get(part.stage, 'artifact'):<{WIDTH}} {part.path}{' (above)' if above else ''}"
    if above:
        return
    more = [_made(part) if part.there else "not there any more"]
    if part.changed:
        more.append(
            "changed or made again since it was read here; what follows is of the one that is there now"
        )
    if part.there and "sha256" in part.made and part.stage.startswith("pretrain"):
        more.append(f"weights: SHA-256 {part.made['sha256']}")
    more += [f"{kind}: {path}" for kind, path in logs_of(root, part).items()]
    for line in more:
        yield f"  {'':<{WIDTH}} {line}"


def _made(part: Part) -> str:
    made = part.made
    schedule, processes = made.get("settings", {}).get("round"), made.get("processes", 1)
    told = [
        f"round {schedule['name']}" if schedule else "",
        _commit(part),
        f"seed {made['seed']}" if "seed" in made else "",
        made.get("device", ""),
        made.get("precision", ""),
        f"{processes} process{'es' if processes > 1 else ''}" if "processes" in made else "",
        f"wall time {timedelta(seconds=round(made['wall_time_s']))}" if "wall_time_s" in made else "",
    ]
    return ", ".join(filter(None, told))


def _commit(part: Part) -> str:
    return f"commit {short_commit(part.made)}" if "commit" in part.made else "commit unknown"


def _weights(root: Path, chain: list[Part]) -> dict[str, list[str]]:
    """By SHA-256, the lines on weights that no job made: the package brings them, or anyone can download them."""
    bundled = {json.loads(path.read_text())["sha256"]: path.stem for path in sorted(WEIGHTS.glob("*.json"))}
    found: dict[str, tuple[str, str]] = {}
    for part in chain:
        for role, sha256 in part.weights.items():
            gone = "weights of a file, or of another version of the package"
            place = f"{bundled[sha256]}, weights of the package" if sha256 in bundled else gone
            found[sha256] = (role.replace("clip", NAMES["pretrain_clip"]), place)
        config = root / part.path / CONFIG
        if part.stage == "build_system" and config.is_file():
            values = read_json(config, f"remove {part.path} to have it made again")
            clip, sha256 = values["sections"].get("clip"), (values.get("clip") or {}).get("sha256")
            if sha256 is not None and clip["pretrained"] != "bundled":
                found[sha256] = (
                    NAMES["pretrain_clip"],
                    f"{clip['model']}/{clip['pretrained']}, public weights",
                )
    return {
        sha256: [f"  {name:<{WIDTH}} {place}", f"  {'':<{WIDTH}} weights: SHA-256 {sha256}"]
        for sha256, (name, place) in found.items()
    }


def _commits(parts: list[Part]) -> Iterator[str]:
    """Which commits made the parts, whether all of it was committed, and with what."""
    by_commit: dict[str, list[str]] = {}
    for part in parts:
        names = by_commit.setdefault(_commit(part), [])
        names.append(NAMES.get(part.stage, "artifact"))
    if len(by_commit) == 1:
        yield f"All {len(parts)} parts were made by {next(iter(by_commit))}."
    else:
        yield "Parts were made by different commits:"
        for commit, names in by_commit.items():
            counted = (
                f"{name} ({names.count(name)})" if names.count(name) > 1 else name
                for name in dict.fromkeys(names)
            )
            yield f"  {commit}: {', '.join(counted)}"
    if any(part.made.get("dirty") for part in parts):
        yield "-dirty: with uncommitted changes, which are not recorded."
    versions = {
        f"deop {made['version']}, torch {made['torch']}, Python {made['python']}"
        for made in (part.made for part in parts[1:])  # the table only writes what they computed
        if made.keys() >= {"version", "torch", "python"}
    }
    yield f"Versions: {'; '.join(sorted(versions)) or 'unknown'}."
    seconds = sum(part.made.get("wall_time_s", 0) for part in parts)
    yield f"Wall time of all parts: {timedelta(seconds=round(seconds))} (h:mm:ss)."
    yield f"Configuration of the table: {describe_state(parts[0].made.get('configuration'))}."


def _again(cell: Cell) -> Iterator[str]:
    """How to make the number again where nothing is made yet. The table's commit asks for just these parts."""
    commit = cell.made.get("commit")
    yield "To make it again, in a clone where it is not made yet:"
    if commit is not None:
        yield f"  git checkout {commit}"
    yield f"  {_command(cell)}"


def _command(cell: Cell, target: str = "") -> str:
    """The call of Snakemake that makes a file, by default the table, with the table's profiles and values."""
    state = cell.made.get("configuration") or {}
    values: dict[str, Any] = {"seeds": list(cell.table.seeds)}
    for key, value in state.get("overrides", {}).items():
        *parents, last = key.split(".")
        place = values
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    command = ["snakemake", target or cell.record.with_suffix(".csv").as_posix()]
    if state.get("profiles"):
        command += ["--configfile", *state["profiles"]]
    return shlex.join(
        [*command, "--config", *(f"{key}={json.dumps(value)}" for key, value in values.items())]
    )
