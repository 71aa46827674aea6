"""Speed benchmarks: systems with random weights, at their true sizes, measured in turns."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch

from deop.evaluation.benchmark_cases import BARE, Case, scaling_cases, speed_cases
from deop.evaluation.benchmark_measure import Measured, interleave, matmul_call, timed
from deop.evaluation.benchmark_networks import Call, Networks
from deop.settings.benchmarks import BenchmarkClip, Rounds, ScalingBenchmark, SpeedBenchmark
from deop.settings.precision import cpu_name

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
PARTS = ("proposals", "clip_visual", "text", "anchors", "scoring", "upsampling", "crops")


def speed(settings: SpeedBenchmark, device: torch.device) -> pd.DataFrame:
    """One line a case, CLIP and precision; see :data:`deop.reporting.benchmark_table.COST_NOTES` for the columns."""
    frames = []
    for model, clip in settings.clips.items():
        frame = measure(settings, clip, speed_cases(settings, model), device, model)
        latency, bare = frame["latency_median_ms"], frame["system"].isin(BARE)
        base = frame[(frame["system"] == "SimBaseline") & (frame["crops"] == clip.base_crops)]
        compared = base.set_index(["precision", "runtime"])["latency_median_ms"]
        alike = pd.MultiIndex.from_frame(frame[["precision", "runtime"]])
        frame["ratio_to_simbaseline"] = (compared.reindex(alike).to_numpy() / latency).where(~bare)
        plain = latency[bare & (frame["precision"] == settings.precisions[0])].sum()
        frame["ratio_to_bare"] = (latency / plain).where(~bare)
        frames.append(frame)
    return pd.concat(frames, ignore_index=True).round(3)


def scaling(settings: ScalingBenchmark, device: torch.device) -> pd.DataFrame:
    """One line a case and precision: column ``by`` is what varies, ``value`` its value."""
    varied = scaling_cases(settings)
    cases = list(dict.fromkeys(case for group in varied.values() for case in group))
    value = {
        "classes": lambda case: case.classes,
        "image": lambda case: min(case.image),
        "proposals": lambda case: case.queries,
        "batch": lambda case: case.batch,
    }
    frames = []
    for precision in settings.precisions:
        of_precision = [case._replace(precision=precision) for case in cases]
        frame = measure(settings, settings.clip, of_precision, device, f"scaling, {precision}")
        frame.index = pd.Index(range(len(cases)))
        for by, group in varied.items():
            lines = frame.loc[[cases.index(case) for case in group]]
            lines.insert(0, "by", by)
            lines.insert(1, "value", [value[by](case) for case in group])
            frames.append(lines)
    return pd.concat(frames, ignore_index=True).round(3)


def measure(
    settings: Rounds,
    clip: BenchmarkClip,
    cases: list[Case],
    device: torch.device,
    description: str,
) -> pd.DataFrame:
    """The measured columns of cases on one CLIP. A product of matrices in each precision is timed with them."""
    torch.manual_seed(0)
    networks = Networks(cases[0].clip, clip, device)

    def cast(case: Case, call: Callable[[], object]) -> Callable[[], object]:
        def in_precision() -> object:
            with torch.autocast(device.type, DTYPES.get(case.precision), enabled=case.precision in DTYPES):
                return call()

        return in_precision

    precisions = dict.fromkeys(case.precision for case in cases)
    calls: dict[Case | str, Callable[[], object]] = {
        precision: matmul_call(device, DTYPES.get(precision, torch.float32)) for precision in precisions
    }
    found = {case: networks.call(case) for case in cases}
    calls |= {case: cast(case, call.run) for case, call in found.items()}
    with torch.inference_mode():
        text = {case: timed(cast(case, call.embed), device) for case, call in found.items() if call.embed}
        measured = interleave(
            calls,
            device,
            rounds=settings.rounds,
            budget_s=settings.budget_s,
            description=description,
            counted_in={case: case._replace(runtime="torch") for case in cases if case.runtime != "torch"},
        )
    rates = {precision: measured[precision].flop / measured[precision].median for precision in precisions}
    return pd.DataFrame(
        [
            _row(case, found[case], text.get(case, 0.0), measured[case], rates[case.precision], device)
            for case in cases
        ]
    )


def _row(
    case: Case,
    call: Call,
    text_s: float,
    measured: Measured,
    matmul_rate: float,
    device: torch.device,
) -> dict[str, Any]:
    latency, parts = measured.median, dict(measured.parts)
    of_parts = {f"{part}_ms": 1000 * parts.get(part, 0.0) for part in PARTS} if parts else {}
    return {
        "system": case.system,
        "clip": case.clip,
        "classes": case.classes or None,
        "crops": case.shown if case.system in ("SimBaseline", "ZegFormer") else None,
        "precision": case.precision,
        "device": device.type,
        "latency_median_ms": 1000 * latency,
        "latency_p90_ms": 1000 * float(np.quantile(measured.seconds, 0.9)),
        "images_per_s": case.batch / latency,
        # Others lay weights out anew, and CUDA's graphs hold memory of their own, neither of which is seen here.
        "peak_mb": call.weights_mb + measured.added_mb if case.runtime == "torch" else None,
        "runtime": case.runtime,
        **of_parts,
        "text_ms": 1000 * text_s,
        "other_ms": max(0.0, 1000 * (latency - sum(parts.values()))) if parts else None,
        "gflop": measured.flop / 1e9,
        "matmul_share": measured.flop / latency / matmul_rate,
        "image": f"{case.image[0]}x{case.image[1]}",
        "queries": case.queries,
        "batch": case.batch,
        "runs": len(measured.seconds),
    }


def machine(device: torch.device, threads: int) -> str:
    """What it was measured on: the CPU's or GPU's name, cores and threads."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    return f"{cpu_name() or 'CPU'}, {os.cpu_count()} cores, {threads} threads"
