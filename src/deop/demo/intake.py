"""Pictures and class names from strangers, checked before anything is done with them."""

from __future__ import annotations

import unicodedata
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from deop.data.image_files import read_image
from deop.demo.limits import Limits, Refused

FORMATS = ("JPEG", "PNG", "WEBP")
SHOWN_SIDE = 1024
"""The longer side in pixels at which pictures are kept and segmented; larger ones are reduced."""


def read_upload(path: Path, limits: Limits) -> np.ndarray:
    """The picture (H, W, 3) uint8 RGB in a file from a stranger, upright, its longer side 1024 pixels at most.

    What the file is, is read from its content. Its size is checked before its pixels are decoded.

    Raises:
        Refused: a file that is too large, no picture, damaged, or of too many pixels.
    """
    if path.stat().st_size > limits.bytes:
        raise Refused(f"The file is larger than {limits.bytes / 1e6:g} MB. Please choose a smaller one.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # counted below
            image = Image.open(path, formats=FORMATS)
    except Image.DecompressionBombError:
        raise _too_many_pixels(limits) from None
    except Exception:  # of a damaged file: OSError, SyntaxError, ValueError, struct.error, ...
        raise Refused("This is no picture: please choose a JPEG, PNG or WebP file.") from None
    with image:
        if image.width * image.height > limits.pixels:
            raise _too_many_pixels(limits)
        try:
            # JPEGs are decoded at a fraction of their size where that is enough.
            image.draft("RGB", (SHOWN_SIDE, SHOWN_SIDE))
            pixels = read_image(image)
        except Exception:
            raise Refused("The picture is damaged and cannot be read.") from None
    return _reduced(pixels.permute(1, 2, 0).numpy())


def _too_many_pixels(limits: Limits) -> Refused:
    return Refused(
        f"The picture has more than {limits.pixels / 1e6:g} million pixels. Please choose a smaller one."
    )


def _reduced(picture: np.ndarray) -> np.ndarray:
    height, width = picture.shape[:2]
    if max(height, width) <= SHOWN_SIDE:
        return np.ascontiguousarray(picture)
    scale = SHOWN_SIDE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(np.ascontiguousarray(picture)).resize(size, Image.Resampling.BOX))


def read_names(text: str, limits: Limits) -> list[str]:
    """Class names separated by commas or lines; each once, white space tidied.

    Raises:
        Refused: no name, too many, one that is too long, or one with signs that no name has.
    """
    if len(text) > 2 * limits.names * (limits.length + 2):
        raise Refused(f"That is too much text. Please type at most {limits.names} names.")
    names: dict[str, str] = {}
    for part in text.replace("\n", ",").split(","):
        name = " ".join(part.split())
        if not name:
            continue
        if any(sign in "<>" or unicodedata.category(sign).startswith("C") for sign in name):
            raise Refused("A class name has a sign that names do not have: control characters, < or >.")
        if len(name) > limits.length:
            raise Refused(
                f"The class name “{name[:20]}…” has {len(name)} characters; at most {limits.length} are read."
            )
        names.setdefault(name.casefold(), name)
    if not names:
        raise Refused("Please type at least one class name, as in: bear, grass.")
    if len(names) > limits.names:
        raise Refused(f"Those are {len(names)} class names. Please type at most {limits.names}.")
    return list(names.values())
