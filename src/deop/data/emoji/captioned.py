"""A stream of captioned scenes, on which the mini CLIP trains as CLIP does on image and text pairs from the web.

Every scene is new. It shows up to a few emoji, in one artist's style, on one texture or two, and its caption names
them. No masks, no labels.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from deop.data.emoji.artwork import STYLES, concepts
from deop.data.emoji.scenes import compose, random_placement, split_mask, spread_centres
from deop.data.emoji.textures import draw_texture, texture_names

# Object sizes as fractions of the image side, by how many objects there are.
_OBJECT_SIZE = {1: (0.45, 1.0), 2: (0.35, 0.65), 3: (0.3, 0.55), 4: (0.28, 0.45)}
_TEMPLATES = ("{}", "{}.", "a picture of {}.", "a scene with {}.")


class CaptionedScenes(torch.utils.data.Dataset):
    """Batches by step number: the batch of a step is a pure function of the seed and the step.

    Args:
        image_size: side of the square images in pixels.
        batch_size: images per step.
        objects: fewest and most emoji in a scene that has any; a tenth of the scenes show textures alone.
        steps: length of the stream.
        common, common_share: emoji that are everyday things: this share of all emoji shown is drawn from them, as
            pictures on the web show dogs more often than abacuses. The rest are equally frequent.
        textures: pictures drawn of each texture and style to begin with; scenes show random parts of them.
    """

    def __init__(
        self,
        *,
        image_size: int,
        batch_size: int,
        objects: tuple[int, int],
        steps: int,
        seed: int,
        common: tuple[str, ...] = (),
        common_share: float = 0.0,
        textures: int = 16,
    ) -> None:
        self.image_size, self.batch_size, self.objects = image_size, batch_size, objects
        self.steps, self.seed = steps, seed
        self.common, self.common_share = common, common_share
        self.rare = tuple(entry.name for entry in concepts() if entry.name not in common)
        self.stuff = texture_names()
        rng = np.random.default_rng((seed, 0xBAC4))
        self._textures = {
            style: torch.from_numpy(
                np.stack(
                    [
                        np.stack([draw_texture(name, style, 2 * image_size, rng) for _ in range(textures)])
                        for name in self.stuff
                    ]
                )
            ).permute(0, 1, 4, 2, 3)
            for style in STYLES
        }

    def __len__(self) -> int:
        return self.steps

    def _background(self, rng: np.random.Generator, style: str, kinds: list[int]) -> Tensor:
        """(3, S, S) uint8: a random part of a texture, or two of them parted by a sloping line."""
        side = self.image_size
        parts = []
        for kind in kinds:
            pool = self._textures[style][kind]
            picture = pool[rng.integers(len(pool))]
            top, left = rng.integers(0, picture.shape[-1] - side + 1, 2)
            part = picture[:, top : top + side, left : left + side]
            parts.append(part.flip(-1) if rng.random() < 0.5 else part)
        if len(parts) == 1:
            return parts[0]
        return torch.where(split_mask(rng, side), parts[0], parts[1])

    def __getitem__(self, step: int) -> dict[str, Tensor | list[str]]:
        """``image`` (B, 3, S, S) float in [0, 1] and ``caption``, B strings."""
        if not 0 <= step < self.steps:
            raise IndexError(step)
        images, captions, _, _ = self._draw(step)
        return {"image": images, "caption": captions}

    def scenes(self, step: int) -> tuple[Tensor, list[list[str]]]:
        """The images of a step and the names of the emoji each of them shows."""
        images, _, shown, _ = self._draw(step)
        return images, shown

    def named(self, step: int) -> tuple[Tensor, list[list[str]]]:
        """The images of a step and the names of the emoji and textures each of them shows."""
        images, _, shown, stuff = self._draw(step)
        return images, [things + grounds for things, grounds in zip(shown, stuff, strict=True)]

    def _draw(self, step: int) -> tuple[Tensor, list[str], list[list[str]], list[list[str]]]:
        rng = np.random.default_rng((self.seed, step))
        # No emoji twice in a batch: a caption must not fit another caption's image.
        common, rare = iter(rng.permutation(self.common)), iter(rng.permutation(self.rare))
        counts = np.arange(self.objects[0], self.objects[1] + 1)
        texture_alone = iter(rng.permutation(len(self.stuff)))
        backgrounds, objects, styles, captions, contents, grounds = [], [], [], [], [], []
        for index in range(self.batch_size):
            style = STYLES[rng.integers(len(STYLES))]
            alone = index < min(self.batch_size // 10, len(self.stuff))
            # Mostly object-centred: two objects are half as frequent as one, three a third.
            count = 0 if alone else int(rng.choice(counts, p=(1 / counts) / (1 / counts).sum()))
            kinds = [int(next(texture_alone))] if alone else list(rng.integers(len(self.stuff), size=1))
            if not alone and rng.random() < 0.25:
                kinds.append(int(rng.integers(len(self.stuff))))
            shown = []
            for _ in range(count):
                name = next(common, None) if rng.random() < self.common_share else None
                shown.append(str(next(rare) if name is None else name))
            sizes = [rng.uniform(*_OBJECT_SIZE[count]) for _ in shown]
            centres = spread_centres(rng, sizes)
            objects.append(
                [
                    (name, random_placement(rng, centre, size))
                    for name, centre, size in zip(shown, centres, sizes, strict=True)
                ]
            )
            background = self._background(rng, style, kinds).float() / 255
            backgrounds.append((background * rng.uniform(0.8, 1.2)).clamp(0, 1))
            styles.append(style)
            captions.append(self._caption(rng, shown, [self.stuff[kind] for kind in kinds]))
            contents.append(shown)
            grounds.append([self.stuff[kind] for kind in kinds])
        images, _ = compose(torch.stack(backgrounds), objects, styles)
        return images, captions, contents, grounds

    @staticmethod
    def _caption(rng: np.random.Generator, things: list[str], stuff: list[str]) -> str:
        """Names everything in random order; of a scene with emoji, its textures only half of the time."""
        things = [things[index] for index in rng.permutation(len(things))]
        named = list(dict.fromkeys(stuff))
        if things and rng.random() < 0.5:
            named = []
        text = " and ".join(filter(None, [", ".join(things), ", ".join(named)]))
        return _TEMPLATES[rng.integers(len(_TEMPLATES))].format(text)
