"""How a network is trained on augmented images."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from deop.settings.base import Fraction, Positive, Settings


class Augmentation(Settings):
    """Training augmentation: short side drawn from ``scale`` times ``crop``, random crop, flip, colour jitter.

    ``flip`` and ``colour_jitter`` are the shares of images that are flipped and jittered.
    """

    crop: Positive
    scale: tuple[float, float] = (0.5, 1.5)
    flip: Fraction = 0.5
    colour_jitter: Fraction = 1.0


class Schedule(Settings):
    """AdamW with a polynomial learning rate schedule, the same for every method.

    Norms and embeddings have no weight decay; ``decay_biases`` gives it to biases, as MaskFormer's code does.
    """

    iterations: Annotated[int, Field(ge=0)]
    batch_size: Positive = 32
    lr: float = 2e-4
    weight_decay: float = 1e-4
    decay_biases: bool = False
    clip_grad_norm: float = 0.01
    warmup: int = 0
    augmentation: Augmentation
