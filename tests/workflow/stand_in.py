"""Stands in for ``deop`` and for ``accelerate launch ... -m deop`` in workflow tests.

Tables are written by the real stage. Every other stage writes the files that the rules expect, at once, with
content that follows from the job's key and, of evaluations, from ``made.txt`` if there is one. Provenance is real, but
for the time and the commit, which ``commit.txt`` may name. It fails if an input is missing, and notes each run in
``ran.txt``.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from deop.jobs.artifacts import describe
from deop.jobs.integrity import folder_hashes, write_sealed
from deop.jobs.job import Job

arguments = sys.argv[1:]
if arguments[0] == "launch":
    launch_file, module = Path(arguments[2]), arguments[4]
    assert arguments[1] == "--config_file" and launch_file.exists() and module == "deop", arguments
    arguments = arguments[5:]
stage, job = arguments[0], json.loads(Path(arguments[1]).read_text())
assert stage.replace("-", "_") == job["stage"], arguments
with open("ran.txt", "a") as file:
    file.write(f"{job['stage']} {job['output']}\n")
if stage == "table":
    os.execv(sys.executable, [sys.executable, "-m", "deop", *arguments])
for path in job["inputs"].values():
    assert Path(path).exists(), f"{path} is missing"

commit = Path("commit.txt").read_text() if Path("commit.txt").exists() else "0123456789abcdef"
of_commit = {"commit": commit, "dirty": False, "dirty_inputs": [], "version": "0.1.0"}
of_commit["finished"] = "2026-01-01T00:00:00+00:00"  # so that an artifact that is made again is the same
provenance = describe(Job.model_validate(job), wall_time_s=60.0) | of_commit
output, score = Path(job["output"]), int(job["key"], 16) / 16**12
if stage == "evaluate":
    metrics = dict.fromkeys(("pAcc", "mIoU", "mIoU_truth", "hIoU", "seen", "unseen"), score)
    output.parent.mkdir(parents=True, exist_ok=True)
    system = json.loads((Path(job["inputs"]["system"]) / "config.json").read_text())
    result = {"metrics": metrics, "passes": 1.0, "per_class_iou": {}, "provenance": provenance}
    result |= {
        "method": system["sections"]["method"],
        "made": Path("made.txt").read_text() if Path("made.txt").exists() else "",
    }
    output.with_suffix(".csv").write_text("image,truth,predicted,pixels\n")
    write_sealed(output, result, beside=(output.with_suffix(".csv"),))
elif stage == "measure-speed":
    speeds = {name: {"latency_median_ms": 100.0, "images_per_s": 10.0} for name in job["settings"]["systems"]}
    output.parent.mkdir(parents=True, exist_ok=True)
    write_sealed(output, {"systems": speeds, "provenance": provenance | {"device": "cpu", "threads": 1}})
elif stage in ("benchmark", "claims", "figure", "picture"):
    output.parent.mkdir(parents=True, exist_ok=True)
    suffixes = {"benchmark": (".csv", ".md"), "claims": (".csv", ".md", ".tex")}
    for suffix in suffixes.get(stage, (".png", ".svg")):
        text = (
            f"# {output.stem}: stand-in\n\n| key |\n|:---|\n| {job['key']}{suffix} |\n\nMade by a stand-in.\n"
        )
        output.with_suffix(suffix).write_text(text)
    shows = {"kind": "scene", "rule": "Chosen by lot.", "image": "images/7.jpg"} if stage == "picture" else {}
    made_from = {role: {"path": path, "sha256": None} for role, path in job["inputs"].items()}
    output.write_text(json.dumps({"key": job["key"], "inputs": made_from, **shows, "provenance": provenance}))
else:
    output.mkdir(parents=True, exist_ok=True)
    names = ("dataset.json", "contact_sheet.png") if stage == "prepare-data" else ("model.safetensors",)
    for name in names:
        (output / name).write_text(job["key"])
    if stage == "build-system":
        (output / "config.json").write_text(json.dumps({"sections": job["settings"]}))
    (output / "provenance.json").write_text(json.dumps(provenance | folder_hashes(output)))
