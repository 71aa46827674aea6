"""Procedural textures: the "stuff" classes of EmojiScenes.

Each class is a scalar tone field (families below) mapped to a palette. The two styles draw the same field as the
two emoji artists would: Twemoji in flat tones, OpenMoji in fewer tones with dark contours and shifted colours.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageColor

Tone = np.ndarray  # (H, W) float in [0, 1]


def _noise(rng: np.random.Generator, size: int, cell: float, stretch: float = 1.0, octaves: int = 3) -> Tone:
    """Fractal value noise: ``cell`` pixels a lump, lumps ``stretch`` times taller than wide."""
    total, weight = np.zeros((size, size), np.float32), 1.0
    for octave in range(octaves):
        width = max(2, round(size / cell * 2**octave))
        height = max(2, round(size / (cell * stretch) * 2**octave))
        grid = Image.fromarray(rng.random((min(height, size), min(width, size)), np.float32))
        total += weight * np.asarray(grid.resize((size, size), Image.Resampling.BICUBIC))
        weight *= 0.5
    low, high = np.quantile(total, [0.02, 0.98])
    return np.clip((total - low) / (high - low + 1e-6), 0, 1)


def _grid(rng: np.random.Generator, size: int, tilt: float = 0.15) -> tuple[np.ndarray, np.ndarray]:
    """Pixel coordinates, shifted by a random phase and turned by up to ``tilt`` radians."""
    y, x = np.mgrid[:size, :size].astype(np.float32) + rng.uniform(0, 1000, (2, 1, 1)).astype(np.float32)
    angle = rng.uniform(-tilt, tilt)
    return y * np.cos(angle) - x * np.sin(angle), y * np.sin(angle) + x * np.cos(angle)


def _blades(rng, size, cell=4.0, stretch=5.0):
    return _noise(rng, size, cell, stretch, octaves=2)


def _clumps(rng, size, cell=10.0):
    return _noise(rng, size, cell)


def _speckle(rng, size, cell=2.5):
    return _noise(rng, size, cell, octaves=1)


def _gradient(rng, size):
    return np.clip(np.linspace(0, 1, size)[:, None] + 0.15 * (_noise(rng, size, 60, 0.3) - 0.5), 0, 1)


def _waves(rng, size, period=12.0, bend=6.0):
    y, x = _grid(rng, size)
    return 0.5 + 0.5 * np.sin(2 * np.pi * (y + bend * np.sin(2 * np.pi * x / (3 * period))) / period)


def _streams(rng, size, period=14.0):
    _, x = _grid(rng, size, 0.3)
    return 0.5 + 0.5 * np.sin(2 * np.pi * (x + 25 * _noise(rng, size, 40)) / period)


def _bars(rng, size, period=10.0, sharp=1.0, horizontal=False):
    y, x = _grid(rng, size)
    wave = np.sin(2 * np.pi * (y if horizontal else x) / period)
    return np.clip(0.5 + 0.5 * sharp * wave, 0, 1)


def _planks(rng, size, period=14.0):
    y, _ = _grid(rng, size, 0.05)
    grain = _noise(rng, size, 40, 0.08)
    return np.where((y % period) < 1.8, 0.0, 0.35 + 0.65 * grain)


def _bricks(rng, size, height=10.0, width=20.0, joint=2.0):
    y, x = _grid(rng, size, 0.05)
    shifted = x + (np.floor(y / height) % 2) * width / 2
    mortar = (y % height < joint) | (shifted % width < joint)
    return np.where(mortar, 1.0, 0.45 * _noise(rng, size, 6))


def _checks(rng, size, period=16.0):
    y, x = _grid(rng, size)
    return ((np.floor(2 * y / period) + np.floor(2 * x / period)) % 2).astype(np.float32)


def _gingham(rng, size, period=16.0):
    y, x = _grid(rng, size)
    return 0.5 * ((np.floor(2 * y / period) % 2) + (np.floor(2 * x / period) % 2))


def _lattice(rng, size, period=12.0, line=2.2, turn=0.0):
    y, x = _grid(rng, size)
    y, x = y * np.cos(turn) - x * np.sin(turn), y * np.sin(turn) + x * np.cos(turn)
    return ((y % period < line) | (x % period < line)).astype(np.float32)


def _weave(rng, size, period=9.0):
    y, x = _grid(rng, size)
    over = (np.floor(y / period) + np.floor(x / period)) % 2
    return np.where(over > 0, np.abs(np.sin(np.pi * x / period)), 0.9 * np.abs(np.sin(np.pi * y / period)))


def _cells(rng, size, spacing=12.0, edge=1.6, jitter=0.9, tones=1.0):
    """Voronoi cells: tone 0 on the joints, a tone of its own inside each."""
    count = int(np.ceil(size / spacing)) + 2
    centres = np.stack(np.meshgrid(np.arange(-1, count - 1), np.arange(-1, count - 1), indexing="ij"), -1)
    centres = centres + 0.5 + jitter * (rng.random(centres.shape) - 0.5)
    centres[..., 1] += 0.5 * (np.arange(count) % 2)[:, None]
    points = (centres.reshape(-1, 2) * spacing).astype(np.float32)
    y, x = np.mgrid[:size, :size].astype(np.float32)
    distance = (y.reshape(-1, 1) - points[:, 0]) ** 2 + (x.reshape(-1, 1) - points[:, 1]) ** 2
    nearest = np.argpartition(distance, 2, axis=1)[:, :2]
    two = np.sqrt(np.sort(np.take_along_axis(distance, nearest, 1), 1))
    shade = 1 - tones * 0.6 * rng.random(len(points), np.float32)
    owner = np.take_along_axis(distance, nearest, 1).argmin(1)
    inside = shade[nearest[np.arange(len(owner)), owner]]
    return np.where(two[:, 1] - two[:, 0] < edge, 0.0, inside).reshape(size, size)


def _spots(rng, size, spacing=14.0, radius=0.3, jitter=0.5):
    """Round spots (tone 1) on a plain ground (tone 0)."""
    y, x = _grid(rng, size)
    rows, columns = np.floor(y / spacing), np.floor(x / spacing)
    noise = np.sin(rows * 127.1 + columns * 311.7) * 43758.5453
    shift = jitter * ((noise - np.floor(noise)) - 0.5)
    dy, dx = y / spacing - rows - 0.5 - shift, x / spacing - columns - 0.5 + shift
    return np.clip((radius - np.hypot(dy, dx)) * spacing, 0, 1)


def _shingles(rng, size, period=14.0):
    y, x = _grid(rng, size, 0.05)
    row = np.floor(2 * y / period)
    dx = ((x + row % 2 * period / 2) % period) / period - 0.5
    return np.clip((2 * y / period - row) + 1.2 * dx**2, 0, 1)


# name: (family, its arguments, palette from tone 0 to tone 1)
_TEXTURES: dict[str, tuple[Callable[..., Tone], dict, tuple[str, ...]]] = {
    "grass": (_blades, {}, ("#1f6b1f", "#3f9b32", "#8fd45a")),
    "hay": (_blades, {"cell": 3, "stretch": 7}, ("#9a7420", "#d9b13b", "#f6e08a")),
    "fur": (_blades, {"cell": 5, "stretch": 4}, ("#4a2c17", "#7c4f2a", "#a97c50")),
    "sky": (_gradient, {}, ("#2f7fd6", "#6fb3f2", "#cfe8ff")),
    "dusk": (_gradient, {}, ("#3b1e6b", "#c2477f", "#ffb05c")),
    "clouds": (_clumps, {"cell": 28}, ("#4f9be0", "#a9d2f5", "#ffffff", "#ffffff")),
    "sea": (_waves, {"period": 10, "bend": 3}, ("#0b2f66", "#16509b", "#3b82c4")),
    "river": (_streams, {}, ("#1f8fa8", "#4fc1cf", "#b8eef0")),
    "swimming pool": (_cells, {"spacing": 20, "edge": 2.5, "tones": 0.3}, ("#e8ffff", "#38c8e8", "#19b4e0")),
    "sand": (_speckle, {}, ("#c9a86a", "#e3c88e", "#f4e2b6")),
    "dune": (_waves, {"period": 26, "bend": 12}, ("#b5651d", "#dd8f3c", "#f5bd6e")),
    "snow": (_clumps, {"cell": 18}, ("#d3e2f2", "#f2f7ff", "#ffffff")),
    "brick wall": (_bricks, {}, ("#9c2f1f", "#c4513b", "#e8ddd0")),
    "stone wall": (_bricks, {"height": 18, "width": 30, "joint": 3}, ("#5f6670", "#9aa2ab", "#3a3f46")),
    "wooden floor": (_planks, {}, ("#4b2a10", "#a5692f", "#d09a58")),
    "marble": (_clumps, {"cell": 45}, ("#8d8d99", "#f4f1ec", "#ffffff", "#d8d4d8", "#ffffff")),
    "gravel": (_cells, {"spacing": 5, "edge": 0.8}, ("#4a4a4a", "#777777", "#bdbdbd")),
    "pebbles": (_cells, {"spacing": 13, "edge": 2.5}, ("#3f3a33", "#9c8b78", "#d8cbb8")),
    "mud": (_clumps, {"cell": 12}, ("#2e1d0e", "#4d3319", "#6b4a28")),
    "lava": (_cells, {"spacing": 18, "edge": 3.5, "tones": 0.6}, ("#ff7a00", "#8a1500", "#2a0703")),
    "moss": (_clumps, {"cell": 7}, ("#3d4a0c", "#6a7a16", "#a4b02c")),
    "tree bark": (_blades, {"cell": 9, "stretch": 4}, ("#1e120a", "#5a3d25", "#8a6a48")),
    "hedge": (_cells, {"spacing": 7, "edge": 1.2}, ("#0c2e12", "#1d5c26", "#3f8a3c")),
    "cobblestone": (_cells, {"spacing": 16, "edge": 2.6, "jitter": 0.4}, ("#22252b", "#5d6470", "#8d95a1")),
    "asphalt": (_speckle, {"cell": 2}, ("#26282b", "#3a3d41", "#55595e")),
    "concrete": (_clumps, {"cell": 24}, ("#9b9b96", "#b3b3ad", "#c9c9c4")),
    "tiled floor": (_lattice, {"period": 18}, ("#f3ead8", "#b09a7a")),
    "chessboard": (_checks, {"period": 24}, ("#1b1b1b", "#f2f2f2")),
    "picnic cloth": (_gingham, {}, ("#ffffff", "#f08080", "#c81d25")),
    "carpet": (_weave, {"period": 6}, ("#5a0f2e", "#94204f", "#c04a78")),
    "denim": (_bars, {"period": 4, "sharp": 0.8}, ("#1b2f57", "#34538c", "#6c8cc0")),
    "wicker": (_weave, {"period": 11}, ("#5e3d14", "#b8863b", "#e6c07a")),
    "bamboo wall": (_bars, {"period": 13}, ("#55701f", "#93b03c", "#d4e07e")),
    "corrugated metal": (_bars, {"period": 8}, ("#5c6d7a", "#9db0bd", "#e4eef4")),
    "wire fence": (_lattice, {"period": 13, "turn": 0.785}, ("#b9d6b0", "#4d5a66")),
    "curtain": (_bars, {"period": 22}, ("#5b1a8c", "#8e3fc4", "#c48ae6")),
    "leopard print": (_spots, {"spacing": 11, "radius": 0.34, "jitter": 0.9}, ("#e3a949", "#3a220c")),
    "starry sky": (_spots, {"spacing": 15, "radius": 0.11, "jitter": 1.2}, ("#0a0d2b", "#fff6c2")),
    "honeycomb": (_cells, {"spacing": 13, "jitter": 0.0, "tones": 0.4}, ("#7a4a00", "#f0a010", "#ffd24a")),
    "roof tiles": (_shingles, {}, ("#f09a6a", "#c8552d", "#6a2010")),
}


def texture_names() -> tuple[str, ...]:
    """All stuff classes that can be drawn."""
    return tuple(_TEXTURES)


def _palette(colours: tuple[str, ...], style: str) -> np.ndarray:
    """(P, 3) float RGB in [0, 1]; the second artist's colours are turned a little and paler."""
    rgb = np.array([ImageColor.getrgb(colour) for colour in colours], np.float32) / 255
    if style == "twemoji":
        return rgb
    hsv = [colorsys.rgb_to_hsv(*map(float, colour)) for colour in rgb]
    return np.array(
        [colorsys.hsv_to_rgb((h + 0.03) % 1, 0.8 * s, 0.15 + 0.85 * v) for h, s, v in hsv], np.float32
    )


def draw_texture(name: str, style: str, size: int, rng: np.random.Generator) -> np.ndarray:
    """A fresh (size, size, 3) uint8 picture of a stuff class.

    Raises ``KeyError`` naming the valid classes for an unknown name.
    """
    if name not in _TEXTURES:
        raise KeyError(f"no texture is named {name!r}; valid: {', '.join(_TEXTURES)}")
    family, arguments, colours = _TEXTURES[name]
    scale = rng.uniform(0.8, 1.25)
    scaled = {
        key: value * scale if key in {"cell", "period", "spacing", "height", "width"} else value
        for key, value in arguments.items()
    }
    tone = family(rng, size, **scaled)
    levels = 6 if style == "twemoji" else 3
    steps = np.round(tone * (levels - 1))
    palette = _palette(colours, style)
    knots = np.linspace(0, 1, len(palette))
    position = 0.4 * tone + 0.6 * steps / (levels - 1)
    picture = np.stack([np.interp(position, knots, palette[:, channel]) for channel in range(3)], -1)
    if style == "openmoji":
        contour = np.zeros(steps.shape, bool)
        contour[1:] |= steps[1:] != steps[:-1]
        contour[:, 1:] |= steps[:, 1:] != steps[:, :-1]
        picture = np.where(contour[..., None], 0.65 * picture, picture)
    return np.clip(255 * picture, 0, 255).astype(np.uint8)
