"""From configuration to jobs: what has to be computed for the tables, each piece once, named by what made it.

A table asks for evaluations (experiment x dataset x seed), an evaluation for a trained segmentation network,
that one for text prompts and proposals, and so on down to the data. Every such job has a key: a hash of its
stage, its settings, its seed where it draws random numbers, and the keys of its inputs. Outputs are named by
that key, so an output that is there is the right one, whenever and in whatever order it was made, and two
experiments that ask for the same thing share it. Names (of experiments, of rows) never enter the key of
anything but a table and the speed of its systems.

This module decides; it computes nothing and imports nothing heavy, because the Snakefile builds a plan each
time it is read.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deop.config import SOURCE, Configuration
from deop.errors import ConfigError, unknown
from deop.launch import launch_command
from deop.settings import Job, MultiPassSettings, Network, Settings

JOBS = Path(".deop/jobs")
SUPERSEDED = Path(".deop/superseded")
NAMED = ("table", "picture")
"""Stages whose outputs keep their names when their content changes."""
MEASURED = ("evaluate", "measure_speed")
"""Stages whose output is one JSON."""
WEIGHTS = Path(__file__).parent / "weights"
Inputs = dict[str, "Job | str"]


class Plan:
    """All jobs behind the tables of one configuration.

    Args:
        config: the merged configuration (profile over defaults).
        root: the folder that holds ``config/`` and receives the outputs.

    Attributes:
        jobs: every job by (stage, key), inputs before what needs them.
        tables: the table jobs by table name.
        pictures: the picture jobs by picture name.
        resources: what each stage asks of Snakemake.
        launch: the command that runs ``deop`` as the configured Accelerate launch file says.
        launch_alone: the same, but as a single process.

    Raises:
        ConfigError: the first thing in the configuration that cannot be run.
    """

    def __init__(self, config: dict[str, Any], root: Path = Path()) -> None:
        self._root, self._config = root, Configuration(config, root)
        self._by_output: dict[str, Job] = {}
        self.jobs: dict[tuple[str, str], Job] = {}
        self.tables = {name: self._table(name) for name in self._config.tables}
        self.pictures = {name: self._picture(name) for name in self._config.pictures}
        self.resources = self._config.main.resources
        launch_file = (self._config.launch_file, self._config.launch_settings)
        self.launch, self.launch_alone = (
            launch_command(*launch_file),
            launch_command(*launch_file, alone=True),
        )

    def outputs(self, stage: str) -> list[str]:
        """The files that say that all jobs of ``stage`` are done."""
        return [marker(job) for job in self.jobs.values() if job.stage == stage]

    def inputs(self, stage: str) -> Callable[[Any], list[str]]:
        """A Snakemake input function: the files that the job of ``stage`` with these wildcards reads.

        Rules mark them as ancient: they are named by what made them, so dates say nothing.
        """
        return lambda wildcards: self._files(self._job(stage, wildcards))

    def job_file(self, stage: str) -> Callable[[Any], str]:
        """A Snakemake params function: where the job of ``stage`` with these wildcards is written down."""
        return lambda wildcards: str(_job_file(self._job(stage, wildcards)))

    def superseded(self, wildcards: Any) -> list[str]:
        """A Snakemake input function: a file that is newer than the table or picture, if that is not this plan's.

        A table keeps its file names when its content changes, so its key is in its JSON. Neither dates nor
        records of earlier runs count: a table from a cache or another clone is taken for what it is.
        """
        job = self._named(wildcards)
        return [] if self._is_current(job) else [str(SUPERSEDED / Path(job.output).stem)]

    def write(self) -> None:
        """Write each job to its file, unless it is there, and mark tables on disk that are not the plan's."""
        for job in self.jobs.values():
            path, text = self._root / _job_file(job), job.model_dump_json(indent=1) + "\n"
            if not path.exists() or path.read_text() != text:
                _write(path, text)
        for job in (*self.tables.values(), *self.pictures.values()):
            if not self._is_current(job):
                # The time makes the content new as well: Snakemake overlooks a new file with known content.
                mark = self._root / SUPERSEDED / Path(job.output).stem
                _write(mark, f"superseded, as seen at {time.time_ns()}\n")

    def _named(self, wildcards: Any) -> Job:
        """The job of a table or picture: these are asked for by name."""
        kind = "table" if hasattr(wildcards, "table") else "picture"
        jobs = self.tables if kind == "table" else self.pictures
        name = getattr(wildcards, kind)
        if name not in jobs:
            raise unknown(f"results of kind {kind}", kind, name, jobs)
        return jobs[name]

    def _is_current(self, job: Job) -> bool:
        try:
            return json.loads((self._root / job.output).read_text())["key"] == job.key
        except (OSError, ValueError, KeyError):
            return False

    # The jobs, from the data up.

    def _data(self, dataset: str) -> Job:
        values = self._config.datasets[dataset]
        settings = {"dataset": values.model_dump(mode="json", exclude={"stands_for"})}
        return self._add("prepare_data", f"data/{dataset}", settings, {}, seed=values.seed)

    def _clip(self) -> Inputs:
        clip = self._config.main.clip
        if clip.retrain:
            # One CLIP for all seeds of what comes after, as the paper has one. Its rounds see different scenes.
            inputs: Inputs = {}
            for index, values in enumerate(self._config.pretrain_clip):
                settings, output = {"pretrain_clip": _dump(values)}, f"checkpoints/clip/{clip.model}"
                inputs = {"clip": self._add("pretrain_clip", output, settings, inputs, seed=index)}
            return inputs
        if clip.pretrained != "bundled":
            return {}
        return {"clip": _bundled_sha256(clip.model, "clip.pretrained", "clip.retrain")}

    def _backbone(self, dataset: str) -> Inputs:
        network = self._config.stages["proposals"][dataset]
        if network.pretrained_backbone != "bundled":
            return {}
        if self._config.retrain_backbone:
            settings = {"pretrain_backbone": _dump(self._config.pretrain_backbone(dataset))}
            output = f"checkpoints/backbone/{network.backbone}"
            return {"backbone": self._add("pretrain_backbone", output, settings, {})}
        keys = ("proposals.pretrained_backbone", "pretrain_backbone.retrain")
        return {"backbone": _bundled_sha256(network.backbone, *keys)}

    def _prompts(self, dataset: str, seed: int) -> Job:
        settings = self._settings(dataset, "clip", "prompts")
        inputs: Inputs = {"data": self._data(dataset), **self._clip()}
        return self._add("learn_prompts", f"checkpoints/prompts/{dataset}", settings, inputs, seed=seed)

    def _proposals(self, dataset: str, seed: int) -> Job:
        settings = self._settings(dataset, "proposals")
        inputs: Inputs = {"data": self._data(dataset), **self._backbone(dataset)}
        return self._add("train_proposals", f"checkpoints/proposals/{dataset}", settings, inputs, seed=seed)

    def _evaluation(self, experiment: str, dataset: str, seed: int) -> Job:
        network = self._config.experiments[experiment][dataset]
        if not isinstance(network, Network):
            return self._multipass_evaluation(network, dataset, seed)
        settings = {"network": _dump(network), **self._settings(dataset, "clip", "prompts", "proposals")}
        inputs: Inputs = {
            "data": self._data(dataset),
            **self._clip(),
            "prompts": self._prompts(dataset, seed),
            "proposals": self._proposals(dataset, seed),
        }
        if network.trained:
            training = settings | self._settings(dataset, "segmentation")
            output = f"checkpoints/segmentation/{dataset}"
            trained = self._add("train_segmentation", output, training, inputs, seed=seed)
            inputs = {**inputs, "segmentation": trained}
        settings |= self._settings(dataset, "evaluation")
        return self._add("evaluate", f"results/evaluations/{dataset}", settings, inputs, seed=seed)

    def _multipass_evaluation(self, system: MultiPassSettings, dataset: str, seed: int) -> Job:
        # Neither training nor a test depends on a learned prompt that it does not use.
        training = ("clip", "proposals", *(() if system.proposal_templates else ("prompts",)))
        testing = ("clip", "proposals", "evaluation", *(("prompts",) if system.learned_prompts else ()))
        inputs: Inputs = {"data": self._data(dataset), **self._clip()}
        prompts: Inputs = {"prompts": self._prompts(dataset, seed)} if system.learned_prompts else {}
        trained = self._add(
            "train_multipass",
            f"checkpoints/multipass/{dataset}",
            {"network": system.for_training(), **self._settings(dataset, *training)},
            {**inputs, **self._backbone(dataset), **(prompts if "prompts" in training else {})},
            seed=seed,
        )
        settings = {"network": _dump(system), **self._settings(dataset, *testing)}
        inputs |= {**prompts, "multipass": trained}
        return self._add("evaluate", f"results/evaluations/{dataset}", settings, inputs, seed=seed)

    def _speed(self, experiments: list[str], dataset: str) -> Job:
        """How fast the systems of a table are, in one run: the checkpoints that its scores of the first seed are of."""
        seed = self._config.main.seeds[0]
        measured = {name: self._evaluation(name, dataset, seed) for name in experiments}
        settings = self._settings(dataset, "speed") | {
            "evaluations": {name: job.key for name, job in measured.items()},
            "systems": {name: job.settings for name, job in measured.items()},
        }
        inputs: Inputs = {
            f"{name}/{role}": self._by_output[path]
            for name, job in measured.items()
            for role, path in job.inputs.items()
        }
        return self._add("measure_speed", f"results/speed/{dataset}", settings, inputs)

    def _picture(self, name: str) -> Job:
        """A picture of a system at work: the job that evaluates it, but for what is done with the answer."""
        layout = self._config.pictures[name]
        dataset = self._config.stand_ins[layout.dataset]
        measured = self._evaluation(layout.experiment, dataset, self._config.main.seeds[0])
        inputs: Inputs = {role: self._by_output[path] for role, path in measured.inputs.items()}
        if self._config.main.clip.pretrained == "bundled" and not self._config.main.clip.retrain:
            inputs |= self._clip()
        return self._add("picture", f"results/figures/{name}.json", measured.settings, inputs)

    def _table(self, name: str) -> Job:
        config, layout = self._config, self._config.tables[name]
        datasets = {paper: config.stand_ins[paper] for paper in layout.datasets}
        inputs: Inputs = {
            f"{row.experiment}/{dataset}/{seed}": self._evaluation(row.experiment, dataset, seed)
            for row in layout.rows
            if row.experiment is not None
            for dataset in datasets.values()
            for seed in config.main.seeds
        }
        if "FPS" in layout.metrics:
            shown = list(dict.fromkeys(row.experiment for row in layout.rows if row.experiment is not None))
            inputs |= {f"speed/{dataset}": self._speed(shown, dataset) for dataset in datasets.values()}
        reported = config.reported(name)
        table = {
            "caption": layout.caption,
            "profile": config.main.profile,
            "seeds": list(config.main.seeds),
            "datasets": [
                {
                    "name": dataset,
                    "kind": config.datasets[dataset].kind,
                    "paper": paper,
                    "paper_title": config.paper_datasets[paper],
                    "miou": config.stages["evaluation"][dataset].miou,
                }
                for paper, dataset in datasets.items()
            ],
            "metrics": list(layout.metrics),
            "rows": [{**_dump(row), "reported": reported.get(row.label, {})} for row in layout.rows],
            "artifacts": self._upstream(inputs),
        }
        return self._add("table", f"results/{name}.json", {"table": table}, inputs)

    def _add(
        self,
        stage: str,
        output: str,
        settings: dict[str, dict],
        inputs: Inputs,
        *,
        seed: int = 0,
    ) -> Job:
        """The job of this content, new or known. An input given as text enters the key and has no path."""
        content = {
            "stage": stage,
            "settings": settings,
            # An evaluation draws no random numbers; its seed says, as its inputs do, what it measures.
            "seed": 0 if stage == "evaluate" else seed,
            "inputs": {role: job.key if isinstance(job, Job) else job for role, job in inputs.items()},
        }
        key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
        if (stage, key) not in self.jobs:
            output += "" if stage in NAMED else f"-{key}.json" if stage in MEASURED else f"-{key}"
            paths = {role: job.output for role, job in inputs.items() if isinstance(job, Job)}
            job = Job(stage=stage, key=key, seed=seed, output=output, inputs=paths, settings=settings)
            self.jobs[stage, key] = self._by_output[output] = job
        return self.jobs[stage, key]

    def _settings(self, dataset: str, *sections: str) -> dict[str, dict]:
        values = {"clip": self._config.clip()}
        values |= {section: by_dataset[dataset] for section, by_dataset in self._config.stages.items()}
        return {section: _dump(values[section]) for section in sections}

    def _job(self, stage: str, wildcards: Any) -> Job:
        if stage in NAMED:
            return self._named(wildcards)
        if (stage, wildcards.key) not in self.jobs:
            raise unknown(stage, "key", wildcards.key, [key for other, key in self.jobs if other == stage])
        return self.jobs[stage, wildcards.key]

    def _files(self, job: Job) -> list[str]:
        return sorted({marker(self._by_output[path]) for path in job.inputs.values()})

    def _upstream(self, inputs: Inputs) -> list[str]:
        """The outputs of all jobs that ``inputs`` came from, their own among them."""
        found: dict[str, None] = {}
        waiting = [job.output for job in inputs.values() if isinstance(job, Job)]
        while waiting:
            output = waiting.pop()
            if output not in found:
                found[output] = None
                waiting.extend(self._by_output[output].inputs.values())
        return sorted(found)


def marker(job: Job) -> str:
    """The file that says that a job is done: folders are renamed into place whole, so one file will do."""
    if job.stage in (*NAMED, *MEASURED):
        return job.output
    return f"{job.output}/{'dataset.json' if job.stage == 'prepare_data' else 'model.safetensors'}"


def _write(path: Path, text: str) -> None:
    """Write a file so that another process that reads it finds the old content or all of the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(text)
    partial.rename(path)


def _job_file(job: Job) -> Path:
    return JOBS / f"{job.stage}-{job.key}.json"


def _dump(settings: Settings) -> dict[str, Any]:
    return settings.model_dump(mode="json")


def _bundled_sha256(model: str, key: str, retrain: str) -> str:
    """The checksum of the weights that the package ships for ``model``: part of keys that rest on them.

    ``key`` is where the configuration asks for them, ``retrain`` what makes it train them.
    """
    path = WEIGHTS / f"{model}.json"
    try:
        return json.loads(path.read_text())["sha256"]
    except FileNotFoundError:
        bundled = sorted(other.stem for other in WEIGHTS.glob("*.json"))
        raise ConfigError(
            f"{SOURCE}: {key}: no weights are bundled for model {model!r} (bundled: "
            f"{', '.join(bundled) or 'none'}); {retrain}: true trains them"
        ) from None
