"""A stream of captioned scenes, on which the mini CLIP trains as CLIP does on image and text pairs from the web.

Every scene is new. It shows up to a few emoji, in one artist's style, on one texture or two. Captions name what is
shown. No masks, no labels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from deop.data.emoji.artwork import STYLES, concepts
from deop.data.emoji.scenes import compose, random_placement, split_mask, spread_centres
from deop.data.emoji.textures import draw_texture, texture_names

_TEMPLATES = ("{}", "{}.", "a picture of {}.", "a scene with {}.")


@dataclass(frozen=True)
class SceneKind:
    """What scenes look like, and what their captions say.

    Attributes:
        sizes: of emoji, as fractions of the image side, by how many there are.
        crowding: scenes with n emoji are drawn with a probability proportional to n ** -crowding.
        two_textures: share of scenes with two textures.
        plain: share of the scenes with one emoji in which it is on a single colour, like a product photo.
        textures_named: share of scenes with emoji whose captions name the textures as well.
        caption_per_name: every image has several captions that each name one thing, as an image on the web has several
            pages that refer to it, instead of one caption that names everything.
    """

    sizes: dict[int, tuple[float, float]]
    crowding: float
    two_textures: float
    plain: float
    textures_named: float
    caption_per_name: bool


SCENES = {
    "simple": SceneKind(
        sizes={1: (0.45, 1.0), 2: (0.35, 0.65), 3: (0.3, 0.55), 4: (0.28, 0.45)},
        crowding=1.0,
        two_textures=0.25,
        plain=0.0,
        textures_named=0.5,
        caption_per_name=False,
    ),
    "cluttered": SceneKind(
        sizes={
            1: (0.4, 1.0),
            2: (0.3, 0.65),
            3: (0.28, 0.55),
            4: (0.25, 0.5),
            5: (0.22, 0.45),
            6: (0.2, 0.42),
        },
        crowding=0.5,
        two_textures=0.4,
        plain=0.4,
        textures_named=0.7,
        caption_per_name=True,
    ),
}
"""Kinds of scenes, by the name that ``pretrain_clip.scenes`` gives them."""


class CaptionedScenes(torch.utils.data.Dataset):
    """Batches by step number: the batch of a step is a pure function of the seed and the step.

    Args:
        image_size: side of the square images in pixels.
        batch_size: images per step.
        objects: fewest and most emoji in a scene that has any; a tenth of the scenes show textures alone.
        steps: length of the stream.
        scenes: one of :data:`SCENES`.
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
        scenes: str = "simple",
        common: tuple[str, ...] = (),
        common_share: float = 0.0,
        textures: int = 16,
    ) -> None:
        self.image_size, self.batch_size, self.objects = image_size, batch_size, objects
        self.steps, self.seed, self.kind = steps, seed, SCENES[scenes]
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
        """(3, S, S) in [0, 1]: a random part of a texture, or two of them parted by a sloping line."""
        side = self.image_size
        parts = []
        for kind in kinds:
            pool = self._textures[style][kind]
            picture = pool[rng.integers(len(pool))]
            top, left = rng.integers(0, picture.shape[-1] - side + 1, 2)
            part = picture[:, top : top + side, left : left + side]
            parts.append(part.flip(-1) if rng.random() < 0.5 else part)
        picture = parts[0] if len(parts) == 1 else torch.where(split_mask(rng, side), *parts)
        return picture.float() / 255

    def _plain(self, rng: np.random.Generator) -> Tensor:
        """(3, S, S) in [0, 1]: a single colour, often black, grey or white."""
        grey = rng.random() < 0.3
        colour = np.full(3, rng.choice([0.0, 0.45, 1.0])) if grey else rng.uniform(0, 1, 3)
        return torch.tensor(colour, dtype=torch.float32)[:, None, None].expand(
            3, self.image_size, self.image_size
        )

    def __getitem__(self, step: int) -> dict[str, Tensor | list[str]]:
        """The images of a step and their captions.

        Returns:
            ``image`` (B, 3, S, S) float in [0, 1]; ``caption``, T strings; ``match`` (B, T) bool, which captions
            belong to which image.
        """
        if not 0 <= step < self.steps:
            raise IndexError(step)
        images, _, _, said = self._draw(step)
        if not self.kind.caption_per_name:
            return {"image": images, "caption": said, "match": torch.eye(len(images), dtype=torch.bool)}
        names = sorted({name for named in said for name in named})
        match = torch.tensor([[name in named for name in names] for named in said])
        rng = np.random.default_rng((self.seed, step, 0xCA97))
        return {"image": images, "caption": [_in_template(rng, name) for name in names], "match": match}

    def scenes(self, step: int) -> tuple[Tensor, list[list[str]]]:
        """The images of a step and the names of the emoji each of them shows."""
        images, shown, _, _ = self._draw(step)
        return images, shown

    def named(self, step: int) -> tuple[Tensor, list[list[str]]]:
        """The images of a step and the names of the emoji and textures each of them shows."""
        images, shown, grounds, _ = self._draw(step)
        return images, [things + stuff for things, stuff in zip(shown, grounds, strict=True)]

    def _draw(self, step: int) -> tuple[Tensor, list[list[str]], list[list[str]], list]:
        """Images, the emoji and the textures in each, and what is said of it: a caption, or names with captions."""
        rng, kind = np.random.default_rng((self.seed, step)), self.kind
        # No emoji twice in a batch: a caption must not fit another caption's image.
        common, rare = iter(rng.permutation(self.common)), iter(rng.permutation(self.rare))
        counts = np.arange(self.objects[0], self.objects[1] + 1)
        frequency = counts**-kind.crowding
        texture_alone = iter(rng.permutation(len(self.stuff)))
        backgrounds, objects, styles, said, contents, grounds = [], [], [], [], [], []
        for index in range(self.batch_size):
            style = STYLES[rng.integers(len(STYLES))]
            alone = index < min(self.batch_size // 10, len(self.stuff))
            count = 0 if alone else int(rng.choice(counts, p=frequency / frequency.sum()))
            plain = kind.plain > 0 and count == 1 and rng.random() < kind.plain
            if alone:
                textures = [int(next(texture_alone))]
            elif plain:
                textures = []
            else:
                textures = list(rng.integers(len(self.stuff), size=1))
                if rng.random() < kind.two_textures:
                    textures.append(int(rng.integers(len(self.stuff))))
            shown = []
            for _ in range(count):
                name = next(common, None) if rng.random() < self.common_share else None
                name = next(rare, None) if name is None else name
                shown.append(str(next(common) if name is None else name))
            sizes = [rng.uniform(*kind.sizes[count]) for _ in shown]
            centres = spread_centres(rng, sizes)
            objects.append(
                [
                    (name, random_placement(rng, centre, size))
                    for name, centre, size in zip(shown, centres, sizes, strict=True)
                ]
            )
            background = self._background(rng, style, textures) if textures else self._plain(rng)
            backgrounds.append((background * rng.uniform(0.8, 1.2)).clamp(0, 1))
            styles.append(style)
            names = list(dict.fromkeys(self.stuff[texture] for texture in textures))
            said.append(
                self._names(rng, shown, names) if kind.caption_per_name else self._caption(rng, shown, names)
            )
            contents.append(shown)
            grounds.append(names)
        images, _ = compose(torch.stack(backgrounds), objects, styles)
        return images, contents, grounds, said

    def _names(self, rng: np.random.Generator, things: list[str], stuff: list[str]) -> list[str]:
        """The names that have a caption: things, and textures where :attr:`SceneKind.textures_named` says so."""
        return things + (stuff if not things or rng.random() < self.kind.textures_named else [])

    def _caption(self, rng: np.random.Generator, things: list[str], stuff: list[str]) -> str:
        """A caption of the names that :meth:`_names` would give, in random order."""
        things = [things[index] for index in rng.permutation(len(things))]
        if things and rng.random() < 1 - self.kind.textures_named:
            stuff = []
        return _in_template(rng, " and ".join(filter(None, [", ".join(things), ", ".join(stuff)])))


def _in_template(rng: np.random.Generator, text: str) -> str:
    return _TEMPLATES[rng.integers(len(_TEMPLATES))].format(text)
