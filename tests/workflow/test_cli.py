"""``deop STAGE JOB``: job files that cannot be run, and two processes at one job."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deop.cli import STAGES, app

LOCK = (
    "import fcntl, sys, time; file = open(sys.argv[1]); fcntl.flock(file, fcntl.LOCK_EX); print(flush=True); "
)


def write_job(path: Path, **values: object) -> Path:
    path.write_text(json.dumps({"stage": "table", "key": "0" * 12, "output": "results/t.json"} | values))
    return path


@pytest.mark.faults("a job file is damaged, gone or of another stage", "one line with its path")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "job.json is not there; Snakemake writes it"),
        ("{", "deop: invalid job file"),
        ('{"stage": "table"}', "missing key 'key'"),
        ('{"stage": "table", "key": "a", "output": "b", "outptu": 1}', "unknown key 'outptu'; valid: inputs"),
        ('{"stage": "evaluate", "key": "a", "output": "b"}', "is for stage 'evaluate', not 'table'"),
    ],
)
def test_bad_job_files_are_one_line(tmp_path, content, message):
    path = tmp_path / "job.json"
    if content is not None:
        path.write_text(content)
    done = CliRunner().invoke(app, ["table", str(path)])
    assert done.exit_code == 1
    assert message in done.stderr and len(done.stderr.splitlines()) == 1


def test_there_is_a_command_for_every_stage_that_is_planned():
    help_text = CliRunner().invoke(app, ["--help"]).output
    for stage in STAGES:
        assert stage.replace("_", "-") in help_text


@pytest.mark.faults(
    "two processes are started at one job, export or archive",
    "the second waits, and does not repeat what the first finished",
)
@pytest.mark.parametrize("finishes", [True, False])
def test_a_second_process_waits_and_does_not_repeat_what_the_first_finished(tmp_path, finishes):
    """The first process holds the job for a second, then either its output is there or it is not."""
    output = tmp_path / "results/t.json"
    path = write_job(tmp_path / "job.json", output=str(output), settings={"table": {}})
    output.parent.mkdir()
    end = "time.sleep(1); open(sys.argv[2], 'w').close()" if finishes else "time.sleep(1)"
    with subprocess.Popen(
        [sys.executable, "-c", LOCK + end, str(path), str(output)], stdout=subprocess.PIPE
    ) as first:
        first.stdout.readline()
        start = time.monotonic()
        done = CliRunner().invoke(app, ["table", str(path)])
        assert time.monotonic() - start > 0.5
        assert first.wait() == 0
    assert "another process is at" in done.stderr
    # Had the stage run, it would have refused these settings.
    assert done.exit_code == (0 if finishes else 1)
    assert ("missing key 'caption'" in done.stderr) is not finishes
