"""Builds open_clip models: finds the activation that weights were trained with, and loads the weights."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import open_clip
import torch
from open_clip.convert import convert_state_dict
from open_clip.model import convert_to_custom_text_state_dict, resize_pos_embed, resize_text_pos_embed
from torch import Tensor, nn

from deop.errors import WeightsError
from deop.models.bundled import read_bundled
from deop.models.weight_files import is_torchscript, read_weights
from deop.utils.files import file_hash


def build_clip_model(
    model: str, pretrained: str | None, path: Path | None, quick_gelu: bool, prefix: str = ""
) -> nn.Module:
    """The model with the weights of ``path``; images are normalised as for ``pretrained``, if that is a tag.

    With ``prefix``, only tensors whose names start with it are loaded.

    Raises:
        WeightsError: a file that cannot be read as weights, or is of another model.
    """
    tag = open_clip.get_pretrained_cfg(model, pretrained) if pretrained else {}
    weights = None
    read = read_bundled if pretrained == "bundled" else read_weights
    if path is not None:
        weights = {
            name.removeprefix(prefix): value for name, value in read(path).items() if name.startswith(prefix)
        }
    # open_clip's own loading of files can run code in them.
    with _without_warning_of_random_weights():
        network = open_clip.create_model(
            model, force_preprocess_cfg=_preprocessing(model, tag), quick_gelu=quick_gelu
        )
    if weights is not None:
        try:
            _fill(network, weights)
        except (RuntimeError, KeyError, ValueError) as error:
            raise WeightsError(
                f"weights {path} do not fit CLIP model {model!r}: {' '.join(str(error).split())[:300]}"
            ) from error
    return network


@contextlib.contextmanager
def _without_warning_of_random_weights() -> Iterator[None]:
    """Hides open_clip's warning about models without weights: they are loaded afterwards, or random ones are wanted."""

    def helpful(record: logging.LogRecord) -> bool:
        return "initialized randomly" not in record.getMessage()

    logging.root.addFilter(helpful)
    try:
        yield
    finally:
        logging.root.removeFilter(helpful)


def _fill(network: nn.Module, weights: dict[str, Tensor]) -> None:
    """Loads tensors into an open_clip model, under its own names or those of releases that open_clip converts.

    Raises:
        RuntimeError: tensors that are missing, left over or of another shape.
    """
    weights = {name.removeprefix("module."): value for name, value in weights.items()}
    for name in ("input_resolution", "context_length", "vocab_size"):  # of OpenAI's archives
        weights.pop(name, None)
    weights = convert_state_dict(network, weights)
    if "positional_embedding" in weights and not hasattr(network, "positional_embedding"):
        weights = convert_to_custom_text_state_dict(weights)
    own = network.state_dict()
    for name in ("logit_scale", "logit_bias"):  # a number, or a vector of one
        if name in weights and name in own:
            weights[name] = weights[name].reshape(own[name].shape)
    if "logit_bias" in own and "logit_bias" not in weights:  # SigLIP's, which features do not use
        weights["logit_bias"] = torch.zeros_like(own["logit_bias"])
    resize_pos_embed(weights, network)
    resize_text_pos_embed(weights, network)
    network.load_state_dict(weights)


def _preprocessing(model: str, tag: dict) -> dict[str, tuple[float, ...]]:
    """Mean and standard deviation of a tag's images, or those that all tags of the model agree on."""
    asked = [
        {key: about[key] for key in ("mean", "std") if key in about}
        for about in ([tag] if tag else _tags(model))
    ]
    return asked[0] if asked and all(one == asked[0] for one in asked) else {}


def has_quick_gelu(model: str) -> bool:
    """Whether an open_clip model has QuickGELU by default, with which it is also trained here."""
    return bool(open_clip.get_model_config(model).get("quick_gelu"))


def uses_quick_gelu(model: str, pretrained: str | None, path: Path | None, said: bool | None) -> bool:
    """Whether weights were trained with QuickGELU, as OpenAI's were, in place of GELU.

    open_clip records it for its tags. A file of tensors does not say, and with the wrong activation it loads without
    an error and gives wrong features. For a file it is known if one of open_clip's tags has its SHA-256, and otherwise
    inferred if the file is a TorchScript archive (OpenAI's format) or if all tags of the model agree. A model without
    tags has GELU unless the user sets it.

    Args:
        model: name of an open_clip model config.
        pretrained: an open_clip tag, or another value of :func:`deop.models.clip.load_clip`; None is random weights.
        path: the file of weights.
        said: the user's setting, None if not set. For ``-quickgelu`` models it is True.

    Raises:
        WeightsError: it is not known for the file, or it differs from the user's setting.
    """
    of_model = has_quick_gelu(model)
    if of_model and said is False:
        raise WeightsError(
            f"clip.quick_gelu: false, but clip.model {model} has QuickGELU; valid: clip.model "
            f"{model.removesuffix('-quickgelu')}, or no clip.quick_gelu"
        )
    said = True if of_model else said
    if path is None:
        return bool(said)
    tag = open_clip.get_pretrained_cfg(model, pretrained)
    tags = _tags(model.removesuffix("-quickgelu"))
    kinds = {bool(about.get("quick_gelu")) for about in tags}
    known = (
        bool(tag.get("quick_gelu")) if tag else _quick_gelu_by_sha256(tags, path) if len(kinds) == 2 else None
    )
    if None not in (known, said) and known != said:
        needed, asked = ("QuickGELU" if quick else "GELU" for quick in (known, said))
        if of_model:
            where, remedy = f"clip.model {model}", f"set clip.model to {model.removesuffix('-quickgelu')}"
        else:
            where, remedy = f"clip.quick_gelu: {str(said).lower()}", "leave clip.quick_gelu out"
        raise WeightsError(
            f"weights {path} were trained with {needed}, but {where} asks for {asked}; {remedy}"
        )
    if known is not None or said is not None:
        return bool(said or known)
    if is_torchscript(path):
        return True
    if len(kinds) == 2:
        raise WeightsError(
            f"weights {path} may have been trained with GELU or with QuickGELU: open_clip has both for this model, and "
            f"the file does not say which. Set clip.model to {model}-quickgelu for QuickGELU (weights of OpenAI, DFN "
            "and MetaCLIP), or clip.quick_gelu to false for GELU (most others)"
        )
    return True in kinds


def _tags(model: str) -> list[dict]:
    """open_clip's entries about the pre-trained weights of a model."""
    return [
        open_clip.get_pretrained_cfg(model, name) for name in open_clip.list_pretrained_tags_by_model(model)
    ]


def _quick_gelu_by_sha256(tags: list[dict], path: Path) -> bool | None:
    """Whether a file needs QuickGELU, if open_clip knows its SHA-256 or the beginning of it; else None."""
    sums = {_sha256_in(tag.get("url") or ""): bool(tag.get("quick_gelu")) for tag in tags}
    actual = file_hash(path)
    return next((quick for known, quick in sums.items() if known and actual.startswith(known)), None)


def _sha256_in(url: str) -> str | None:
    """The SHA-256 in the address of a file, or the beginning of it; None if there is none."""
    if "openaipublic" in url:
        return url.split("/")[-2]
    found = re.search(r"-([0-9a-f]{8})\.pt$", url) if "mlfoundations" in url else None
    return found and found[1]
