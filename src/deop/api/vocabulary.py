"""The classes that a picture is divided into: names, their synonyms, and what is none of them. Without torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from deop.data.vocabulary import parse_names
from deop.errors import DeopError

BACKGROUND = "background"

Classes = str | Iterable[str] | Mapping[str, str | Iterable[str]]
"""``"bear, grass"``, ``["bear", "grass"]``, or ``{"bear": ["grizzly", "polar bear"], "grass": "lawn"}``."""
Background = str | Iterable[str] | float | None
"""A word or words for what is none of the classes, or the least probability (0 to 1) that one of two or more classes
has to have."""


@dataclass(frozen=True)
class Vocabulary:
    """What is asked of a picture.

    classes: in the order of labels; ``background``, if it is asked for, is the last.
    names: what the text encoder is given, and the class (an index) that each is a name of.
    threshold: the least probability of a class; a pixel without one that has it is background.
    """

    classes: tuple[str, ...]
    names: tuple[str, ...]
    of_class: tuple[int, ...]
    threshold: float | None = None

    @property
    def plain(self) -> bool:
        """Whether each class has one name, so that nothing is to be merged."""
        return self.of_class == tuple(range(len(self.names)))


def vocabulary(classes: Classes, background: Background = None) -> Vocabulary:
    """Reads classes in any of their forms.

    Examples:
        >>> vocabulary("bear, grass").classes
        ('bear', 'grass')
        >>> vocabulary({"bear": ["grizzly", "polar bear"], "grass": []}, background=["sky", "water"]).names
        ('grizzly', 'polar bear', 'grass', 'sky', 'water')
        >>> vocabulary(["bear", "grass"], background=0.5).classes
        ('bear', 'grass', 'background')

    Args:
        classes: as :data:`Classes`. A class with synonyms is known by these names; add its own to use it as well. A
            class without any is known by its own name.
        background: as :data:`Background`.

    Raises:
        DeopError: no class, an empty name, a class given twice, or a threshold outside 0 to 1 or for a single class.
    """
    synonyms = _synonyms(classes)
    given = tuple(synonyms)
    threshold = None
    if background is not None:
        if BACKGROUND in given:
            raise DeopError(
                f"class names: {BACKGROUND!r} is a class and background= is given as well; leave one out"
            )
        if isinstance(background, bool):
            raise DeopError(
                f"background={background}: valid: a word, a list of words, or a number from 0 to 1"
            )
        if isinstance(background, (int, float)):
            if not 0 <= background <= 1:
                raise DeopError(f"background={background}: a threshold is a probability, from 0 to 1")
            if len(given) == 1:
                raise DeopError(
                    f"background={background}: a threshold needs two classes or more, because the probability of a "
                    "single one is 1 everywhere; give words for the rest instead, such as background='wall, sky'"
                )
            threshold = float(background)
        else:
            synonyms[BACKGROUND] = _names(background)
    names = [(name, index) for index, words in enumerate(synonyms.values()) for name in words]
    shown = (*synonyms, BACKGROUND) if threshold is not None else tuple(synonyms)
    return Vocabulary(shown, tuple(name for name, _ in names), tuple(index for _, index in names), threshold)


def _synonyms(classes: Classes) -> dict[str, list[str]]:
    if isinstance(classes, Mapping):
        keys = _names(list(classes))
        return {
            key: _names(words) if (words := _listed(value)) else [key]
            for key, value in zip(keys, classes.values(), strict=True)
        }
    return {name: [name] for name in _names(classes)}


def _listed(value: str | Iterable[str]) -> list[str] | str:
    return value if isinstance(value, str) else list(value)


def _names(given: str | Iterable[str]) -> list[str]:
    """Names in a text, separated by commas, or in a list; in a list, commas are part of names."""
    if isinstance(given, str):
        return parse_names(given)
    if not isinstance(given, Iterable):
        raise DeopError(
            f"class names: {given!r} is no list of names; valid: 'bear, grass' or ['bear', 'grass']"
        )
    names = list(given)
    for name in names:
        if not isinstance(name, str) or not name.strip():
            raise DeopError(f"class names: {name!r} is no name; valid: words, as in ['bear', 'grass']")
    names = [" ".join(name.split()) for name in names]
    if not names:
        raise DeopError("class names: none are given; valid: 'bear, grass' or ['bear', 'grass']")
    seen: set[str] = set()
    for name in names:
        if name.casefold() in seen:
            raise DeopError(f"class names: {name!r} is given twice")
        seen.add(name.casefold())
    return names
