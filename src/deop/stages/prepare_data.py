"""Stage ``prepare_data``: a dataset as a folder of images and label maps, and a contact sheet to look at."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tqdm import tqdm

from deop.data.downloads.manifests import verify
from deop.data.emoji import dataset as emoji_scenes
from deop.data.prepare import prepare
from deop.data.readers.folder_files import content, top_folder
from deop.data.segmentation import SegmentationDataset
from deop.errors import DeopError, unknown, validated
from deop.jobs.artifacts import artifact
from deop.jobs.job import Job
from deop.reporting.contact_sheet import contact_sheet
from deop.settings.datasets import DATASETS, EmojiScenes, Folder, Source


def run(job: Job) -> None:
    """Writes the dataset of ``job.settings["dataset"]``; a real one is read below ``job.settings["data"]["root"]``.

    Every file that it is made of is first compared with what it was when it was unpacked, or found.

    Raises:
        DeopError: files that are missing, damaged or changed, by name.
    """
    values = job.settings["dataset"]
    kind = values.get("kind", "emoji_scenes")
    if kind not in DATASETS:
        raise unknown("dataset", "kind", kind, DATASETS)
    settings = validated(DATASETS[kind], values, "dataset")
    name = Path(job.output).name.rpartition("-")[0]
    workers = int(os.environ.get("OMP_NUM_THREADS", "1"))
    generated = isinstance(settings, EmojiScenes)
    data = job.settings.get("data", {})
    for source in data.get("sources", []):
        verify(Source.model_validate(source), full=True, workers=workers)
    root = Path(data.get("root", "data/raw"))
    if isinstance(settings, Folder):
        if content(settings, top_folder(settings, root)) != job.settings["content"]:
            raise DeopError(
                f"dataset {name}: its files changed after this run was planned; run the same command again"
            )
    with artifact(job) as workspace:
        with tqdm(
            total=settings.train + settings.val if generated else None,
            desc=f"{'scenes' if generated else 'label maps'} of {name}",
            mininterval=1.0 if sys.stderr.isatty() else 10.0,
        ) as bar:
            if generated:
                emoji_scenes.write(workspace.path, name, settings, workers=workers, progress=bar.update)
            else:

                def show(done: int, total: int) -> None:
                    bar.total = total
                    bar.update(done)

                prepare(workspace.path, name, settings, root, workers=workers, progress=show)
        split = "val" if (workspace.path / "val.csv").exists() else "train"
        sheet = contact_sheet(SegmentationDataset(workspace.path, split), images=24)
        sheet.save(workspace.path / "contact_sheet.png")
