"""Stage ``prepare_data``: a dataset as a folder of images and label maps, and a contact sheet to look at."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tqdm import tqdm

from deop.data import emoji_scenes
from deop.data.contact_sheet import contact_sheet
from deop.data.segmentation import SegmentationDataset
from deop.dataset_settings import EmojiScenes
from deop.settings import Job
from deop.stages.artifacts import artifact


def run(job: Job) -> None:
    """Writes the dataset of ``job.settings["dataset"]``."""
    settings = EmojiScenes.model_validate(job.settings["dataset"])
    name = Path(job.output).name.rpartition("-")[0]
    with artifact(job) as workspace:
        with tqdm(
            total=settings.train + settings.val,
            desc=f"scenes of {name}",
            mininterval=1.0 if sys.stderr.isatty() else 10.0,
        ) as progress:
            emoji_scenes.write(
                workspace.path,
                name,
                settings,
                workers=int(os.environ.get("OMP_NUM_THREADS", "1")),
                progress=progress.update,
            )
        sheet = contact_sheet(SegmentationDataset(workspace.path, "val"), images=24)
        sheet.save(workspace.path / "contact_sheet.png")
