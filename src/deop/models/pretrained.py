"""Finds weights of models: bundled with this package, in a file, or downloaded."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path

import open_clip
import timm
import torch
from huggingface_hub import constants, hf_hub_url, try_to_load_from_cache

from deop.errors import WeightsError
from deop.models.weight_files import check_sha256

BUNDLED = Path(__file__).parent / "weights"


def check_hub_file(path: Path) -> None:
    """Raise WeightsError unless the SHA-256 of a file in the hub's cache is that of the hub.

    In the cache, a large file is a link to a file named by its SHA-256. Other files are not checked: open_clip checks
    those that it downloads from a plain address against the sum in the address.
    """
    name = path.resolve().name
    if path.is_symlink() and re.fullmatch("[0-9a-f]{64}", name):
        check_sha256(path, name)


def find_clip_weights(model: str, pretrained: str, cache_dir: str | Path | None) -> Path:
    """The file of weights that ``pretrained`` means for an open_clip model; see :func:`deop.models.clip.load_clip`.

    Raises:
        WeightsError: a tag or file that is not there, or a download that failed.
    """
    tag = open_clip.get_pretrained_cfg(model, pretrained)
    if tag:
        try:
            path = Path(open_clip.download_pretrained(tag, cache_dir=cache_dir and str(cache_dir)))
        except Exception as error:  # of urllib, of the hub's client, of the file system: all end the same way
            raise WeightsError(_how_to_get(model, pretrained, tag, cache_dir, error)) from error
        check_hub_file(path)
        return path
    if pretrained == "bundled":
        path = BUNDLED / f"{model}.safetensors"
        if not path.is_file():
            bundled = sorted(file.stem for file in BUNDLED.glob("*.safetensors"))
            raise WeightsError(
                f"no weights are bundled for CLIP model {model!r} ({path}); "
                f"bundled: {', '.join(bundled) or 'none'}"
            )
        return path
    path = Path(pretrained)
    if path.is_file():
        return path
    if path.suffix in (".safetensors", ".pt", ".bin", ".pth"):
        raise WeightsError(f"weights {path} of CLIP model {model!r} are not there")
    raise _unknown_weights(model, pretrained)


def in_a_file(model: str, pretrained: str | None) -> bool:
    """Whether ``pretrained`` means a file, and neither public weights nor those of this package."""
    return pretrained not in (None, "bundled") and not open_clip.get_pretrained_cfg(model, pretrained)


def _unknown_weights(model: str, pretrained: str) -> WeightsError:
    bundled = ["bundled"] if (BUNDLED / f"{model}.safetensors").is_file() else []
    valid = ["a path to .safetensors or .pt", *bundled, *open_clip.list_pretrained_tags_by_model(model)]
    return WeightsError(f"unknown weights {pretrained!r} of CLIP model {model!r}; valid: {', '.join(valid)}")


def download_failed(what: str, url: str, cache: str | Path, remedy: str, error: Exception) -> str:
    """The error message about a failed download of ``what``: address, reason, place in the cache, and remedy."""
    return f"{what} could not be downloaded from {url} ({reason_of(error)}); it would be kept in {cache}. {remedy}"


def reason_of(error: BaseException) -> str:
    """Why a download failed, in a few words: the message of the first cause."""
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(cause)
    told = " ".join(f"{type(cause).__name__}: {cause}" for cause in causes)
    if re.search(r"GatedRepoError|\b40[13] Client Error", told):
        return (
            "access refused: accept the licence on its page and log in with 'hf auth login', or set HF_TOKEN"
        )
    if constants.HF_HUB_OFFLINE:
        return "offline: HF_HUB_OFFLINE is set"
    return (str(causes[-1]).strip().splitlines() or [type(causes[-1]).__name__])[0][:200]


def hub_cache(cache_dir: str | Path | None = None) -> str:
    """The folder in which the hub's client stores downloads."""
    return str(cache_dir or constants.HF_HUB_CACHE)


def _how_to_get(model: str, tag: str, about: dict, cache_dir: str | Path | None, error: Exception) -> str:
    """The message about the file that ``open_clip.download_pretrained`` needs; it prefers the hub to an address."""
    if about.get("hf_hub"):
        repository, name = os.path.split(about["hf_hub"])
        url, cache = (
            hf_hub_url(repository, name or open_clip.constants.HF_SAFE_WEIGHTS_NAME),
            hub_cache(cache_dir),
        )
    else:
        url, cache = about["url"], str(cache_dir or Path("~/.cache/clip").expanduser())
    remedy = (
        "Download that file on a machine that may, and set clip.pretrained to its path "
        f"(.safetensors or .pt), with clip.model {model}"
    )
    if about.get("quick_gelu") and not model.endswith("-quickgelu"):
        remedy += "-quickgelu (these weights need that activation, which a file does not say)"
    return download_failed(f"weights {tag!r} of CLIP model {model!r}", url, cache, remedy, error)


def cached_clip(model: str, tag: str) -> tuple[Path | None, str]:
    """The path of weights that open_clip downloads, None if they are not in the cache, and their address.

    Raises:
        WeightsError: a tag that the model does not have, or one without an address.
    """
    about = open_clip.get_pretrained_cfg(model, tag)
    if not (about.get("hf_hub") or about.get("url")):
        raise _unknown_weights(model, tag)
    if about.get("hf_hub"):
        repository, name = os.path.split(about["hf_hub"])
        return _in_hub_cache(repository, name or open_clip.constants.HF_SAFE_WEIGHTS_NAME)
    path = Path("~/.cache/clip").expanduser() / Path(about["url"]).name
    return (path if path.is_file() else None), about["url"]


def cached_backbone(name: str) -> tuple[Path | None, str]:
    """The path of a backbone's weights that timm downloads, None if they are not in the cache, and their address.

    Raises:
        WeightsError: a backbone that timm does not have, or that has no weights.
    """
    about = timm.get_pretrained_cfg(name)
    if about is None or not (about.hf_hub_id or about.url):
        near = difflib.get_close_matches(name, timm.list_models(pretrained=True), n=5, cutoff=0.4)
        raise WeightsError(f"timm has no weights of backbone {name!r}; closest: {', '.join(near) or 'none'}")
    if about.hf_hub_id:
        return _in_hub_cache(about.hf_hub_id, about.hf_hub_filename or "model.safetensors")
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(about.url).name
    return (path if path.is_file() else None), about.url


def _in_hub_cache(repository: str, name: str) -> tuple[Path | None, str]:
    found = try_to_load_from_cache(repository, name)
    return (Path(found) if isinstance(found, str) else None), hf_hub_url(repository, name)
