"""The interface that every method implements: images and class names in, class scores or labels of every pixel out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deop.models.row_strips import resized_strips, rows_within_budget
from deop.models.weight_files import learned_state
from deop.utils.timing import part

if TYPE_CHECKING:
    from torch.utils.data import Dataset

    from deop.data.transforms import TrainingBatches
    from deop.methods.builder import Builder
    from deop.settings.schedule import Schedule

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class PixelOutput(NamedTuple):
    """What a per-pixel method gives for a batch.

    scores: (B, C, h, w) class scores over the image, higher is likelier, at any resolution.
    passes: (B,) int64, how many pictures of each image CLIP was shown.
    """

    scores: Tensor
    passes: Tensor


def shares(scores: Tensor, dim: int) -> Tensor:
    """Scores divided by their sum over ``dim``, negative ones as 0; 0 where none is above 0."""
    scores = scores.clamp(min=0)
    return scores / scores.sum(dim, keepdim=True).clamp(min=torch.finfo(scores.dtype).tiny)


class Segmenter(nn.Module, ABC):
    """A method with its networks. Classes are always names: no method knows a dataset.

    A training-free method defines :meth:`build` and :meth:`forward`. If that returns something else than a
    :class:`PixelOutput`, it also defines :meth:`combine`. A trained method defines :meth:`losses` and
    :meth:`denominators`, too.

    Attributes:
        compiled_methods: names of the methods that do most of the work, of tensors alone: what torch.compile and other
            runtimes make anew (:mod:`deop.methods.inference`).
        gradient_checkpointing: in training, compute blocks of CLIP again for the gradient instead of keeping what is in
            them, where gradients flow through CLIP.
        scores_are_logits: of a per-pixel method, whether the softmax of its scores are class probabilities. If not,
            they are the scores' shares of their sum, negative ones counted as 0.
        size_divisibility: images are padded to multiples of this many pixels (:meth:`padded`).
        upsample: what a method with mask proposals resizes to the size of a label map, the ``"masks"`` or class
            ``"scores"``.
    """

    compiled_methods: tuple[str, ...] = ()
    gradient_checkpointing: bool = False
    scores_are_logits: bool = True
    size_divisibility: int = 1
    upsample: Literal["masks", "scores"] = "masks"

    @classmethod
    @abstractmethod
    def build(cls, builder: Builder) -> Self:
        """The method with its networks, which the builder makes from the settings of a system."""

    @abstractmethod
    def forward(self, images: Tensor, names: list[str]) -> Any:
        """What the networks give for images (B, 3, H, W) in [0, 1] and C class names.

        A :class:`PixelOutput`, or whatever :meth:`combine` takes. It has ``passes``, as there.
        """

    def encode_images(self, images: Tensor) -> Any:
        """What :meth:`score` needs of images (B, 3, H, W) in [0, 1] and that does not depend on the class names.

        By default the images themselves: a method that can see them before it knows the names defines both.
        """
        return images

    def score(self, encoded: Any, names: list[str]) -> Any:
        """What :meth:`forward` gives, from what :meth:`encode_images` returned and C class names."""
        return self(encoded, names)

    def combine(self, output: Any, size: tuple[int, int]) -> Tensor:
        """Per-pixel class scores (B, C, H, W) at ``size`` (H, W), from what :meth:`forward` returned.

        Gigabytes for many classes and pixels; where labels are wanted, :meth:`label_map` does without them.
        """
        return F.interpolate(output.scores.float(), size, mode="bilinear", align_corners=False)

    def label_map(self, output: Any, size: tuple[int, int]) -> Tensor:
        """The class with the highest score at every pixel, (B, H, W) int64: the argmax of :meth:`combine`.

        Upsampled in row strips to bound memory.
        """
        with part("scoring"):
            scores = output.scores.float()
            rows = rows_within_budget(len(scores) * scores.shape[1] * max(size[1], scores.shape[3]))
            return torch.cat([strip.argmax(1) for strip in resized_strips(scores, size, rows)], dim=1)

    def embed(self, names: list[str]) -> None:
        """Embeds class names ahead of the first image that is compared with them, if they are kept at all."""

    # Training.

    def losses(self, images: Tensor, labels: Tensor, names: list[str], **more: Tensor) -> dict[str, Tensor]:
        """Named scalar losses, of which training minimises the sum.

        Args:
            images: (B, 3, H, W) RGB in [0, 1].
            labels: (B, H, W) int64 indices into ``names``; of :mod:`deop.data.segmentation`, ``IGNORE`` where a pixel
                has no class and ``HIDDEN`` where it has an unseen one.
            more: what else :meth:`training_batches` puts into a batch, by name.
        """
        raise NotImplementedError(f"{type(self).__name__} is not trained")

    def training_batches(self, batches: TrainingBatches) -> Dataset:
        """What training reads, by step number: ``batches`` of images and label maps, or these with more in them."""
        return batches

    def denominators(self, labels: Tensor) -> dict[str, Tensor]:
        """By name of a loss, how many of what it is a mean over are in ``labels`` (as :meth:`losses` takes them).

        Training divides a batch into parts and puts their losses together by these numbers (scalars), so that the
        result does not depend on the division. A loss that is not named has to be a mean over images; one that compares
        images with one another depends on the division all the same.
        """
        return {}

    def supervised(self, images: Tensor, names: list[str]) -> list[Tensor]:
        """The raw outputs that the losses supervise, for images (B, 3, H, W); measurements of a step use them."""
        output = self(images, names)
        return [value for value in output if value.requires_grad]

    def start_round(self, name: str) -> None:
        """Prepares a round of training, one of the settings' ``rounds``: which parameters learn in it."""

    def lr_factors(self, schedule: Schedule) -> dict[str, float]:
        """Factors of the learning rate, by how the names of parameters start; 1 for all others."""
        return {}

    def trained_state(self) -> dict[str, Tensor]:
        """The tensors that training changes: learned parameters, and the buffers of modules that have any."""
        return learned_state(self)

    # Inference.

    def probabilities(self, scores: Tensor, dim: int = 1) -> Tensor:
        """Class probabilities from the scores of a :class:`PixelOutput`, in float32; ``dim`` is that of the classes."""
        return scores.float().softmax(dim) if self.scores_are_logits else shares(scores.float(), dim)

    @torch.inference_mode()
    def segment(self, images: Tensor, names: list[str], size: tuple[int, int] | None = None) -> Tensor:
        """Per-pixel class scores (B, C, H, W), higher is likelier; ``size`` (H, W) is that of the images by default.

        Args:
            images: (B, 3, H, W) RGB in [0, 1], any size.
        """
        return self.combine(self(images, names), size or tuple(images.shape[-2:]))

    @torch.inference_mode()
    def label(self, images: Tensor, names: list[str], size: tuple[int, int] | None = None) -> Tensor:
        """The class with the highest score of :meth:`segment`, (B, H, W) int64, without holding all scores."""
        return self.label_map(self(images, names), size or tuple(images.shape[-2:]))

    def padded(self, images: Tensor, colour: tuple[float, ...]) -> Tensor:
        """Images (B, 3, H, W) with ``colour`` on the right and at the bottom, to multiples of ``size_divisibility``.

        The mean that images are normalised with, as colour, is zero after normalisation, with which detectron2 pads.
        """
        height, width = images.shape[-2:]
        size = self._padded_size((height, width))
        if size == (height, width):
            return images
        padded = images.new_tensor(colour).view(3, 1, 1).repeat(len(images), 1, *size)
        padded[..., :height, :width] = images
        return padded

    def _padded_size(self, size: tuple[int, int]) -> tuple[int, int]:
        height, width = (-(-side // self.size_divisibility) * self.size_divisibility for side in size)
        return height, width


def normalise(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Images (B, 3, H, W) in [0, 1], shifted and scaled per channel."""
    return (images - images.new_tensor(mean).view(3, 1, 1)) / images.new_tensor(std).view(3, 1, 1)


def to_multiple(images: Tensor, patch: int) -> Tensor:
    """Images resized (bilinear) so that both sides are the nearest multiple of ``patch`` pixels."""
    size = [nearest_multiple(side, patch) for side in images.shape[-2:]]
    if list(images.shape[-2:]) == size:
        return images
    return F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)


def nearest_multiple(side: int, of: int) -> int:
    """``max(1, round(side / of)) * of`` in whole numbers, which torch.export can follow."""
    times, rest = side // of, side % of
    if 2 * rest > of or (2 * rest == of and times % 2):
        times += 1
    return max(times, 1) * of
