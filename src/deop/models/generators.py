"""Pixel features generated from class embeddings, and how they are compared with real ones (ZS3Net, CaGNet)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

ZS3_BANDWIDTHS = (2.0, 5.0, 10.0, 20.0, 40.0, 80.0)
CAGNET_BANDWIDTHS = (2.0, 5.0, 10.0, 20.0, 40.0, 60.0)


def mmd(generated: Tensor, real: Tensor, bandwidths: Sequence[float]) -> Tensor:
    """Maximum mean discrepancy (...,) of sets of features (..., m, D) and (..., n, D): GMMN's loss.

    The square root of the sum over bandwidths b of ``mean k(g, g') + mean k(r, r') - 2 mean k(g, r)`` with
    ``k(x, y) = exp(-|x - y|^2 / 2b)``; pairs of a feature with itself count. In float, the sum may come out slightly
    negative: it is then 0, and so is its gradient.
    """
    with torch.autocast(generated.device.type, enabled=False):
        generated, real = generated.float(), real.float()
        means = {
            pair: sum((-_squared_distances(*sets) / (2 * b)).exp().mean((-2, -1)) for b in bandwidths)
            for pair, sets in {
                "gg": (generated, generated),
                "rr": (real, real),
                "gr": (generated, real),
            }.items()
        }
        total = means["gg"] + means["rr"] - 2 * means["gr"]
        positive = total > 1e-8
        return torch.where(positive, total, 1.0).sqrt() * positive


def _squared_distances(one: Tensor, other: Tensor) -> Tensor:
    products = one @ other.transpose(-2, -1)
    squares = one.square().sum(-1)[..., :, None] + other.square().sum(-1)[..., None, :]
    return (squares - 2 * products).clamp(min=0)


class Generator(nn.Module):
    """Features (..., D) from class embeddings and noise, through layers with LeakyReLU (0.2) and dropout.

    Args:
        widths: of the input (embedding and noise), the hidden layers and the output.
        dropout: after each hidden layer.
        sigmoid: end with a sigmoid.
    """

    def __init__(
        self, widths: Sequence[int], dropout: Sequence[float], *, sigmoid: bool, embedding: int
    ) -> None:
        super().__init__()
        self.noise = widths[0] - embedding
        layers: list[nn.Module] = []
        for index, (before, after) in enumerate(pairwise(widths)):
            layer = nn.Linear(before, after)
            nn.init.xavier_uniform_(layer.weight)
            nn.init.constant_(layer.bias, 0.01)
            layers.append(layer)
            if index < len(widths) - 2:
                layers += [nn.LeakyReLU(0.2), nn.Dropout(dropout[index])]
        if sigmoid:
            layers.append(nn.Sigmoid())
        self.layers = nn.Sequential(*layers)

    def forward(self, embeddings: Tensor, noise: Tensor) -> Tensor:
        return self.layers(torch.cat([embeddings, noise], dim=-1))


def class_sets(labels: Tensor) -> Tensor:
    """The number of sets that :func:`class_positions` draws from labels (B, h, w): classes of each image, in all."""
    return torch.stack([(image[image >= 0].unique() >= 0).sum() for image in labels]).sum()


def class_positions(labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Random positions of every class in every image, drawn with replacement.

    Args:
        labels: (B, h, w) class indices; negative where there is none.
        count: m, positions of each class.

    Returns:
        (S, m) indices into the pixels of the batch (B * h * w) and the classes (S,) of the S sets.
    """
    pixels = labels[0].numel()
    positions, classes = [], []
    for image, flat in enumerate(labels.flatten(1)):
        for label in flat[flat >= 0].unique():
            of_class = (flat == label).nonzero()[:, 0]
            drawn = torch.randint(len(of_class), (count,), device=labels.device)
            positions.append(image * pixels + of_class[drawn])
            classes.append(label)
    if not classes:
        return labels.new_zeros((0, count)), labels.new_zeros(0)
    return torch.stack(positions), torch.stack(classes)
