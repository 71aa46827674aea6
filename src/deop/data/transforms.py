"""Resizing for CLIP, training augmentation, and batches by step number."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from deop.data.segmentation import IGNORE, Sample, SegmentationDataset
from deop.settings.schedule import Augmentation


def seed_cpu(seed: int) -> None:
    """Seeds torch's generator of the CPU.

    In a process that has not used its GPUs yet, ``torch.manual_seed`` also queues every seed for them, with a
    traceback, which costs time and memory at each call.
    """
    torch.default_generator.manual_seed(seed)


def resize_short_side(images: Tensor, short_side: int) -> Tensor:
    """Images (B, 3, H, W) scaled (bilinear) so that the shorter side is ``short_side`` pixels."""
    scale = short_side / min(images.shape[-2:])
    if scale == 1:
        return images
    size = [round(side * scale) for side in images.shape[-2:]]
    return F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)


class Augment:
    """MaskFormer's and SimBaseline's augmentation, from torchvision's transforms.

    The short side is drawn from ``scale`` times ``crop``, a ``crop`` x ``crop`` window is cut (padded with mean
    colour and ignore where the image is smaller), flipped, and SSD-style colour jitter is applied.
    """

    def __init__(self, settings: Augmentation) -> None:
        self.crop = crop = settings.crop
        fill = {tv_tensors.Image: 127, tv_tensors.Mask: IGNORE}
        self._short_sides = tuple(round(factor * crop) for factor in settings.scale)
        self._transform = v2.Compose(
            [
                v2.RandomCrop(crop, pad_if_needed=True, fill=fill),
                v2.RandomHorizontalFlip(settings.flip),
                v2.RandomApply([v2.RandomPhotometricDistort()], settings.colour_jitter),
            ]
        )

    def __call__(self, sample: Sample) -> Sample:
        """Draws from torch's global random state."""
        low, high = self._short_sides
        sample = _resized(sample, int(torch.randint(low, high + 1, ())))
        image, label = self._transform(tv_tensors.Image(sample.image), tv_tensors.Mask(sample.label))
        return Sample(image.as_subclass(Tensor), label.as_subclass(Tensor))


def _resized(sample: Sample, short_side: int) -> Sample:
    """The sample with a short side of ``short_side`` pixels; each pixel has the label at its centre.

    Nearest-neighbour interpolation in torchvision's transforms takes the label at a pixel's upper left corner instead,
    which moves the label map by half a pixel against the image.
    """
    sides = sample.label.shape
    scale = short_side / min(sides)
    size = [round(side * scale) for side in sides]
    rows, columns = (
        ((torch.arange(new) + 0.5) * old / new).long() for new, old in zip(size, sides, strict=True)
    )
    image = v2.functional.resize(sample.image, size, antialias=True)
    return Sample(image, sample.label[rows][:, columns])


class TrainingBatches(torch.utils.data.Dataset):
    """Augmented batches by step number: each is a pure function of the seed and the step.

    Epochs are permutations of the dataset drawn one after another. With several processes, process ``rank`` of
    ``world`` gets every ``world``-th sample of a step's ``batch_size``.

    Raises:
        ValueError: an empty dataset, or a batch size that does not divide among the processes.
    """

    def __init__(
        self,
        dataset: SegmentationDataset,
        augmentation: Augmentation,
        *,
        batch_size: int,
        steps: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if not len(dataset):
            raise ValueError(f"{dataset.root}: split {dataset.split!r} has no image with a seen class")
        if batch_size % world:
            raise ValueError(f"batch_size {batch_size} does not divide among {world} processes")
        self.dataset, self.augment = dataset, Augment(augmentation)
        self.batch_size, self.steps, self.seed, self.rank, self.world = batch_size, steps, seed, rank, world
        self._orders: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return self.steps

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            # A step may reach into the next epoch, but no step goes back by two.
            self._orders.pop(epoch - 2, None)
            self._orders[epoch] = np.random.default_rng((self.seed, epoch)).permutation(len(self.dataset))
        return self._orders[epoch]

    def _sample_index(self, position: int) -> int:
        epoch, offset = divmod(position, len(self.dataset))
        return int(self._order(epoch)[offset])

    def samples(self, step: int) -> list[int]:
        """The places in the dataset of the samples of a step, in order."""
        return [self._sample_index(position) for position in self.positions(step)]

    def positions(self, step: int) -> range:
        """The places of the samples of a step among those of all steps; processes have different ones."""
        return range(step * self.batch_size + self.rank, (step + 1) * self.batch_size, self.world)

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        """``image`` (B, 3, S, S) uint8 and ``label`` (B, S, S) int16: as small as they can travel to the device."""
        if not 0 <= step < self.steps:
            raise IndexError(step)
        samples = []
        with torch.random.fork_rng(devices=[]):
            for position in self.positions(step):
                seed_cpu(int(np.random.default_rng((self.seed, position)).integers(2**62)))
                samples.append(self.augment(self.dataset[self._sample_index(position)]))
        return {
            "image": torch.stack([sample.image for sample in samples]),
            "label": torch.stack([sample.label for sample in samples]).short(),
        }
