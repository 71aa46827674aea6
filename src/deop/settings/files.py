"""The content of the files under ``config/``, and how a profile overrides the defaults."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, Field, model_validator

from deop.errors import ConfigError, validated
from deop.settings.base import Positive, Settings, Whole
from deop.settings.precision import Asked
from deop.settings.stages import Clip

SOURCE = "config"


def _printable(name: str) -> str:
    """Returns the name, if Markdown, LaTeX and matplotlib all print it as it is."""
    if not name.strip() or not re.fullmatch(r"[\w .,:+=()/-]{1,60}", name):
        raise ValueError("valid: any name of 1 to 60 letters, digits, spaces and . , : + - _ = ( ) /")
    return name


ProfileName = Annotated[str, AfterValidator(_printable)]
"""The name of a configuration in notes under tables and figures."""


class DataSection(Settings):
    """The folder of real datasets, ``root``, to which they are downloaded; it may be an existing copy.

    ``sources`` are changes of single downloads, by name: fields of :class:`deop.settings.downloads.CatalogueEntry`, and
    ``mirrors`` and ``path`` of :class:`deop.settings.downloads.Download`, which also explains ``keep_archives``.
    """

    root: str = "data/raw"
    keep_archives: bool = True
    sources: Annotated[dict[str, dict], Field(default_factory=dict)]


class ClipSection(Clip):
    """The CLIP. ``retrain`` pre-trains it instead of loading ``pretrained``; ``random`` there loads no weights."""

    retrain: bool = False

    @model_validator(mode="after")
    def _activation_of_a_file(self) -> ClipSection:
        if self.retrain and self.quick_gelu is not None:
            raise ValueError("quick_gelu describes weights of a file, and with retrain none are loaded")
        return self


class SpeedResources(Settings):
    """What a job that measures speed asks of Snakemake: memory (MB), GPUs and wall time (minutes).

    It takes all CPU cores, so that nothing runs beside it (see :meth:`deop.jobs.plan.Plan.threads_alone`).
    """

    mem_mb: Positive = 1000
    gpu: Whole = 0
    runtime: Positive = 60


class StageResources(SpeedResources):
    """The same for other jobs, with the number of CPU threads.

    All values are those of one process. A training job has as many processes on a machine as the launch file
    (``accelerate``) says.
    """

    threads: Positive = 1


class TrainingResources(StageResources):
    """The same for a stage that trains.

    ``micro_batch`` is the number of images that a process puts through the network at once, None for its whole share
    of the batch. Gradients are accumulated over a batch, so its size does not depend on the number and memory of GPUs.
    """

    micro_batch: Positive | None = None

    def machine(self) -> dict[str, Any]:
        """Returns the settings of the machine that a training job is told: those that differ from the defaults."""
        own = type(self).model_fields.keys() - StageResources.model_fields.keys()
        return self.model_dump(include=own, exclude_defaults=True)


class SystemResources(TrainingResources):
    """The same for end-to-end training.

    ``gradient_checkpointing`` recomputes the activations of CLIP's blocks in the backward pass instead of keeping them:
    a third more time, a fraction of the memory, the same weights.
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
    """``config/config.yaml``, with a profile such as ``config/tiny.yaml`` over it.

    Some sections are plain dictionaries here, because they are validated when they are complete: ``datasets`` with
    their vocabularies, ``pretrain_clip`` with ``clip.model`` and the changes of each round, and the sections of stages
    (``SECTIONS``) with the values of ``per_dataset`` for each dataset.

    ``variants`` are named changes of other sections, with which an experiment can be run. ``experiments``, ``tables``,
    ``figures`` and ``pictures`` change and add entries of ``config/experiments.yaml`` and ``config/tables.yaml``.
    ``precision`` is that of training and evaluation (see :func:`deop.settings.precision.resolve`).
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
    """``config/experiments.yaml``: by name, settings of each experiment's method, merged over those of the profile."""

    experiments: dict[str, dict]


def read_experiments(root: Path, profile: dict[str, dict]) -> dict[str, dict]:
    """Returns the experiments of ``config/experiments.yaml`` with those of a profile merged over them."""
    source = f"{SOURCE}/experiments.yaml"
    experiments = validated(ExperimentsFile, load_yaml(root / source, source), source).experiments
    return without_nulls(merged(experiments, profile)) if profile else experiments


def load_yaml(path: Path, source: str) -> dict:
    """Reads a YAML file, which errors call ``source``.

    Raises:
        ConfigError: the file does not exist or is not a mapping in YAML.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{source} is not there") from None
    except OSError as error:
        raise ConfigError(f"{source} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{source} is not UTF-8: {error.reason} at byte {error.start}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{source} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{source}: a mapping is needed (got {values!r})")
    return with_text_keys(values)


def with_text_keys(values: dict) -> dict:
    """Returns ``values`` with numbers as keys (``alpha: {-1: 1}``) turned into text (``"-1"``).

    The shipped files quote such keys because DVC requires it. A profile may spell them either way, and both must be the
    same key when it is merged over the defaults. If ``values`` has both spellings, the later one counts.
    """
    return {
        str(key) if isinstance(key, int) else key: with_text_keys(value) if isinstance(value, dict) else value
        for key, value in values.items()
    }


def without_nulls(values: dict) -> dict:
    """Returns ``values`` without the keys that are null, with which a profile removes what the defaults have."""
    return {
        key: without_nulls(value) if isinstance(value, dict) else value
        for key, value in values.items()
        if value is not None
    }


def merged(values: dict, changes: dict) -> dict:
    """Returns ``values`` with ``changes`` merged over them, key by key, also in nested mappings."""
    nested = {
        key: merged(values[key], change)
        for key, change in changes.items()
        if isinstance(change, dict) and isinstance(values.get(key), dict)
    }
    return values | changes | nested


def read_profile(root: Path, *profiles: Path) -> dict[str, Any]:
    """Returns ``config/config.yaml`` with profiles merged over it in turn, as Snakemake's ``--configfile`` does.

    Raises:
        ConfigError: a file does not exist or is not a mapping in YAML.
    """
    values = load_yaml(root / SOURCE / "config.yaml", f"{SOURCE}/config.yaml")
    for profile in profiles:
        values = merged(values, load_yaml(profile, str(profile)))
    return values
