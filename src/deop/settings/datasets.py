"""What the settings of all datasets have in common, and the registry of the kinds of datasets.

A kind of dataset is a module of :mod:`deop.data.readers`, called by its file name (``coco_stuff``), or any other
importable module, called by its dotted name (``my_lab.cityscapes``). It holds the settings of such a dataset and the
function that opens one, decorated with :func:`dataset`. See docs/adding-a-dataset.md.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import Field, model_validator

from deop.errors import ConfigError, unknown
from deop.settings.base import Settings

READERS = "deop.data.readers"
"""The package whose modules are the kinds of datasets."""

Opener = TypeVar("Opener", bound=Callable)

Names = Literal["cleaned", "original"]
Spelling = Literal["cleaned", "original", "detectron2"]
"""All values of ``names``; the settings of a dataset say which of them it takes."""
Splits = Annotated[tuple[Literal["train", "val"], ...], Field(min_length=1)]


class Vocabulary(Settings):
    """A class list in label order. ``things`` come first, then ``stuff``; ``unseen`` is a subset of both together."""

    things: tuple[str, ...]
    stuff: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return self.things + self.stuff

    @model_validator(mode="after")
    def _consistent(self) -> Vocabulary:
        repeated = sorted({name for name in self.names if self.names.count(name) > 1})
        if repeated:
            raise ValueError(f"class names appear twice: {', '.join(repeated)}")
        unknown = sorted(set(self.unseen) - set(self.names))
        if unknown:
            raise ValueError(f"unseen classes that are not in things or stuff: {', '.join(unknown)}")
        return self


class DatasetSettings(Settings):
    """Base of the settings of a dataset. Each has ``splits``, whose names are ``train`` and ``val``."""

    kind: str
    if TYPE_CHECKING:  # a field or a property of each kind

        @property
        def splits(self) -> Collection[str]: ...

    @property
    def images(self) -> str:
        """What the images are, for notes under tables."""
        return "images of one's own"

    def sources(self) -> tuple[str, ...]:
        """The archives that it is unpacked from, by name in the catalogue (``data/downloads/sources.yaml``)."""
        return ()

    def contents(self, data_root: Path, start: Path) -> dict[str, Any] | None:
        """What its files hold, in values for JSON, so that results are named after it and follow its changes.

        None, the default, names results after the settings alone, as for published datasets, which do not change.

        Args:
            data_root: the folder of all datasets (``data.root``).
            start: the folder that relative paths start from.

        Raises:
            DeopError: files that are missing; the message begins with the key of the settings.
        """
        return None

    def folders(self, data_root: Path, start: Path) -> list[Path]:
        """Where files lie that :meth:`contents` describes, resolved."""
        return []


class GeneratedDataset(DatasetSettings):
    """Base of the settings of datasets that are generated, which need no files."""

    seed: int = 0


class RealDataset(DatasetSettings):
    """Base of the settings of published datasets, which are read where they are, under ``data.root``.

    ``names`` says what classes are called in prompts: ``original``, as the dataset's owners spell them, or ``cleaned``,
    in plain English (``tvmonitor`` is a tv monitor; of synonyms the first). ADE20K's 150 classes can also have
    detectron2's names (``detectron2``). The authors' release evaluates with the original names, and on ADE20K's
    150 classes with detectron2's. ``splits`` are prepared: a dataset that is only tested on needs no training images.
    ``complete: false`` takes a part of the dataset, for a first trial; otherwise the published number of images is
    required.
    """

    TITLE: ClassVar[str]

    names: Names = "cleaned"
    splits: Splits = ("train", "val")
    complete: bool = True

    @property
    def images(self) -> str:
        return f"{self.TITLE}, {self.names} class names"


DATASETS: dict[str, type[DatasetSettings]] = {}
"""The settings of each kind of dataset that was asked for, by its name."""
_OPENERS: dict[str, Callable] = {}


def dataset(settings: type[DatasetSettings]) -> Callable[[Opener], Opener]:
    """Function decorator: registers how datasets with these ``settings`` are opened, under the name of the module.

    The function takes the settings and the data root, and returns a :class:`deop.data.raw_dataset.RawDataset` or a
    :class:`deop.data.raw_dataset.SceneGenerator`.
    """

    def register(function: Opener) -> Opener:
        kind = function.__module__.removeprefix(f"{READERS}.")
        DATASETS[kind], _OPENERS[kind] = settings, function
        return function

    return register


def dataset_kinds() -> list[str]:
    """The kinds of datasets that the package has."""
    return sorted(module.name for module in pkgutil.iter_modules(importlib.import_module(READERS).__path__))


def dataset_settings(kind: Any, place: str = "kind") -> type[DatasetSettings]:
    """The settings of a kind of dataset.

    Args:
        kind: name of the kind.
        place: where the kind is named, for the error.

    Raises:
        ConfigError: no module of that name, or one that registers no dataset.
    """
    if not isinstance(kind, str):
        raise unknown(place, "kind of dataset", kind, dataset_kinds())
    if kind not in DATASETS:
        module = kind if "." in kind else f"{READERS}.{kind}"
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module}.".startswith(f"{error.name}."):
                raise  # the module is there, but not what it imports
            raise unknown(place, "kind of dataset", kind, dataset_kinds()) from None
        if kind not in DATASETS:
            raise ConfigError(f"{place}: module {module} registers no dataset; see docs/adding-a-dataset.md")
    return DATASETS[kind]


def dataset_opener(kind: str) -> Callable:
    """The function that opens datasets of a kind, see :func:`dataset`.

    Raises:
        ConfigError: as :func:`dataset_settings`.
    """
    dataset_settings(kind)
    return _OPENERS[kind]
