"""Random EmojiScenes scenes, drawn from the artwork that comes with the package."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from deop.data.emoji.artwork import concepts
from deop.data.emoji.dataset import draw_scene
from deop.data.emoji.settings import EmojiScenes
from deop.data.emoji.textures import texture_names
from deop.settings.datasets import Vocabulary

_SIDE, _DETAIL = 96, 6


def random_scene(known: Sequence[str], rng: np.random.Generator) -> tuple[np.ndarray, list[str]]:
    """A scene (576, 576, 3) uint8 RGB of two to four things on one or two grounds, and the names of what is in it.

    Args:
        known: names to draw things and grounds from, where they can be drawn; any if too few can.
    """
    drawable = {concept.name for concept in concepts()}
    things = [name for name in known if name in drawable and name not in texture_names()]
    grounds = [name for name in known if name in texture_names()]
    things = things if len(things) >= 4 else sorted(drawable)
    grounds = grounds if len(grounds) >= 2 else list(texture_names())
    count = int(rng.integers(2, 5))
    chosen = [str(name) for name in rng.choice(things, count, replace=False)]
    under = [str(name) for name in rng.choice(grounds, int(rng.integers(1, 3)), replace=False)]
    settings = EmojiScenes(
        style="twemoji",
        vocabulary=Vocabulary(things=tuple(chosen), stuff=tuple(under)),
        train=0,
        val=1,
        image_size=_SIDE,
        seed=int(rng.integers(2**31)),
    )
    picture, _ = draw_scene(settings, "val", 0, chosen, under, detail=_DETAIL)
    return picture, [*chosen, *under]
