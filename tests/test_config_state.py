"""What results say of the configuration they were made by: as committed, or what differs."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from deop.jobs.configuration_state import configuration_state, describe_state, tell_stages, told_state
from deop.jobs.plan import Plan
from deop.settings.files import read_profile


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


@pytest.fixture
def committed(root: Path) -> Path:
    """``config/`` in a git checkout with everything committed."""
    git(root, "init")
    git(root, "add", "--all")
    git(root, "commit", "--message", "start")
    return root


def said(root: Path, *overlays: Path, **given: object) -> str:
    """What a table made from these files would say, with ``given`` on the command line."""
    values = read_profile(root)
    for overlay in overlays:
        values = values | yaml.safe_load(overlay.read_text())
    values |= given
    return describe_state(configuration_state(values, Plan(values, root).config_files, overlays, root))


def test_a_committed_configuration_and_what_every_run_may_change(committed):
    assert said(committed) == "as committed"
    assert said(committed, seeds=[0, 1, 2], accelerate="gpus4") == "as committed"
    # Files that nothing was read from.
    (committed / "config/other.yaml").write_text("profile: other\n")
    (committed / "config/paper.yaml").write_text("profile: paper\n")
    assert said(committed) == "as committed"


def test_what_differs_is_named(committed, edit):
    edit(committed / "config/tables.yaml", "tables", "table3", "caption", to="Another")
    (committed / "config/vocabularies/es20.yaml").write_text("{things: [dog, cow, shark], unseen: [cow]}")
    mine = committed / "mine.yaml"
    mine.write_text("profile: mine\n")
    assert said(committed, mine, speed={"images": 3, "warmup": 5, "threads": 2}) == (
        "not as committed: config/tables.yaml modified, config/vocabularies/es20.yaml modified, mine.yaml untracked, "
        "speed.images=3 given by --config"
    )
    git(committed, "add", "--all")  # staged is not committed
    assert "mine.yaml modified" in said(committed, mine)
    git(committed, "commit", "--message", "mine")
    assert said(committed, mine) == "as committed"


def test_layers_without_quotes_are_no_difference(committed):
    mine = committed / "mine.yaml"
    mine.write_text("experiments: {deop: {severance: {kind: gps, alpha: {-2: 1, -1: 1}}}}\n")
    git(committed, "add", "--all")
    git(committed, "commit", "--message", "mine")
    assert said(committed, mine) == "as committed"


def test_a_profile_outside_the_checkout_is_not_committed_and_its_folders_are_not_told(
    committed, tmp_path_factory
):
    mine = tmp_path_factory.mktemp("elsewhere") / "mine.yaml"
    mine.write_text("profile: mine\n")
    assert said(committed, mine) == "not as committed: mine.yaml untracked"


def test_outside_a_checkout_that_is_said(root):
    assert said(root) == "no commit known"
    assert said(root, evaluation={"short_side": 64}).startswith("no commit known, evaluation.short_side=64")


def test_many_differences_are_counted(committed):
    given = {"speed": {"images": 1, "warmup": 2, "threads": 3}, "evaluation": {"short_side": 64}}
    told = said(committed, **given)
    assert told.count(",") == 5 and told.endswith(" more")


def test_stages_hear_of_it_through_their_environment(committed, monkeypatch):
    monkeypatch.setenv("DEOP_CONFIGURATION", "{}")
    values = read_profile(committed)
    state = configuration_state(values, Plan(values, committed).config_files, (), committed)
    tell_stages(state)
    assert told_state() == state
    assert state["files"]["config/vocabularies/es171.yaml"] == "committed" and state["overrides"] == {}
    monkeypatch.delenv("DEOP_CONFIGURATION")
    assert told_state() is None and describe_state(None) == "not recorded"
