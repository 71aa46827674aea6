"""The jobs behind one evaluation, from the data up."""

from __future__ import annotations

import functools
import json
from pathlib import Path

from deop.data.downloads.sources import find_entry
from deop.errors import ConfigError, validated
from deop.jobs.folder_contents import FolderContents
from deop.jobs.job import Job
from deop.jobs.jobs import Inputs, Jobs, dump, name_of
from deop.settings.configuration import ProfileSettings
from deop.settings.datasets import GeneratedDataset
from deop.settings.downloads import Download
from deop.settings.files import SOURCE
from deop.settings.methods import MethodSettings
from deop.settings.precision import Precision
from deop.settings.system import Inference

WEIGHTS = Path(__file__).parents[1] / "models" / "weights"


class Pipeline:
    """The jobs of a profile, or of a profile with the changes of a variant.

    Args:
        profile: the settings of all stages, experiments and datasets.
        jobs: where the jobs are added.
        contents: what datasets in folders hold.
        precision: what networks are trained and evaluated in.
    """

    def __init__(
        self, profile: ProfileSettings, jobs: Jobs, contents: FolderContents, precision: Precision
    ) -> None:
        self._profile, self._jobs, self._contents = profile, jobs, contents
        # Of stages whose results depend on it.
        self._compute = functools.partial(jobs.add, precision=precision)

    def evaluation(self, experiment: str, dataset: str, seed: int, trained_on: str | None = None) -> Job:
        """An experiment's system, trained on ``dataset`` or on another, measured on ``dataset``.

        Raises:
            ConfigError: weights that the profile asks for are not bundled, or the experiment severs a layer that its
                CLIP does not have.
        """
        trained_on = trained_on or dataset
        settings = self.settings(dataset, "evaluation")
        trained: tuple[str, ...] = ()
        if trained_on != dataset:
            trained = ("trained_on", trained_on)
            settings |= {
                "transfer": {"trained_on": trained_on},
                **self._tested(experiment, dataset, trained_on),
            }
        inputs: Inputs = {"data": self._data(dataset), "system": self.system(experiment, trained_on, seed)}
        output = f"results/evaluations/{name_of(dataset, experiment, *trained, f'seed{seed}')}"
        return self._compute("evaluate", output, settings, inputs, seed=seed)

    def system(self, experiment: str, dataset: str, seed: int) -> Job:
        """An experiment's system, trained on ``dataset``: what its method needs, then each round of its training.

        Raises:
            ConfigError: as :meth:`evaluation`.
        """
        method, name = (
            self._profile.experiments[experiment][dataset],
            name_of(dataset, experiment, f"seed{seed}"),
        )
        method.check_clip(self._profile.main.clip.model, f"{SOURCE}: experiment {experiment!r}")
        sections, inputs = self._parts(method, dataset, seed)
        learned = method.for_training()
        trained: Inputs = {}
        for index, schedule in enumerate(method.rounds):
            settings, needed = self._parts(learned, dataset, seed)
            if not hasattr(learned, schedule):
                settings = self._training_sections(dataset, schedule) | settings
            output = f"checkpoints/training/{name}" + (f"-round{index + 1}" if index else "")
            job = self._compute(
                "train_system",
                output,
                settings | {"round": {"name": schedule}},
                {**needed, **({"earlier": trained["trained"]} if trained else {})},
                seed=seed,
                local=self._machine("train_system"),
            )
            trained = {"trained": job}
        inputs = {role: job for role, job in inputs.items() if role != "backbone"}
        evaluation = self._profile.stages["evaluation"][dataset]
        inference = Inference(**{key: getattr(evaluation, key) for key in Inference.model_fields})
        return self._compute(
            "build_system",
            f"checkpoints/systems/{name}",
            sections | {"inference": dump(inference)},
            {**inputs, **trained},
            seed=seed,
            local={"system": {"name": name}},
        )

    def _tested(self, experiment: str, dataset: str, trained_on: str) -> dict[str, dict]:
        """The settings of the method that are others on ``dataset`` than where the system was trained.

        Only those that training does not depend on: a trained system keeps the others.
        """
        here, there = (self._profile.experiments[experiment][name] for name in (dataset, trained_on))
        trained, values = there.for_training(), dump(here)
        changed = {
            key: values[key]
            for key in type(here).model_fields
            if getattr(here, key) != getattr(there, key)
            and there.model_copy(update={key: getattr(here, key)}).for_training() == trained
        }
        return {"tested": changed} if changed else {}

    def _parts(self, method: MethodSettings, dataset: str, seed: int) -> tuple[dict[str, dict], Inputs]:
        """Settings and inputs of whoever builds a method's networks, as it is trained on ``dataset``."""
        settings: dict[str, dict] = {"method": dump(method)}
        if sizes := self._contents.sizes(method.files):
            settings["files"] = sizes
        inputs: Inputs = {"data": self._data(dataset)}
        for part in method.parts:
            if part == "clip":
                settings |= self.settings(dataset, "clip")
                inputs |= self._clip()
            elif part == "prompts":
                settings |= self.settings(dataset, "prompts")
                inputs |= {"prompts": self._prompts(dataset, seed)}
            elif part == "proposals":
                settings |= self.settings(dataset, "proposals")
                inputs |= {"proposals": self._proposals(dataset, seed)}
            else:
                settings |= self._training_sections(dataset, "proposals")
                inputs |= self._backbone(dataset)
        return settings, inputs

    def _training_sections(self, dataset: str, section: str) -> dict[str, dict]:
        """A section with a schedule. The class term is the class-agnostic proposals' alone."""
        settings = self.settings(dataset, section)
        return {section: settings[section] | {"class_term": None}} if section == "proposals" else settings

    def settings(self, dataset: str, *sections: str) -> dict[str, dict]:
        """The settings of these stages for a dataset."""
        values = {"clip": self._profile.clip()}
        values |= {section: by_dataset[dataset] for section, by_dataset in self._profile.stages.items()}
        return {section: dump(values[section]) for section in sections}

    def _data(self, dataset: str) -> Job:
        values = self._profile.datasets[dataset]
        settings, output = {"dataset": dump(values)}, f"data/{dataset}"
        if isinstance(values, GeneratedDataset):
            return self._jobs.add("prepare_data", output, settings, {}, seed=values.seed)
        sources = {name: self._source(name) for name in values.sources()}
        files = [job.settings["source"] for job in sources.values()]
        local = {"data": {"root": self._profile.main.data.root, "sources": files}}
        contents = self._contents.of(dataset)
        if contents is not None:  # named by what is there, not by where it is
            local, settings = local | settings, {"content": contents}
        return self._jobs.add("prepare_data", output, settings, dict(sources), local=local)

    def _source(self, name: str) -> Job:
        """The download of an archive; where it comes from and where it goes change nothing about what it is."""
        section = self._profile.main.data
        changes = dict(section.sources.get(name, {}))
        elsewhere = {key: changes.pop(key) for key in ("mirrors", "path") if key in changes}
        values = elsewhere | {
            "name": name,
            "root": section.root,
            "keep_archives": section.keep_archives,
            "entry": find_entry(name, changes),
        }
        source = validated(Download, values, SOURCE, ("data", "sources", name))
        entry = source.entry.model_dump(mode="json", exclude={"urls", "how_to_get"})
        return self._jobs.add(
            "download",
            f"data/sources/{name}",
            {"source": {"name": name, "entry": entry}},
            {},
            local={"source": dump(source)},
        )

    def _clip(self) -> Inputs:
        """The CLIP that is trained here, or the checksum of the bundled one or of a file; a public one is no input."""
        clip = self._profile.main.clip
        if not clip.retrain and clip.pretrained == "bundled":
            return {"clip": _bundled_sha256(clip.model, "clip.pretrained", "clip.retrain: true")}
        if not clip.retrain:
            return self._file_of("clip", clip.pretrained)
        # One CLIP for all seeds of what comes after, as the paper has one. Its rounds see different scenes.
        inputs: Inputs = {}
        for index, values in enumerate(self._profile.pretrain_clip):
            if index == 0 and values.grown_from is not None:
                keys = ("pretrain_clip.grown_from", "no grown_from")
                inputs = {"grown_from": _bundled_sha256(values.grown_from, *keys)}
            settings = {"pretrain_clip": dump(values)}
            output = f"checkpoints/clip/{name_of(clip.model, f'round{index + 1}')}"
            inputs = {"clip": self._compute("pretrain_clip", output, settings, inputs, seed=index)}
        return inputs

    def _backbone(self, dataset: str) -> Inputs:
        network = self._profile.stages["proposals"][dataset]
        if network.pretrained_backbone != "bundled":
            return self._file_of("backbone", network.pretrained_backbone)
        if self._profile.retrain_backbone:
            settings = {"pretrain_backbone": dump(self._profile.pretrain_backbone(dataset))}
            output = f"checkpoints/backbone/{network.backbone}"
            return {"backbone": self._compute("pretrain_backbone", output, settings, {})}
        keys = ("proposals.pretrained_backbone", "pretrain_backbone.retrain: true")
        return {"backbone": _bundled_sha256(network.backbone, *keys)}

    def _file_of(self, role: str, pretrained: bool | str | None) -> Inputs:
        """The checksum of weights that are given as a file; nothing of weights that are given by name, or by none."""
        sha256 = self._contents.sha256(pretrained) if isinstance(pretrained, str) else None
        return {} if sha256 is None else {role: sha256}

    def _prompts(self, dataset: str, seed: int) -> Job:
        settings = self.settings(dataset, "clip", "prompts")
        inputs: Inputs = {"data": self._data(dataset), **self._clip()}
        output = f"checkpoints/prompts/{name_of(dataset, f'seed{seed}')}"
        return self._compute("learn_prompts", output, settings, inputs, seed=seed)

    def _proposals(self, dataset: str, seed: int) -> Job:
        settings = self.settings(dataset, "proposals")
        inputs: Inputs = {"data": self._data(dataset), **self._backbone(dataset)}
        if self._profile.stages["proposals"][dataset].class_term is not None:
            settings |= self.settings(dataset, "clip", "prompts")
            inputs |= {**self._clip(), "prompts": self._prompts(dataset, seed)}
        output = f"checkpoints/proposals/{name_of(dataset, f'seed{seed}')}"
        local = self._machine("train_proposals")
        return self._compute("train_proposals", output, settings, inputs, seed=seed, local=local)

    def _machine(self, stage: str) -> dict[str, dict]:
        """What a stage is told of the machine it trains on; its results are the same on another, but for rounding."""
        machine = getattr(self._profile.main.resources, stage).machine()
        return {"machine": machine} if machine else {}


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
