"""A small multi-pass system and what it is asked."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from deop.data.segmentation import HIDDEN
from deop.models.clip import DenseCLIP, load_clip
from deop.models.prompts import TextPrompt

QUERIES, LAYERS = 5, 2


@pytest.fixture(scope="session")
def mini_clip() -> DenseCLIP:
    torch.manual_seed(0)
    return load_clip("deop-mini", None)


@pytest.fixture
def build(mini_clip, small_proposals) -> Callable:
    """``build(SimBaseline, settings, seen_names)`` with fresh weights, always the same."""

    def build(system, settings, seen_names=("dog", "grass"), prompt=True):
        torch.manual_seed(0)
        proposals = small_proposals(QUERIES, LAYERS)
        text_prompt = TextPrompt(2, mini_clip.text_width, mini_clip.embed_dim) if prompt else None
        return system(mini_clip, proposals, settings, seen_names=seen_names, text_prompt=text_prompt)

    return build


@pytest.fixture
def example() -> SimpleNamespace:
    """Two images, names, labels of all sorts, and proposals of image size.

    The last proposal of image 0 and all of image 1 are shown to no one.
    """
    generator = torch.Generator().manual_seed(1)
    masks = torch.randn(2, QUERIES, 24, 32, generator=generator)
    masks[0, 1, :, 7:] = -3  # a narrow one
    masks[0, 2] = -3
    masks[0, 2, 9, 11] = 0.1  # a single pixel
    masks[0, 4] = masks[0, 4].clamp(max=0)  # exactly one half is not above it
    masks[1] = masks[1].clamp(max=0)
    return SimpleNamespace(
        images=torch.rand(2, 3, 24, 32, generator=generator),
        labels=torch.randint(HIDDEN, 3, (2, 24, 32), generator=generator),
        names=["dog", "cow", "grass"],
        masks=masks,
        states=torch.randn(LAYERS, 2, QUERIES, 32, generator=generator),
        shown=[[0, 1, 2, 3], []],
    )


@pytest.fixture
def propose(example) -> Callable:
    """``propose(segmenter)``: makes its proposal network answer with the example's states and masks."""

    def propose(segmenter):
        def decode(images, *, last_only=False):
            layers = 1 if last_only else LAYERS
            return example.states[-layers:], [example.masks] * layers

        segmenter.proposals.decode = decode
        return segmenter

    return propose


@pytest.fixture
def literal_crop() -> Callable:
    """One crop by loops over pixels; only the resizing is a library's."""

    def crop(image, mask, fill, size):
        pixels = [(y, x) for y in range(mask.shape[0]) for x in range(mask.shape[1]) if mask[y, x]]
        top, bottom = min(y for y, _ in pixels), max(y for y, _ in pixels)
        left, right = min(x for _, x in pixels), max(x for _, x in pixels)
        cut = torch.empty(3, bottom - top + 1, right - left + 1, dtype=torch.float64)
        for channel in range(3):
            for y in range(top, bottom + 1):
                for x in range(left, right + 1):
                    inside = mask[y, x]
                    cut[channel, y - top, x - left] = image[channel, y, x] if inside else fill[channel]
        resized = torch.nn.functional.interpolate(cut[None], (size, size), mode="bicubic", antialias=True)
        return resized[0].clamp(0, 1)

    return crop


@pytest.fixture
def literal_streams(example, literal_crop) -> Callable:
    """Both streams' logits of one proposal of the example, in Python floats: (names and "no object"; names or None)."""

    @torch.no_grad()
    def streams(segmenter, image, query, proposal_text, crop_text):
        scale = segmenter.clip.logit_scale
        projected = segmenter.class_head.project(example.states[-1, image, query]).double()
        projected = projected / projected.norm()
        no_object = segmenter.class_head.no_object.double()
        if segmenter.settings.unit_no_object:
            no_object = no_object / no_object.norm()
        rows = [*proposal_text.double(), no_object]
        of_proposal = [scale * float(projected @ row) for row in rows]
        mask = torch.sigmoid(example.masks[image, query].double()) > 0.5
        if not mask.any():
            return of_proposal, None
        mean, std = segmenter.clip.mean, segmenter.clip.std
        cut = literal_crop(example.images[image].double(), mask, mean, segmenter.crop_size)
        for channel in range(3):
            cut[channel] = (cut[channel] - mean[channel]) / std[channel]
        seen = segmenter.clip.visual(cut[None].float()).pooled[0].double()
        seen = seen / seen.norm()
        return of_proposal, [scale * float(seen @ row) for row in crop_text.double()]

    return streams
