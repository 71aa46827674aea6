"""The documentation agrees with the repository: links lead somewhere, and what it says to type exists."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer
import yaml

from deop.cli import app

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "config").rglob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "profiles").rglob("*.md"),
        *(ROOT / "src").rglob("*.md"),
        ROOT / "results/README.md",  # results of a run may lie beside it
    ]
)
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


def without_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#+ +(.+?) *$", text, flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_to_files_and_headings(name: str) -> None:
    page = ROOT / name
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        assert linked.exists(), f"{name} links to {target}"
        assert not anchor or anchor in anchors(linked), (
            f"{name} links to {target}; headings: {anchors(linked)}"
        )


def commands(name: str, program: str) -> list[list[str]]:
    """The calls of ``program`` in the code blocks of a page, as lists of words without the program's name."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", (ROOT / name).read_text(encoding="utf-8"), flags=re.M | re.S)
    lines = [line.partition(" #")[0] for block in blocks for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith(f"{program} ")]


@pytest.mark.parametrize("name", NAMES)
def test_deop_commands_and_their_options_exist(name: str) -> None:
    known = typer.main.get_command(app).commands
    for command, *words in commands(name, "deop"):
        assert command in known, f"{name}: deop {command}"
        options = {option for parameter in known[command].params for option in parameter.opts} | {"--help"}
        given = {word for word in words if word.startswith("--")}
        assert given <= options, f"{name}: deop {command} has no {', '.join(given - options)}"


def test_every_target_is_listed() -> None:
    """The table of targets in docs/running.md names what the configuration of the mini profile can make."""
    text = (ROOT / "docs/running.md").read_text(encoding="utf-8")
    section = text.partition("## Targets")[2].partition("\n## ")[0]
    first_cells = re.findall(r"^\| (`.+?) \|", section, flags=re.M)
    listed = [
        name.removeprefix("figures/") for cell in first_cells for name in re.findall(r"`([^`]+)`", cell)
    ]
    tables, config = (
        yaml.safe_load((ROOT / f"config/{name}.yaml").read_text(encoding="utf-8"))
        for name in ("tables", "config")
    )
    benchmarks = [name for name in ("speed", "scaling") if name in config["benchmark"]]
    expected = [*tables["tables"], "claims", *benchmarks, *tables["figures"], *tables["pictures"]]
    assert sorted(listed) == sorted(expected)


def test_modules_that_the_architecture_names_exist() -> None:
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    packages = [path.parent for path in (ROOT / "src/deop").glob("*/__init__.py")]
    assert packages
    for package in packages:
        heading = f"### {package.name}\n"
        assert heading in text, f"docs/architecture.md has no section {heading.strip()}"
        table = re.split(r"^##+ ", text.partition(heading)[2], flags=re.M)[0]
        for cell in re.findall(r"^\| (`.+?) \|", table, flags=re.M):
            for name in re.findall(r"`([^`]+)`", cell):
                assert (package / f"{name.replace('.', '/')}.py").is_file(), (
                    f"deop.{package.name}.{name} is gone"
                )


def test_files_between_a_table_and_a_training_step_exist() -> None:
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    section = text.partition("## From a table to a training step")[2].partition("\n## ")[0]
    files = re.findall(r"^\| \d \| `([^`]+)` \|", section, flags=re.M)
    assert 1 < len(files) <= 8
    for name in files:
        assert (ROOT / name).is_file(), name


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
