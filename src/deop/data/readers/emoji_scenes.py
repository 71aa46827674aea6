"""EmojiScenes: generated scenes of emoji on textures."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from deop.data.emoji.settings import EmojiScenes
from deop.data.raw_dataset import SceneGenerator
from deop.settings.datasets import dataset


@dataset(EmojiScenes)
def open_dataset(settings: EmojiScenes, root: Path) -> SceneGenerator:
    """The generator of the scenes; ``root`` is not needed."""
    from deop.data.emoji.dataset import write  # torch, which planning does without

    return SceneGenerator(settings.train + settings.val, partial(write, settings=settings))
