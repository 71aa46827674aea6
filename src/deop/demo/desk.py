"""What the page does, without the page: pictures taken, words read, systems asked."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy.ndimage import distance_transform_edt

from deop.demo import markup
from deop.demo.deadline import deadline
from deop.demo.intake import read_names, read_upload
from deop.demo.limits import Limits, Refused
from deop.demo.scenes import random_scene
from deop.demo.store import Store
from deop.demo.systems import ShownSystem

_PICTURES = 32


@dataclass(frozen=True)
class Session:
    """What one visitor is looking at.

    picture: the token of a kept picture, empty before there is one.
    names: the classes asked for.
    point: (y, x) as fractions of the sides, where the picture was clicked.
    """

    picture: str = ""
    names: tuple[str, ...] = ()
    point: tuple[float, float] | None = None


class View(NamedTuple):
    """What the page shows of one system.

    picture: painted in the colours of its classes.
    legend, region: HTML.
    found: the classes that occur, largest first.
    explained: the class of the region that is explained; None if none is.
    """

    picture: Image.Image
    legend: str
    region: str
    found: list[str]
    explained: str | None


class Desk:
    """Systems, and the pictures of the last visitors. Memory is bounded: older pictures make room for new ones.

    Args:
        systems: one, or two side by side.
        limits: of requests.
        seed: of drawn scenes; None draws others each time.
    """

    def __init__(self, systems: Sequence[ShownSystem], limits: Limits, seed: int | None = None) -> None:
        self.systems, self.limits = tuple(systems), limits
        self._pictures: Store[np.ndarray] = Store(_PICTURES)
        self._random = np.random.default_rng(seed)

    def take(self, session: Session, path: Path) -> Session:
        """Takes the picture in a file.

        Raises:
            Refused: a file that is no picture or is too large.
        """
        return self._with_picture(session, read_upload(path, self.limits))

    def draw(self, session: Session) -> Session:
        """Draws a scene; the classes are what is in it."""
        [rng] = self._random.spawn(1)
        picture, names = random_scene(self.systems[0].segmenter.classes, rng)
        return replace(self._with_picture(session, picture), names=tuple(names))

    def name(self, session: Session, text: str) -> Session:
        """Takes class names.

        Raises:
            Refused: names that cannot be read, or too many.
        """
        return replace(session, names=tuple(read_names(text, self.limits)))

    def view(self, session: Session, index: int, alpha: float | None = None) -> View:
        """What system ``index`` says, with an alpha of severance or, if None, its own.

        Raises:
            Refused: no picture or names yet, a picture that is no longer kept, or too little time.
        """
        if not session.names:
            raise Refused("Please type at least one class name, as in: bear, grass.")
        picture = self._kept(session)
        system, names = self.systems[index], list(session.names)
        with deadline(self.limits.seconds):
            result = system.segment(session.picture, picture, names, alpha)
            region, explained = markup.hint(), None
            if session.point is not None:
                found = system.region(session.picture, picture, names, alpha, session.point)
                attention = system.attention(picture, alpha, session.point)
                shown = system.alpha if alpha is None else alpha
                region = markup.region(picture, session.point, found, attention, shown)
                explained = found.label
            painted = markup.painted(result, session.point)
            occurring = [name for name, area in result.areas.items() if area]
            return View(painted, markup.legend(result), region, occurring, explained)

    def point_at(self, session: Session, index: int, alpha: float | None, name: str) -> Session:
        """Points at a region of class ``name``, as system ``index`` sees it: where it reaches furthest from its border.

        So regions can be explained to those who do not click on pictures.

        Raises:
            Refused: the class does not occur, or as :meth:`view`.
        """
        picture = self._kept(session)
        with deadline(self.limits.seconds):
            result = self.systems[index].segment(session.picture, picture, list(session.names), alpha)
        region = (
            result.labels == session.names.index(name) if name in session.names else np.zeros((1, 1), bool)
        )
        if not region.any():
            raise Refused(f"There is no region of {name} now.")
        depth = distance_transform_edt(np.pad(region, 1))[1:-1, 1:-1]
        row, column = np.unravel_index(depth.argmax(), depth.shape)
        point = ((int(row) + 0.5) / depth.shape[0], (int(column) + 0.5) / depth.shape[1])
        return replace(session, point=point)

    def shown_size(self, session: Session) -> tuple[int, int]:
        """Height and width in pixels of the visitor's picture on the page.

        Raises:
            Refused: no picture yet, or one that is no longer kept.
        """
        return markup.shown_size(self._kept(session))

    def _kept(self, session: Session) -> np.ndarray:
        if not session.picture:
            raise Refused("Please choose a picture first, or draw a scene.")
        picture = self._pictures.get(session.picture)
        if picture is None:
            raise Refused("Your picture made room for those of others. Please choose it again.")
        return picture

    def _with_picture(self, session: Session, picture: np.ndarray) -> Session:
        token = secrets.token_hex(8)
        self._pictures.put(token, picture)
        return replace(session, picture=token, point=None)
