"""What tests of several modules build on: the configuration, to change and to plan from, and a small network."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
import yaml

pytest_plugins = ["fault_table"]
ROOT = Path(__file__).parents[1]
_ALONE = "DEOP_TEST_ALONE"

# Random inputs are the same in each run. `make test-faults` asks for the profile with many of them.
hypothesis.settings.register_profile("quick", max_examples=20, derandomize=True, deadline=None, database=None)
hypothesis.settings.register_profile("thorough", hypothesis.settings.get_profile("quick"), max_examples=600)
hypothesis.settings.load_profile("quick")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first: at the end, no process is left alone with a long one (make test)."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    """What a test draws at random does not depend on the tests before it."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(autouse=True)
def own_accelerator() -> Iterator[None]:
    """Accelerate keeps the first precision of a process, which runs one job; tests run several."""
    yield
    if "accelerate.state" in sys.modules:
        sys.modules["accelerate.state"].AcceleratorState._reset_state()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A copy of ``config/`` to change."""
    shutil.copytree(ROOT / "config", tmp_path / "config")
    vocabularies = tmp_path / "config/vocabularies"
    vocabularies.mkdir(exist_ok=True)
    for name in ("es171", "es20"):
        (vocabularies / f"{name}.yaml").write_text("{things: [dog, cow], unseen: [cow]}")
    return tmp_path


@pytest.fixture
def config(root: Path) -> dict:
    """The default configuration with one seed and no weights needed."""
    values = yaml.safe_load((root / "config/config.yaml").read_text())
    values["clip"] |= {"pretrained": "random", "retrain": False}  # no job of its own, no weights
    return values | {"seeds": [0]}


@pytest.fixture
def edit() -> Callable:
    """``edit(path, "key", "key below", to=value)`` changes one value of a YAML file."""

    def edit(path: Path, *keys: str | int, to: object) -> None:
        values = yaml.safe_load(path.read_text())
        place = values
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = to
        path.write_text(yaml.safe_dump(values, sort_keys=False))

    return edit


@pytest.fixture(scope="session")
def small_proposals() -> Callable:
    """``small_proposals(queries, layers=1)``: a proposal network with random weights, which takes no time."""
    from deop.models.proposals import ProposalNetwork

    def build(queries: int, layers: int = 1) -> ProposalNetwork:
        return ProposalNetwork(
            backbone="resnet10t",
            backbone_args={"channels": [8, 8, 16, 16]},
            pretrained_backbone=False,
            out_indices=(0, 1, 2, 3),
            queries=queries,
            decoder_layers=layers,
            width=32,
            ffn_width=32,
            heads=2,
        )

    return build


@pytest.fixture
def file_server() -> Iterator:
    """An HTTP server on this machine whose answers a test decides."""
    from file_server import FileServer

    with FileServer() as server:
        yield server


@pytest.fixture
def in_own_process(request) -> bool:
    """Runs the test in a pytest of its own and returns True there; in this process returns False, once it has passed.

    For runtimes such as OpenVINO, which leave threads and settings in a process for the tests after them.
    """
    if os.environ.get(_ALONE) == request.node.nodeid:
        return True
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", request.node.nodeid],
        cwd=request.config.rootpath,
        env=os.environ | {_ALONE: request.node.nodeid},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout + done.stderr
    return False
