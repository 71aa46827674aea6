"""What strangers may ask of the page: how large, how many, how long. What is more is refused in one sentence."""

from __future__ import annotations

from dataclasses import dataclass

from deop.errors import DeopError


class Refused(DeopError):
    """A request that the page does not carry out. The message is a sentence for the person at the browser."""


@dataclass(frozen=True)
class Limits:
    """Limits of one request.

    bytes: of a picture's file.
    pixels: of a picture as it is stored.
    names: class names at once.
    length: characters of a name.
    seconds: of waiting and computing.
    """

    bytes: int = 20_000_000
    pixels: int = 50_000_000
    names: int = 50
    length: int = 60
    seconds: float = 60
