"""Command ``segment``: label maps of anyone's images by a trained system, in the words of a dataset or any others.

Images are decoded by processes of their own and label maps written by threads, both while the network computes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from deop.data.image_files import ImageFiles, LoadedImage, batches_of_one_size, find_images
from deop.data.segmentation import write_label_map
from deop.data.transforms import resize_short_side
from deop.data.vocabulary import parse_names
from deop.errors import DeopError
from deop.methods.inference import prepare
from deop.methods.system import load_system, read_config
from deop.models.weight_files import checked_weights
from deop.reporting.overlay import overlay
from deop.settings.system import CONFIG
from deop.training.loop import loader_workers, make_accelerator
from deop.utils.files import file_hash, whole_file, write_json
from deop.utils.progress import progress_bar

CLASSES = "classes.json"


class Target(NamedTuple):
    """An image, where its label map goes, and where the picture of it goes, if one is wanted."""

    image: Path
    label_map: Path
    picture: Path | None

    @property
    def outputs(self) -> list[Path]:
        return [path for path in (self.picture, self.label_map) if path is not None]


def run(
    system: Path,
    images: list[Path],
    output: Path,
    *,
    classes: str | None = None,
    batch_size: int = 1,
    pictures: bool = False,
) -> dict[Path, str]:
    """Segments images with a trained system; returns the images that could not be read, and why.

    Written to ``output``: for ``folder/cat.jpg`` of a given folder or file, ``cat.png``, a label map as large as the
    image is shown (turned as its EXIF data say), 8 bit for up to 256 classes and 16 bit for more; with ``pictures``
    also ``cat.overlay.jpg``; and ``classes.json``, which says what the labels mean and which weights they are from.
    Files appear whole or not at all, and what is there already is left as it is, so the same call resumes an
    interrupted run.

    Args:
        system: the folder of the system (:mod:`deop.methods.system`).
        images: files, and folders that are searched to their depths.
        classes: as :func:`deop.data.vocabulary.parse_names` reads them; None is those of the dataset that the system
            was trained on.
        batch_size: how many images of one size, one after the other, are computed at once.

    Raises:
        DeopError: before the network is built, inputs, images or names that cannot be used, or an ``output`` that
            holds other label maps; later, a name that is too long for CLIP, a batch too large for the device, or a
            disk that is full.
    """
    config = read_config(system)
    names = list(config.class_names) if classes is None else parse_names(classes)
    targets = [
        Target(
            image,
            output / label_map,
            output / label_map.with_suffix(".overlay.jpg") if pictures else None,
        )
        for label_map, image in find_images(images, output).items()
    ]
    _claim(output, _meaning(config.name, system, names), targets)
    todo = [target for target in targets if not all(path.exists() for path in target.outputs)]
    if len(todo) < len(targets):
        print(f"segment: {len(targets) - len(todo)} of {len(targets)} images are in {output} already")
    if not todo:
        return {}
    accelerator = make_accelerator(config.precision, or_full=True)
    inference = config.inference.model_dump(exclude={"short_side"})
    segmenter = prepare(load_system(system), accelerator.device, **inference)

    @torch.inference_mode()
    def label(batch: Tensor) -> np.ndarray:
        pixels = batch.to(accelerator.device).float() / 255
        with accelerator.autocast():
            resized = resize_short_side(pixels, config.inference.short_side)
            return segmenter.label(resized, names, tuple(batch.shape[-2:])).int().cpu().numpy()

    with progress_bar(
        desc="segment",
        initial=len(targets) - len(todo),
        total=len(targets),
        unit="image",
    ) as progress:
        return _segment(todo, label, names, batch_size, accelerator.device, progress)


def _meaning(name: str, system: Path, names: list[str]) -> dict[str, Any]:
    """What ``classes.json`` says: names by label, and what the label maps are made with."""
    return {
        "classes": {str(index): name for index, name in enumerate(names)},
        "system": name,
        "weights": file_hash(checked_weights(system)),
        "config": file_hash(system / CONFIG),
    }


def _claim(output: Path, meaning: dict[str, Any], targets: list[Target]) -> None:
    """Makes ``output`` with its ``classes.json``, or finds the same one there.

    Raises:
        DeopError: another one, files of someone else, or a folder that cannot be written to.
    """
    path = output / CLASSES
    given = {os.path.realpath(target.image) for target in targets}
    places = [place for target in targets for place in target.outputs]
    for place in places:
        if os.path.realpath(place) in given:
            raise DeopError(f"{place} is one of the images and would be overwritten; name another folder")
    try:
        if path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))
            differing = [key for key, value in meaning.items() if found.get(key) != value]
            if not differing:
                return
            # Alone, it is what a run left that failed before its first label map, over a name for example.
            if any(other.is_file() for other in output.rglob("*") if other != path):
                raise DeopError(
                    f"{path} is of other label maps, with other {' and '.join(differing)}; name another folder, or "
                    "remove this one"
                )
        for place in places:
            if place.exists():
                raise DeopError(
                    f"{place} is there already, and no {path} says what it is; name another folder"
                )
        write_json(path, meaning)
    except (ValueError, AttributeError):
        raise DeopError(f"{path} is not of this command; name another folder") from None
    except OSError as error:
        raise DeopError(f"{path} cannot be written: {error.strerror}") from None


def _segment(
    targets: list[Target],
    label: Callable[[Tensor], np.ndarray],
    names: list[str],
    batch_size: int,
    device: torch.device,
    progress: tqdm,
) -> dict[Path, str]:
    """Reads, labels and writes all targets, the three at once; the images that could not be read, and why.

    ``label`` maps images (B, 3, H, W) uint8 to labels (B, H, W).
    """
    workers = loader_workers(device)
    loader = DataLoader(
        ImageFiles([target.image for target in targets]),
        batch_size=None,  # sizes are known only when images are decoded
        num_workers=workers,
        prefetch_factor=max(2, -(-batch_size // workers)),  # the next batch, while one is computed
    )
    broken: dict[Path, str] = {}

    def readable(loaded_images: Iterable[LoadedImage]) -> Iterator[LoadedImage]:
        for loaded in loaded_images:
            if loaded.image is None:
                broken[targets[loaded.index].image] = loaded.problem
                progress.update()
            else:
                yield loaded

    pending: list[Future] = []
    with ThreadPoolExecutor(workers) as writers:
        for batch in batches_of_one_size(readable(loader), batch_size):
            images = torch.stack([loaded.image for loaded in batch])
            try:
                labels = label(images)
            except torch.OutOfMemoryError:
                height, width = images.shape[-2:]
                raise DeopError(
                    f"{targets[batch[0].index].image}: no memory for {len(batch)} images of {height} x {width} pixels "
                    "at once; give a smaller --batch-size, or leave such images out"
                ) from None
            # One batch waits to be written, not all that the disk is too slow for.
            _finish(pending, progress)
            pending = [
                writers.submit(_write, targets[loaded.index], loaded.image, of_image, names)
                for loaded, of_image in zip(batch, labels, strict=True)
            ]
        _finish(pending, progress)
    return broken


def _finish(pending: list[Future], progress: tqdm) -> None:
    for future in pending:
        future.result()
        progress.update()


def _write(target: Target, image: Tensor, label: np.ndarray, names: list[str]) -> None:
    """Writes the outputs of an image (3, H, W) with labels (H, W), the label map last.

    Raises:
        DeopError: a file that cannot be written.
    """
    for path in target.outputs:
        try:
            with whole_file(path) as temporary:
                if path == target.label_map:
                    write_label_map(temporary, label, 255 if len(names) <= 256 else 65535)
                else:
                    picture = overlay(image.permute(1, 2, 0).numpy(), label, names)
                    picture.save(temporary, quality=90, subsampling=0)
        except OSError as error:
            raise DeopError(f"{path} cannot be written: {error.strerror or error}") from None
