"""The names of a profile's datasets: their own, those of the paper's datasets that they stand for, and who trains."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from deop.errors import ConfigError, unknown
from deop.settings.datasets import DatasetSettings
from deop.settings.files import SOURCE


class DatasetNames:
    """How tables, figures, pictures and claims may call the datasets of a profile.

    Args:
        datasets: by name, the settings of every dataset.
        stands_for: by name, the dataset of the paper whose place a dataset takes.
        trained_on: by name, the dataset that systems are trained on before they are tested on this one as they are;
            under either of its names.
        paper_datasets: all datasets of the paper, with their titles.

    Attributes:
        of_paper: the profile's dataset for each of the paper's that it has one for.
        own: the datasets that stand for none of the paper's, in order.

    Raises:
        ConfigError: a name that cannot be one, or could mean two datasets; a ``trained_on`` without training images.
    """

    def __init__(
        self,
        datasets: Mapping[str, DatasetSettings],
        stands_for: Mapping[str, str],
        trained_on: Mapping[str, str],
        paper_datasets: Mapping[str, str],
    ) -> None:
        self._datasets, self._stands_for, self._titles = datasets, stands_for, paper_datasets
        self.of_paper: dict[str, str] = {}
        for name, paper in stands_for.items():
            place = f"{SOURCE}: datasets.{name}.stands_for"
            if paper not in paper_datasets:
                raise unknown(place, "dataset of the paper", paper, paper_datasets)
            if paper in self.of_paper:
                raise ConfigError(f"{place}: {paper!r} already has a stand-in, {self.of_paper[paper]!r}")
            self.of_paper[paper] = name
        for name in datasets:
            self._check_name(name)
        self.own = [name for name in datasets if name not in stands_for]
        self._trained_on = {
            name: self.resolve(f"{SOURCE}: datasets.{name}.trained_on", other)
            for name, other in trained_on.items()
        }
        for name, other in self._trained_on.items():
            self._check_trains(f"{SOURCE}: datasets.{name}.trained_on", other)

    def resolve(self, place: str, name: str) -> str:
        """The profile's dataset of this name, which is its own or the paper's.

        Raises:
            ConfigError: there is none; the message begins with ``place``.
        """
        if name in self.of_paper:
            return self.of_paper[name]
        if name not in self._datasets:
            raise unknown(place, "dataset", name, dict.fromkeys((*self.of_paper, *self._datasets)))
        return name

    def paper(self, name: str) -> tuple[str, str] | None:
        """The dataset of the paper that a dataset stands for, and its title; None if it stands for none."""
        if name not in self._stands_for:
            return None
        return self._stands_for[name], self._titles[self._stands_for[name]]

    def trained_on(self, name: str) -> str:
        """The dataset that systems are trained on before they are tested on this one: often itself."""
        return self._trained_on.get(name, name)

    def check(self, place: str, key: str, names: Iterable[str], trained_on: str | None = None) -> None:
        """Whether systems can be tested on the datasets of these names, and trained before.

        Args:
            place: what names them, a table for example; ``key`` is the key in it.
            trained_on: the dataset that all of them are trained on; None leaves it to each dataset.

        Raises:
            ConfigError: a name that is no dataset's or means one that was named before; a dataset without images for
                that.
        """
        trainer = None if trained_on is None else self.resolve(f"{place}.trained_on", trained_on)
        if trainer is not None:
            self._check_trains(f"{place}.trained_on", trainer)
        seen: dict[str, str] = {}
        for name in names:
            dataset = self.resolve(f"{place}.{key}", name)
            if dataset in seen:
                raise ConfigError(f"{place}.{key}: {seen[dataset]!r} and {name!r} are the same dataset")
            seen[dataset] = name
            if "val" not in self._datasets[dataset].splits:
                raise ConfigError(f"{place}.{key}: {name!r} has no validation images to test on")
            if trainer is None:
                self.check_trained(f"{place}.{key}", dataset)

    def check_trained(self, place: str, name: str) -> None:
        """Whether systems can be trained on a dataset, or on the one that its entry names.

        Raises:
            ConfigError: they can not; the message begins with ``place``.
        """
        if name not in self._trained_on:
            remedy = f"; give it some, or set datasets.{name}.trained_on to a dataset that has"
            self._check_trains(place, name, remedy)

    def has_split(self, name: str, split: str) -> bool:
        """Whether a dataset has images of ``"train"`` or ``"val"``."""
        return split in self._datasets[name].splits

    def _check_trains(self, place: str, name: str, remedy: str = "") -> None:
        if not self.has_split(name, "train"):
            valid = ", ".join(other for other in self._datasets if self.has_split(other, "train"))
            raise ConfigError(f"{place}: {name!r} has no training images{remedy}; valid: {valid or 'none'}")

    def _check_name(self, name: str) -> None:
        place = f"{SOURCE}: datasets.{name}"
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
            raise ConfigError(f"{place}: {name!r} cannot name files; valid: letters, digits, - and _")
        if name in self._titles and self._stands_for.get(name) != name:
            raise ConfigError(
                f"{place}: {name!r} is what tables call a dataset of the paper ({self._titles[name]}); rename it, or "
                f"add stands_for: {name}"
            )
