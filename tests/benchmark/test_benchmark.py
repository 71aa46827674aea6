"""The benchmarks: what they count and time, on which systems, and the rows they write."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from torch import nn

from deop.errors import ConfigError
from deop.evaluation.benchmark import PARTS
from deop.evaluation.benchmark_cases import BARE, BARE_CLIP, BARE_PROPOSALS, Case, scaling_cases, speed_cases
from deop.evaluation.benchmark_measure import count_flop, interleave, matmul_call
from deop.evaluation.benchmark_networks import Networks, class_names, discs
from deop.jobs.plan import Plan
from deop.models.clip import load_clip
from deop.settings.benchmarks import read_benchmarks
from deop.settings.files import read_profile, without_nulls
from deop.stages import benchmark
from deop.utils.timing import PartTimes, part, parts_of

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def section() -> dict:
    """``benchmark`` of the tiny profile."""
    return without_nulls(read_profile(ROOT, ROOT / "config/tiny.yaml"))["benchmark"]


@pytest.fixture(scope="module")
def networks(section) -> Networks:
    torch.manual_seed(0)
    return Networks("deop-mini", read_benchmarks(section, "config")["speed"].clips["deop-mini"], CPU)


def test_operations_are_those_counted_by_hand():
    conv, linear = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(16, 5)
    image, tokens = torch.rand(2, 3, 10, 12), torch.rand(7, 16)
    assert count_flop(lambda: conv(image)) == 2 * 2 * 8 * 10 * 12 * 3 * 9
    assert count_flop(lambda: linear(tokens)) == 2 * 7 * 16 * 5
    heads = torch.rand(1, 2, 9, 4)
    attend = nn.functional.scaled_dot_product_attention
    # Queries by keys, and weights by values: fused attention counts like the two products that it is.
    assert count_flop(lambda: attend(heads, heads, heads)) == 2 * (2 * 2 * 9 * 9 * 4)
    # In evaluation mode it is one fused operation: three projections, attention, one projection.
    layer = nn.MultiheadAttention(16, 2, batch_first=True).eval()
    with torch.inference_mode():
        flop = count_flop(lambda: layer(tokens[None], tokens[None], tokens[None], need_weights=False))
    assert flop == 4 * 2 * 7 * 16 * 16 + 2 * (2 * 7 * 7 * 16)


def test_one_pass_costs_what_one_pass_does_and_crops_cost_by_number(networks, section):
    speed = read_benchmarks(section, "config")["speed"]
    cases = speed_cases(speed, "deop-mini")
    calls, flop = {case: networks.call(case) for case in cases}, {}
    with torch.inference_mode():
        for case, call in calls.items():
            if call.embed is not None:
                call.embed()
            flop[case] = count_flop(call.run)
    by_system = {(case.system, case.shown, case.classes): value for case, value in flop.items()}
    base, classes = speed.base_classes, max(speed.classes)
    shown = speed.clips["deop-mini"].base_crops
    bare = sum(by_system[system, shown, 0] for system in BARE)
    # Severed layers have no queries and keys, nothing is pooled; the anchors come on top.
    assert 0.8 * bare < by_system["DeOP", shown, base] < 1.2 * bare
    # More classes are more scores and no further pass of the text encoder.
    assert by_system["DeOP", shown, classes] < 1.1 * by_system["DeOP", shown, base]
    few, many = (by_system["SimBaseline", crops, base] for crops in sorted(speed.clips["deop-mini"].crops))
    clip = load_clip("deop-mini", None)
    crop = count_flop(lambda: clip.visual(torch.rand(1, 3, 96, 96)).pooled)
    assert many - few == pytest.approx(2 * crop, rel=0.02)


@pytest.mark.parametrize("size", [(8, 8), (128, 171), (5, 40)])
@pytest.mark.parametrize("shown", [1, 7, 20])
def test_as_many_masks_are_shown_as_asked_for(size, shown):
    masks = discs(shown, (20, *size)).sigmoid()
    assert (masks > 0.5).flatten(1).any(1).sum() == shown
    for image in [(4 * size[0], 4 * size[1]), (4 * size[0] - 3, 4 * size[1] - 1)]:  # where crops are cut
        enlarged = nn.functional.interpolate(masks[None], image, mode="bilinear")[0]
        assert (enlarged > 0.5).flatten(1).any(1).sum() == shown


def test_multi_pass_systems_show_clip_that_many_crops(networks):
    for system in ("SimBaseline", "ZegFormer"):
        case = Case(system, "deop-mini", (64, 86), queries=20, shown=4, classes=7)
        with torch.inference_mode():
            passes = networks.segmenter(case)(torch.rand(1, 3, *case.image), class_names(7)).passes
        assert passes.tolist() == [4]


def test_cases_cover_the_rows_that_were_asked_for(section):
    found = read_benchmarks(section, "config")
    speed, scaling = found["speed"], found["scaling"]
    rows = Counter(case.system for case in speed_cases(speed, "deop-mini"))
    assert rows == {
        BARE_PROPOSALS: 1,
        BARE_CLIP: 1,
        "Baseline": 1,
        "DeOP": len(speed.classes),
        "SimBaseline": len(speed.clips["deop-mini"].crops),
        "ZegFormer": 1,
    }
    clip = speed.clips["deop-mini"]
    runtimes = ("compiled", "onnxruntime", "openvino")
    clips = {"deop-mini": clip.model_copy(update={"runtimes": runtimes})}
    asked = speed.model_copy(update={"clips": clips, "precisions": ("fp32", "bf16")})
    found = speed_cases(asked, "deop-mini")
    assert set(speed_cases(speed, "deop-mini")) < set(found)
    assert Counter(
        (case.runtime, case.precision, case.system) for case in found if case.runtime != "torch"
    ) == {
        (runtime, precision, system): 1
        for runtime in runtimes
        for precision in ("fp32", "bf16")
        for system in ("DeOP", "SimBaseline")
        if (runtime, precision) != ("onnxruntime", "bf16")
    }
    assert {(case.shown, case.classes) for case in found if case.runtime != "torch"} == {
        (clip.base_crops, speed.base_classes)
    }
    varied = scaling_cases(scaling)
    assert [case.classes for case in varied["classes"]] == sorted(scaling.classes)
    assert [case.queries for case in varied["proposals"]] == sorted(scaling.proposals)
    assert [case.batch for case in varied["batch"]] == sorted(scaling.batch)
    assert [min(case.image) for case in varied["image"]] == sorted(scaling.short_sides)


def test_systems_take_turns_and_times_are_their_own():
    order: list[str] = []

    def call(name: str, seconds: float):
        def run() -> None:
            order.append(name)
            with part("work"):
                time.sleep(seconds)

        return run

    calls = {"slow": call("slow", 0.02), "fast": call("fast", 0.0)}
    measured = interleave(calls, CPU, rounds=3, budget_s=60, description="test")
    assert order == ["slow", "slow", "fast", "fast"] + ["slow", "fast"] * 3  # the first four are warm-up
    assert [len(one.seconds) for one in measured.values()] == [3, 3]
    slow = measured["slow"]
    assert slow.median == sorted(slow.seconds)[1] >= 0.02
    assert 0.02 <= slow.parts["work"] <= max(slow.seconds)
    order.clear()
    product = {"fast": lambda: (calls["fast"](), torch.ones(2, 3) @ torch.ones(3, 4)), "slow": calls["slow"]}
    beside = interleave(product, CPU, rounds=1, budget_s=60, description="test", counted_in={"slow": "fast"})
    assert order == ["fast", "fast", "slow", "slow", "fast", "slow"]
    assert beside["slow"].flop == beside["fast"].flop == 2 * 2 * 3 * 4
    order.clear()
    assert len(interleave(calls, CPU, rounds=3, budget_s=0, description="test")["slow"].seconds) == 1


def test_parts_inside_parts_have_their_own_time_alone_and_add_up():
    begun = time.perf_counter()
    with PartTimes(CPU) as times:
        with part("outer"):
            time.sleep(0.02)
            with part("inner"):
                time.sleep(0.03)
        for _ in parts_of(iter([1, 2]), "making"):
            time.sleep(0.001)
    whole = time.perf_counter() - begun
    assert times.seconds["outer"] >= 0.02 and times.seconds["inner"] >= 0.03
    assert sum(times.seconds.values()) <= whole
    assert times.seconds["making"] < 0.002  # not what was done with what was made
    before = dict(times.seconds)
    with part("outer"):
        pass
    assert times.seconds == before


def test_memory_of_a_call_is_what_it_holds_at_most():
    def call() -> None:
        torch.ones(50_000_000).sum()  # 200 MB

    calls = {"large": call, "small": lambda: None}
    measured = interleave(calls, CPU, rounds=1, budget_s=60, description="test")
    assert 180 < measured["large"].added_mb < 400 and measured["small"].added_mb < 100


def test_drawn_masks_are_not_had_without_the_network(networks):
    case = Case(BARE_PROPOSALS, "deop-mini", (64, 64), queries=20, shown=4)
    network = networks.call(case).module
    with torch.inference_mode():
        _, [masks] = network.decode(torch.rand(1, 3, 64, 64), last_only=True)
        _, [broken] = network.decode(torch.full((1, 3, 64, 64), torch.nan), last_only=True)
    assert (masks[0] == network.drawn).all() and broken.isnan().all()


def test_weights_are_those_of_both_networks_each_counted_once(networks):
    case = Case("Baseline", "deop-mini", (64, 64), queries=20, shown=4, classes=7)
    call, proposals = networks.call(case), networks.call(case._replace(system=BARE_PROPOSALS))
    clip = sum(weight.nbytes for weight in load_clip("deop-mini", None).parameters()) / 1e6
    # Batch norms are folded, the prompt has a few tokens.
    assert call.weights_mb == pytest.approx(clip + proposals.weights_mb, rel=0.02)


def test_a_product_of_matrices_is_what_rates_are_relative_to():
    assert count_flop(matmul_call(CPU)) == 2 * 2048**3


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("rounds",), 0, "config: benchmark.speed.rounds: .*greater than 0"),
        (("speed", "classes"), [40], "base_classes 20 is not among classes \\[40\\]"),
        (("speed", "classes"), [20, 900], "classes.*less than or equal to 847"),
        (("clips", "deop-mini", "crops"), [2, 4, 99], "99 crops of"),
        (("clips", "deop-mini", "base_crops"), 3, "base_crops 3 is not among crops \\[2, 4\\]"),
        (
            ("scaling", "model"),
            "ViT-X",
            "benchmark.scaling.model: unknown CLIP of benchmark.clips 'ViT-X'; valid",
        ),
        (("precisions",), ["int8"], "precisions.*'fp32', 'bf16' or 'fp16'"),
    ],
)
def test_what_cannot_be_measured_is_said_before_it_is_tried(section, edit, tmp_path, keys, value, message):
    path = tmp_path / "benchmark.yaml"
    path.write_text(yaml.safe_dump(section))
    edit(path, *keys, to=value)
    with pytest.raises(ConfigError, match=message):
        read_benchmarks(yaml.safe_load(path.read_text()), "config")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["speed", "scaling"])
def test_the_rows_and_columns_that_are_written(config, root, section, tmp_path, monkeypatch, request, name):
    if name == "speed":
        pytest.importorskip("openvino")
        if not request.getfixturevalue("in_own_process"):
            return
        clip = section["clips"]["deop-mini"] | {"runtimes": ["openvino"]}
        section = section | {"clips": {"deop-mini": clip}, "precisions": ["fp32", "bf16"]}
    plan = Plan(config | {"benchmark": section}, root)
    job = next(job for job in plan.jobs.values() if job.stage == "benchmark" and name in job.output)
    monkeypatch.chdir(tmp_path)
    Path(job.output).parent.mkdir()
    benchmark.run(job)
    table = pd.read_csv(Path(job.output).with_suffix(".csv"))
    expected = (
        "system, clip, classes, crops, precision, device, latency_median_ms, latency_p90_ms, images_per_s, peak_mb"
    ).split(", ")
    columns = [*table.columns]
    assert columns[2 if name == "scaling" else 0 :][: len(expected)] == expected
    assert {f"{name}_ms" for name in PARTS} | {"gflop", "matmul_share", "machine"} <= set(columns)
    rows = table if name == "scaling" else table[~table.system.isin(BARE)]
    assert (rows[["latency_median_ms", "images_per_s", "gflop", "matmul_share"]] > 0).all(axis=None)
    # One image in memory to its label map: the parts are of that time, and classes were embedded before.
    of_parts = rows[[f"{name}_ms" for name in PARTS if name != "text"]].sum(axis=1)
    assert (of_parts <= 1.01 * rows.latency_median_ms).all() and (rows.text_ms > 0).all()
    if name == "speed":
        assert table[table.runtime == "openvino"].system.tolist() == ["DeOP", "SimBaseline"] * 2
        latency = table.set_index(["system", "crops", "runtime", "precision"]).latency_median_ms
        bare = table[table.system.isin(BARE) & (table.precision == "fp32")].latency_median_ms.sum()
        for row in rows.itertuples():
            base = latency.loc["SimBaseline", 2, row.runtime, row.precision].item()
            assert row.ratio_to_simbaseline == pytest.approx(base / row.latency_median_ms, rel=0.02, abs=1e-3)
            assert row.ratio_to_bare == pytest.approx(row.latency_median_ms / bare, rel=0.02, abs=1e-3)
    else:
        assert set(table["by"]) == {"classes", "image", "proposals", "batch"}
    assert json.loads(Path(job.output).read_text())["key"] == job.key
    page = Path(job.output).with_suffix(".md").read_text()
    assert "Configuration: not recorded." in page and set(table["configuration"]) == {"not recorded"}
    assert "Measured on" in page and page.count("\n|") == len(table) + 2
