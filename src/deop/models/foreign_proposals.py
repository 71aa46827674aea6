"""Mask proposals that are not trained here: superpixels, and MaskFormers and Mask2Formers of transformers."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from huggingface_hub import constants
from torch import Tensor

from deop.errors import DeopError, WeightsError
from deop.models.pretrained import hub_cache, reason_of

Proposer = Callable[[Tensor], Tensor]
"""Mask logits (B, N, h, w) of images (B, 3, H, W) in [0, 1], at any resolution, over the whole image."""

_INSIDE = 20.0
"""Logit of a mask that is certain."""
_SLIC_SIDE = 256
"""Superpixels are computed at this short side at most, in pixels, which is finer than CLIP's patches by far."""
_KINDS = {"maskformer", "mask2former"}


def make_proposer(name: str, *, superpixels: int) -> Proposer | None:
    """The proposals that ``name`` means: ``none``, ``slic``, or a checkpoint of transformers by hub name or folder.

    Raises:
        DeopError: scikit-image is needed and not installed.
        WeightsError: a checkpoint that cannot be had, or is neither a MaskFormer nor a Mask2Former.
    """
    if name == "none":
        return None
    return Superpixels(superpixels) if name == "slic" else TransformersProposals(name)


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


class TransformersProposals:
    """The masks of a MaskFormer or Mask2Former of transformers; its classes are ignored.

    Args:
        name: a name on the Hugging Face hub, or a folder that ``save_pretrained`` wrote.

    Raises:
        WeightsError: a checkpoint that cannot be had, or is of another kind.
    """

    def __init__(self, name: str) -> None:
        from transformers import AutoConfig, AutoImageProcessor, AutoModelForUniversalSegmentation

        try:
            kind = AutoConfig.from_pretrained(name).model_type
            if kind in _KINDS:
                processor = AutoImageProcessor.from_pretrained(name)
                self._model = AutoModelForUniversalSegmentation.from_pretrained(name)
        except (
            Exception
        ) as error:  # of the hub's client, of the file system, of transformers: all end the same way
            raise WeightsError(
                f"proposals {name!r} could not be loaded from {constants.ENDPOINT}/{name} ({reason_of(error)}); they "
                f"would be kept in {hub_cache()}. Run 'hf download {name}' on a machine that may and copy that folder "
                "of its cache here, or name a folder with config.json, preprocessor_config.json and model.safetensors; "
                "'none' and 'slic' need no download"
            ) from error
        if kind not in _KINDS:
            raise WeightsError(
                f"proposals {name!r}: a model of type {kind!r}; valid: none, slic, or a {' or '.join(sorted(_KINDS))}"
            )
        self._model.eval().requires_grad_(False)
        self._mean, self._std = (torch.tensor(values).view(3, 1, 1) for values in _statistics(processor))

    def __call__(self, images: Tensor) -> Tensor:
        """Mask logits (B, N, h, w) of images (B, 3, H, W) in [0, 1], which are resized to multiples of 32 pixels."""
        self._model.to(images.device)
        size = [max(1, round(side / 32)) * 32 for side in images.shape[-2:]]
        inputs = F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)
        inputs = (inputs - self._mean.to(inputs)) / self._std.to(inputs)
        whole = torch.ones((len(inputs), *size), dtype=torch.long, device=inputs.device)
        return self._model(pixel_values=inputs, pixel_mask=whole).masks_queries_logits.float()


def _statistics(processor: object) -> tuple[list[float], list[float]]:
    return list(processor.image_mean), list(processor.image_std)
