"""The table of faults in docs/reliability.md: how it is made, and that it has the faults of the tests."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from fault_table import BEGIN, END

pytest_plugins = ["pytester"]
ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/reliability.md"


def rows(page: str) -> list[list[str]]:
    """The cells of the rows between the marks of a page, without the heading."""
    lines = page.partition(BEGIN)[2].partition(END)[0].strip().splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line[:1] == "|"][2:]


@pytest.mark.parametrize("processes", [0, 2])
def test_the_table_counts_what_tests_inject_and_what_fails(pytester, monkeypatch, processes):
    pytester.makepyprojecttoml('[tool.pytest.ini_options]\nmarkers = ["faults: injects a fault"]')
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"))
    pytester.makepyfile(
        test_kills="""
        import pytest

        @pytest.mark.faults("a kill", "goes on")
        @pytest.mark.parametrize("at", [1, 2])
        def test_kills(at, injected):
            injected(3)

        @pytest.mark.faults("a full disk", "one line")
        def test_that_fails(injected):
            injected(2)
            assert False

        @pytest.mark.faults("no cluster", "is skipped")
        def test_that_is_skipped():
            pytest.skip()

        def test_of_something_else():
            pass
        """,
        test_more="""
        import pytest

        @pytest.mark.faults("a kill", "goes on")
        def test_one_kill():
            pass

        @pytest.mark.faults("any file", "is refused")
        def test_fuzzing(injected):
            injected(1200, fuzzed=True)
        """,
    )
    page = pytester.path / "page.md"
    page.write_text(f"# Before\n{BEGIN}\nold\n{END}\nafter\n")
    done = pytester.runpytest_subprocess("-p", "fault_table", "--fault-table", page, "-n", str(processes))
    done.assert_outcomes(passed=5, failed=1, skipped=1)
    assert rows(page.read_text()) == [
        ["a kill", "goes on", "`test_kills.py`, `test_more.py`", "7", "0"],
        ["a full disk", "one line", "`test_kills.py`", "2", "2"],
        ["no cluster", "is skipped", "`test_kills.py`", "0", "0"],
        ["any file", "is refused", "`test_more.py`", "1,200", "0"],
    ]
    told = "9 faults of 4 kinds and 1,200 files damaged at random, in 5 tests; runs lost or numbers wrong: 2."
    assert told in page.read_text() and told in done.stdout.str()
    assert page.read_text().startswith("# Before\n") and page.read_text().endswith("\nafter\n")


def test_the_page_has_the_faults_of_the_tests():
    """`make reliability` writes it."""
    marked = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.faults":
                marked.add((*map(ast.literal_eval, node.args), str(path.relative_to(ROOT / "tests"))))
    found = rows(PAGE.read_text(encoding="utf-8"))
    assert marked == {(*row[:2], file) for row in found for file in re.findall(r"`([^`]+)`", row[2])}
    assert {row[4] for row in found} == {"0"}
