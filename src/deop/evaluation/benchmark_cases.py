"""The rows of a speed benchmark: systems, sizes and inputs."""

from __future__ import annotations

from typing import NamedTuple, get_args

from deop.settings.benchmarks import BenchmarkClip, ScalingBenchmark, SpeedBenchmark
from deop.settings.precision import Precision, Runtime

ONE_PASS, MULTI_PASS = ("Baseline", "DeOP"), ("SimBaseline", "ZegFormer")
BARE_PROPOSALS, BARE_CLIP = "proposal network alone", "open_clip visual alone"
BARE = (BARE_PROPOSALS, BARE_CLIP)
"""The networks that every one-pass system runs, as the libraries implement them."""
IN_PRECISION: dict[Runtime, tuple[Precision, ...]] = {"onnxruntime": ("fp32",), "openvino": ("fp32", "bf16")}
"""Precisions that a runtime is measured in, where it does not have all."""


class Case(NamedTuple):
    """One row: a system with a CLIP on ``batch`` images (height, width), where ``shown`` of ``queries`` masks are not
    empty.

    ``runtime``: see :func:`deop.methods.inference.prepare`.
    """

    system: str
    clip: str
    image: tuple[int, int]
    queries: int
    shown: int
    classes: int = 0
    batch: int = 1
    precision: Precision = "fp32"
    runtime: Runtime = "torch"


def speed_cases(settings: SpeedBenchmark, model: str) -> list[Case]:
    """The systems side by side on one CLIP, in every precision.

    The multi-pass systems, and other runtimes, are measured at the base number of classes.
    """
    clip, base = settings.clips[model], settings.base_classes
    size = {"clip": model, "image": clip.image, "queries": clip.proposals.queries}
    shown = clip.base_crops
    alike = {"classes": base, "shown": shown}
    others = [(system, runtime) for runtime in clip.runtimes for system in ("DeOP", "SimBaseline")]
    in_fp32 = [
        *(Case(system, **size, shown=shown) for system in BARE),
        Case("Baseline", **size, **alike),
        *(Case("DeOP", **size, shown=shown, classes=classes) for classes in settings.classes),
        *(Case("SimBaseline", **size, shown=crops, classes=base) for crops in clip.crops),
        Case("ZegFormer", **size, **alike),
        *(Case(system, **size, **alike, runtime=runtime) for system, runtime in others),
    ]
    return [
        case._replace(precision=precision)
        for precision in settings.precisions
        for case in in_fp32
        if precision in IN_PRECISION.get(case.runtime, get_args(Precision))
    ]


def scaling_cases(settings: ScalingBenchmark) -> dict[str, list[Case]]:
    """The cases of DeOP, smallest first, by the name of what varies."""
    clip = settings.clip
    queries = clip.proposals.queries
    base = Case("DeOP", settings.model, clip.image, queries, queries // 2, settings.base_classes)
    sides = [_scaled(clip, short) for short in sorted(settings.short_sides)]
    return {
        "classes": [base._replace(classes=classes) for classes in sorted(settings.classes)],
        "image": [base._replace(image=size) for size in sides],
        "proposals": [
            base._replace(queries=number, shown=max(1, number // 2)) for number in sorted(settings.proposals)
        ],
        "batch": [base._replace(batch=number) for number in sorted(settings.batch)],
    }


def _scaled(clip: BenchmarkClip, short_side: int) -> tuple[int, int]:
    height, width = clip.image
    scale = short_side / min(height, width)
    return round(height * scale), round(width * scale)
