"""What the data path takes with many images, all links to a few small pictures: ``make scale`` (docs/scale.md)."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from deop.data.prepare import prepare
from deop.data.readers.folder import Folder
from deop.data.segmentation import SegmentationDataset
from deop.data.transforms import TrainingBatches
from deop.jobs.artifacts import code_version
from deop.settings.precision import cpu_name
from deop.settings.schedule import Augmentation

OUTPUT = Path("docs/results/scale.csv")
SIDE, CLASSES = 64, 171
_PER_FOLDER = 1000
_LINKS = 30_000  # to one file; some file systems allow 65,000
_BATCH, _STEPS = 32, 20


def draw(root: Path, images: int) -> Folder:
    """A dataset of ``images`` pictures of :data:`SIDE` pixels and as many label maps, all links to some of them."""
    rng = np.random.default_rng(0)
    kinds = {"images": ("jpg", (4, 4, 3)), "labels": ("png", (4, 4))}
    for index in range(images):
        for folder, (suffix, shape) in kinds.items():
            source = root / f"{folder}-{index // _LINKS}.{suffix}"
            if index % _LINKS == 0:
                values = rng.integers(CLASSES, size=shape, dtype=np.uint8)
                Image.fromarray(values).resize((SIDE, SIDE), Image.Resampling.NEAREST).save(source)
            target = root / folder / f"{index // _PER_FOLDER:05d}" / f"{index:09d}.{suffix}"
            if index % _PER_FOLDER == 0:
                target.parent.mkdir(parents=True)
            os.link(source, target)
    return Folder.model_validate(
        {
            "kind": "folder",
            "splits": {"train": {"images": "images", "labels": "labels"}},
            "classes": [{"id": index, "name": f"class {index}"} for index in range(CLASSES)],
        }
    )


def measure(images: int, folder: Path, workers: int) -> dict[str, float | str]:
    """One row: seconds and megabytes (10^6 bytes) of each part of the data path, and what measured it, where.

    ``folder`` is filled and emptied.
    """
    raw, prepared = folder / "raw", folder / "prepared"
    raw.mkdir()
    settings = draw(raw, images)
    row: dict[str, float | str] = {"images": images}
    row["contents_s"] = _seconds(lambda: settings.contents(raw, Path()))
    row["prepare_s"] = _seconds(lambda: prepare(prepared, "many", settings, raw, workers=workers))
    row["files_added"] = sum(len(names) for _, _, names in os.walk(prepared))
    row["lists_mb"] = (prepared / "train.csv").stat().st_size / 1e6
    before, begun = _memory_mb(), time.perf_counter()
    dataset = SegmentationDataset(prepared, "train", seen_only=True)
    row |= {"read_s": time.perf_counter() - begun, "read_mb": _memory_mb() - before}
    row["check_s"] = _seconds(dataset.check_labels)
    before = _memory_mb()
    batches = TrainingBatches(dataset, Augmentation(crop=SIDE), batch_size=_BATCH, steps=10**9, seed=0)
    row["first_batch_s"] = _seconds(lambda: batches[0])
    row["order_mb"] = _memory_mb() - before
    row["batch_ms"] = 1000 * _seconds(lambda: [batches[step] for step in range(1, 1 + _STEPS)]) / _STEPS
    shutil.rmtree(folder)
    version = code_version()
    return row | {
        "machine": f"{cpu_name() or 'CPU'}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": f"{version['commit'] or ''}"[:12] + (" and changes" if version["dirty"] else ""),
    }


def _seconds(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def _memory_mb() -> float:
    """Memory of this process now (proc(5))."""
    status = Path("/proc/self/status").read_text()
    return 1.024e-3 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")))


def run(counts: list[int], output: Path = OUTPUT, workers: int = os.cpu_count() or 1) -> None:
    """Writes a row for each number of images, each measured in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="deop-scale-") as temporary:
        rows = []
        for images in counts:
            target, folder = Path(temporary) / "row.csv", Path(temporary) / str(images)
            folder.mkdir()
            arguments = [str(images), str(folder), str(workers), str(target)]
            subprocess.run([sys.executable, "-m", "deop.tools.scale", "--row", *arguments], check=True)
            rows.append(pd.read_csv(target))
    output.parent.mkdir(parents=True, exist_ok=True)
    pd.concat(rows).to_csv(output, index=False, lineterminator="\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "--row":
        row = measure(int(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
        pd.DataFrame([row]).round(3).to_csv(sys.argv[5], index=False)
    else:
        run([int(count) for count in sys.argv[1:]])
