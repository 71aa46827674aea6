"""``deop demo`` before the page is there: mistakes are one line, and nothing is loaded for them."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from deop.api.places import bundled_systems
from deop.cli import app
from deop.demo import command


@pytest.fixture
def gradio_is_there(monkeypatch):
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: object())


def refused(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["demo", *arguments])
    assert done.exit_code == 1 and not isinstance(done.exception, RuntimeError)
    [line] = done.stderr.strip().splitlines()
    return line


def test_without_gradio_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
    assert 'pip install "deop[demo]"' in refused()


def test_a_taken_port_is_one_line(gradio_is_there):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = refused("--port", str(port))
    assert f"127.0.0.1:{port}" in line and "--port" in line


def test_an_address_of_no_one_here_is_one_line(gradio_is_there):
    assert "192.0.2.1:7860" in refused("--host", "192.0.2.1")


def test_more_than_two_systems_are_refused(gradio_is_there):
    assert "twice" in refused("--model", "a", "--model", "b", "--model", "c")


def test_the_default_system_comes_with_the_package(monkeypatch):
    assert command.default_models() == bundled_systems()[:1] == ["deop-mini"]
    monkeypatch.setattr(command, "bundled_systems", list)
    assert command.default_models() == ["deop-mini/bundled"]


def test_the_command_line_loads_neither_gradio_nor_torch():
    code = "import sys, deop.cli; sys.exit(bool({'gradio', 'torch', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
