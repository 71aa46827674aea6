"""Stage ``prepare_data``: writes a dataset as a folder of images and label maps, with a contact sheet."""

from __future__ import annotations

import os
from pathlib import Path

from deop.data.downloads.manifests import verify
from deop.data.prepare import prepare
from deop.data.segmentation import SegmentationDataset
from deop.errors import DeopError, validated
from deop.jobs.artifacts import artifact
from deop.jobs.job import Job
from deop.reporting.contact_sheet import contact_sheet
from deop.settings.datasets import dataset_settings
from deop.settings.downloads import Download
from deop.utils.progress import progress_bar


def run(job: Job) -> None:
    """Writes the dataset of ``job.settings["dataset"]``; files are read below ``job.settings["data"]["root"]``.

    Every file of a downloaded dataset is first compared with its manifest.

    Raises:
        DeopError: files that are missing, damaged or changed, by name.
    """
    values = job.settings["dataset"]
    settings = validated(dataset_settings(values.get("kind"), "dataset.kind"), values, "dataset")
    name = Path(job.output).name.rpartition("-")[0]
    workers = int(os.environ.get("OMP_NUM_THREADS", "1"))
    data = job.settings.get("data", {})
    for download in data.get("sources", []):
        verify(Download.model_validate(download), full=True, workers=workers)
    root = Path(data.get("root", "data/raw"))
    if settings.contents(root, Path()) != job.settings.get("content"):
        raise DeopError(
            f"dataset {name}: its files changed after this run was planned; run the same command again"
        )
    with artifact(job, resumes=("labels",)) as workspace:
        with progress_bar(desc=f"images of {name}") as bar:

            def show(done: int, total: int) -> None:
                bar.total = total
                bar.update(done)

            prepare(workspace.path, name, settings, root, workers=workers, progress=show)
        split = "val" if (workspace.path / "val.csv").exists() else "train"
        sheet = contact_sheet(SegmentationDataset(workspace.path, split), images=24)
        sheet.save(workspace.path / "contact_sheet.png")
