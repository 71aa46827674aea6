"""What a system predicts on a validation set, as a results file that COCO's own tools score."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from deop.data.card import DatasetCard
from deop.data.coco_results import entries, image_ids, write_results
from deop.data.segmentation import SegmentationDataset
from deop.data.transforms import resize_short_side
from deop.errors import DeopError
from deop.jobs.artifacts import require_inputs
from deop.jobs.job import Job
from deop.jobs.systems import TrainedSystem
from deop.methods.inference import prepare
from deop.methods.system import read_config
from deop.models.weight_files import checked_weights
from deop.settings.stages import Evaluation
from deop.settings.system import CONFIG
from deop.stages.evaluate import batches, load_batch, load_tested
from deop.training.loop import make_accelerator
from deop.utils.files import file_hash, whole_file
from deop.utils.progress import progress_bar


def run(job: Job, output: Path) -> None:
    """Writes the label maps that the evaluation ``job`` measures to ``output``, all their pixels, as COCO results.

    They are collected in ``<output>.<key>.partial``, one batch per line, from which an interrupted run is
    resumed. Only one process may write to ``output`` at a time.

    Args:
        job: an evaluation, whose inputs are there.

    Raises:
        DeopError: an input of the evaluation that is not there, or a folder that cannot be written to.
    """
    require_inputs(job)
    partial = output.with_name(f"{output.name}.{job.key}.partial")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        file = partial.open("a+b")
    except OSError as error:
        raise DeopError(f"{partial} cannot be written: {error.strerror}") from None
    with file:
        for group in _predictions(job, _whole_lines(file)):
            file.write(json.dumps(group).encode() + b"\n")
            file.flush()
    with partial.open() as lines, whole_file(output) as temporary, temporary.open("w") as file:
        write_results(map(json.loads, lines), file)
    partial.unlink()


def evaluation_of(system: TrainedSystem, data: Path | None) -> Job:
    """The evaluation whose label maps are written: the one of the configuration, or one on the dataset ``data``.

    Raises:
        DeopError: ``data`` is needed and missing.
    """
    if system.evaluation is not None and data is None:
        return system.evaluation
    if data is None:
        raise DeopError(
            f"--data is needed: nothing says which validation set {system.name} is to be tried on"
        )
    config = read_config(system.folder)
    evaluation = Evaluation(**config.inference.model_dump())
    # Interrupted exports are resumed by the key, so it differs by whatever results depend on.
    files = (checked_weights(system.folder), system.folder / CONFIG)
    content = [*map(file_hash, files), str(data.resolve())]
    key = hashlib.sha256(" ".join(content).encode()).hexdigest()[:12]
    return Job(
        stage="evaluate",
        key=key,
        output="",
        inputs={"data": str(data), "system": str(system.folder)},
        settings={"evaluation": evaluation.model_dump(mode="json")},
        precision=config.precision,
    )


def category_ids(card: DatasetCard) -> list[int]:
    """The owners' id of each class, or its label where they have none; counted from 1, as COCO's are.

    COCO-Stuff's label maps hold its category ids less one.
    """
    ids = [label if entry.raw_id is None else entry.raw_id for label, entry in enumerate(card.classes)]
    return [value + 1 for value in ids] if 0 in ids else ids


def _whole_lines(file: BinaryIO) -> int:
    """The number of complete lines in a file; an incomplete last line of an interrupted run is removed."""
    file.seek(0)
    count = end = 0
    for line in file:
        if line.endswith(b"\n"):
            count, end = count + 1, end + len(line)
    file.truncate(end)
    return count


def _predictions(job: Job, done: int) -> Iterator[list[dict[str, Any]]]:
    """The entries of each of the evaluation's batches but the first ``done``."""
    settings = Evaluation.model_validate(job.settings["evaluation"])
    dataset = SegmentationDataset(job.inputs["data"], "val")
    accelerator = make_accelerator(job.precision)
    ids = image_ids([entry.image for entry in dataset.entries])
    categories = category_ids(dataset.card)
    todo = batches(dataset, settings.batch_size)
    if done == len(todo):
        return
    segmenter = prepare(load_tested(job), accelerator.device, precision=job.precision, **settings.inference)
    for batch in progress_bar(todo[done:], desc="export_coco", initial=done, total=len(todo)):
        images, labels = load_batch(dataset, batch, accelerator.device)
        with accelerator.autocast():
            resized = resize_short_side(images, settings.short_side)
            prediction = segmenter.label(resized, dataset.names, tuple(labels.shape[-2:]))
        yield [
            entry
            for index, label_map in zip(batch, prediction.cpu().numpy(), strict=True)
            for entry in entries(label_map, ids[index], categories)
        ]
