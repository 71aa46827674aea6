"""The font of a legend: one that has every letter of a name."""

from __future__ import annotations

import functools
from importlib.util import find_spec
from pathlib import Path

from PIL import ImageFont


def legend_font(size: int, text: str = "") -> ImageFont.FreeTypeFont:
    """A font in which ``text`` can be written.

    DejaVu Sans, which matplotlib brings, has Latin letters with all accents, Greek, Cyrillic, Arabic and signs. For
    other scripts, such as Chinese, the first font of this machine that has all letters is taken. Where there is none,
    DejaVu Sans writes a box for each letter that it lacks.

    Args:
        size: height of the letters in pixels.
    """
    return ImageFont.truetype(_font_file(frozenset(text)), size)


@functools.cache
def _font_file(letters: frozenset[str]) -> str:
    [folder] = find_spec("matplotlib").submodule_search_locations
    default = str(Path(folder, "mpl-data/fonts/ttf/DejaVuSans.ttf"))
    if letters <= _letters_of(default):
        return default
    from matplotlib.font_manager import findSystemFonts  # takes a third of a second

    return next((path for path in sorted(findSystemFonts()) if letters <= _letters_of(path)), default)


@functools.cache
def _letters_of(path: str) -> frozenset[str]:
    """The letters that a font file has; none if it cannot be read."""
    from fontTools.ttLib import TTFont, TTLibError

    try:
        with TTFont(path, fontNumber=0, lazy=True) as font:
            return frozenset(map(chr, font.getBestCmap() or ()))
    except (TTLibError, OSError):
        return frozenset()
