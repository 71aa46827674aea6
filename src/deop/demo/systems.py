"""A system on the page: what it says of a picture, how severance changes that, and why a pixel got its class."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from deop.api.result import Segmentation
from deop.api.segmenter import Encoded, OpenVocabularySegmenter
from deop.demo.deadline import check, seconds_left, watched
from deop.demo.limits import Refused
from deop.demo.store import Store
from deop.methods.base import PixelOutput, normalise, to_multiple
from deop.methods.deop import DeOP
from deop.models.clip import DenseCLIP
from deop.models.severance import Severance

BEST = 5
_ENCODINGS = 8
_MOST_PATCHES = 1024
"""Patches of a picture whose attention is shown: all pairs of them are compared, in every head."""


class Region(NamedTuple):
    """Why a pixel has its class.

    label: the name of the class.
    best: names and scores in [0, 1] of the likeliest classes, of the proposal where there is one, of the pixel
        otherwise.
    proposal: (h, w) in [0, 1], the mask that weighs most for this class at the pixel; None of systems without.
    heatmap: (h, w), what the anchor of that proposal pools features with (section 4.2), largest value 1; None of
        systems without anchors.
    """

    label: str
    best: list[tuple[str, float]]
    proposal: np.ndarray | None
    heatmap: np.ndarray | None


class ShownSystem:
    """A segmenter that requests share, one at a time; with the last few encodings of pictures.

    Args:
        name: what it is called on the page.
        segmenter: the system. Its severance is changed for a request and put back after it.

    Attributes:
        layers: the layers whose alpha the slider sets: those that the system severs, or the last; none where its
            severance has no alpha, or it has none.
        alpha: the system's own.
    """

    def __init__(self, name: str, segmenter: OpenVocabularySegmenter) -> None:
        self.name, self.segmenter = name, segmenter
        self._lock = threading.RLock()
        self._encodings: Store[Encoded] = Store(_ENCODINGS)
        severance = getattr(segmenter.network, "severance", None)
        self._own = (
            severance if isinstance(severance, Severance) and severance.kind in ("none", "gps") else None
        )
        alphas = dict(self._own.alpha) if self._own else {}
        self.alpha = max(alphas.values(), default=0.0)
        shares = {layer: value / self.alpha for layer, value in alphas.items() if value}
        self._shares = (shares or {-1: 1.0}) if self._own else {}
        self.layers = tuple(self._shares)
        watched(segmenter.network)

    @property
    def kind(self) -> str:
        """In a few words, what the system is."""
        settings = self.segmenter.settings
        method = settings.sections["method"]["method"]
        if method == "training_free":
            return "CLIP without training"
        name = {"deop": "DeOP"}.get(method, method)
        return f"{name}, trained with {len(settings.seen_names)} classes" if settings.seen_names else name

    def segment(self, token: str, picture: np.ndarray, names: list[str], alpha: float | None) -> Segmentation:
        """The picture (H, W, 3) uint8 in these classes. ``token`` tells pictures apart; alpha None is the own one.

        Raises:
            Refused: the deadline of this thread has passed.
        """
        with self._alone():
            result = self.segmenter(self._encoded(token, picture, alpha), names)
        check()
        return result

    def region(
        self,
        token: str,
        picture: np.ndarray,
        names: list[str],
        alpha: float | None,
        point: tuple[float, float],
    ) -> Region:
        """Why the pixel at ``point`` (y, x), fractions of the sides, has its class; the rest as :meth:`segment`."""
        with self._alone(), torch.inference_mode():
            encoded = self._encoded(token, picture, alpha)
            result = self.segmenter(encoded, names)
            label = int(result.labels[_cell(result.labels.shape, point)])
            output = self.segmenter.output(encoded, names)
            if isinstance(output, PixelOutput):
                found = self.segmenter.network.probabilities(_at(output.scores, point), 0)
                return Region(names[label], _best(found, names), None, None)
            scores = self.segmenter.network.class_scores(output).of_proposals[0].float()
            here = _at(output.mask_logits, point).sigmoid()
            proposal = int((here * scores[:, label]).argmax())
            heatmap = None
            if isinstance(self.segmenter.network, DeOP) and self.segmenter.network.anchors is not None:
                heatmap = output.heatmaps[0, proposal].float().mean(0)
                heatmap = (heatmap / heatmap.max().clamp(min=1e-12)).cpu().numpy()
            mask = output.mask_logits[0, proposal].float().sigmoid().cpu().numpy()
            return Region(names[label], _best(scores[proposal], names), mask, heatmap)

    def attention(
        self, picture: np.ndarray, alpha: float | None, point: tuple[float, float]
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """What the patch at ``point`` attends to in CLIP's last layer: (h, w) weights before and after severance.

        Before is plain CLIP: softmax attention, averaged over heads, to patches alone, divided by its sum. After is the
        attention of Eq. 2, alpha * E + (1 - alpha) * Attn. None of systems whose severance has no alpha.
        """
        clip = getattr(self.segmenter.network, "clip", None)
        if self._own is None or not isinstance(clip, DenseCLIP):
            return None
        with self._alone(), torch.inference_mode():
            inputs = normalise(_small(picture, self._side, clip), clip.mean, clip.std)
            grid = [side // clip.patch_size for side in inputs.shape[-2:]]
            row, column = _cell((grid[0], grid[1]), point)
            index = row * grid[1] + column
            attended = clip.patch_attention(inputs.to(self.segmenter.device))[0].float().mean(0)
            before = attended[clip.prefix + index, clip.prefix :]
            before = before / before.sum()
            last = self._alphas(alpha).get(-1, self._alphas(alpha).get(clip.layers - 1, 0.0))
            after = (1 - last) * before
            after[index] += last
            return tuple(weights.reshape(grid).cpu().numpy() for weights in (before, after))

    @property
    def _side(self) -> int:
        return self.segmenter.settings.inference.short_side

    def _alphas(self, alpha: float | None) -> dict[int, float]:
        """The alpha of each layer, in the proportions that the system has."""
        value = self.alpha if alpha is None else alpha
        return {layer: share * value for layer, share in self._shares.items()}

    def _encoded(self, token: str, picture: np.ndarray, alpha: float | None) -> Encoded:
        used = round(self.alpha if alpha is None or self._own is None else alpha, 3)
        encoded = self._encodings.get((token, used))
        if encoded is None:
            with self._severed(used):
                encoded = self.segmenter.encode(picture)
            self._encodings.put((token, used), encoded)
        return encoded

    @contextmanager
    def _severed(self, alpha: float) -> Iterator[None]:
        if self._own is None:
            yield
            return
        network: Any = self.segmenter.network
        try:
            network.severance = replace(self._own, kind="gps", alpha=self._alphas(alpha))
            yield
        finally:
            network.severance = self._own

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Computes while no other request does; waits for that until the deadline at most."""
        left = seconds_left()
        if not self._lock.acquire(timeout=-1 if left == float("inf") else max(left, 0)):
            raise Refused("Many people are using this page right now. Please try again in a moment.")
        try:
            yield
        finally:
            self._lock.release()


def _cell(size: tuple[int, ...], point: tuple[float, float]) -> tuple[int, int]:
    """The row and column at ``point`` (y, x), fractions in [0, 1], of a grid of ``size``."""
    row, column = (min(int(part * side), side - 1) for part, side in zip(point, size, strict=True))
    return max(row, 0), max(column, 0)


def _at(maps: Tensor, point: tuple[float, float]) -> Tensor:
    """Maps (1, C, h, w) at ``point`` (y, x), fractions in [0, 1], as label maps interpolate them: (C,) float32."""
    y, x = point
    where = torch.tensor([[[[2 * x - 1, 2 * y - 1]]]], device=maps.device)
    return F.grid_sample(maps[:1].float(), where, padding_mode="border", align_corners=False)[0, :, 0, 0]


def _best(scores: Tensor, names: list[str]) -> list[tuple[str, float]]:
    values, indices = scores.topk(min(BEST, len(names)))
    return [(names[index], value) for index, value in zip(indices.tolist(), values.tolist(), strict=True)]


def _small(picture: np.ndarray, short_side: int, clip: DenseCLIP) -> Tensor:
    """The picture (1, 3, h, w) in [0, 1] as CLIP is shown it, of no more patches than are compared with each other."""
    height, width = picture.shape[:2]
    patch = clip.patch_size
    scale = min(short_side / min(height, width), patch * (_MOST_PATCHES / (height * width)) ** 0.5)
    size = [max(patch, round(side * scale)) for side in (height, width)]
    pixels = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None].float() / 255
    return to_multiple(
        F.interpolate(pixels, size, mode="bilinear", align_corners=False, antialias=True), patch
    )
