"""How a network is trained on augmented images."""

from __future__ import annotations

from deop.settings.base import AboveZero, Fraction, NotNegative, Positive, Settings, Whole


class Augmentation(Settings):
    """Training augmentation: short side drawn from ``scale`` times ``crop``, random crop, flip, colour jitter.

    ``flip`` and ``colour_jitter`` are the shares of images that are flipped and jittered.
    """

    crop: Positive
    scale: tuple[AboveZero, AboveZero] = (0.5, 1.5)
    flip: Fraction = 0.5
    colour_jitter: Fraction = 1.0


class Schedule(Settings):
    """AdamW with a polynomial learning rate schedule, the same for every method.

    Norms and embeddings have no weight decay; ``decay_biases`` gives it to biases, as MaskFormer's code does.
    ``skip_not_finite`` is how many steps with a loss that is not finite are left out, before one ends the training.
    """

    iterations: Whole
    batch_size: Positive = 32
    lr: NotNegative = 2e-4
    weight_decay: NotNegative = 1e-4
    decay_biases: bool = False
    clip_grad_norm: NotNegative = 0.01
    warmup: Whole = 0
    skip_not_finite: Whole = 0
    augmentation: Augmentation
