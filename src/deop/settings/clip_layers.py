"""How many layers a CLIP's image tower has, read from its configuration file without importing open_clip or torch."""

from __future__ import annotations

import functools
import importlib.util
import json
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

from deop.errors import ConfigError

OWN = Path(__file__).parents[1] / "models" / "configs"
DEFAULT_LAYERS = 12
"""What open_clip builds where a model's file does not say."""


@functools.cache
def model_files() -> dict[str, Path]:
    """The configuration files of all models, open_clip's and this package's own, by model name."""
    spec = importlib.util.find_spec("open_clip")
    places = spec.submodule_search_locations if spec else None
    folders = [Path(place) / "model_configs" for place in places or []]
    return {path.stem: path for folder in (*folders, OWN) for path in folder.glob("*.json")}


def check_model(model: str, where: str) -> None:
    """Checks that open_clip or this package has ``model``, which ``where`` names; a scheme (``hf-hub:``) passes.

    Raises:
        ConfigError: there is no model of this name.
    """
    files = model_files()
    if ":" not in model and model not in files:
        near = get_close_matches(model, files, n=5, cutoff=0.4)
        raise ConfigError(f"{where}: unknown CLIP model {model!r}; closest: {', '.join(near) or 'none'}")


@functools.cache
def layers_of(model: str) -> int | None:
    """Number of layers of the image tower of ``model``, an open_clip model name.

    None where no file says it: towers of timm, ResNets, and names with a scheme such as ``hf-hub:``.
    """
    file = model_files().get(model)
    if file is None:
        return None
    vision = json.loads(file.read_text(encoding="utf-8"))["vision_cfg"]
    layers = vision.get("layers", DEFAULT_LAYERS)
    return layers if "timm_model_name" not in vision and isinstance(layers, int) else None


def check_severed_layers(severed: Iterable[int], model: str, who: str) -> None:
    """Checks layer indices, of which negative ones count from the end, against the layers of ``model``.

    Args:
        who: what asks for them, as the message says it.

    Raises:
        ConfigError: a layer that the model does not have, or one named twice.
    """
    layers = layers_of(model)
    if layers is None:
        return
    named: dict[int, int] = {}
    for layer in severed:
        if not -layers <= layer < layers:
            raise ConfigError(
                f"{who}: severance.alpha names layer {layer}, but CLIP model {model!r} has {layers} layers; "
                f"valid: {-layers} to {layers - 1}"
            )
        if layer % layers in named:
            raise ConfigError(
                f"{who}: severance.alpha names layers {named[layer % layers]} and {layer}, which are the same of the "
                f"{layers} layers of CLIP model {model!r}; valid: one of the two"
            )
        named[layer % layers] = layer
