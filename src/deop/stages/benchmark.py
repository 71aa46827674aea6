"""Stage ``benchmark``: speed and memory of systems at the paper's sizes, with times by part."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from deop.errors import validated
from deop.evaluation.benchmark import machine, scaling, speed
from deop.jobs.artifacts import describe
from deop.jobs.configuration_state import describe_state
from deop.jobs.integrity import write_sealed
from deop.jobs.job import Job
from deop.reporting import benchmark_table
from deop.reporting.origin import described_code, short_commit
from deop.settings.benchmarks import BENCHMARKS, SpeedBenchmark
from deop.training.loop import make_accelerator
from deop.utils.files import write_text


def run(job: Job) -> None:
    """Writes ``job.output`` (JSON, last), and the rows with suffixes .csv and .md."""
    started = time.monotonic()
    name = Path(job.output).stem
    settings = validated(
        BENCHMARKS[name], job.settings["benchmark"], "benchmark job", ("settings", "benchmark")
    )
    torch.set_num_threads(settings.threads)
    device = make_accelerator().device
    frame = speed(settings, device) if isinstance(settings, SpeedBenchmark) else scaling(settings, device)
    precisions = ", ".join(settings.precisions)
    provenance = describe(job, wall_time_s=round(time.monotonic() - started, 2), precision=precisions)
    frame = frame.assign(
        machine=machine(device, settings.threads),
        torch=provenance["torch"],
        commit=short_commit(provenance),
        configuration=describe_state(provenance["configuration"]),
    )
    output = Path(job.output)
    write_text(output.with_suffix(".csv"), frame.to_csv(index=False, lineterminator="\n"))
    write_text(
        output.with_suffix(".md"),
        benchmark_table.to_markdown(name, settings, frame, described_code([provenance])),
    )
    # The workflow treats the benchmark as up to date if this file holds its key.
    write_sealed(output, {"key": job.key, "rows": benchmark_table.to_rows(frame), "provenance": provenance})
