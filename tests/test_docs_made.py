"""What of the documentation is made by a command: the list of settings, the picture of the rules, the pictures.

And the Python that docs/index.md and docs/python.md print.
"""

from __future__ import annotations

import ast
import doctest
import importlib
import importlib.util
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image

import deop.api
from deop.tools import paper_pictures, rule_graph, settings_reference

ROOT = Path(__file__).parents[1]
API = [f"deop.api.{module.name}" for module in pkgutil.iter_modules(deop.api.__path__)]


def test_the_list_of_settings_is_up_to_date() -> None:
    assert (ROOT / settings_reference.PAGE).read_text(encoding="utf-8") == settings_reference.page(), (
        "out of date: run `make schemas`"
    )


def test_the_list_of_settings_says_what_the_models_refuse() -> None:
    page = settings_reference.page()
    prompts = page.partition("### prompts\n")[2].partition("\n###")[0]
    assert re.search(r"^\| `iterations`.*\| integer ≥ 0 \| ", prompts, re.M)
    severance = page.partition("### SeveranceSettings\n")[2].partition("\n###")[0]
    assert "| `kind` | `none`, `gps`, `mps`, `mask_sum` | `none` |" in severance


def test_make_runs_the_commands_that_the_pages_name() -> None:
    """docs/paper-in-pictures.md and docs/workflow.md say how their pictures are drawn."""
    for target, module in (
        ("pictures", "paper_pictures"),
        ("rule-graph", "rule_graph"),
        ("docs", "mkdocs build --strict"),
    ):
        done = subprocess.run(
            ["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert module in done.stdout


@pytest.mark.slow
def test_the_picture_of_the_workflow_shows_its_rules() -> None:
    drawn = rule_graph.edges_of_picture((ROOT / rule_graph.PICTURE).read_text(encoding="utf-8"))
    rules = rule_graph.snakemake_rules(ROOT)
    assert drawn == rules, "out of date: run `make rule-graph`"
    assert ("train_system", "build_system") in drawn


@pytest.mark.slow
def test_pictures_that_are_plots_show_the_published_tables(tmp_path: Path) -> None:
    for name in ("prompts", "training", "classes-and-crops"):
        with matplotlib.rc_context(paper_pictures.STYLE):
            figure = paper_pictures.PICTURES[name]()
        made = tmp_path / f"{name}.png"
        paper_pictures.save_figure(figure, made)
        with Image.open(made) as drawn, Image.open(ROOT / paper_pictures.FOLDER / made.name) as shown:
            assert drawn.size == shown.size and np.array_equal(drawn, shown), (
                "out of date: run `make pictures`"
            )


def test_a_page_shows_each_of_the_pictures() -> None:
    page = (ROOT / "docs/paper-in-pictures.md").read_text(encoding="utf-8")
    shown = re.findall(r"\]\(pictures/([\w-]+)\.png\)", page)
    assert sorted(shown) == sorted(paper_pictures.PICTURES)
    assert len(re.findall(r"^!\[", page, re.M)) == 10


@pytest.mark.slow
@pytest.mark.parametrize("page", ["index.md", "python.md"])
def test_python_runs_as_printed(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    [code] = re.findall(r"<!-- tested: tests/test_docs_made.py -->\n```python\n(.*?)```", text, re.S)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(code, page, "exec"), names)
    if page == "index.md":
        assert (tmp_path / "out/segmentation.overlay.jpg").is_file()
        assert names["result"].areas["bear"] > 0.5
    else:
        assert names["bears"].areas["bear"] > 0.5 > names["guitars"].areas["bear"]


@pytest.mark.parametrize("name", API)
def test_examples_in_docstrings_say_the_truth(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_there_are_examples_in_docstrings() -> None:
    finder = doctest.DocTestFinder()
    found = sum(len(test.examples) for name in API for test in finder.find(importlib.import_module(name)))
    assert found >= 12


def test_faults_are_those_that_the_code_reports() -> None:
    """Each message of docs/troubleshooting.md, but for the names in capitals, is in the code."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "src").rglob("*.py")]
    texts = {
        "".join(part.value if isinstance(part, ast.Constant) else "\0" for part in node.values)
        if isinstance(node, ast.JoinedStr)
        else node.value
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))
    }
    page = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    messages = re.findall(r"^\| `(.+?)` \|", page.partition("## Snakemake")[0], re.M)
    assert len(messages) > 20
    for message in messages:
        parts = re.split(r"\b[A-Z]+(?:/[A-Z]+)?\b|\.\.\.|'[^']*'|\bbf16\b", message)
        parts = [part.strip(" :;,(") for part in parts if len(part.strip(" :;,(")) > 4]
        assert parts, message
        missing = [part for part in parts if not any(part in text for text in texts)]
        assert not missing, f"{message}: {missing}"


@pytest.mark.parametrize(
    ("place", "page", "text", "shown"),
    [
        ("docs/running.md", "running.md", "[a](mini-profile.md#b)", "[a](mini-profile.md#b)"),
        ("docs/running.md", "running.md", "[a](../config/README.md#b)", "[a](configuration.md#b)"),
        ("docs/running.md", "running.md", "[`x`](../src/deop/cli.py)", "`x`"),
        ("docs/running.md", "running.md", "`[a](../x.py)`", "`[a](../x.py)`"),
        ("config/README.md", "configuration.md", "[a](../docs/own-dataset.md)", "[a](own-dataset.md)"),
        (
            "docs/results/mini/README.md",
            "results/mini/README.md",
            "[a](../../running.md)",
            "[a](../../running.md)",
        ),
        ("CONTRIBUTING.md", "contributing.md", "[a](https://x.org)", "[a](https://x.org)"),
    ],
)
def test_links_out_of_docs_lead_to_the_sites_pages(place: str, page: str, text: str, shown: str) -> None:
    pytest.importorskip("mkdocs")
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs/hooks.py")
    assert spec and spec.loader
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    assert hooks.relinked(text, place, page) == shown


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    """Of links and anchors that lead nowhere, pages that no menu lists, docstrings that do not fit their functions."""
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "python.html").read_text(encoding="utf-8")
    assert "OpenVocabularySegmenter" in page and ":class:" not in page
    for name in ("index.html", "python.html"):  # nothing is fetched from elsewhere to show a page
        html = (tmp_path / name).read_text(encoding="utf-8")
        assert not re.search(r'<(?:script|link|img)[^>]+(?:src|href)="https?://', html)
