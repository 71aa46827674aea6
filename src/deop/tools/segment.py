"""Command ``segment``: people's own images, in any words, by any system.

What can be wrong with a call is found before torch is imported, which takes seconds. Images are decoded and results
written by threads while the network computes.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tqdm import tqdm

from deop.api.places import find_folder, find_project
from deop.api.vocabulary import Background, vocabulary
from deop.data.image_places import OVERLAY, find_images
from deop.data.vocabulary import parse_names
from deop.errors import DeopError
from deop.jobs.integrity import WEIGHTS
from deop.settings.system import CONFIG
from deop.utils.files import file_hash, write_json
from deop.utils.progress import progress_bar

if TYPE_CHECKING:
    from deop.api.result import Segmentation
    from deop.api.segmenter import OpenVocabularySegmenter

CLASSES = "classes.json"
FORMATS = {"png": ".png", "npz": ".npz", "coco": ".coco.json"}
"""Forms of a result, and how the names of its files end."""
_READERS = 2


class Target(NamedTuple):
    """An image, and its results by kind (:meth:`deop.api.result.Segmentation.write`)."""

    image: Path
    outputs: dict[str, Path]


def run(
    model: str,
    images: list[Path],
    output: Path,
    *,
    classes: str | None = None,
    background: str | None = None,
    format: str = "png",
    batch_size: int = 1,
    options: Mapping[str, Any] | None = None,
) -> dict[Path, str]:
    """Segments images; returns those that could not be read, and why.

    Written to ``output``: for ``folder/cat.jpg`` of a given folder or file, ``cat.png``, a label map as large as the
    image is shown (turned as its EXIF data say), 8 bit for up to 256 classes and 16 bit for more, or another
    ``format``; ``cat.overlay.jpg``, a picture with a legend; ``cat.json``, areas and scores; and
    ``classes.json``, which says what the labels mean and what they were made with.
    Files appear whole or not at all, and what is there already is left as it is, so the same
    call resumes an interrupted run.

    Args:
        model: what :func:`deop.load` takes.
        images: files, and folders that are searched to their depths.
        classes: as :func:`deop.data.vocabulary.parse_names` reads them; None is those of the system's training.
        background: a number (the least probability of a class), or words for what is none of the classes.
        format: one of :data:`FORMATS`.
        batch_size: how many images of one size, one after the other, are computed at once.
        options: of :func:`deop.load`.

    Raises:
        DeopError: before the network is built, inputs, images or names that cannot be used, or an ``output`` that holds
            other results; later, a name that is too long for CLIP, a batch too large for the device, or a full disk.
    """
    options = dict(options or {})
    if format not in FORMATS:
        raise DeopError(f"--format {format}: valid: {', '.join(FORMATS)}")
    names = None if classes is None else parse_names(classes)
    less = _background(background)
    if names is not None:
        vocabulary(names, less)
    found = find_images(images, output)
    targets = [Target(image, _outputs(output / place, format)) for place, image in found.items()]
    _refuse_overwriting(output, targets)
    folder = find_folder(model, find_project(options.get("project")), options.get("profiles", ()))
    segmenter = None
    if folder is None:
        segmenter = _load(model, options)
        if names is None and not segmenter.classes:
            raise DeopError(f"{model} has no classes of its own; give some: --classes 'bear, grass'")
    wanted = names if names is not None else _own_classes(folder, segmenter)
    _claim(
        output, _meaning(model, folder, options, list(vocabulary(wanted, less).classes), background), targets
    )
    todo = [target for target in targets if not all(path.exists() for path in target.outputs.values())]
    if len(todo) < len(targets):
        print(f"segment: {len(targets) - len(todo)} of {len(targets)} images are in {output} already")
    if not todo:
        return {}
    segmenter = segmenter or _load(str(folder), options)
    done = len(targets) - len(todo)
    with progress_bar(desc="segment", initial=done, total=len(targets), unit="image") as progress:
        return _segment(
            todo, lambda pictures: segmenter(pictures, wanted, background=less), batch_size, progress
        )


def _load(model: str, options: Mapping[str, Any]) -> OpenVocabularySegmenter:
    from deop.api.load import load

    return load(model, **options)


def _background(text: str | None) -> Background:
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        return text


def _outputs(label_map: Path, format: str) -> dict[str, Path]:
    """Where the results of an image go, the one that is written last at the end."""
    place = label_map.with_suffix("")
    ends = {"overlay": OVERLAY, "json": ".json", format: FORMATS[format]}
    return {kind: place.with_name(place.name + end) for kind, end in ends.items()}


def _own_classes(folder: Path | None, segmenter: OpenVocabularySegmenter | None) -> list[str]:
    if segmenter is not None:
        return segmenter.classes
    try:
        return list(json.loads((folder / CONFIG).read_text())["class_names"])
    except (OSError, ValueError, KeyError):
        raise DeopError(f"{folder / CONFIG} cannot be read as the configuration of a system") from None


def _meaning(
    model: str, folder: Path | None, options: Mapping[str, Any], classes: list[str], background: str | None
) -> dict[str, Any]:
    """What ``classes.json`` says: names by label, and what the results are made with."""
    meaning: dict[str, Any] = {"classes": {str(index): name for index, name in enumerate(classes)}}
    meaning["system"] = model if folder is None else json.loads((folder / CONFIG).read_text())["name"]
    if folder is not None:
        if not (folder / WEIGHTS).is_file():
            raise DeopError(f"{folder / WEIGHTS} is not there")
        meaning |= {"weights": file_hash(folder / WEIGHTS), "config": file_hash(folder / CONFIG)}
    told = {
        "background": background,
        **{key: options.get(key) for key in ("proposals", "severance", "short_side", "dtype")},
    }
    return meaning | {key: value for key, value in told.items() if value is not None}


def _refuse_overwriting(output: Path, targets: list[Target]) -> None:
    given = {os.path.realpath(target.image) for target in targets}
    for place in (place for target in targets for place in target.outputs.values()):
        if os.path.realpath(place) in given:
            raise DeopError(f"{place} is one of the images and would be overwritten; name another folder")
        if place == output / CLASSES:
            raise DeopError(
                f"{place} would be the result of an image and say what labels mean; rename the image"
            )
    for target in targets:
        overlay = target.outputs["overlay"]
        beside = overlay.with_name(overlay.name.removesuffix(OVERLAY) + ".png")
        if os.path.realpath(beside) in given:  # from then on, the image would be taken for a label map
            raise DeopError(f"{overlay} would lie beside the image {beside}; name another folder")


def _claim(output: Path, meaning: dict[str, Any], targets: list[Target]) -> None:
    """Makes ``output`` with its ``classes.json``, or finds the same one there.

    Raises:
        DeopError: another one, files of someone else, or a folder that cannot be written to.
    """
    path = output / CLASSES
    images = {os.path.realpath(target.image) for target in targets}
    try:
        if path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))
            keys = meaning.keys() | found.keys()
            differing = sorted(key for key in keys if found.get(key) != meaning.get(key))
            if not differing:
                return
            # Alone, it is what a run left that failed before its first result, over a name for example.
            others = (other for other in output.rglob("*") if other.is_file() and other != path)
            if any(os.path.realpath(other) not in images for other in others):
                raise DeopError(
                    f"{path} is of other label maps, with other {' and '.join(differing)}; name another folder, or "
                    "remove this one"
                )
        for place in (place for target in targets for place in target.outputs.values()):
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
    segment: Callable[[list[Any]], list[Segmentation]],
    batch_size: int,
    progress: tqdm,
) -> dict[Path, str]:
    """Reads, labels and writes all targets, the three at once; the images that could not be read, and why."""
    import torch

    from deop.data.image_files import LoadedImage, batches_of_one_size, load_image

    broken: dict[Path, str] = {}
    pending: list[Future] = []

    def readable(readers: ThreadPoolExecutor) -> Iterator[LoadedImage]:
        """Images in order, the next ones read ahead."""
        waiting: deque[Future[LoadedImage]] = deque()
        for index in range(len(targets) + batch_size + 1):
            if index < len(targets):
                waiting.append(readers.submit(load_image, index, targets[index].image))
            if waiting and (index >= len(targets) or len(waiting) > batch_size):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def whole(images: Iterator[LoadedImage]) -> Iterator[LoadedImage]:
        for loaded in images:
            if loaded.image is None:
                broken[targets[loaded.index].image] = loaded.problem
                progress.update()
            else:
                yield loaded

    with ThreadPoolExecutor(_READERS) as readers, ThreadPoolExecutor(_READERS) as writers:
        for batch in batches_of_one_size(whole(readable(readers)), batch_size):
            try:
                results = segment([loaded.image for loaded in batch])
            except torch.OutOfMemoryError:
                height, width = batch[0].image.shape[-2:]
                raise DeopError(
                    f"{targets[batch[0].index].image}: no memory for {len(batch)} images of {height} x {width} pixels "
                    "at once; give a smaller --batch-size, or leave such images out"
                ) from None
            # One batch waits to be written, not all that the disk is too slow for.
            _finish(pending, progress)
            pending = [
                writers.submit(_write, targets[loaded.index], result)
                for loaded, result in zip(batch, results, strict=True)
            ]
        _finish(pending, progress)
    return broken


def _finish(pending: list[Future], progress: tqdm) -> None:
    for future in pending:
        future.result()
        progress.update()


def _write(target: Target, result: Segmentation) -> None:
    for kind, path in target.outputs.items():
        result.write(path, kind)
