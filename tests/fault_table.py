"""A pytest plugin that counts the faults that tests inject, and writes the table of docs/reliability.md.

A test that injects a fault is marked ``@pytest.mark.faults("what is broken", "what happens then")``. Each of its cases
counts as one fault, unless it says more with the fixture ``injected``.
"""

from __future__ import annotations

import dataclasses
import os
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

BEGIN, END = "<!-- faults: begin -->", "<!-- faults: end -->"
COLUMNS = ("fault", "what happens", "tests", "injected", "runs lost or numbers wrong")


@dataclasses.dataclass
class Case:
    """What is known of one test case when it has run.

    place: its file and line.
    kind: the two texts of its mark.
    single, fuzzed: faults that were injected one by one, and files that were damaged at random.
    """

    place: tuple[str, int]
    kind: tuple[str, str]
    single: int = 0
    fuzzed: int = 0
    failed: bool = False


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fault-table", metavar="PAGE", type=Path, help=f"write the table of faults into PAGE, after {BEGIN}"
    )


def pytest_configure(config: pytest.Config) -> None:
    page = config.getoption("--fault-table")
    if page is not None and not re.search(f"{BEGIN}.*{END}", page.read_text(), re.S):
        raise pytest.UsageError(f"{page} has no lines {BEGIN} and {END}")
    config.pluginmanager.register(FaultTable(page), "faults-injected")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Puts the texts where the reports of tests have them, also those of other processes (pytest-xdist)."""
    if (mark := item.get_closest_marker("faults")) is not None:
        if len(mark.args) != 2:
            raise pytest.UsageError(
                f"{item.nodeid}: the mark faults takes two texts: the fault, what happens"
            )
        item.user_properties.append(("fault", list(mark.args)))


@pytest.fixture
def injected(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """``injected(number)``: how many faults this test case injects.

    With ``fuzzed=True``, they are files damaged at random, which are counted apart.
    """
    return lambda number, fuzzed=False: record_property("fuzzed" if fuzzed else "injected", number)


class FaultTable:
    """Collects the reports of marked tests, in the process that pytest was started as."""

    def __init__(self, page: Path | None) -> None:
        self._page, self._cases, self._begun = page, {}, time.monotonic()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        told = dict(report.user_properties)
        if "fault" not in told:
            return
        file, line, _ = report.location
        case = self._cases.setdefault(report.nodeid, Case((file, line or 0), tuple(told["fault"])))
        case.failed |= report.failed
        if report.failed or (report.when == "call" and report.passed):
            case.fuzzed = told.get("fuzzed", 0)
            case.single = told.get("injected", 0 if case.fuzzed else 1)

    def pytest_terminal_summary(
        self, terminalreporter: pytest.TerminalReporter, config: pytest.Config
    ) -> None:
        if not self._cases:
            return
        cases = sorted(self._cases.values(), key=lambda case: case.place)
        minutes = max(1, round((time.monotonic() - self._begun) / 60))
        processes = config.getoption("numprocesses", None) or 1
        told = (
            f"{sums(cases)} It took {_many(minutes, 'minute')} with {_many(processes, 'process', 'processes')} of "
            f"pytest on {_many(os.cpu_count() or 1, 'core')}."
        )
        terminalreporter.write_line(told)
        if self._page is not None:
            text = f"{BEGIN}\n{table(cases)}\n\n{told}\n{END}"
            page = self._page.read_text()
            self._page.write_text(re.sub(f"{BEGIN}.*{END}", lambda _: text, page, flags=re.S))


def table(cases: Iterable[Case]) -> str:
    """The table in Markdown, a row for each kind of fault in the order of ``cases``."""
    kinds: dict[tuple[str, str], list[Case]] = {}
    for case in cases:
        kinds.setdefault(case.kind, []).append(case)
    rows = [COLUMNS, ("---", "---", "---", "---:", "---:")]
    for (fault, happens), of_kind in kinds.items():
        files = dict.fromkeys(f"`{case.place[0].removeprefix('tests/')}`" for case in of_kind)
        rows.append((fault, happens, ", ".join(files), f"{_count(of_kind):,}", f"{_lost(of_kind):,}"))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def sums(cases: list[Case]) -> str:
    """The sums of the table in a sentence or two."""
    single, fuzzed = sum(case.single for case in cases), sum(case.fuzzed for case in cases)
    kinds, tests = len({case.kind for case in cases}), sum(_count([case]) > 0 for case in cases)
    return (
        f"{_many(single, 'fault')} of {_many(kinds, 'kind')} and {_many(fuzzed, 'file')} damaged at random, in "
        f"{_many(tests, 'test')}; runs lost or numbers wrong: {_lost(cases):,}."
    )


def _count(cases: Iterable[Case]) -> int:
    return sum(case.single + case.fuzzed for case in cases)


def _lost(cases: Iterable[Case]) -> int:
    return _count(case for case in cases if case.failed)


def _many(number: int, one: str, more: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else more or one + 's'}"
