"""Stage ``build_system``: a trained system as one folder, which everything that uses the system starts from."""

from __future__ import annotations

from pathlib import Path

from deop.data.segmentation import read_card
from deop.jobs.artifacts import artifact
from deop.jobs.job import Job
from deop.methods.builder import Builder
from deop.methods.system import save_system
from deop.models.weight_files import checked_weights, load_learned
from deop.settings.methods import method_class
from deop.settings.system import SystemConfig


def run(job: Job) -> None:
    """Puts the networks of ``job.inputs`` together and writes the system's folder (:mod:`deop.methods.system`).

    Raises:
        WeightsError: an input that is damaged or does not fit the settings.
    """
    card = read_card(Path(job.inputs["data"]))
    seen = tuple(card.names[index] for index in card.seen)
    sections = {name: values for name, values in job.settings.items() if name not in ("system", "inference")}
    builder = Builder(sections, job.inputs, seen_names=seen, class_names=tuple(card.names))
    segmenter = method_class(sections["method"]["method"]).build(builder)
    if "trained" in job.inputs:
        load_learned(segmenter, checked_weights(job.inputs["trained"]))
    config = SystemConfig(
        name=job.settings["system"]["name"],
        sections=sections,
        class_names=tuple(card.names),
        seen_names=seen,
        inference=job.settings["inference"],
        precision=job.precision,
    )
    with artifact(job) as workspace:
        save_system(segmenter, config, workspace.path)
