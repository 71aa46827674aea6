"""Small per-pixel systems with random weights, and what they are asked."""

from __future__ import annotations

import torch

from deop.models.backbones import timm_features
from deop.settings.methods import METHODS, method_class

SEEN = ("dog", "grass")
NAMES = ("dog", "cow", "grass")
SMALL = {
    "spnet": {},
    "lseg": {},
    "zs3net": {"hidden": 16, "positions": 6, "fit_steps": 3},
    "cagnet": {
        "context_width": 8,
        "generator_hidden": (12,),
        "generator_dropout": (0.1,),
        "classifier_hidden": 10,
        "positions": 6,
        "fit_steps": 3,
    },
    "openseg": {"queries": 5, "heads": 2},
}


def small(name: str, clip, names=NAMES, **settings):
    """A system of 8 channels, trained on dog and grass out of dog, cow and grass, or out of other ``names``."""
    torch.manual_seed(0)
    values = {"width": 8, "dilations": (1, 2), **SMALL[name], **settings}
    backbone = timm_features("resnet10t", {"channels": [8, 8, 16, 16], "stem_width": 8}, (1, 2, 3))
    return method_class(name)(
        backbone, METHODS[name](**values), clip=clip, seen_names=SEEN, class_names=names
    )


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Two images and their labels among the seen names: dog on top, then none, grass, and a hidden class."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.full((2, 32, 32), -1)
    labels[:, :10], labels[:, 14:24], labels[1, 26:] = 0, 1, -2
    return torch.rand(2, 3, 32, 32, generator=generator), labels
