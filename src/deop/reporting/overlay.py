"""Label colours over an image, with a legend."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from deop.reporting.contact_sheet import class_colours, paint_labels

_TEXT = (10, 40)  # pixels, at least and at most
_STRIP = 256  # rows painted at a time, because painting takes fifty times the memory of the labels


def overlay(image: np.ndarray, label: np.ndarray, names: list[str]) -> Image.Image:
    """Label colours over an image, with a legend on the right: the classes that occur, largest first.

    The picture has the image's height, or more where the legend needs it.

    Args:
        image: (H, W, 3) uint8 RGB.
        label: (H, W) indices into ``names``.
    """
    height, width = label.shape
    colours = class_colours(len(names))
    painted = np.concatenate(
        [
            paint_labels(image[top : top + _STRIP], label[top : top + _STRIP], colours)
            for top in range(0, height, _STRIP)
        ]
    )
    pixels = np.bincount(label.ravel(), minlength=len(names))
    shown = [index for index in np.argsort(-pixels, kind="stable") if pixels[index]]

    text = min(max(min(height, width) // 24, _TEXT[0]), _TEXT[1])
    font, gap = ImageFont.load_default(text), text // 2
    longest = max(font.getlength(names[index]) for index in shown)
    size = (width + round(longest) + text + 3 * gap, max(height, len(shown) * (text + gap) + gap))
    picture = Image.new("RGB", size, "white")
    picture.paste(Image.fromarray(painted), (0, 0))
    pen = ImageDraw.Draw(picture)
    for line, index in enumerate(shown):
        left, top = width + gap, gap + line * (text + gap)
        pen.rectangle([left, top, left + text, top + text], fill=tuple(map(int, colours[index])))
        pen.text((left + text + gap, top + text // 2), names[index], "black", font=font, anchor="lm")
    return picture
