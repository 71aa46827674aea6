"""Problems that a user can put right: shown as one line, without a traceback."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

Model = TypeVar("Model", bound=BaseModel)


class DeopError(Exception):
    """Base of all errors that are about what the user asked for, not about the code."""


class ConfigError(DeopError):
    """A configuration that cannot be run. The message names the file or key, the value and what is valid."""

    def __init__(self, message: str) -> None:
        super().__init__(f"config error: {message}")


class WeightsError(DeopError, ValueError):
    """A model or weights that cannot be had or do not fit. The message names them and says what to do."""


class ClassNameError(DeopError, ValueError):
    """A class name that a text encoder cannot take. The message names it and says why."""


class NotFiniteError(DeopError, FloatingPointError):
    """A training that has diverged. The message says at which step."""


class StorageError(DeopError):
    """A file that cannot be written, for example because the disk is full."""


# By error number, what to do about an error of the operating system that is not about the code.
_MAKE_ROOM = "make room, and run the same command again; it goes on from what is there"
_REMEDIES = {
    errno.ENOSPC: _MAKE_ROOM,
    errno.EDQUOT: _MAKE_ROOM,
    errno.EROFS: "write elsewhere, or make it writable",
    errno.EACCES: "give yourself the permission, or use another path",
    errno.EPERM: "give yourself the permission, or use another path",
    errno.ENAMETOOLONG: "use a shorter path",
    errno.ELOOP: "remove the links that lead in a circle",
    errno.EISDIR: "move the folder away",
    errno.ENOTDIR: "move the file away that lies where a folder is needed",
    errno.EFBIG: "raise the limit of file sizes",
    errno.EIO: "check the disk",
}


def of_the_machine(error: Exception) -> str | None:
    """One line about an error of disk or memory, with what to do; None for errors that may be of the code."""
    if isinstance(error, OSError) and error.errno in _REMEDIES:
        place = f"{error.filename}: " if error.filename is not None else ""
        return f"{place}{error.strerror or errno.errorcode[error.errno]}; {_REMEDIES[error.errno]}"
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported here
        return (
            f"out of GPU memory ({str(error).splitlines()[0].rstrip('.')}); set micro_batch under resources of this "
            "stage to fewer images, which leaves results as they are, or evaluation.batch_size for evaluations"
        )
    if isinstance(error, MemoryError):
        return "out of memory; run fewer jobs at once (resources.<stage>.mem_mb), or on a machine with more"
    return None


def unknown(where: str, kind: str, value: object, valid: Iterable[object]) -> ConfigError:
    """The error for a name that is not one of ``valid``."""
    return ConfigError(f"{where}: unknown {kind} {value!r}; valid: {', '.join(map(str, valid)) or 'none'}")


def explain(error: ValidationError, model: type[BaseModel], source: str, at: tuple[str, ...] = ()) -> str:
    """The first problem of a failed validation of ``model``, naming the key, the value and what is valid.

    Args:
        source: the file (or whole configuration) that the values came from.
        at: the keys that lead to them in ``source``.
    """
    problem = error.errors(include_url=False)[0]
    path = (*at, *map(str, problem["loc"]))
    key, parent = (f"{source}: {'.'.join(part)}".removesuffix(": ") for part in (path, path[:-1]))
    if problem["type"] == "extra_forbidden":
        return f"{parent}: unknown key {path[-1]!r}; valid: {', '.join(_fields(model, problem['loc'][:-1]))}"
    if problem["type"] == "json_invalid":  # whose input is the whole file
        return f"{source}: not JSON ({problem['ctx']['error']})"
    if problem["type"] == "missing":
        return f"{parent}: missing key {path[-1]!r}"
    if problem["type"] == "literal_error":
        return f"{key}: unknown value {problem['input']!r}; valid: {problem['ctx']['expected']}"
    return f"{key}: {problem['msg'].removeprefix('Value error, ')} (got {problem['input']!r})"


def validated(model: type[Model], values: Any, source: str, at: tuple[str, ...] = ()) -> Model:
    """``values``, found in ``source`` under the keys ``at``, as an instance of ``model``.

    Raises:
        ConfigError: values that ``model`` refuses.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigError(explain(error, model, source, at)) from None


def _fields(annotation: Any, path: Iterable[int | str]) -> list[str]:
    """The field names of the model at ``path`` below ``annotation`` (a model, or a container of models)."""
    for part in path:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            annotation = annotation.model_fields[str(part)].annotation
        else:
            annotation = [argument for argument in get_args(annotation) if argument is not Ellipsis][-1]
    return sorted(annotation.model_fields)
