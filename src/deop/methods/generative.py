"""Systems that classify unseen classes by generated pixel features: what ZS3Net and CaGNet share."""

from __future__ import annotations

from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deop.methods.dense import DenseSegmenter
from deop.settings.per_pixel import GenerativeSettings

FIT_LR = 0.01


class GenerativeSegmenter(DenseSegmenter):
    """A linear classifier of the classes that were trained on, by name, and one fitted to any other vocabulary.

    The classifier of a vocabulary that has other names is fitted to generated features alone, of all its classes.

    Attributes:
        classifier: one row for each of ``class_names``.
    """

    settings: GenerativeSettings
    classifier: nn.Linear

    @abstractmethod
    def generate(self, embeddings: Tensor) -> Tensor:
        """What the classifier takes, (..., width), generated for class embeddings (..., D)."""

    def rows(self, names: list[str]) -> tuple[Tensor, Tensor]:
        """Weight (C, width) and bias (C,) of the classifier of C names."""
        index = {name: row for row, name in enumerate(self.class_names)}
        if all(name in index for name in names):
            chosen = torch.tensor([index[name] for name in names], device=self.classifier.weight.device)
            return self.classifier.weight[chosen], self.classifier.bias[chosen]
        key = (*names, self.classifier.weight.device)
        if self._fitted[0] != key:
            self._fitted = (key, self._fit(names))
        return self._fitted[1]

    _fitted: tuple[tuple, tuple[Tensor, Tensor]] = ((), (torch.empty(0), torch.empty(0)))

    def embed(self, names: list[str]) -> None:
        super().embed(names)
        self.rows(names)

    def train(self, mode: bool = True) -> GenerativeSegmenter:
        self._fitted = ((), self._fitted[1])
        return super().train(mode)

    def _fit(self, names: list[str]) -> tuple[Tensor, Tensor]:
        """Weight and bias fitted to generated features; the same whenever it is called."""
        device, settings = self.classifier.weight.device, self.settings
        devices = [device] if device.type == "cuda" else []
        with (
            torch.random.fork_rng(devices=devices),
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast(device.type, enabled=False),
        ):
            torch.manual_seed(0)
            labels = torch.arange(len(names), device=device).repeat(settings.fit_samples)
            embeddings = self.embeddings(names)[labels]
            layer = nn.Linear(self.classifier.in_features, len(names)).to(device)
            optimizer = torch.optim.Adam(layer.parameters(), lr=FIT_LR)
            for _ in range(settings.fit_steps):
                with torch.no_grad():
                    features = self.generate(embeddings)
                loss = F.cross_entropy(layer(features), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            return layer.weight.detach(), layer.bias.detach()

    def indices(self, names: list[str]) -> Tensor:
        """The places of names among ``class_names``, (C,) int64, on the CPU."""
        return torch.tensor([self.class_names.index(name) for name in names], dtype=torch.int64)

    @property
    def unseen(self) -> Tensor:
        """The places of unseen classes among ``class_names``, on the CPU."""
        return self.indices([name for name in self.class_names if name not in self.seen_names])


def at_pixels(scores: Tensor, like: Tensor) -> Tensor:
    """Scores (B * h * w, C) of pixels in order as maps (B, C, h, w), ``like`` features (B, _, h, w)."""
    batch, _, height, width = like.shape
    return scores.view(batch, height, width, -1).permute(0, 3, 1, 2)


def as_pixels(features: Tensor) -> Tensor:
    """Features (B, D, h, w) as (B * h * w, D)."""
    return features.permute(0, 2, 3, 1).flatten(0, 2)
