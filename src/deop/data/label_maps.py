"""Reading of label maps in the formats that datasets are published in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from deop.errors import DeopError

# Pillow stretches grey PNGs of fewer than 8 bits to 0..255, by these factors.
_STRETCHED = {"L;2": 85, "L;4": 17}
_ONE_ID_A_PIXEL = ("1", "L", "P", "I", "I;16", "I;16L", "I;16B")


def read_index_image(path: Path) -> np.ndarray:
    """A label map (H, W) with one id per pixel: grey or palette, 8 or 16 bit, PNG or any format that Pillow reads.

    Raises:
        DeopError: an image with several channels.
    """
    with Image.open(path) as image:
        if image.mode not in _ONE_ID_A_PIXEL:
            raise DeopError(
                f"{path}: is a picture of mode {image.mode}; a label map has one id a pixel, grey or with a palette"
            )
        coding = image.tile[0][3] if image.tile else None
        ids = np.asarray(image)
    if isinstance(coding, tuple):  # of a TIFF
        coding = coding[0]
    return ids.astype(np.uint8) if ids.dtype == bool else ids // _STRETCHED.get(coding, 1)


def read_mat(path: Path) -> dict[str, Any]:
    """The variables of a MATLAB file; structures as arrays with fields, without dimensions of length one."""
    from scipy.io import loadmat  # only two of the datasets need it

    return loadmat(path, squeeze_me=True)
