"""The ways in (pyproject, lock, conda environment, Makefile) agree, and credits and citation are in place."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import deop

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
LOCK_LINES = (ROOT / "requirements.lock").read_text().splitlines()


def requirements(lines: list[str]) -> dict[str, Requirement]:
    parsed = [Requirement(line) for line in lines]
    return {canonicalize_name(requirement.name): requirement for requirement in parsed}


def declared(*extras: str) -> dict[str, Requirement]:
    """What pyproject asks for, with these extras."""
    optional = [line for extra in extras for line in PROJECT["optional-dependencies"][extra]]
    return requirements(PROJECT["dependencies"] + optional)


def test_lock_is_exact_pins_and_nothing_else() -> None:
    for line in LOCK_LINES:
        requirement = Requirement(line)  # an option, a path or a comment is not one
        assert re.fullmatch(r"==\d[^*]*", str(requirement.specifier)), line
        assert requirement.url is None and not requirement.extras, line
    names = [canonicalize_name(Requirement(line).name) for line in LOCK_LINES]
    assert names == sorted(set(names))


def test_lock_satisfies_pyproject() -> None:
    locked = requirements(LOCK_LINES)
    for name, requirement in declared(*PROJECT["optional-dependencies"]).items():
        assert name in locked, f"{name} is in pyproject.toml and not in requirements.lock"
        version = next(iter(locked[name].specifier)).version
        assert requirement.specifier.contains(version), f"locked {locked[name]}, asked for {requirement}"


def test_lock_holds_everything_needed_here_in_the_installed_versions() -> None:
    """Walks the dependencies of the dependencies: a resolver has nothing left to choose."""
    locked = requirements(LOCK_LINES)
    todo, seen = list(declared(*PROJECT["optional-dependencies"]).values()), set()
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        assert name in locked, f"{requirement} is needed and not locked"
        pin = locked[name]
        assert pin.marker is None or pin.marker.evaluate(), f"{requirement} is needed here too, beside {pin}"
        installed = metadata.distribution(requirement.name)
        assert pin.specifier.contains(installed.version), f"{name} {installed.version} here, locked {pin}"
        for extra in ("", *sorted(requirement.extras)):
            if (name, extra) not in seen:
                seen.add((name, extra))
                needs = [Requirement(line) for line in installed.requires or []]
                todo += [n for n in needs if n.marker is None or n.marker.evaluate({"extra": extra})]


def test_conda_environment_is_python_the_lock_and_the_package() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] == PROJECT["name"]
    python, pip, through_pip = environment["dependencies"]
    assert pip == "pip"
    assert through_pip == {"pip": ["-r requirements.lock", "-e ."]}
    offered, supported = SpecifierSet(python.removeprefix("python")), SpecifierSet(PROJECT["requires-python"])
    versions = [f"3.{minor}.{patch}" for minor in range(30) for patch in range(20)]
    assert next(version for version in versions if version in offered) == "3.11.4"
    assert all(version in supported for version in versions if version in offered)


@pytest.mark.parametrize(
    ("folder", "extras"),
    [
        ("src", ["words", "captions", "photos", "demo", "onnx", "openvino", "int8"]),
        ("tests", ["workflow", "dev", "captions", "onnx", "notebooks"]),
    ],
)
def test_every_import_is_a_declared_dependency(folder: str, extras: list[str]) -> None:
    distributions = metadata.packages_distributions()
    own = {path.stem for path in (ROOT / "tests").rglob("*.py")} | {"deop", "tests"}
    undeclared = set()
    for path in sorted((ROOT / folder).rglob("*.py")):
        modules = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                modules.add(node.module.split(".")[0])
        for module in modules - own - sys.stdlib_module_names:
            providers = {canonicalize_name(name) for name in distributions.get(module, [])}
            if not providers & declared(*extras).keys():
                undeclared.add(f"{path.relative_to(ROOT)}: {module}")
    assert not undeclared


def test_every_data_file_ships_with_the_package() -> None:
    package = ROOT / "src" / "deop"
    globs = PYPROJECT["tool"]["setuptools"]["package-data"]["deop"]
    shipped = {path for glob in globs for path in package.glob(glob)}
    for path in package.rglob("*"):
        within = path.relative_to(package)
        made_by_tools = any(part.startswith((".", "__pycache__")) for part in within.parts)
        if path.is_file() and path.suffix != ".py" and not made_by_tools:
            assert path in shipped, f"{within} matches no glob of package-data"


def test_version_is_the_same_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert deop.__version__ == PROJECT["version"] == citation["version"]


def test_importing_the_package_is_light() -> None:
    code = "import sys, deop; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="pre-commit needs a git checkout")
def test_linters_are_content(tmp_path: Path) -> None:
    """ruff check, ruff format, mypy and snakefmt over all committed files, as the hooks run them."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    run = subprocess.run(
        [sys.executable, "-m", "pre_commit", "run", "--all-files", "--color", "never"],
        cwd=ROOT,
        env={**os.environ, "PATH": path, "PRE_COMMIT_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_readme_begins_with_the_two_commands() -> None:
    readme = (ROOT / "README.md").read_text()
    block = re.search(r"^```[^\n]*\n(.*?)^```", readme, flags=re.MULTILINE | re.DOTALL)
    assert block[1].splitlines() == [
        "make results/table3.csv     # sets up .venv, runs the workflow on the mini profile",
        "make test                   # sets up .venv, runs the tests",
    ]


@pytest.mark.parametrize(
    ("artwork", "creator", "licence", "terms"),
    [
        ("Twemoji", "Twitter, Inc.", "CC BY 4.0", "by"),
        ("OpenMoji", "HfG Schwäbisch Gmünd", "CC BY-SA 4.0", "by-sa"),
    ],
)
def test_notice_credits_the_artists(artwork: str, creator: str, licence: str, terms: str) -> None:
    entry = re.search(rf"^{artwork}\n((?: +.*\n)+)", (ROOT / "NOTICE").read_text(), flags=re.MULTILINE)
    assert entry is not None
    for fact in (creator, licence, f"https://creativecommons.org/licenses/{terms}/4.0/"):
        assert fact in entry[1]
    assert "Changes made" in (ROOT / "NOTICE").read_text()  # both licences ask for it


def test_citation_names_the_project_and_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()  # what the format requires
    assert citation["license"] == PROJECT["license"]
    (paper,) = citation["references"]
    assert paper["title"] == "Open-Vocabulary Semantic Segmentation with Decoupled One-Pass Network"
    assert [author["family-names"] for author in paper["authors"]] == ["Han", "Zhong", "Li", "Han", "Ma"]
    assert paper["year"] == 2023


# Stands in for an interpreter: makes environments whose python and snakemake only note how they are called.
FAKE_PYTHON = """#!/bin/sh
case "$*" in
    "-m venv .venv") ;;
    --version) echo "Python 3.11.0"; exit ;;
    *) exit 0 ;;
esac
echo "venv" >> calls
mkdir -p .venv/bin
printf '#!/bin/sh\\necho "pip $*" >> calls\\n[ -p "$9" ] && cat "$9" > asked\\n[ ! -e fail ]\\n' > .venv/bin/python
printf '#!/bin/sh\\necho "snakemake $*" >> calls\\ncommand -v deop >> calls\\n' > .venv/bin/snakemake
printf '#!/bin/sh\\n' > .venv/bin/deop
chmod +x .venv/bin/*
"""


class Checkout:
    """A folder with the Makefile and a stand-in for Python."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.venv = folder / ".venv"
        for name in ("Makefile", ".gitignore"):
            (folder / name).write_bytes((ROOT / name).read_bytes())
        for name in ("requirements.lock", "pyproject.toml"):
            (folder / name).touch()
        self.python = folder.with_name("python-stand-in")
        self.python.write_text(FAKE_PYTHON)
        self.python.chmod(0o755)

    def make(self, *arguments: str, python: str | None = None) -> subprocess.CompletedProcess[str]:
        # MAKEFLAGS of a `make test` around this one would reach in otherwise.
        env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
        command = ["make", f"PYTHON={python or self.python}", *arguments]
        return subprocess.run(command, cwd=self.folder, env=env, capture_output=True, text=True)

    def calls(self) -> list[str]:
        """What was called since the last time this was asked."""
        log = self.folder / "calls"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return lines


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    folder = tmp_path / "checkout"
    folder.mkdir()
    return Checkout(folder)


def change(path: Path, venv: Path) -> None:
    """Marks a file as changed after the environment was made, without waiting for the clock."""
    made = max(stamp.stat().st_mtime for stamp in venv.glob(".*"))
    os.utime(path, (made + 1, made + 1))


def test_environment_is_made_once_and_again_when_the_lock_changes(checkout: Checkout) -> None:
    assert checkout.make(".venv").returncode == 0
    venv, install, package = checkout.calls()
    assert venv == "venv"
    assert install.endswith("-r requirements.lock")
    assert package.endswith("--no-deps -e .")

    checkout.make(".venv")
    assert checkout.calls() == []

    change(checkout.folder / "pyproject.toml", checkout.venv)
    checkout.make(".venv")
    assert checkout.calls() == [package]

    (checkout.venv / "left-over").touch()
    change(checkout.folder / "requirements.lock", checkout.venv)
    checkout.make(".venv")
    assert checkout.calls() == ["venv", install, package]
    assert not (checkout.venv / "left-over").exists()


def test_environment_without_cuda_is_made_from_the_same_lock(checkout: Checkout) -> None:
    lock = (ROOT / "requirements.lock").read_text()
    (checkout.folder / "requirements.lock").write_text(lock)
    assert checkout.make(".venv", "CPU_INDEX=https://example.org/cpu").returncode == 0
    assert "--extra-index-url https://example.org/cpu -r " in checkout.calls()[1]
    asked = (checkout.folder / "asked").read_text()
    left_out = {re.split("[=-]", line)[0] for line in set(lock.splitlines()) - set(asked.splitlines())}
    assert left_out == {"cuda", "nvidia", "triton"}
    assert "\ntorch==" in asked and set(asked.splitlines()) < set(lock.splitlines())


def test_broken_installation_is_redone(checkout: Checkout) -> None:
    (checkout.folder / "fail").touch()
    assert checkout.make(".venv").returncode != 0
    assert len(checkout.calls()) == 2
    (checkout.folder / "fail").unlink()
    assert checkout.make(".venv").returncode == 0
    assert len(checkout.calls()) == 3


def test_missing_python_is_a_clear_error(checkout: Checkout) -> None:
    run = checkout.make(".venv", python="no-such-python")
    assert run.returncode != 0
    assert "needs Python 3.11.4 or newer" in run.stderr and "no-such-python" in run.stderr


@pytest.mark.parametrize(("version", "taken"), [((3, 11, 3), False), ((3, 11, 4), True), ((3, 12, 0), True)])
def test_pythons_before_3_11_4_are_not_taken(checkout: Checkout, version: tuple, taken: bool) -> None:
    """The interpreter of these tests, which says that it is another."""
    python = checkout.folder / "old-python"
    python.write_text(
        FAKE_PYTHON.replace(
            'case "$*" in',
            f'[ "$1" = -c ] && exec {sys.executable} -c "import sys; sys.version_info = {version}; $2"\ncase "$*" in',
        )
    )
    python.chmod(0o755)
    run = checkout.make(".venv", python=str(python))
    assert (run.returncode == 0) == taken
    assert taken or "needs Python 3.11.4 or newer" in run.stderr


def test_results_are_asked_of_snakemake_even_when_they_exist(checkout: Checkout) -> None:
    result = checkout.folder / "results" / "figures" / "scene.png"
    result.parent.mkdir(parents=True)
    result.touch()
    checkout.make(".venv")
    change(result, checkout.venv)
    run = checkout.make("results/figures/scene.png")
    assert run.returncode == 0, run.stderr
    deop_command = str(checkout.venv / "bin" / "deop")
    assert checkout.calls()[-2:] == ["snakemake results/figures/scene.png", deop_command]


def test_publishing_refuses_uncommitted_changes_and_parts_of_other_commits(checkout: Checkout) -> None:
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *command], cwd=checkout.folder, check=True)
    names = ["table3.csv", "table3.md", "speed.csv", "figures/scene.png"]
    results = [checkout.folder / "results" / name for name in names]
    for result in results:
        result.parent.mkdir(parents=True, exist_ok=True)
        result.write_text(result.suffix)
    checkout.make(".venv")
    checkout.calls()
    listing = " ".join(f"results/{name}" for name in names)
    (checkout.venv / "bin" / "python").write_text(
        f"""#!/bin/sh
if [ "$*" = "-m deop.tools.published" ]; then echo {listing}
elif [ "$*" = "-m deop.tools.published --check [0,1,2]" ]; then echo checked >> calls; [ ! -e mixed ]
else exit 1
fi
"""
    )
    (checkout.folder / ".git" / "info" / "exclude").write_text("calls\nmixed\n")

    (checkout.folder / "changed.py").touch()
    run = checkout.make("publish")
    assert run.returncode != 0
    assert "uncommitted changes" in run.stderr and "changed.py" in run.stderr
    assert checkout.calls() == []

    (checkout.folder / "changed.py").unlink()
    published = checkout.folder / "docs" / "results" / "mini"
    (checkout.folder / "mixed").touch()  # parts of another commit
    assert checkout.make("publish").returncode != 0
    assert checkout.calls() == ["checked"] and not published.exists()

    (checkout.folder / "mixed").unlink()
    run = checkout.make("publish")
    assert run.returncode == 0, run.stderr
    # Checked before the run and after it. All that is published, with three seeds.
    calls = checkout.calls()
    assert calls[0] == calls[-1] == "checked"
    command = calls[1].split()
    assert command[0] == "snakemake" and command[-2:] == ["--config", "seeds=[0,1,2]"]
    assert set(command[1:-2]) == {f"results/{name}" for name in names}
    assert {path.name: path.read_text() for path in published.iterdir()} == {
        r.name: r.suffix for r in results
    }
