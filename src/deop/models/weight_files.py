"""Reading and writing files of weights. Whatever the format, no code in a file is run.

Python's pickle and TorchScript both run code from the file that is loaded. So pickled files are read with torch's
restricted unpickler, and TorchScript archives without ``torch.jit.load``, which runs their ``__setstate__`` methods,
and these may write files.
"""

from __future__ import annotations

import collections
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from deop.errors import StorageError, WeightsError
from deop.jobs.integrity import PROVENANCE, WEIGHTS, read_json
from deop.utils.files import file_hash

_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_CLASS = re.compile(
    r"^class (?P<name>\w+)\(Module\):\s*"
    r"__parameters__ = \[(?P<parameters>[^\]]*)\]"
    r"(\s*__buffers__ = \[(?P<buffers>[^\]]*)\])?",
    re.MULTILINE,
)


def check_sha256(path: Path, expected: str) -> None:
    """Raise WeightsError naming the file and both sums unless its SHA-256 is ``expected`` (hexadecimal)."""
    actual = file_hash(path)
    if actual != expected.lower():
        raise WeightsError(f"{path} has SHA-256 {actual}, not the expected {expected}")


def checked_weights(folder: str | Path) -> Path:
    """The weights that an earlier stage wrote into ``folder``.

    Raises:
        DeopError: no weights, or another SHA-256 than the ``provenance.json`` beside them has, or none there.
    """
    path, provenance = Path(folder) / WEIGHTS, Path(folder) / PROVENANCE
    if not path.is_file():
        raise WeightsError(f"{path} is not there")
    remedy = f"remove {folder} to have it made again"
    expected = read_json(provenance, remedy).get("sha256")
    if not isinstance(expected, str):
        raise WeightsError(f"{provenance} has no SHA-256 of {path}; {remedy}")
    check_sha256(path, expected)
    return path


def save_weights(state: dict[str, Tensor], folder: Path) -> None:
    """Writes named tensors as ``model.safetensors`` in ``folder``."""
    try:
        save_file(
            {name: value.detach().cpu().contiguous() for name, value in state.items()}, folder / WEIGHTS
        )
    except SafetensorError as error:
        raise StorageError(
            f"{folder / WEIGHTS} cannot be written ({_first_line(error)}); if the disk is full, make room, and run the "
            "same command again"
        ) from None


def load_learned(module: nn.Module, path: Path, *, unfinished: bool = False) -> None:
    """Loads a file of weights; tensors that it lacks (frozen ones) are left as they are.

    Args:
        unfinished: the file may lack parameters that the module learns, which later rounds of training will write.

    Raises:
        WeightsError: it holds a tensor that the module does not have, or has in another shape, or lacks one that the
            module learns.
    """
    learned = {name for name, value in module.named_parameters() if value.requires_grad}
    load_fitting(module, read_weights(path), path, needed=set() if unfinished else learned)


def load_fitting(module: nn.Module, state: dict[str, Tensor], path: Path, needed: set[str]) -> None:
    """Loads ``state``, read from ``path``, into a module.

    Raises:
        WeightsError: a tensor that is missing among those ``needed``, has another shape, or is not the module's.
    """
    own = module.state_dict()
    problems = [f"it lacks {name}" for name in sorted(needed - state.keys())]
    problems += [f"it has {name}, which the network has not" for name in state if name not in own]
    problems += [
        f"{name} has shape {tuple(value.shape)}, not {tuple(own[name].shape)}"
        for name, value in state.items()
        if name in own and value.shape != own[name].shape
    ]
    if problems:
        raise WeightsError(f"{path} does not fit the network: {'; '.join(problems[:3])}")
    module.load_state_dict(state, strict=False)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The named tensors in a file: safetensors (by its suffix), a TorchScript archive, or what ``torch.save`` wrote.

    A checkpoint that keeps its tensors under ``state_dict`` is read from there.

    Raises:
        WeightsError: a file that is none of these, holds no named tensors, or is made of more than data.
    """
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise WeightsError(f"{path} cannot be read as weights: {_first_line(error)}") from error
    if is_torchscript(path):
        return _read_torchscript(path)
    loaded = read_pickled(path)
    state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else None
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)} if state else {}
    if not tensors:
        raise WeightsError(
            f"{path} cannot be read as weights: it holds no named tensors, neither at top level nor under "
            "'state_dict'"
        )
    return tensors


def learned_state(module: nn.Module) -> dict[str, Tensor]:
    """The tensors that training changes: parameters that require gradients, and the buffers of modules with any."""
    learned = {name for name, value in module.named_parameters() if value.requires_grad}
    owners = {name.rpartition(".")[0] for name in learned}
    frozen = {name for name, value in module.named_parameters() if not value.requires_grad}
    return {
        name: value.detach()
        for name, value in module.state_dict().items()
        if name in learned or (name not in frozen and name.rpartition(".")[0] in owners)
    }


def read_pickled(path: Path, allowed: tuple[Any, ...] = ()) -> Any:
    """What ``torch.save`` wrote, if that is tensors, numbers, texts and containers of these.

    Args:
        allowed: further classes and functions that the file may name.

    Raises:
        WeightsError: a file that is not of this form, or could only be read by running code that it names.
    """
    try:
        with torch.serialization.safe_globals(list(allowed)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if named := re.findall(r"GLOBAL (\S+)", str(error)):
            raise WeightsError(
                f"{path} cannot be read as weights: it holds objects of kind {named[0]}, and reading these would run "
                "code. If you trust the file, load it with torch.load(path, weights_only=False) and save its tensors, "
                "and nothing else, to a new one"
            ) from error
        raise WeightsError(f"{path} cannot be read as weights: torch.save did not write it") from error
    except Exception as error:  # bytes that are no pickle may raise anything
        raise WeightsError(f"{path} cannot be read as weights: {_first_line(error)}") from error


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive, the form of OpenAI's own ``ViT-B-16.pt``."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # no archive, or a damaged one, of which offsets and names may be anything
        return False
    folders = {name.partition("/")[0] for name in names}
    if len(folders) != 1:
        return False
    folder = folders.pop()
    in_code = any(name.startswith(f"{folder}/code/") for name in names)
    return in_code and {f"{folder}/data.pkl", f"{folder}/constants.pkl"} <= set(names)


class _Scripted:
    """A module of a TorchScript archive: its attributes, and by ``kind`` the name of its class."""

    kind = ("", "")

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise pickle.UnpicklingError("a module brings a __setstate__ method of its own")
        self.attributes = state


class _TensorsOnly(pickle.Unpickler):
    """Reads ``data.pkl`` of a TorchScript archive without importing or running anything that the pickle names."""

    def __init__(self, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(archive.open(f"{folder}/data.pkl"), encoding="utf-8")
        self._archive, self._folder = archive, folder
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            return type(name, (_Scripted,), {"kind": (module, name)})
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module == "torch.jit._pickle":  # annotations of the types of lists and dictionaries
            return lambda value, *_: value
        raise pickle.UnpicklingError(f"it names {module}.{name}")

    def persistent_load(self, pid: tuple) -> Tensor:
        kind, dtype, key, _, count = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError(f"it has stored data of an unknown kind ({kind})")
        if key not in self._storages:
            content = bytearray(self._archive.read(f"{self._folder}/data/{key}"))
            self._storages[key] = (
                torch.frombuffer(content, dtype=dtype, count=count) if count else torch.empty(0, dtype=dtype)
            )
        return self._storages[key]


def _tensor(storage: Tensor, offset: int, size: tuple, stride: tuple, *_: Any) -> Tensor:
    return storage.as_strided(size, stride, offset)


def _read_torchscript(path: Path) -> dict[str, Tensor]:
    """The parameters and buffers of a TorchScript archive, as ``torch.jit.load(path).state_dict()`` names them."""
    try:
        with zipfile.ZipFile(path) as archive:
            folder = archive.namelist()[0].partition("/")[0]
            root = _TensorsOnly(archive, folder).load()
            if not isinstance(root, _Scripted):
                raise pickle.UnpicklingError("it holds no module")
            lists: dict[tuple[str, str], list[str]] = {}
            tensors: dict[str, Tensor] = {}
            waiting = [("", root)]
            while waiting:
                prefix, module = waiting.pop()
                if module.kind not in lists:
                    lists[module.kind] = _state_of(archive, folder, *module.kind)
                for name, value in getattr(module, "attributes", {}).items():
                    if isinstance(value, _Scripted):
                        waiting.append((f"{prefix}{name}.", value))
                    elif isinstance(value, Tensor) and name in lists[module.kind]:
                        tensors[prefix + name] = value
            return tensors
    except Exception as error:  # what is no such pickle may raise anything
        raise WeightsError(f"{path} cannot be read as a TorchScript archive: {_first_line(error)}") from error


def _state_of(archive: zipfile.ZipFile, folder: str, module: str, name: str) -> list[str]:
    """The parameters and buffers of a class, which its code lists: other attributes may be tensors, too."""
    code = archive.read(f"{folder}/code/{module.replace('.', '/')}.py").decode()
    for found in _CLASS.finditer(code):
        if found["name"] == name:
            return re.findall(r'"([^"]+)"', found["parameters"] + (found["buffers"] or ""))
    return []


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
