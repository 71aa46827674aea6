"""Parameter groups and learning-rate schedules of the stages that train."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import nn

from deop.settings.schedule import Schedule

NORMS = (
    nn.modules.batchnorm._NormBase,  # batch and instance norms of any dimension
    nn.GroupNorm,
    nn.LayerNorm,
)
POSITIONS = ("positional_embedding", "class_embedding", "pos_embed", "cls_token")
"""Parameters of open_clip's and timm's towers that are embeddings, but no ``nn.Embedding``."""


def parameter_groups(
    module: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    lr_factors: Mapping[str, float] | None = None,
    decay_biases: bool = False,
) -> list[dict]:
    """Parameter groups of all trainable parameters: one for each learning rate and weight decay in use.

    Norms and embeddings have no weight decay, as in MaskFormer and the systems built on it (``WEIGHT_DECAY_NORM`` and
    ``WEIGHT_DECAY_EMBED`` are 0 in their configurations). Unlike there, biases have none either.

    timm's ``param_groups_weight_decay`` makes the same groups for one learning rate, given the names of embeddings. It
    has neither learning-rate factors nor decayed biases, which MaskFormer's recipe needs.

    Args:
        lr: learning rate of the parameters that ``lr_factors`` does not name.
        weight_decay: of the parameters that are decayed.
        lr_factors: factor of the learning rate by prefix of parameter names, such as ``{"backbone.": 0.1}``.
        decay_biases: decay the biases of linear layers and convolutions, and all other vectors that belong to no norm,
            as MaskFormer's code does.
    """
    factors = lr_factors or {}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    seen: set[nn.Parameter] = set()
    for path, owner in module.named_modules():
        for own_name, value in owner.named_parameters(recurse=False):
            if not value.requires_grad or value in seen:  # a parameter that two modules share is one
                continue
            seen.add(value)
            name = f"{path}.{own_name}" if path else own_name
            factor = next((factor for prefix, factor in factors.items() if name.startswith(prefix)), 1.0)
            embedding = isinstance(owner, nn.Embedding) or own_name in POSITIONS
            decayed = not (isinstance(owner, NORMS) or embedding) and (decay_biases or value.ndim > 1)
            groups.setdefault((lr * factor, weight_decay if decayed else 0.0), []).append(value)
    return [{"params": values, "lr": rate, "weight_decay": decay} for (rate, decay), values in groups.items()]


def poly(iterations: int, warmup: int = 0, power: float = 0.9) -> Callable[[int], float]:
    """detectron2's ``WarmupPolyLR``: polynomial decay to zero over all steps, times a linear warm-up.

    Returns a function from the step to a factor of the learning rate. transformers' polynomial schedule starts to
    decay at the end of the warm-up.
    """
    return lambda step: min(1.0, (step + 1) / (warmup + 1)) * max(0.0, 1 - step / max(1, iterations)) ** power


def cosine(iterations: int, warmup: int = 0) -> Callable[[int], float]:
    """Linear warm-up, then half a cosine to zero.

    Returns a function from the step to a factor of the learning rate. It is transformers' schedule shifted by one step,
    whose first step has a learning rate of zero and so changes nothing.
    """

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        progress = (step - warmup) / max(1, iterations - warmup)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    return factor


def adamw(
    module: nn.Module, schedule: Schedule, lr_factors: Mapping[str, float] | None = None
) -> torch.optim.AdamW:
    """AdamW over everything that ``module`` learns.

    ``lr_factors`` are factors of the learning rate by how the names of parameters start.
    """
    groups = parameter_groups(
        module,
        lr=schedule.lr,
        weight_decay=schedule.weight_decay,
        lr_factors=lr_factors,
        decay_biases=schedule.decay_biases,
    )
    return torch.optim.AdamW(groups, fused=True)
