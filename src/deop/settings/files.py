"""What the files under ``config/`` may hold, and how a profile is put over the defaults."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, Field, model_validator

from deop.errors import ConfigError, validated
from deop.settings.base import Positive, Settings
from deop.settings.precision import Asked
from deop.settings.stages import Clip

SOURCE = "config"


def _printable(name: str) -> str:
    """The name itself, if Markdown, LaTeX and matplotlib all print it as it is."""
    if not name.strip() or not re.fullmatch(r"[\w .,:+=()/-]{1,60}", name):
        raise ValueError("valid: any name of 1 to 60 letters, digits, spaces and . , : + - _ = ( ) /")
    return name


ProfileName = Annotated[str, AfterValidator(_printable)]
"""What the notes under tables and figures call a configuration."""


class DataSection(Settings):
    """Where datasets that are not generated lie, or are downloaded to. ``root`` may be an existing copy.

    ``sources`` are changes of single downloads by name: fields of :class:`deop.settings.downloads.CatalogueEntry`, and
    ``mirrors`` and ``path`` of :class:`deop.settings.downloads.Download`. ``keep_archives`` as there.
    """

    root: str = "data/raw"
    keep_archives: bool = True
    sources: Annotated[dict[str, dict], Field(default_factory=dict)]


class ClipSection(Clip):
    """``retrain`` pre-trains the CLIP here instead of loading ``pretrained``, which ``random`` gives it no weights."""

    retrain: bool = False

    @model_validator(mode="after")
    def _activation_of_a_file(self) -> ClipSection:
        if self.retrain and self.quick_gelu is not None:
            raise ValueError("quick_gelu is about weights of a file, and with retrain there is none")
        return self


class SpeedResources(Settings):
    """What Snakemake sets aside for a job that measures speed: memory (MB), GPUs, and wall time (minutes).

    Its CPU threads are all cores, so that nothing runs beside it (see :meth:`deop.jobs.plan.Plan.threads_alone`).
    """

    mem_mb: Positive = 1000
    gpu: Annotated[int, Field(ge=0)] = 0
    runtime: Positive = 60


class StageResources(SpeedResources):
    """The same for other jobs, and the CPU threads of a process.

    Memory and GPUs are those of a process, too. A job of a stage that trains has as many processes on a machine as the
    launch file (``accelerate``) says.
    """

    threads: Positive = 1


class TrainingResources(StageResources):
    """``micro_batch``: images that go through the network at once in a process; none for its whole share of a batch.

    Gradients are added up over the parts of a batch, so that any number of GPUs of any size trains with the same one.
    """

    micro_batch: Positive | None = None

    def machine(self) -> dict[str, Any]:
        """What a job is told of the machine it trains on: what differs from the defaults."""
        own = type(self).model_fields.keys() - StageResources.model_fields.keys()
        return self.model_dump(include=own, exclude_defaults=True)


class SystemResources(TrainingResources):
    """``gradient_checkpointing``: CLIP's blocks are computed a second time for the gradient, what is in them not kept.

    A third more time, a fraction of the memory, the same weights.
    """

    gradient_checkpointing: bool = False


class Resources(Settings):
    """Resources by stage."""

    download: StageResources = StageResources()
    prepare_data: StageResources = StageResources()
    pretrain_clip: StageResources = StageResources()
    pretrain_backbone: StageResources = StageResources()
    learn_prompts: StageResources = StageResources()
    train_proposals: TrainingResources = TrainingResources()
    train_system: SystemResources = SystemResources()
    build_system: StageResources = StageResources()
    evaluate: StageResources = StageResources()
    measure_speed: SpeedResources = SpeedResources()
    benchmark: SpeedResources = SpeedResources()
    table: StageResources = StageResources()
    claims: StageResources = StageResources()
    figure: StageResources = StageResources()
    picture: StageResources = StageResources()


class MainFile(Settings):
    """``config/config.yaml``, which a profile such as ``config/tiny.yaml`` overlays.

    Sections stay dictionaries here: they are validated as the settings of their stage once they are complete,
    that is as datasets of their kind, with a vocabulary filled in (``datasets``), with ``clip.model`` and the changes
    of each round (``pretrain_clip``), or with the values of ``per_dataset`` for each dataset (the stages in
    ``SECTIONS``).
    ``variants`` are changes of other sections, by name, with which an experiment may be run. ``experiments``,
    ``tables``, ``figures`` and ``pictures`` are changes of what ``config/experiments.yaml`` and ``config/tables.yaml``
    have under these keys. ``precision`` is what networks are trained and evaluated in (see
    :func:`deop.settings.precision.resolve`).
    """

    profile: ProfileName
    seeds: Annotated[tuple[int, ...], Field(min_length=1)]
    datasets: dict[str, dict]
    data: Annotated[DataSection, Field(default_factory=DataSection)]
    clip: ClipSection
    pretrain_clip: dict
    pretrain_backbone: Annotated[dict, Field(default_factory=dict)]
    prompts: dict
    proposals: dict
    segmentation: dict
    evaluation: dict
    speed: Annotated[dict, Field(default_factory=dict)]
    benchmark: Annotated[dict, Field(default_factory=dict)]
    network: Annotated[dict, Field(default_factory=dict)]
    methods: Annotated[dict[str, dict], Field(default_factory=dict)]
    variants: Annotated[dict[str, dict], Field(default_factory=dict)]
    experiments: Annotated[dict[str, dict], Field(default_factory=dict)]
    tables: Annotated[dict[str, dict], Field(default_factory=dict)]
    figures: Annotated[dict[str, dict], Field(default_factory=dict)]
    pictures: Annotated[dict[str, dict], Field(default_factory=dict)]
    accelerate: str
    precision: Asked = "auto"
    resources: Resources = Resources()


class ExperimentsFile(Settings):
    """``config/experiments.yaml``: by name, what each network has, on top of the profile's ``network``."""

    experiments: dict[str, dict]


def read_experiments(root: Path, profile: dict[str, dict]) -> dict[str, dict]:
    """The experiments of ``config/experiments.yaml`` with those of a profile put over them."""
    source = f"{SOURCE}/experiments.yaml"
    experiments = validated(ExperimentsFile, load_yaml(root / source, source), source).experiments
    return without_nulls(merged(experiments, profile)) if profile else experiments


def load_yaml(path: Path, source: str) -> dict:
    try:
        values = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"{source} is not there") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{source} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{source}: a mapping is needed (got {values!r})")
    return with_text_keys(values)


def with_text_keys(values: dict) -> dict:
    """``values`` with numbers as keys (``alpha: {-1: 1}``) turned into text (``"-1"``).

    The shipped files quote such keys because DVC reads no others. A profile may spell them either way, and both have to
    be the same key when it is put over the defaults. Of two spellings in ``values``, the later one counts.
    """
    return {
        str(key) if isinstance(key, int) else key: with_text_keys(value) if isinstance(value, dict) else value
        for key, value in values.items()
    }


def without_nulls(values: dict) -> dict:
    """``values`` without the keys that are null: so a profile takes out what the defaults put in."""
    return {
        key: without_nulls(value) if isinstance(value, dict) else value
        for key, value in values.items()
        if value is not None
    }


def merged(values: dict, changes: dict) -> dict:
    """``values`` with ``changes`` put over them, mappings inside mappings too."""
    nested = {
        key: merged(values[key], change)
        for key, change in changes.items()
        if isinstance(change, dict) and isinstance(values.get(key), dict)
    }
    return values | changes | nested


def read_profile(root: Path, *profiles: Path) -> dict[str, Any]:
    """``config/config.yaml`` with files of changes put over it in turn, as Snakemake's ``--configfile`` does.

    Raises:
        ConfigError: a file that is not there or is not a mapping in YAML.
    """
    values = load_yaml(root / SOURCE / "config.yaml", f"{SOURCE}/config.yaml")
    for profile in profiles:
        values = merged(values, load_yaml(profile, str(profile)))
    return values
