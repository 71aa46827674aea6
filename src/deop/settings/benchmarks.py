"""What the benchmarks measure: ``benchmark`` in the configuration."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from deop.errors import ConfigError, unknown, validated
from deop.settings.base import Positive, Settings
from deop.settings.clip_layers import check_model, check_severed_layers
from deop.settings.files import merged
from deop.settings.methods import DeOPSettings
from deop.settings.precision import Precision
from deop.settings.stages import Proposals

MOST_CLASSES = 847
"""Class names there are: those of the full ADE20K."""
Classes = Annotated[int, Field(ge=1, le=MOST_CLASSES)]


class BenchmarkClip(Settings):
    """One CLIP, the size of the images, and what is built on it.

    ``network`` is DeOP's, ``proposals`` are of all systems. ``crops`` are the numbers of proposals that SimBaseline
    shows CLIP; ``base_crops`` is what other systems are compared with. Proposals beyond those shown are empty.
    ``runtimes`` are those besides PyTorch on which DeOP and SimBaseline are measured too.
    """

    image: tuple[Positive, Positive]
    network: DeOPSettings
    proposals: Proposals
    crops: Annotated[tuple[Positive, ...], Field(min_length=1)]
    base_crops: Positive
    runtimes: tuple[Literal["compiled", "onnxruntime", "openvino"], ...] = ()

    @model_validator(mode="after")
    def _possible(self) -> BenchmarkClip:
        if max(self.crops) > self.proposals.queries:
            raise ValueError(f"{max(self.crops)} crops of {self.proposals.queries} proposals")
        if self.base_crops not in self.crops:
            raise ValueError(f"base_crops {self.base_crops} is not among crops {list(self.crops)}")
        return self


class Rounds(Settings):
    """How long each measurement is repeated: systems take turns, ``rounds`` times with each CLIP.

    No further round begins after ``budget_s`` seconds; each system is timed once at least. ``threads`` are those of the
    CPU.
    """

    threads: Positive = 1
    rounds: Positive = 5
    budget_s: Positive = 300
    precisions: Annotated[tuple[Precision, ...], Field(min_length=1)] = ("fp32",)
    base_classes: Classes = 171


class SpeedBenchmark(Rounds):
    """Systems side by side: DeOP at several numbers of ``classes``, the others at ``base_classes``."""

    classes: Annotated[tuple[Classes, ...], Field(min_length=1)]
    clips: Annotated[dict[str, BenchmarkClip], Field(min_length=1)]

    @model_validator(mode="after")
    def _base_is_measured(self) -> SpeedBenchmark:
        if self.base_classes not in self.classes:
            raise ValueError(f"base_classes {self.base_classes} is not among classes {list(self.classes)}")
        return self


class ScalingBenchmark(Rounds):
    """What DeOP costs by the number of classes, the short side of the image, proposals and images at a time.

    One of them varies at a time, around ``base_classes`` and what ``clip``, called ``model``, has.
    """

    model: str
    clip: BenchmarkClip
    classes: tuple[Classes, ...]
    short_sides: tuple[Positive, ...]
    proposals: tuple[Positive, ...]
    batch: tuple[Positive, ...]


BENCHMARKS: dict[str, type[Rounds]] = {"speed": SpeedBenchmark, "scaling": ScalingBenchmark}
"""By name, what each measures."""

_UNTRAINED = {"pretrained_backbone": False, "iterations": 0, "augmentation": {"crop": 1}}
_DEOP = {"visual_prompts": True, "severance": {"kind": "gps"}, "anchors": {"kind": "query"}}


def read_benchmarks(section: dict[str, Any], source: str) -> dict[str, Rounds]:
    """The benchmarks that ``benchmark`` in the configuration asks for, by name.

    Args:
        section: ``rounds`` and the like, ``clips`` by model, and what each benchmark varies, under its name.
        source: what errors call the configuration.

    Raises:
        ConfigError: something that cannot be measured.
    """
    shared = {key: value for key, value in section.items() if key not in (*BENCHMARKS, "clips")}
    place = f"{source}: benchmark"
    clips = {
        name: _all_parts(entry, source, f"benchmark.clips.{name}")
        for name, entry in _mapping(section.get("clips", {}), f"{place}.clips").items()
    }
    found: dict[str, Rounds] = {}
    for name, model in BENCHMARKS.items():
        if name not in section:
            continue
        values, at = shared | _mapping(section[name], f"{place}.{name}"), ("benchmark", name)
        if model is ScalingBenchmark:
            if not isinstance(values.get("model"), str) or values["model"] not in clips:
                raise unknown(f"{place}.{name}.model", "CLIP of benchmark.clips", values.get("model"), clips)
            values |= {"clip": clips[values["model"]]}
        else:
            values |= {"clips": clips}
        found[name] = validated(model, values, source, at)
    for name, clip in _clips(found.values()):
        check_model(name, f"{source}: benchmark.clips")
        check_severed_layers(clip.network.severance.alpha, name, f"{source}: benchmark.clips.{name}.network")
    return found


def _clips(benchmarks: Iterable[Rounds]) -> Iterator[tuple[str, BenchmarkClip]]:
    """What is measured with each CLIP, by model name."""
    for benchmark in benchmarks:
        if isinstance(benchmark, SpeedBenchmark):
            yield from benchmark.clips.items()
        elif isinstance(benchmark, ScalingBenchmark):
            yield benchmark.model, benchmark.clip


def _all_parts(entry: Any, source: str, at: str) -> dict[str, Any]:
    """An entry of ``clips`` with all of DeOP's parts on, and proposals of random weights."""
    entry = _mapping(entry, f"{source}: {at}")
    network = entry.get("network", {})
    validated(DeOPSettings, network, source, (f"{at}.network",))  # as it is, before parts of it are replaced
    proposals = _mapping(entry.get("proposals", {}), f"{source}: {at}.proposals")
    return entry | {"network": merged(network, _DEOP), "proposals": _UNTRAINED | proposals}


def _mapping(value: Any, place: str) -> dict[str, Any]:
    """The value itself.

    Raises:
        ConfigError: it is not a mapping.
    """
    if not isinstance(value, dict):
        raise ConfigError(f"{place}: a mapping is needed (got {value!r})")
    return value
