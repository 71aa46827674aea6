"""Mask proposals that are not trained here: superpixels, and the masks of MaskFormer, Mask2Former and SAM."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub import constants
from PIL import Image
from torch import Tensor

from deop.errors import DeopError, WeightsError
from deop.models.pretrained import hub_cache, reason_of

Proposer = Callable[[Tensor], Tensor]
"""Mask logits (B, N, h, w) of images (B, 3, H, W) in [0, 1], at any resolution, over the whole image."""

_INSIDE = 20.0
"""Logit of a mask that is certain."""
_SLIC_SIDE = 256
"""Superpixels are computed at this short side at most, in pixels, which is finer than CLIP's patches by far."""
_WITH_QUERIES = {"maskformer", "mask2former"}
_WITH_POINTS = {"sam"}


def make_proposer(name: str, *, superpixels: int) -> Proposer | None:
    """The proposals that ``name`` means: ``none``, ``slic``, or a checkpoint of transformers by hub name or folder.

    Raises:
        DeopError: scikit-image is needed and not installed.
        WeightsError: a checkpoint that cannot be had, or is no MaskFormer, Mask2Former or SAM.
    """
    if name == "none":
        return None
    return Superpixels(superpixels) if name == "slic" else transformers_proposals(name)


class Superpixels:
    """SLIC superpixels as masks, each pixel in exactly one.

    Args:
        count: about how many; images differ, and masks that an image lacks are empty.

    Raises:
        DeopError: scikit-image is not installed.
    """

    def __init__(self, count: int) -> None:
        try:
            from skimage.segmentation import slic
        except ModuleNotFoundError:
            raise DeopError(
                "proposals 'slic' need scikit-image: pip install scikit-image; or use proposals 'none'"
            ) from None
        self._slic, self.count = slic, count

    def __call__(self, images: Tensor) -> Tensor:
        """Mask logits (B, N, h, w), N the largest number of superpixels of an image."""
        scale = min(1.0, _SLIC_SIDE / min(images.shape[-2:]))
        size = [max(1, round(side * scale)) for side in images.shape[-2:]]
        small = F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)
        maps = [
            torch.from_numpy(
                self._slic(
                    image.permute(1, 2, 0).double().cpu().numpy(), n_segments=self.count, start_label=0
                )
            )
            for image in small
        ]
        most = max(int(labels.max()) for labels in maps) + 1
        masks = torch.stack([F.one_hot(labels.long(), most).permute(2, 0, 1) for labels in maps])
        return (2 * masks.float() - 1).mul_(_INSIDE).to(images.device)


def transformers_proposals(name: str) -> Proposer:
    """The masks of a model of transformers.

    Args:
        name: a name on the Hugging Face hub, or a folder that ``save_pretrained`` wrote.

    Raises:
        WeightsError: a checkpoint that cannot be had, or is of another kind.
    """
    from transformers import AutoConfig, AutoImageProcessor, AutoModelForUniversalSegmentation, pipeline

    try:
        kind = AutoConfig.from_pretrained(name).model_type
        if kind in _WITH_QUERIES:
            processor = AutoImageProcessor.from_pretrained(name)
            return QueryMasks(AutoModelForUniversalSegmentation.from_pretrained(name), processor)
        if kind in _WITH_POINTS:
            return PointMasks(pipeline("mask-generation", model=name, device="cpu"))
    except (
        Exception
    ) as error:  # of the hub's client, of the file system, of transformers: all end the same way
        raise WeightsError(
            f"proposals {name!r} could not be loaded from {constants.ENDPOINT}/{name} ({reason_of(error)}); they "
            f"would be kept in {hub_cache()}. Run 'hf download {name}' on a machine that may and copy that folder "
            "of its cache here, or name a folder with config.json, preprocessor_config.json and model.safetensors; "
            "'none' and 'slic' need no download"
        ) from error
    raise WeightsError(
        f"proposals {name!r}: a model of type {kind!r}; valid: none, slic, or a "
        f"{', '.join(sorted(_WITH_QUERIES | _WITH_POINTS))}"
    )


class QueryMasks:
    """The masks of a MaskFormer or Mask2Former, one for each query; its classes are ignored.

    Args:
        model: of transformers, for universal segmentation.
        processor: its image processor, which knows the mean and standard deviation of its inputs.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        self._model = model.eval().requires_grad_(False)
        statistics = processor.image_mean, processor.image_std
        self._mean, self._std = (torch.tensor(list(values)).view(3, 1, 1) for values in statistics)

    def __call__(self, images: Tensor) -> Tensor:
        """Mask logits (B, N, h, w) of images (B, 3, H, W) in [0, 1], which are resized to multiples of 32 pixels."""
        self._model.to(images.device)
        size = [max(1, round(side / 32)) * 32 for side in images.shape[-2:]]
        inputs = F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)
        inputs = (inputs - self._mean.to(inputs)) / self._std.to(inputs)
        whole = torch.ones((len(inputs), *size), dtype=torch.long, device=inputs.device)
        return self._model(pixel_values=inputs, pixel_mask=whole).masks_queries_logits.float()


class PointMasks:
    """The masks that a SAM finds from a grid of points, and what none of them covers as one more.

    Args:
        generator: transformers' pipeline for mask generation.
    """

    def __init__(self, generator: Any) -> None:
        self._generator = generator

    def __call__(self, images: Tensor) -> Tensor:
        """Mask logits (B, N, H, W) of images (B, 3, H, W) in [0, 1]; masks that an image lacks are empty."""
        self._generator.model.to(images.device)
        self._generator.device = images.device
        found = [self._masks(image).to(images.device) for image in images]
        masks = torch.nn.utils.rnn.pad_sequence(found, batch_first=True)
        return (2 * masks.float() - 1).mul_(_INSIDE)

    def _masks(self, image: Tensor) -> Tensor:
        pixels = (image * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
        masks = [torch.as_tensor(mask) for mask in self._generator(Image.fromarray(pixels))["masks"]]
        covered = torch.stack(masks).any(0) if masks else torch.zeros(image.shape[-2:], dtype=torch.bool)
        return torch.stack([*masks, ~covered])
