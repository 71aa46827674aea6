"""The configuration files, read and checked as a whole before any job starts."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from deop.errors import ConfigError, unknown, validated
from deop.settings.base import Settings
from deop.settings.benchmarks import SpeedBenchmark, read_benchmarks
from deop.settings.clip_layers import check_model
from deop.settings.dataset_names import DatasetNames
from deop.settings.datasets import DatasetSettings, Vocabulary, dataset_settings
from deop.settings.files import (
    SOURCE,
    MainFile,
    load_yaml,
    merged,
    read_experiments,
    with_text_keys,
    without_nulls,
)
from deop.settings.methods import METHODS, DeOPSettings, MethodSettings, method_settings
from deop.settings.precision import Precision, resolve
from deop.settings.pretraining import PretrainBackbone, PretrainClip
from deop.settings.stages import Clip, Evaluation, Proposals, Segmentation, Speed, TextPrompts
from deop.settings.tables import OF_PROFILE, read_tables

SECTIONS: dict[str, type[Settings]] = {
    "prompts": TextPrompts,
    "proposals": Proposals,
    "segmentation": Segmentation,
    "evaluation": Evaluation,
    "speed": Speed,
}


VARIED = ("clip", "pretrain_clip", "network", "methods", *SECTIONS)
"""Sections that a variant may change."""


class ProfileSettings:
    """A profile's settings of every stage for each dataset, and of every experiment's method.

    An experiment may be run with a variant of the profile. Each variant has such settings of its own.

    Args:
        values: the merged configuration (profile over ``config/config.yaml``).
        root: the folder that holds ``config/``.
        source: the name of ``values`` in errors.
        variant: the name of the variant, None for the profile as it is.

    Attributes:
        datasets: by name, the settings of every dataset.
        stands_for: by name, the dataset of the paper that a dataset stands for in tables.
        trained_on: by name, the dataset that systems are trained on before they are tested on this one.
        stages: by section and dataset, the settings of a stage.
        experiments: by name and dataset, the method of each experiment that is run with this variant.
        variant_of: by name, the variant of every experiment that has one.
        files: the files below ``config/`` that results depend on, relative to ``root``. Profiles are not among them.

    Raises:
        ConfigError: the first thing that cannot be run.
    """

    def __init__(
        self, values: dict[str, Any], root: Path, source: str = SOURCE, variant: str | None = None
    ) -> None:
        self._root, self._source = root, source
        self.files = {f"{SOURCE}/config.yaml", f"{SOURCE}/experiments.yaml"}
        self.main = validated(MainFile, without_nulls(values), source)
        # Datasets that a profile removes. Values of per_dataset in the defaults may still name them.
        self._removed = values["datasets"].keys() - self.main.datasets.keys()
        check_model(self.main.clip.model, f"{source}: clip.model")
        self.stands_for: dict[str, str] = {}
        self.trained_on: dict[str, str] = {}
        self.datasets = {name: self._dataset(name, entry) for name, entry in self.main.datasets.items()}
        self.pretrain_clip = self._read_pretrain_clip()
        self.stages = {section: self._by_dataset(section) for section in SECTIONS}
        for method in self.main.methods:
            if method == "deop":
                raise ConfigError(
                    f"{source}: methods.deop: the section of DeOP's own parts is called network"
                )
            method_settings(method, f"{source}: methods")
        for network in self._per_dataset(self.main.network, ("network",)).values():
            validated(DeOPSettings, network, source, ("network",))  # even parts that no experiment has
        self.retrain_backbone = self.main.pretrain_backbone.get("retrain", False)
        if not isinstance(self.retrain_backbone, bool):
            raise ConfigError(
                f"{source}: pretrain_backbone.retrain: true or false is needed (got {self.retrain_backbone!r})"
            )
        experiments = read_experiments(root, values.get("experiments") or {})
        self.variant_of = {
            name: entry["variant"] for name, entry in experiments.items() if "variant" in entry
        }
        self.experiments = {
            name: self._system(name, {key: value for key, value in entry.items() if key != "variant"})
            for name, entry in experiments.items()
            if entry.get("variant") == variant
        }

    def pretrain_backbone(self, dataset: str) -> PretrainBackbone:
        """The settings with which the backbone of a dataset's proposal network is pre-trained."""
        values = {key: value for key, value in self.main.pretrain_backbone.items() if key != "retrain"}
        proposals = self.stages["proposals"][dataset]
        for key in ("backbone", "backbone_args"):
            if key in values:
                raise ConfigError(
                    f"{self._source}: pretrain_backbone: unknown key {key!r}; it is proposals.{key}"
                )
            values[key] = getattr(proposals, key)
        return validated(PretrainBackbone, values, self._source, ("pretrain_backbone",))

    def clip(self) -> Clip:
        """The settings of the CLIP that stages load. If it is trained here, it is an input and not ``pretrained``."""
        values = self.main.clip.model_dump(exclude={"retrain"})
        own = self.main.clip.retrain or values["pretrained"] == "random"
        return Clip(**values | ({"pretrained": None} if own else {}))

    def _dataset(self, name: str, entry: dict[str, Any]) -> DatasetSettings:
        at = ("datasets", name)
        values = dict(entry)
        for key, others in (("stands_for", self.stands_for), ("trained_on", self.trained_on)):
            if key in values:
                others[name] = values.pop(key)
                if not isinstance(others[name], str):
                    raise ConfigError(
                        f"{self._source}: {'.'.join(at)}.{key}: the name of a dataset is needed (got {others[name]!r})"
                    )
        model = dataset_settings(values.get("kind"), f"{self._source}: {'.'.join(at)}.kind")
        if isinstance(values.get("vocabulary"), str):
            values["vocabulary"] = self._vocabulary(f"{'.'.join(at)}.vocabulary", values["vocabulary"])
        return validated(model, values, self._source, at)

    def _read_pretrain_clip(self) -> tuple[PretrainClip, ...]:
        """The settings of each round of pre-training CLIP. A round starts from the weights of the one before it."""
        section = dict(self.main.pretrain_clip)
        rounds = section.pop("rounds", [{}])
        if not isinstance(rounds, list) or not rounds or not all(isinstance(entry, dict) for entry in rounds):
            raise ConfigError(
                f"{self._source}: pretrain_clip.rounds: {rounds!r} is not a list of what each round changes, such as "
                "[{}, {lr: 0.0005}]"
            )
        if "model" in section or "model" in rounds[-1]:
            raise ConfigError(
                f"{self._source}: pretrain_clip: unknown key 'model'; the model is clip.model, and only rounds before "
                "the last may have another"
            )
        return tuple(
            self._pretraining_round(section | changes, ("pretrain_clip", "rounds", str(index)))
            for index, changes in enumerate(rounds)
        )

    def _pretraining_round(self, values: dict, at: tuple[str, ...]) -> PretrainClip:
        values = {"model": self.main.clip.model} | values
        if isinstance(values.get("common"), str):
            vocabulary = self._vocabulary("pretrain_clip.common", values["common"])
            values |= {"common": vocabulary.things}
        return validated(PretrainClip, values, self._source, at)

    def _vocabulary(self, key: str, name: str) -> Vocabulary:
        path = self._named_file(key, name, "vocabularies")
        self.files.add(path)
        return validated(Vocabulary, load_yaml(self._root / path, path), path)

    def _system(self, name: str, values: dict) -> dict[str, MethodSettings]:
        """An experiment's method for each dataset: its own values over those that the profile has for the method."""
        source = self._file_of(name)
        place = f"{source}: experiments.{name}.method"
        method = values.get("method", "deop")
        if not isinstance(method, str):
            raise unknown(place, "method", method, METHODS)
        model = method_settings(method, place)
        validated(model, values, source, ("experiments", name))
        profile, at = (
            (self.main.network, ("network",))
            if method == "deop"
            else (self.main.methods.get(method, {}), ("methods", method))
        )
        return {
            dataset: validated(model, model.combined(defaults, values), self._source, at)
            for dataset, defaults in self._per_dataset(profile, at).items()
        }

    def _file_of(self, experiment: str) -> str:
        """The file that describes an experiment, for errors: a profile may change and add experiments."""
        return SOURCE if experiment in self.main.experiments else f"{SOURCE}/experiments.yaml"

    def _by_dataset(self, section: str) -> dict[str, Any]:
        """The settings of one stage for each dataset."""
        values = self._per_dataset(getattr(self.main, section), (section,))
        return {
            name: validated(SECTIONS[section], entry, self._source, (section,))
            for name, entry in values.items()
        }

    def _per_dataset(self, values: dict, at: tuple[str, ...]) -> dict[str, dict]:
        """A section's values for each dataset."""
        defaults = dict(values)
        overrides = defaults.pop("per_dataset", {})
        if not isinstance(overrides, dict) or not all(
            isinstance(entry, dict) for entry in overrides.values()
        ):
            raise ConfigError(
                f"{self._source}: {'.'.join(at)}.per_dataset: by dataset, the values that change are needed, such as "
                f"{{es20: {{iterations: 100}}}} (got {overrides!r})"
            )
        for name in overrides:
            if name not in self.datasets and name not in self._removed:
                raise unknown(f"{self._source}: {'.'.join(at)}.per_dataset", "dataset", name, self.datasets)
        return {name: merged(defaults, overrides.get(name, {})) for name in self.datasets}

    def _named_file(self, key: str, name: str, folder: str) -> str:
        """The path of ``config/<folder>/<name>.yaml``, from the root."""
        valid = sorted(path.stem for path in (self._root / SOURCE / folder).glob("*.yaml"))
        if name not in valid:
            raise unknown(f"{self._source}: {key}", f"file in {SOURCE}/{folder}", name, valid)
        return f"{SOURCE}/{folder}/{name}.yaml"


class Configuration(ProfileSettings):
    """Everything under ``config/``, checked.

    Attributes:
        experiments: by name and dataset, every experiment's method, of all variants.
        variants: by name, the settings with a variant's changes.
        results: the tables, figures, pictures and claims to make.
        names: the names of datasets in tables and figures.
        benchmarks: by name, the settings of each benchmark of speed.
        launch_file, launch_settings: the path of Accelerate's launch file, and its content.
        precision: of training and evaluation.
    """

    def __init__(self, values: dict[str, Any], root: Path) -> None:
        values = with_text_keys(values)
        super().__init__(values, root)
        for name, variant in self.variant_of.items():
            if not isinstance(variant, str) or variant not in self.main.variants:
                place = f"{self._file_of(name)}: experiments.{name}.variant"
                raise unknown(place, "variant", variant, self.main.variants)
        self.variants = {
            name: self._variant(name, values, changes) for name, changes in self.main.variants.items()
        }
        for variant in self.variants.values():
            self.experiments |= variant.experiments
            self.files |= variant.files
        self.files |= {f"{SOURCE}/tables.yaml", f"{SOURCE}/reported.csv"}
        results = read_tables(root, values)
        self.names = DatasetNames(self.datasets, self.stands_for, self.trained_on, results.paper_datasets)
        with_anchors = [
            name
            for name, systems in self.experiments.items()
            if all(
                isinstance(system, DeOPSettings) and system.anchors.kind != "none"
                for system in systems.values()
            )
        ]
        self.benchmarks = read_benchmarks(self.main.benchmark, SOURCE)
        self.results = results.with_tables_of(self.names, self.benchmarks)
        of_systems = {name: isinstance(what, SpeedBenchmark) for name, what in self.benchmarks.items()}
        in_profile = {kind: getattr(self.main, kind) for kind in OF_PROFILE}
        self.results.check(self.names, self.experiments, with_anchors, of_systems, in_profile)
        self._check_new_experiments()
        for table in self.results.tables:
            self.reported(table)
        self.launch_file = self._named_file("accelerate", self.main.accelerate, "accelerate")
        self.launch_settings = load_yaml(root / self.launch_file, self.launch_file)
        self._check_batches()
        self.precision = self._read_precision()

    def reported(self, table: str) -> dict[str, dict[str, float]]:
        """The paper's values of a table: percentages by row label and column (``dataset.metric``)."""
        number, place = self.results.tables[table].reported, f"{SOURCE}/reported.csv"
        if number is None:
            return {}
        with (self._root / place).open(newline="") as file:
            lines = list(csv.DictReader(file))
        tables = sorted({line["table"] for line in lines})
        if str(number) not in tables:
            raise unknown(
                f"{SOURCE}/tables.yaml: tables.{table}.reported", "table of the paper", number, tables
            )
        values: dict[str, dict[str, float]] = {}
        for line in lines:
            if line["table"] == str(number):
                values.setdefault(line["row"], {})[line["column"]] = float(line["value"])
        return values

    def _variant(self, name: str, values: dict[str, Any], changes: dict[str, Any]) -> ProfileSettings:
        for section in changes:
            if section not in VARIED:
                raise unknown(f"{SOURCE}: variants.{name}", "section", section, VARIED)
        source = f"{SOURCE} with variant {name!r}"
        return ProfileSettings(merged(values, changes), self._root, source, name)

    def _check_new_experiments(self) -> None:
        """Checks that an experiment which a profile adds is shown somewhere; otherwise its name is misspelt."""
        known = read_experiments(self._root, {})
        shown = {name for table in self.results.tables.values() for name in table.experiments}
        shown |= {name for figure in self.results.figures.values() for name in figure.experiments}
        shown |= {picture.experiment for picture in self.results.pictures.values()}
        for name in self.main.experiments:
            if name not in known and name not in shown:
                raise unknown(f"{SOURCE}: experiments", "experiment", name, known)

    def _check_batches(self) -> None:
        """Checks that the processes of a launch can share each batch evenly."""
        processes = self.launch_settings.get("num_processes", 1)
        batches = [
            (section, dataset, settings.batch_size)
            for section in ("proposals", "segmentation")
            for dataset, settings in self.stages[section].items()
        ]
        batches += [  # of rounds of training whose schedule is a setting of the method
            (f"experiments.{experiment}.{name}", dataset, getattr(method, name).batch_size)
            for experiment, by_dataset in self.experiments.items()
            for dataset, method in by_dataset.items()
            for name in method.rounds
            if hasattr(method, name)
        ]
        for place, dataset, batch_size in batches:
            if batch_size % processes:
                raise ConfigError(
                    f"{SOURCE}: {place}.batch_size: {batch_size} (for {dataset}) does not divide among the "
                    f"{processes} processes of {self.launch_file}; valid: multiples of {processes}"
                )

    def _read_precision(self) -> Precision:
        """The configured precision; a launch file must not set another."""
        launched = self.launch_settings.get("mixed_precision", "no")
        if launched != "no":
            raise ConfigError(
                f"{self.launch_file}: mixed_precision: {launched!r}, but the precision is set in the configuration "
                f"(precision: {self.main.precision}); remove the key from the launch file"
            )
        return resolve(self.main.precision, use_cpu=bool(self.launch_settings.get("use_cpu", False)))
