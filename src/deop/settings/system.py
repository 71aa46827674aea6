"""What a trained system's folder says about itself: ``config.json``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from deop.settings.base import Settings
from deop.settings.precision import Precision
from deop.settings.stages import Inference

CONFIG = "config.json"


class ClipReference(Settings):
    """Where the weights of a system's CLIP are.

    With ``included`` they are in the system's own ``model.safetensors``. Otherwise they are those that the section
    ``clip`` names, bundled with this package or public, with this SHA-256.
    """

    included: bool
    sha256: str | None = None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class SystemConfig(Settings):
    """A system: its method, everything that its networks are built from, and how it is used.

    name: dataset, experiment and seed, for readers.
    sections: settings by section of the configuration: ``method``, and ``clip``, ``prompts`` and ``proposals`` as far
        as the method needs them.
    class_names: all classes of the dataset that the system was trained on; ``seen_names`` those that it was shown.
    clip: None for a method without CLIP.
    versions: of the packages that the system was made with.
    """

    format: Literal[1] = 1
    name: str
    sections: dict[str, dict[str, Any]]
    class_names: tuple[str, ...]
    seen_names: tuple[str, ...]
    clip: ClipReference | None = None
    inference: Inference = Inference()
    precision: Precision = "fp32"
    versions: Annotated[dict[str, str], Field(default_factory=dict)]
