"""What the documentation tells readers to type: each block is run by a test, or says what it needs that tests lack.

A block of commands (```bash) or of Python follows a comment, ``<!-- tested: FILE -->`` or ``<!-- needs: WHAT -->``.
Whatever it needs, its commands are parsed by the program that they call, and its targets are planned.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import typer
import yaml

from deop.cli import app
from deop.jobs.plan import Plan
from deop.settings.files import merged, read_profile

ROOT = Path(__file__).parents[1]
THIS = "tests/test_docs_commands.py"
PAGES = ["README.md", "CONTRIBUTING.md", "config/README.md"]
PAGES += [str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").glob("*.md"))]
NEEDS = (
    "the network",
    "a GPU",
    "a Slurm cluster",
    "a trained system",
    "a remote",
    "a change of code",
    "time",
)
OF_READERS = {"park.yaml", "config/dense_clip.yaml", "config/depth.yaml"}
"""Profiles that pages tell readers to write; tests of those pages run them."""
# docs/own-dataset.md marks what it prints besides commands, for its test.
BLOCK = re.compile(r"(?:<!-- ([^\n]*) -->\n)?^```(\w*)[^\n]*\n(.*?)^```", re.M | re.S)


def blocks(page: str) -> list[tuple[str, str, str]]:
    """The mark, the language and the text of each block of commands or of Python."""
    found = BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))
    return [block for block in found if block[1] in ("bash", "sh", "python")]


def lines(text: str) -> list[str]:
    return [line.partition(" #")[0].strip() for line in text.splitlines() if line.partition("#")[0].strip()]


def commands(program: str, pages: list[str] = PAGES) -> list[tuple[str, list[str]]]:
    """Each call of a program, with its page."""
    of_pages = [
        (page, line)
        for page in pages
        for _, kind, text in blocks(page)
        if kind != "python"
        for line in lines(text)
    ]
    return [
        (page, shlex.split(line.partition("|")[0])[1:])
        for page, line in of_pages
        if line.split()[0] == program
    ]


@pytest.mark.parametrize("page", PAGES)
def test_each_block_is_tested_or_says_what_it_needs(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    programs = "deop|snakemake|make|pip|python|dvc|conda|git|uv"
    for _, kind, block in BLOCK.findall(text):
        assert kind or not re.search(rf"^({programs}) ", block, re.M), f"{page}: ```bash is needed:\n{block}"
    for mark, _, block in blocks(page):
        what, _, value = mark.partition(": ")
        if what == "tested":
            test = (ROOT / value).read_text(encoding="utf-8")
            assert Path(page).name in test or value == THIS, f"{value} says nothing of {page}:\n{block}"
        else:
            assert what == "needs" and value in NEEDS, (
                f"{page}: neither tested nor says what it needs:\n{block}"
            )


@pytest.mark.parametrize(("page", "words"), commands("deop"), ids=str)
def test_deop_understands_its_commands(page: str, words: list[str]) -> None:
    """Names of commands, options and kinds of values are those of the command line; nothing is run."""
    command = typer.main.get_command(app).commands[words[0]]
    command.make_context(words[0], words[1:])


@cache
def plan(profiles: tuple[str, ...], changes: str) -> Plan:
    values = read_profile(ROOT, *(ROOT / profile for profile in profiles))
    return Plan(merged(values, yaml.safe_load(changes)), ROOT)


@pytest.mark.parametrize(("page", "words"), commands("snakemake"), ids=str)
def test_what_snakemake_is_told_to_make_is_in_the_plan(page: str, words: list[str]) -> None:
    from snakemake.cli import get_argument_parser

    args = get_argument_parser().parse_args([*words, "--cores", "1"])
    profiles = tuple(str(path) for path in args.configfile or ())
    if OF_READERS & set(profiles):
        return
    changes = {
        key: yaml.safe_load(value) for key, value in (part.split("=", 1) for part in args.config or ())
    }
    planned = plan(profiles, yaml.safe_dump(changes))
    rules = re.findall(
        r"^rule (\w+):", "".join(path.read_text() for path in (ROOT / "workflow/rules").glob("*.smk")), re.M
    )
    results = {job.output for jobs in planned.named.values() for job in jobs.values()}
    known = set(rules) | {str(Path(output).with_suffix("")) for output in map(str, results)}
    for target in args.targets or ():
        assert target in known or str(Path(target).with_suffix("")) in known, f"{page}: {target}"
    if args.workflow_profile:
        assert (ROOT / args.workflow_profile / "config.yaml").is_file()


@pytest.mark.parametrize("page", PAGES)
def test_make_targets_are_in_the_makefile(page: str) -> None:
    makefile = (ROOT / "Makefile").read_text()
    known = re.findall(r"^([\w-]+):", makefile, re.M)
    variables = re.findall(r"^(\w+) \?=", makefile, re.M)
    for _, words in commands("make", [page]):
        for word in words:
            is_known = word in (*known, ".venv") or word.startswith("results/")
            assert is_known or word.partition("=")[0] in variables, f"{page}: make {word}"


@pytest.mark.slow
@pytest.mark.parametrize("page", ["docs/workflow.md"])
def test_blocks_that_name_this_test_run_as_printed(page: str, tmp_path: Path) -> None:
    if shutil.which("dot") is None:
        pytest.skip("Graphviz is not installed")
    for name in ("Snakefile", "workflow", "profiles", "config", "environment.yml"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    tools = {
        "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
        "PYTHONPATH": str(ROOT / "src"),
    }
    text = "\n".join(text for mark, _, text in blocks(page) if mark == f"tested: {THIS}")
    assert text
    done = subprocess.run(
        ["bash", "-eo", "pipefail", "-c", text],
        cwd=tmp_path,
        env=tools | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "table3" in done.stdout and (tmp_path / "dag.svg").read_text().startswith("<?xml")
