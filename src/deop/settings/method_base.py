"""The base of the settings of every method."""

from __future__ import annotations

from typing import Any, Literal

from deop.settings.base import Settings
from deop.settings.files import merged

Part = Literal["clip", "prompts", "proposals", "backbone"]
"""What a system may be built from: CLIP, the text prompt that was learned offline, the trained proposal network, or a
proposal network of its own, which starts from the pre-trained backbone."""


class MethodSettings(Settings):
    """Base of the settings of a method. The defaults are those of a method that is built on CLIP and never trained.

    ``rounds`` are the rounds of training, in order: each is the name of a section of the configuration that has its
    schedule (``segmentation``, ``proposals``), or of a field of the settings that does.
    """

    method: str

    @property
    def parts(self) -> tuple[Part, ...]:
        """What a system with these settings is built from."""
        return ("clip",)

    @property
    def rounds(self) -> tuple[str, ...]:
        """The schedules of the rounds of training; none for a method that is not trained."""
        return ()

    @property
    def described_prompts(self) -> str | None:
        """Which text prompts a system uses, for notes under tables; None says nothing."""
        return None

    @property
    def files(self) -> tuple[str, ...]:
        """Paths of files that the method reads. Their sizes name what is made from them."""
        return ()

    def check_clip(self, model: str, place: str) -> None:
        """Raises a ConfigError, beginning with ``place``, if the settings do not fit the CLIP called ``model``."""

    def for_training(self) -> MethodSettings:
        """These settings without what training does not depend on, so that no change of that trains again."""
        return self

    @classmethod
    def combined(cls, profile: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
        """The values of an experiment: its ``own``, merged over those that the ``profile`` has for its method."""
        return merged(profile, own)
