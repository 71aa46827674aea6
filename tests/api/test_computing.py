"""The precision that a segmenter computes in, if it is to choose."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import deop
from deop.api import computing

FP32, BF16 = torch.float32, torch.bfloat16


class Machine:
    """A CPU whose only work is one picture; its clock advances by what a precision takes."""

    def __init__(self, seconds: dict[torch.dtype, float]) -> None:
        self.seconds, self.now, self.warm = seconds, 0.0, set()

    def run(self) -> None:
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else FP32
        self.now += self.seconds[dtype] if dtype in self.warm else 5  # the first run of each is slow
        self.warm.add(dtype)

    def clock(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("bf16", "fp32", "expected"),
    [(0.1, 0.2, BF16), (0.2, 0.1, FP32), (0.19, 0.2, FP32), (7.0, 30.0, BF16)],
    ids=["faster", "slower", "hardly faster", "a picture takes longer than the trial"],
)
def test_the_faster_precision_is_taken_after_two_seconds(bf16, fp32, expected):
    machine = Machine({BF16: bf16, FP32: fp32})
    found = computing.faster(BF16, FP32, machine.run, torch.device("cpu"), clock=machine.clock)
    assert found == expected
    assert machine.now < 5 * 2 + 2 + 2 * (bf16 + fp32)


@pytest.mark.parametrize(("has", "expected"), [("bf16", BF16), ("fp32", FP32)])
def test_auto_is_float32_on_a_cpu_without_the_arithmetic(monkeypatch, has, expected):
    monkeypatch.setattr(computing, "resolve", lambda *_, **__: has)
    monkeypatch.setattr(computing, "faster", lambda lower, *_: lower)
    segmenter = deop.load("deop-mini/bundled", short_side=48, device="cpu", dtype="auto")
    assert segmenter.dtype == expected
    picture = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    plain = deop.load("deop-mini/bundled", short_side=48, device="cpu")
    names = ["bear", "grass"]
    assert (segmenter(picture, names).labels == plain(picture, names).labels).mean() > 0.9
