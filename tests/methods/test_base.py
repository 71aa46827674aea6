"""Labels by row strips against the argmax of all scores."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from deop.methods import masks as masks_module
from deop.methods.deop import DeOP
from deop.methods.masks import SegmenterOutput, contenders
from deop.methods.multipass import MultiPassOutput
from deop.methods.simbaseline import SimBaseline, SimBaselineSettings
from deop.methods.zegformer import ZegFormer, ZegFormerSettings

CLASSES, QUERIES = 40, 12
SIZES = [(96, 131), (24, 32), (17, 9), (25, 640)]  # larger, as it is, smaller, and of another shape


def outputs() -> dict[str, object]:
    """By method, an output with masks that overlap, on which the systems' class scores disagree."""
    generator = torch.Generator().manual_seed(3)
    masks = torch.randn(2, QUERIES, 24, 32, generator=generator) * 3
    logits = torch.randn(2, QUERIES, CLASSES + 1, generator=generator) * 3
    passes = torch.ones(2, dtype=torch.int64)
    calibration = 0.5 * (torch.arange(CLASSES) % 2)
    return {
        "deop": SegmenterOutput(masks, logits, masks[:, :, None], passes),
        "multipass": MultiPassOutput(masks, logits[..., :-1].softmax(-1), calibration, passes),
    }


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("upsample", ["masks", "scores"])
@pytest.mark.parametrize("of", ["deop", "multipass"])
def test_labels_are_the_argmax_of_all_scores_however_they_are_cut(build, monkeypatch, of, upsample, size):
    if of == "deop":
        segmenter = DeOP.__new__(DeOP)  # what is asked here needs no weights
    else:
        segmenter = build(ZegFormer, ZegFormerSettings(), prompt=False)
    output = outputs()[of]
    segmenter.upsample = upsample
    scores = segmenter.combine(output, size)
    # By hand: what is resized, the logits of the masks or the scores.
    of_proposals, offset = segmenter.class_scores(output)
    masks = (
        output.mask_logits
        if upsample == "scores"
        else F.interpolate(output.mask_logits, size, mode="bilinear")
    )
    expected = (
        sum(of_proposals[:, n, :, None, None] * masks[:, n, None].sigmoid() for n in range(QUERIES))
        + offset[:, None, None]
    )
    torch.testing.assert_close(scores, F.interpolate(expected, size, mode="bilinear"), atol=1e-5, rtol=1e-5)
    for budget in (1, 100_000, 2**30):
        monkeypatch.setattr(masks_module, "CPU_STRIP_BYTES", budget)
        labels = segmenter.label_map(output, size)
        assert labels.dtype == torch.int64 and labels.shape == (2, *size)
        chosen = scores.gather(1, labels[:, None])[:, 0]
        torch.testing.assert_close(chosen, scores.amax(1), atol=1e-5, rtol=1e-5)
        assert (labels == scores.argmax(1)).double().mean() >= 0.999


@pytest.mark.parametrize("calibration", [0.0, 0.3], ids=["plain", "calibrated"])
def test_classes_that_are_left_out_win_at_no_pixel_and_few_are_left_where_a_network_is_sure(calibration):
    generator = torch.Generator().manual_seed(5)
    masks = torch.rand(2, QUERIES, 5000, generator=generator) ** 4
    masks[0, :, :100] = 1e-6  # pixels of hardly any proposal
    offset = -calibration * (torch.arange(200) % 2)
    left = []
    for sharpness in (0.1, 1, 4, 12):
        logits = torch.randn(2, QUERIES, 200, generator=generator) * sharpness
        of_proposals = logits.softmax(-1)
        scores = torch.einsum("bnp,bnc->bpc", masks.double(), of_proposals.double()) + offset
        kept = contenders(of_proposals, offset)
        assert kept.tolist() == sorted(set(kept.tolist()))
        assert set(scores.argmax(2).unique().tolist()) <= set(kept.tolist())
        left.append(len(kept))
    # A class that is calibrated less than some of the best may win where there are hardly any masks.
    assert left[-1] < left[0] and (calibration or left[-1] <= 4 * QUERIES)


def test_proposals_that_all_say_the_same_leave_its_class():
    generator = torch.Generator().manual_seed(5)
    for proposals in (3, 7, 100):  # sums of equal numbers, which rounding may raise above each of them
        same = torch.randn(20, 1, 30, generator=generator).softmax(-1).expand(-1, proposals, -1)
        for of_proposals in same.contiguous():
            kept = contenders(of_proposals[None], torch.zeros(30))
            assert kept.tolist() == [of_proposals[0].argmax().item()]


def test_a_calibration_decides_between_labels(build):
    segmenter, output = build(ZegFormer, ZegFormerSettings(), prompt=False), outputs()["multipass"]
    strict, lax = (
        segmenter.label_map(output._replace(calibration=output.calibration * weight), (24, 32))
        for weight in (100, 0)
    )
    assert (strict % 2 == 0).all() and not (lax % 2 == 0).all()


def test_a_whole_system_gives_the_labels_of_its_scores(build, propose, example):
    segmenter = propose(build(SimBaseline, SimBaselineSettings())).eval()
    scores = segmenter.segment(example.images, example.names, (50, 70))
    assert torch.equal(segmenter.label(example.images, example.names, (50, 70)), scores.argmax(1))


MEMORY = """
import re
import resource
from pathlib import Path

import torch
from deop.models.clip import load_clip
from deop.jobs.launch import keep_freed_memory
from deop.methods.deop import DeOP
from deop.models.prompts import TextPrompt
from deop.models.proposals import ProposalNetwork
from deop.settings.methods import AnchorSettings, DeOPSettings, SeveranceSettings
from deop.stages.evaluate import predict

keep_freed_memory()  # as the command line does
torch.set_num_threads(1)
clip = load_clip("ViT-B-16", None)
proposals = ProposalNetwork(
    backbone="resnet50", backbone_args={}, pretrained_backbone=False, out_indices=(1, 2, 3, 4), queries=100,
    decoder_layers=6, width=256, ffn_width=2048, heads=8,
)
network = DeOPSettings(severance=SeveranceSettings(kind="gps", alpha={-1: 1.0}), anchors=AnchorSettings(kind="query"))
prompt = TextPrompt(16, clip.text_width, clip.embed_dim)
segmenter = DeOP(clip, proposals, prompt, network, queries=100).eval()
labels = torch.randint(847, (1, 512, 683))
names = [f"thing {index}" for index in range(847)]
prediction, *_ = predict(segmenter, torch.rand(1, 3, 512, 683), labels, names, 512)
assert prediction.shape == labels.shape
# Linux's ru_maxrss of a new process starts at that of its parent, which here is the process of all tests.
status = Path("/proc/self/status")
peak = re.search(r"VmHWM:\\s*(\\d+) kB", status.read_text()) if status.exists() else None
print(int(peak[1]) * 1024 if peak else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_evaluating_847_classes_takes_less_than_3_gb():
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 3e9
