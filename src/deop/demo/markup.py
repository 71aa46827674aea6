"""The parts of the page that are written as HTML. Every text is escaped here, and nowhere else."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from html import escape

import matplotlib
import numpy as np
from PIL import Image, ImageDraw

from deop.api.result import Segmentation
from deop.demo.systems import Region
from deop.reporting.contact_sheet import paint_labels
from deop.reporting.overlay import legend_colours

_SHOWN_SIDE = 720
"""The longer side in pixels of the segmented picture on the page."""
_FIGURE_SIDE = 260


def message(text: str, *, refused: bool = False) -> str:
    """A line of the page about what was done, or why something was not."""
    kind = "refused" if refused else "done"
    role = "alert" if refused else "status"
    return f'<p class="message {kind}" role="{role}">{escape(text)}</p>'


def heading(name: str, kind: str) -> str:
    """The title of a system."""
    return f'<div class="panel-head"><h2>{escape(name)}</h2><span>{escape(kind)}</span></div>'


def painted(result: Segmentation, point: tuple[float, float] | None) -> Image.Image:
    """The picture with its classes in colour, and a ring at the point (y, x), if there is one."""
    image = Image.fromarray(paint_labels(result.picture, result.labels, legend_colours(len(result.classes))))
    image = image.resize(shown_size(result.picture)[::-1], Image.Resampling.BICUBIC)
    if point is not None:
        _ring(image, point)
    return image


def shown_size(picture: np.ndarray) -> tuple[int, int]:
    """Height and width in pixels of a picture (H, W, 3) as it is on the page."""
    height, width = picture.shape[:2]
    scale = _SHOWN_SIDE / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def legend(result: Segmentation) -> str:
    """The classes that occur with their areas, largest first, and those that do not."""
    colours = dict(zip(result.classes, legend_colours(len(result.classes)).tolist(), strict=True))
    rows, absent = [], []
    for name, area in result.areas.items():
        if not area:
            absent.append(escape(name))
            continue
        colour = "rgb({}, {}, {})".format(*colours[name])
        rows.append(
            f'<li><span class="swatch" style="background:{colour}"></span><span class="name">{escape(name)}</span>'
            f'<span class="bar"><span style="width:{100 * area:.1f}%;background:{colour}"></span></span>'
            f'<span class="number">{100 * area:.1f} %</span></li>'
        )
    missing = f'<p class="absent">Not found: {", ".join(absent)}</p>' if absent else ""
    return f'<ul class="legend" aria-label="Classes and their areas">{"".join(rows)}</ul>{missing}'


def hint() -> str:
    """What the place of a region says before one was clicked."""
    return '<p class="hint">Click the picture, or choose a class, to see why a region has its class.</p>'


def region(
    picture: np.ndarray,
    point: tuple[float, float],
    found: Region,
    attention: tuple[np.ndarray, np.ndarray] | None,
    alpha: float,
) -> str:
    """The clicked region: its class, best classes, proposal and heatmap, and what CLIP attends to."""
    thumbnail = _sized(Image.fromarray(picture), _FIGURE_SIDE, Image.Resampling.BOX)
    figures = []
    if found.proposal is not None:
        figures.append(_figure("Its proposal", _masked(thumbnail, found.proposal), point))
    if found.heatmap is not None:
        figures.append(_figure("Its anchor heatmap", _heated(thumbnail, found.heatmap), point))
    if attention is not None:
        before, after = attention
        for caption, weights in (
            ("CLIP attends to, before severance", before),
            (f"and after, with α = {alpha:.2f}", after),
        ):
            heated = _heated(thumbnail, weights / weights.max(), patches=True)
            figures.append(_figure(caption, heated, point))
    whose = "the proposal" if found.proposal is not None else "this pixel"
    return (
        f'<section class="region"><h3>{escape(found.label)}</h3>'
        f'<div class="figures">{"".join(figures)}</div>'
        f'<p class="whose">Best classes of {whose}</p>{_ranking(found.best)}</section>'
    )


def _ranking(best: Iterable[tuple[str, float]]) -> str:
    rows = [
        f'<li><span class="name">{escape(name)}</span><span class="bar"><span style="width:{100 * score:.1f}%">'
        f'</span></span><span class="number">{100 * score:.1f} %</span></li>'
        for name, score in best
    ]
    return f'<ol class="best">{"".join(rows)}</ol>'


def _figure(caption: str, image: Image.Image, point: tuple[float, float]) -> str:
    _ring(image, point)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    source = base64.b64encode(buffer.getvalue()).decode()
    text = escape(caption)
    return f'<figure><img src="data:image/jpeg;base64,{source}" alt="{text}"><figcaption>{text}</figcaption></figure>'


def _sized(image: Image.Image, side: int, resampling: Image.Resampling) -> Image.Image:
    scale = side / max(image.size)
    return image.resize([max(1, round(length * scale)) for length in image.size], resampling)


def _over(
    image: Image.Image, weights: np.ndarray, resampling: Image.Resampling = Image.Resampling.BILINEAR
) -> np.ndarray:
    """Weights (h, w) in [0, 1], resized to an image: (H, W, 1)."""
    grey = Image.fromarray((255 * weights.clip(0, 1)).astype(np.uint8))
    return np.asarray(grey.resize(image.size, resampling), np.float32)[..., None] / 255


def _masked(image: Image.Image, mask: np.ndarray) -> Image.Image:
    """What a mask leaves out, faded."""
    share = 0.15 + 0.85 * _over(image, mask)
    return Image.fromarray((np.asarray(image) * share + 255 * (1 - share)).astype(np.uint8))


def _heated(image: Image.Image, weights: np.ndarray, *, patches: bool = False) -> Image.Image:
    """Weights as a heatmap over the image in grey; smooth, or patch by patch."""
    share = _over(image, weights, Image.Resampling.NEAREST if patches else Image.Resampling.BILINEAR)
    heat = 255 * matplotlib.colormaps["inferno"](share[..., 0])[..., :3]
    grey = np.asarray(image.convert("L"), np.float32)[..., None].repeat(3, -1)
    return Image.fromarray((0.3 * grey + 0.7 * heat).astype(np.uint8))


def _ring(image: Image.Image, point: tuple[float, float]) -> None:
    y, x = point[0] * image.height, point[1] * image.width
    radius = max(image.size) / 45
    pen = ImageDraw.Draw(image)
    for extra, colour in ((1.5, "black"), (0, "white")):
        reach = radius + extra
        pen.ellipse([x - reach, y - reach, x + reach, y + reach], outline=colour, width=2)
