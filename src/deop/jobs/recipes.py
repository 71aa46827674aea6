"""The jobs behind one evaluation, from the data up."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from deop.data.downloads.sources import find_entry
from deop.data.readers.folder_files import content
from deop.errors import ConfigError, DeopError, validated
from deop.jobs.job import Job
from deop.jobs.jobs import Inputs, Jobs, dump, name_of
from deop.settings.clip_layers import check_severed_layers
from deop.settings.configuration import Setup
from deop.settings.datasets import EmojiScenes, Folder, Source
from deop.settings.files import SOURCE
from deop.settings.methods import MultiPassSettings, Network
from deop.settings.precision import Precision

WEIGHTS = Path(__file__).parents[1] / "models" / "weights"


class FolderContents:
    """What datasets in folders hold, each looked at once, when a job first needs it.

    Args:
        setup: the settings of the datasets.
        root: the folder that relative paths start from.
    """

    def __init__(self, setup: Setup, root: Path) -> None:
        self._setup, self._root = setup, root
        self._known: dict[str, dict[str, Any]] = {}

    def of(self, dataset: str) -> dict[str, Any]:
        """See :func:`deop.data.readers.folder_files.content`.

        Raises:
            ConfigError: files that are missing, by key and path.
        """
        if dataset not in self._known:
            settings = self._setup.datasets[dataset]
            top = self._root / (settings.root or self._setup.main.data.root)
            try:
                found = content(settings, top)
            except DeopError as error:
                problem = str(error).removeprefix("config error: ")
                raise ConfigError(f"{SOURCE}: datasets.{dataset}.{problem}") from None
            self._check_distinct(dataset, found, self._places(settings, top))
            self._known[dataset] = found
        return self._known[dataset]

    def _check_distinct(self, dataset: str, found: dict[str, Any], places: list[Path]) -> None:
        """Datasets are named by the names and sizes of their files: different ones with the same would be one."""
        for other, known in self._known.items():
            settings = self._setup.datasets[other]
            top = self._root / (settings.root or self._setup.main.data.root)
            if known == found and self._places(settings, top) != places:
                raise ConfigError(
                    f"{SOURCE}: datasets.{dataset}: its images and label maps have the same names and sizes as those "
                    f"of {other!r} in another folder, and results could not tell the two apart; rename files of one"
                )

    @staticmethod
    def _places(settings: Folder, top: Path) -> list[Path]:
        """The folders of images and label maps."""
        splits = [split for _, split in sorted(settings.splits.items())]
        return [(top / folder).resolve() for split in splits for folder in (split.images, split.labels)]


class Recipes:
    """The jobs of one setup.

    Args:
        setup: the settings of all stages, experiments and datasets.
        jobs: where the jobs are added.
        contents: what datasets in folders hold.
        precision: what networks are trained and evaluated in.
    """

    def __init__(self, setup: Setup, jobs: Jobs, contents: FolderContents, precision: Precision) -> None:
        self._setup, self._jobs, self._contents = setup, jobs, contents
        # Of stages whose results depend on it.
        self._compute = functools.partial(jobs.add, precision=precision)

    def evaluation(self, experiment: str, dataset: str, seed: int, trained_on: str | None = None) -> Job:
        """An experiment's system, trained on ``dataset`` or on another, measured on ``dataset``.

        Raises:
            ConfigError: weights that the setup asks for are not bundled, or the experiment severs a layer that its CLIP
                does not have.
        """
        trained_on = trained_on or dataset
        system = self._setup.experiments[experiment][trained_on]
        if isinstance(system, Network):
            check_severed_layers(
                system.severance.alpha, self._setup.main.clip.model, f"{SOURCE}: experiment {experiment!r}"
            )
            settings, inputs = self._deop(experiment, system, trained_on, seed)
        else:
            tested = self._setup.experiments[experiment][dataset]
            settings, inputs = self._multipass(experiment, system, tested, trained_on, seed)
        settings |= self.settings(dataset, "evaluation")
        if trained_on != dataset:
            settings["transfer"] = {"trained_on": trained_on}
        inputs = {**inputs, "data": self._data(dataset)}
        trained = () if trained_on == dataset else ("trained_on", trained_on)
        output = f"results/evaluations/{name_of(dataset, experiment, *trained, f'seed{seed}')}"
        return self._compute("evaluate", output, settings, inputs, seed=seed)

    def settings(self, dataset: str, *sections: str) -> dict[str, dict]:
        """The settings of these stages for a dataset."""
        values = {"clip": self._setup.clip()}
        values |= {section: by_dataset[dataset] for section, by_dataset in self._setup.stages.items()}
        return {section: dump(values[section]) for section in sections}

    def bundled_clip(self) -> Inputs:
        """The checksum of the bundled CLIP, if that is what the setup asks for."""
        clip = self._setup.main.clip
        if clip.retrain or clip.pretrained != "bundled":
            return {}
        return {"clip": _bundled_sha256(clip.model, "clip.pretrained", "clip.retrain: true")}

    def _data(self, dataset: str) -> Job:
        values = self._setup.datasets[dataset]
        settings, output = {"dataset": dump(values)}, f"data/{dataset}"
        if isinstance(values, EmojiScenes):
            return self._jobs.add("prepare_data", output, settings, {}, seed=values.seed)
        sources = {name: self._source(name) for name in values.sources()}
        files = [job.settings["source"] for job in sources.values()]
        local = {"data": {"root": self._setup.main.data.root, "sources": files}}
        if isinstance(values, Folder):  # named by what is there, not by where it is
            local, settings = local | settings, {"content": self._contents.of(dataset)}
        return self._jobs.add("prepare_data", output, settings, dict(sources), local=local)

    def _source(self, name: str) -> Job:
        """The download of an archive; where it comes from and where it goes change nothing about what it is."""
        section = self._setup.main.data
        changes = dict(section.sources.get(name, {}))
        elsewhere = {key: changes.pop(key) for key in ("mirrors", "path") if key in changes}
        values = elsewhere | {
            "name": name,
            "root": section.root,
            "keep_archives": section.keep_archives,
            "entry": find_entry(name, changes),
        }
        source = validated(Source, values, SOURCE, ("data", "sources", name))
        entry = source.entry.model_dump(mode="json", exclude={"urls", "how_to_get"})
        return self._jobs.add(
            "download",
            f"data/sources/{name}",
            {"source": {"name": name, "entry": entry}},
            {},
            local={"source": dump(source)},
        )

    def _clip(self) -> Inputs:
        clip = self._setup.main.clip
        if not clip.retrain:
            return self.bundled_clip()
        # One CLIP for all seeds of what comes after, as the paper has one. Its rounds see different scenes.
        inputs: Inputs = {}
        for index, values in enumerate(self._setup.pretrain_clip):
            if index == 0 and values.text_from is not None:
                keys = ("pretrain_clip.text_from", "no text_from")
                inputs = {"text": _bundled_sha256(values.text_from, *keys)}
            settings = {"pretrain_clip": dump(values)}
            output = f"checkpoints/clip/{name_of(clip.model, f'round{index + 1}')}"
            inputs = {"clip": self._compute("pretrain_clip", output, settings, inputs, seed=index)}
        return inputs

    def _backbone(self, dataset: str) -> Inputs:
        network = self._setup.stages["proposals"][dataset]
        if network.pretrained_backbone != "bundled":
            return {}
        if self._setup.retrain_backbone:
            settings = {"pretrain_backbone": dump(self._setup.pretrain_backbone(dataset))}
            output = f"checkpoints/backbone/{network.backbone}"
            return {"backbone": self._compute("pretrain_backbone", output, settings, {})}
        keys = ("proposals.pretrained_backbone", "pretrain_backbone.retrain: true")
        return {"backbone": _bundled_sha256(network.backbone, *keys)}

    def _prompts(self, dataset: str, seed: int) -> Job:
        settings = self.settings(dataset, "clip", "prompts")
        inputs: Inputs = {"data": self._data(dataset), **self._clip()}
        output = f"checkpoints/prompts/{name_of(dataset, f'seed{seed}')}"
        return self._compute("learn_prompts", output, settings, inputs, seed=seed)

    def _proposals(self, dataset: str, seed: int) -> Job:
        settings = self.settings(dataset, "proposals")
        inputs: Inputs = {"data": self._data(dataset), **self._backbone(dataset)}
        if self._setup.stages["proposals"][dataset].class_term is not None:
            settings |= self.settings(dataset, "clip", "prompts")
            inputs |= {**self._clip(), "prompts": self._prompts(dataset, seed)}
        output = f"checkpoints/proposals/{name_of(dataset, f'seed{seed}')}"
        local = self._machine("train_proposals")
        return self._compute("train_proposals", output, settings, inputs, seed=seed, local=local)

    def _machine(self, stage: str) -> dict[str, dict]:
        """What a stage is told of the machine it trains on; its results are the same on another, but for rounding."""
        machine = getattr(self._setup.main.resources, stage).machine()
        return {"machine": machine} if machine else {}

    def _deop(
        self, experiment: str, network: Network, dataset: str, seed: int
    ) -> tuple[dict[str, dict], Inputs]:
        """Settings and inputs of whoever runs an experiment's network as it was trained on ``dataset``."""
        learned = network.text_prompts != "templates"
        sections = ("clip", *(("prompts",) if learned else ()), "proposals")
        settings = {"network": dump(network), **self.settings(dataset, *sections)}
        inputs: Inputs = {
            "data": self._data(dataset),
            **self._clip(),
            **({"prompts": self._prompts(dataset, seed)} if learned else {}),
            "proposals": self._proposals(dataset, seed),
        }
        if network.trained:
            training = settings | self.settings(dataset, "segmentation")
            output = f"checkpoints/segmentation/{name_of(dataset, experiment, f'seed{seed}')}"
            local = self._machine("train_segmentation")
            trained = self._compute("train_segmentation", output, training, inputs, seed=seed, local=local)
            inputs = {**inputs, "segmentation": trained}
        return settings, inputs

    def _multipass(
        self,
        experiment: str,
        system: MultiPassSettings,
        tested: MultiPassSettings,
        dataset: str,
        seed: int,
    ) -> tuple[dict[str, dict], Inputs]:
        """The same for a system that is trained as ``system`` says and tested as ``tested`` says."""
        # Neither training nor a test depends on a learned prompt that it does not use.
        training = ("clip", "proposals", *(() if system.proposal_templates else ("prompts",)))
        testing = ("clip", "proposals", *(("prompts",) if tested.learned_prompts else ()))
        learned = {"prompts": self._prompts(dataset, seed)} if "prompts" in (*training, *testing) else {}
        inputs: Inputs = {"data": self._data(dataset), **self._clip()}
        trained = self._compute(
            "train_multipass",
            f"checkpoints/multipass/{name_of(dataset, experiment, f'seed{seed}')}",
            {"network": system.for_training(), **self._of_class_head(dataset, *training)},
            {**inputs, **self._backbone(dataset), **(learned if "prompts" in training else {})},
            seed=seed,
            local=self._machine("train_multipass"),
        )
        settings = {"network": dump(tested), **self._of_class_head(dataset, *testing)}
        return settings, {**inputs, **(learned if "prompts" in testing else {}), "multipass": trained}

    def _of_class_head(self, dataset: str, *sections: str) -> dict[str, dict]:
        """:meth:`settings` of a system with a class head of its own, in the place of the proposals' class term."""
        values = self.settings(dataset, *sections)
        return values | {"proposals": values["proposals"] | {"class_term": None}}


def _bundled_sha256(model: str, key: str, remedy: str) -> str:
    """The checksum of the weights that the package ships for ``model``: part of keys that rest on them.

    ``key`` is where the configuration asks for them, ``remedy`` what makes it do without.
    """
    path = WEIGHTS / f"{model}.json"
    try:
        return json.loads(path.read_text())["sha256"]
    except FileNotFoundError:
        bundled = sorted(other.stem for other in WEIGHTS.glob("*.json"))
        raise ConfigError(
            f"{SOURCE}: {key}: no weights are bundled for model {model!r} (bundled: "
            f"{', '.join(bundled) or 'none'}); {remedy} does without"
        ) from None
