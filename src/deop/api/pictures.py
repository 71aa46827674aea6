"""Pictures in any form as tensors: files, addresses, PIL images, arrays."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import requests
import torch
from PIL import Image
from torch import Tensor

from deop.data.image_files import read_image
from deop.errors import DeopError

MOST_BYTES = 200_000_000
"""Of a picture that is fetched from an address."""
_TIMEOUT = 30


def is_list(pictures: Any) -> bool:
    """Whether ``pictures`` are several, and not one."""
    return isinstance(pictures, (list, tuple)) or (
        isinstance(pictures, (np.ndarray, Tensor)) and pictures.ndim == 4
    )


def read_picture(picture: Any) -> Tensor:
    """A picture (3, H, W) uint8 RGB, upright.

    Examples:
        >>> tuple(read_picture(np.zeros((4, 6), np.uint8)).shape)
        (3, 4, 6)
        >>> read_picture(np.zeros((4, 6, 2), np.uint8))
        Traceback (most recent call last):
        ...
        deop.errors.DeopError: picture: an array of shape (4, 6, 2); valid: (H, W, 3), (H, W, 4) or (H, W)

    Args:
        picture: a path, an ``http(s)://`` address, a PIL image, an array (H, W, 3), (H, W, 4) or (H, W), or a tensor
            (3, H, W). Arrays and tensors are uint8, or floating point numbers in [0, 1].

    Raises:
        DeopError: a picture that is not there, cannot be read, or has another form.
    """
    if isinstance(picture, str) and picture.startswith(("http://", "https://")):
        return _read(io.BytesIO(_fetched(picture)), picture)
    if isinstance(picture, (str, Path)):
        if not Path(picture).is_file():
            raise DeopError(f"picture {picture} is not there")
        return _read(Path(picture), str(picture))
    if isinstance(picture, Image.Image):
        return _read(picture, "the picture")
    if isinstance(picture, Tensor):
        if picture.ndim != 3 or picture.shape[0] != 3:
            raise DeopError(f"picture: a tensor of shape {tuple(picture.shape)}; valid: (3, H, W)")
        return _eight_bit(picture.detach().cpu()).clone()  # the caller may use its memory again
    if isinstance(picture, np.ndarray):
        array = picture[..., None].repeat(3, -1) if picture.ndim == 2 else picture
        if array.ndim != 3 or array.shape[2] not in (3, 4):
            raise DeopError(
                f"picture: an array of shape {picture.shape}; valid: (H, W, 3), (H, W, 4) or (H, W)"
            )
        return _eight_bit(torch.from_numpy(np.ascontiguousarray(array[..., :3].transpose(2, 0, 1))))
    raise DeopError(
        f"picture: an object of type {type(picture).__name__}; valid: a path, an address, a PIL image, an array or a "
        "tensor"
    )


def _read(source: Any, name: str) -> Tensor:
    try:
        return read_image(source)
    except Image.DecompressionBombError as error:
        raise DeopError(f"{name}: too many pixels to read safely ({error})") from None
    except Exception as error:  # of a damaged file: OSError, SyntaxError, ValueError, struct.error, ...
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise DeopError(f"{name} cannot be read as a picture: {reason}") from None


def _fetched(address: str) -> bytes:
    try:
        with requests.get(address, stream=True, timeout=_TIMEOUT) as answer:
            answer.raise_for_status()
            content = bytearray()
            for chunk in answer.iter_content(1 << 16):
                content += chunk
                if len(content) > MOST_BYTES:
                    raise DeopError(
                        f"{address}: more than {MOST_BYTES / 1e6:.0f} MB; download it, and give the file"
                    )
            return bytes(content)
    except requests.RequestException as error:
        raise DeopError(f"{address} could not be fetched: {error}") from None


def _eight_bit(values: Tensor) -> Tensor:
    if values.numel() == 0:
        raise DeopError(f"picture: no pixels (shape {tuple(values.shape)})")
    if values.dtype == torch.uint8:
        return values
    if not values.is_floating_point():
        raise DeopError(f"picture: values of type {values.dtype}; valid: uint8, or floating point in [0, 1]")
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 1):
        raise DeopError(
            f"picture: values from {low:g} to {high:g}; valid: floating point in [0, 1], or uint8"
        )
    return (values.float() * 255).round().to(torch.uint8)
