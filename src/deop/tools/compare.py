"""Command ``compare``: two systems side by side on one picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from deop.api.load import load
from deop.errors import DeopError
from deop.reporting.legend_font import legend_font
from deop.utils.files import whole_file


def run(
    first: str, second: str, picture: Path, output: Path, classes: str | None, options: dict[str, Any]
) -> float:
    """Draws what two systems say of a picture into ``output``; returns the share of pixels on which they agree.

    Raises:
        DeopError: systems, classes or a picture that cannot be used, or a file that cannot be written.
    """
    segmenters = [load(name, **options) for name in (first, second)]
    wanted = classes or next((segmenter.classes for segmenter in segmenters if segmenter.classes), None)
    results = [segmenter(picture, wanted) for segmenter in segmenters]
    pictures = [result.plot() for result in results]
    line = 36
    size = (sum(one.width for one in pictures), max(one.height for one in pictures) + line)
    sheet = Image.new("RGB", size, "white")
    pen, left = ImageDraw.Draw(sheet), 0
    for name, one in zip((first, second), pictures, strict=True):
        pen.text((left + 8, line // 2), name, "black", font=legend_font(20, name), anchor="lm")
        sheet.paste(one, (left, line))
        left += one.width
    try:
        with whole_file(output) as temporary:
            sheet.save(temporary)
    except (OSError, ValueError) as error:
        raise DeopError(f"{output} cannot be written: {error}") from None
    return float((results[0].labels == results[1].labels).mean())
