"""Systems at their real sizes, with random weights and drawn masks: their cost does not depend on the weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import NamedTuple

import open_clip
import torch
from torch import Tensor, nn

from deop.data.class_lists import read_class_list
from deop.evaluation.benchmark_cases import BARE_CLIP, BARE_PROPOSALS, Case
from deop.methods.base import Segmenter, to_multiple
from deop.methods.deop import DeOP
from deop.methods.inference import prepare, with_folded_norms
from deop.methods.simbaseline import SimBaseline
from deop.methods.zegformer import ZegFormer
from deop.models.clip import load_clip
from deop.models.prompts import TextPrompt
from deop.models.proposals import ProposalNetwork
from deop.settings.benchmarks import BenchmarkClip
from deop.settings.methods import DeOPSettings, SimBaselineSettings, ZegFormerSettings

TEMPLATES = ("a photo of a {}.",)
INSIDE, OUTSIDE = 8.0, -8.0
"""Mask logits at the centre of a drawn mask, and far from all masks."""


class DrawnMasks(ProposalNetwork):
    """A proposal network that computes its masks and then returns the ``drawn`` ones (N, h, w) instead.

    With random weights, either all masks or none would exceed the threshold of the multi-pass systems.
    """

    drawn: Tensor

    def decode(self, images: Tensor, *, last_only: bool = False) -> tuple[Tensor, list[Tensor]]:
        states, masks = super().decode(images, last_only=last_only)
        # Computed from the network's masks, or a compiler would remove these and the network as unused.
        return states, [torch.where(layer.isnan(), layer, self.drawn.to(layer)) for layer in masks]


def discs(shown: int, shape: tuple[int, int, int]) -> Tensor:
    """Mask logits (N, h, w) of ``shown`` discs, spread over the image, and N - ``shown`` empty masks."""
    queries, height, width = shape
    masks = torch.full(shape, OUTSIDE)
    y, x = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / width, indexing="ij")
    golden = (math.sqrt(5) - 1) / 2  # multiples of which spread evenly over the unit interval
    for index in range(min(shown, queries)):
        centre_y, centre_x, radius = (index + 0.5) / shown, (index * golden) % 1, 0.1 + 0.1 * (index % 3)
        distance = ((y - centre_y) ** 2 + (x - centre_x) ** 2).sqrt()
        masks[index] = (INSIDE * 4 * (radius - distance) / radius).clamp(OUTSIDE, INSIDE)
        # A disc between pixels, or at the border, shows one pixel at least.
        masks[index, min(int(centre_y * height), height - 1), min(int(centre_x * width), width - 1)] = INSIDE
    return masks


def class_names(number: int) -> list[str]:
    """The first ``number`` class names of the full ADE20K."""
    return [row.cleaned for row in read_class_list("ade20k_847")[:number]]


class Call(NamedTuple):
    """``run`` calls the network ``module`` and is timed; ``embed``, if not None, embeds the class names before that."""

    run: Callable[[], object]
    module: nn.Module
    embed: Callable[[], object] | None = None

    @property
    def weights_mb(self) -> float:
        """Memory of the network's parameters and buffers, in MB."""
        held = {
            tensor.data_ptr(): tensor.nbytes for tensor in (*self.module.parameters(), *self.module.buffers())
        }
        return sum(held.values()) / 1e6


class Networks:
    """Builds the systems on one CLIP. They share its weights, and the proposal networks of each number of queries.

    Args:
        model: name of an open_clip model config; weights are random.
        settings: sizes of the networks and images.
        device: the device of all networks.
    """

    def __init__(self, model: str, settings: BenchmarkClip, device: torch.device) -> None:
        self._settings, self._device = settings, device
        self._model, self._clip = model, load_clip(model, None).to(device)
        self._proposals: dict[int, tuple[DrawnMasks, DrawnMasks]] = {}

    def call(self, case: Case) -> Call:
        """The call that is timed: from images in memory to label maps, or to the output of a bare network."""
        images = torch.rand(case.batch, 3, *case.image, device=self._device)
        if case.system == BARE_PROPOSALS:
            network = self._proposal_network(case, prepared=False)
            return Call(lambda: network(images), network)
        if case.system == BARE_CLIP:
            resized = to_multiple(images, self._clip.patch_size)
            tower = bare_tower(self._model, tuple(resized.shape[-2:])).to(self._device)
            return Call(lambda: tower(resized), tower)
        segmenter, names = self.segmenter(case), class_names(case.classes)
        return Call(lambda: segmenter.label(images, names), segmenter, lambda: segmenter.embed(names))

    def segmenter(self, case: Case) -> Segmenter:
        """The system of a case, in evaluation mode."""
        clip, proposals = self._clip, self._proposal_network(case)
        if case.system in ("DeOP", "Baseline"):
            network = self._settings.network if case.system == "DeOP" else DeOPSettings()
            prompt = TextPrompt(16, clip.text_width, clip.embed_dim)
            built: Segmenter = DeOP(clip, proposals, prompt, network, queries=case.queries)
        else:
            kind, settings = {
                "SimBaseline": (SimBaseline, SimBaselineSettings),
                "ZegFormer": (ZegFormer, ZegFormerSettings),
            }[case.system]
            templates = {"proposal_templates": TEMPLATES, "crop_templates": TEMPLATES}
            built = kind(clip, proposals, settings(**templates), seen_names=class_names(case.classes)[::2])
        return prepare(built, self._device, runtime=case.runtime, precision=case.precision)

    def _proposal_network(self, case: Case, *, prepared: bool = True) -> DrawnMasks:
        """The network of ``case.queries`` queries with the case's masks, by default ``prepared`` as in
        :mod:`deop.methods.inference`."""
        if case.queries not in self._proposals:
            architecture = self._settings.proposals.architecture | {"queries": case.queries}
            network = DrawnMasks(pretrained_backbone=False, **architecture).eval().to(self._device)
            self._proposals[case.queries] = (network, with_folded_norms(network))
        plain, folded = self._proposals[case.queries]
        network = copy.copy(folded if prepared else plain)
        stride = plain.backbone.feature_info.reduction()[0]
        height, width = (-(-side // stride) for side in case.image)
        network.drawn = discs(case.shown, (case.queries, height, width)).to(self._device)
        return network


def bare_tower(model: str, size: tuple[int, int]) -> nn.Module:
    """open_clip's own image tower, built for images of that size."""
    return open_clip.create_model(model, force_image_size=size).visual.eval()
