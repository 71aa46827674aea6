"""EmojiScenes datasets: labelled scenes written to disk like any real dataset."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from deop.data.card import DatasetCard, LabelledClass, ignore_value
from deop.data.emoji.artwork import concept
from deop.data.emoji.scenes import compose, random_placement, split_mask, spread_centres
from deop.data.emoji.settings import EmojiScenes
from deop.data.emoji.textures import draw_texture, texture_names
from deop.data.entries import Entry
from deop.data.segmentation import IGNORE, write_card, write_label_map, write_split
from deop.errors import DeopError
from deop.utils.processes import end_with_parent

# Seeds of the splits differ in this word, so that no scene of one can be a scene of the other.
_SPLIT_WORD = {"train": 0x7121, "val": 0x7A1}
_JPEG_QUALITY = 95


def check(name: str, settings: EmojiScenes) -> None:
    """Checks that all classes can be drawn.

    Raises:
        DeopError: a class that no artist drew.
    """
    for thing in settings.vocabulary.things:
        try:
            concept(thing)
        except KeyError as error:
            raise DeopError(f"dataset {name}: things: {error.args[0]}") from None
    unknown = sorted(set(settings.vocabulary.stuff) - set(texture_names()))
    if unknown:
        raise DeopError(
            f"dataset {name}: stuff: no texture is named {', '.join(unknown)}; valid: {', '.join(texture_names())}"
        )


def _balanced(rng: np.random.Generator, names: tuple[str, ...]) -> Iterator[str]:
    """Names in random order, each once before any repeats, because rare classes make IoU noisy."""
    while True:
        yield from (names[index] for index in rng.permutation(len(names)))


def plan_split(settings: EmojiScenes, split: str) -> list[tuple[list[str], list[str]]]:
    """The things and the one or two textures of every scene of a split, balanced over classes."""
    rng = np.random.default_rng((settings.seed, _SPLIT_WORD[split]))
    things = _balanced(rng, settings.vocabulary.things)
    stuff = _balanced(rng, settings.vocabulary.stuff or texture_names())
    scenes = []
    for _ in range(settings.train if split == "train" else settings.val):
        count = int(rng.integers(settings.objects[0], settings.objects[1] + 1))
        grounds = 2 if rng.random() < 0.4 else 1
        scenes.append(([next(things) for _ in range(count)], [next(stuff) for _ in range(grounds)]))
    return scenes


def draw_scene(
    settings: EmojiScenes, split: str, index: int, things: list[str], stuff: list[str], *, detail: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """One scene: image (S, S, 3) uint8 and label map (S, S) int64, label ids in the vocabulary's order.

    The side S is ``detail`` times ``image_size``. Emoji are then drawn as large as that, and textures are enlarged.
    """
    rng = np.random.default_rng((settings.seed, _SPLIT_WORD[split], index))
    side, names = settings.image_size * detail, settings.vocabulary.names
    upper = split_mask(rng, side) if len(stuff) > 1 else torch.zeros(side, side, dtype=torch.bool)
    grounds = [
        torch.from_numpy(draw_texture(name, settings.style, settings.image_size, rng))
        .permute(2, 0, 1)
        .float()
        / 255
        for name in stuff
    ]
    if detail > 1:
        grounds = [F.interpolate(ground[None], (side, side), mode="bicubic")[0] for ground in grounds]
    background = torch.where(upper, grounds[-1], grounds[0]) * rng.uniform(0.85, 1.15)
    label = torch.full((side, side), IGNORE, dtype=torch.int64)
    if settings.label_stuff:
        label = torch.where(upper, names.index(stuff[-1]), names.index(stuff[0]))
    sizes = [rng.uniform(*settings.object_size) for _ in things]
    centres = spread_centres(rng, sizes)
    objects = [
        (thing, random_placement(rng, centre, size))
        for thing, centre, size in zip(things, centres, sizes, strict=True)
    ]
    images, owners = compose(background.clamp(0, 1)[None], [objects], [settings.style], detail)
    for position, thing in enumerate(things):
        label[owners[0] == position] = names.index(thing)
    image = (255 * images[0]).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return image, label.numpy()


def _write_scene(root: Path, settings: EmojiScenes, split: str, index: int, things, stuff) -> Entry:
    """Draws and writes one scene."""
    image_path = root / "images" / split / f"{index:06d}.jpg"
    label_path = root / "labels" / split / f"{index:06d}.png"
    image, label = draw_scene(settings, split, index, things, stuff)
    Image.fromarray(image).save(image_path, quality=_JPEG_QUALITY, subsampling=0)
    write_label_map(label_path, label, ignore_value(len(settings.vocabulary.names)))
    present = np.unique(label)
    return Entry(image_path, label_path, tuple(int(c) for c in present if c != IGNORE))


def _write_chunk(arguments) -> list[Entry]:
    torch.set_num_threads(1)
    root, settings, split, scenes = arguments
    return [_write_scene(root, settings, split, index, *scene) for index, scene in scenes]


def write(
    root: Path,
    name: str,
    settings: EmojiScenes,
    *,
    workers: int = 1,
    progress: Callable[[int], object] | None = None,
) -> DatasetCard:
    """Writes the dataset to ``root``; equal settings give equal files.

    ``progress``, if given, is called with the number of scenes just written.
    """
    check(name, settings)
    vocabulary = settings.vocabulary
    card = DatasetCard(
        name=name,
        classes=tuple(
            LabelledClass(
                name=entry,
                kind="thing" if entry in vocabulary.things else "stuff",
                unseen=entry in vocabulary.unseen,
            )
            for entry in vocabulary.names
        ),
        ignore=ignore_value(len(vocabulary.names)),
    )
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True, exist_ok=True)
        scenes = list(enumerate(plan_split(settings, split)))
        chunks = [(root, settings, split, scenes[first : first + 50]) for first in range(0, len(scenes), 50)]
        entries: list[Entry] = []
        with ProcessPoolExecutor(workers, initializer=end_with_parent) as pool:
            for written in pool.map(_write_chunk, chunks):
                entries += written
                if progress:
                    progress(len(written))
        write_split(root, split, entries)
    write_card(root, card)
    return card
