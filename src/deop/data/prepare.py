"""Preparation of datasets: label maps with contiguous ids, and lists of the images, which stay where they are."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from deop.data.card import DatasetCard, ignore_value
from deop.data.entries import Entry
from deop.data.pairs import Pair
from deop.data.raw_dataset import RawDataset, SceneGenerator
from deop.data.segmentation import write_card, write_split
from deop.errors import DeopError
from deop.settings.datasets import DatasetSettings, dataset_opener
from deop.utils.files import whole_file
from deop.utils.processes import end_with_parent

_CHUNK = 64  # label maps per task of a worker process
_MOST_PROBLEMS = 20  # stop after this many faulty files
_COMPRESSION = 3  # of PNG, 0 to 9: a COCO-Stuff map takes 24 kB in 6 ms; with 6, the default, 21 kB in 9 ms


@dataclass(frozen=True)
class _Converter:
    """What a process needs to know to convert label maps of one dataset."""

    source: RawDataset  # without its splits
    ignore: int
    unfinished: Path

    @property
    def lookup(self) -> tuple[np.ndarray, np.ndarray]:
        """Lookup tables by original id: its label id, and whether it is valid."""
        ids = [entry.raw_id for entry in self.source.classes]
        size = max([*ids, *self.source.ignored]) + 1
        lookup = np.full(size, self.ignore, np.uint8 if self.ignore == 255 else np.uint16)
        known = np.zeros(size, bool)
        lookup[ids] = np.arange(len(ids))
        known[ids] = known[list(self.source.ignored)] = True
        return lookup, known

    def convert(self, pairs: list[tuple[Pair, Path]]) -> list[tuple[int, ...] | str]:
        """Converts and writes the label maps of pairs; returns for each its label ids, or what is wrong with it."""
        lookup, known = self.lookup
        results: list[tuple[int, ...] | str] = []
        for pair, target in pairs:
            try:
                done = _present(target, self.ignore) if target.exists() else None
                results.append(self._convert(pair, target, lookup, known) if done is None else done)
            except DeopError as error:
                results.append(str(error))
        return results

    def _convert(self, pair: Pair, target: Path, lookup: np.ndarray, known: np.ndarray) -> tuple[int, ...]:
        raw = _read(self.source.read, pair.label)
        shape, orientation = _read(_image_header, pair.image)
        if self.source.upright and orientation != 1:
            raise DeopError(
                f"{pair.image}: its EXIF data say that it is to be turned (orientation {orientation}), and label maps "
                "fit images as they are stored; store it upright, for example with ImageMagick: mogrify -auto-orient"
            )
        if raw.shape != shape:
            raise DeopError(
                f"{pair.label}: is {' x '.join(map(str, raw.shape[::-1]))} pixels, "
                f"its image {pair.image} is {shape[1]} x {shape[0]}"
            )
        values = _values(raw)
        unknown = [str(value) for value in values if not (0 <= value < len(known) and known[value])]
        if unknown:
            raise DeopError(
                f"{pair.label}: holds id {', '.join(unknown[:5])}, which is neither a class nor ignored"
            )
        with whole_file(target, flush=False) as temporary:  # all are flushed when the dataset is complete
            Image.fromarray(lookup[raw]).save(temporary, compress_level=_COMPRESSION)
        return tuple(sorted(set(lookup[values].tolist()) - {self.ignore}))


def _values(ids: np.ndarray) -> np.ndarray:
    """The distinct ids of a map, sorted. Counting, where possible, is many times faster than sorting."""
    if ids.dtype in (np.uint8, np.uint16):
        return np.flatnonzero(np.bincount(ids.ravel()))
    return np.unique(ids)


def _present(path: Path, ignore: int) -> tuple[int, ...] | None:
    """The label ids of a label map that an earlier run wrote; None if it can't be read."""
    try:
        with Image.open(path) as image:
            values = _values(np.asarray(image))
    except (OSError, SyntaxError):
        return None
    return tuple(value for value in values.tolist() if value != ignore)


def _image_header(path: Path) -> tuple[tuple[int, int], int]:
    """Height and width of an image as it is stored, and its EXIF orientation (1 is upright), from its header."""
    with Image.open(path) as image:
        return (image.height, image.width), image.getexif().get(ExifTags.Base.Orientation, 1)


def _read(read: Callable, path: Path):
    try:
        return read(path)
    except DeopError:
        raise
    except Exception as error:  # reading a damaged file can raise almost any error
        raise DeopError(
            f"{path}: can't be read ({type(error).__name__}: {error}); download or unpack it again"
        ) from None


def _remove_others(folder: Path, listed: set[Path]) -> None:
    """Removes files below a folder that are not listed, such as unfinished ones of an interrupted run."""
    for path in folder.rglob("*"):
        if path not in listed and not path.is_dir():
            path.unlink()


def _convert_chunk(work: tuple[_Converter, list[tuple[Pair, Path]]]) -> list[tuple[int, ...] | str]:
    converter, pairs = work
    return converter.convert(pairs)


def _run(work: list, workers: int) -> Iterator[list[tuple[int, ...] | str]]:
    """Results of :func:`_convert_chunk`, in order."""
    if workers == 1:
        yield from map(_convert_chunk, work)
        return
    with ProcessPoolExecutor(workers, initializer=end_with_parent) as pool:
        yield from pool.map(_convert_chunk, work)


def prepare(
    output: Path,
    name: str,
    settings: DatasetSettings,
    root: Path,
    *,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> DatasetCard:
    """Prepares a dataset in the folder ``output``. Label maps that an interrupted run finished there are kept.

    Args:
        settings: of any kind of dataset.
        root: the data root, below which the dataset lies in its original layout.
        workers: number of processes.
        progress: called with the number of images just done and that of all.

    Raises:
        DeopError: files that are missing, before anything is written; or, by name, label maps and images that are
            damaged, differ in size or hold unknown ids (stops after 20 of them).
    """
    source = dataset_opener(settings.kind)(settings, Path(os.path.abspath(root)))
    if isinstance(source, SceneGenerator):
        total = source.images
        return source.write(
            output, name, workers=workers, progress=progress and (lambda done: progress(done, total))
        )
    card = DatasetCard(
        name=name,
        classes=source.classes,
        ignore=ignore_value(len(source.classes)),
        image_root=str(source.image_root),
        raw_ignore=source.raw_ignore,
        images={split: len(pairs) for split, pairs in source.splits.items()},
        spelling=getattr(settings, "names", None),
    )
    unfinished = output / "unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    converter = _Converter(replace(source, splits={}), card.ignore, unfinished)
    targets = {
        split: [output / "labels" / split / f"{pair.key}.png" for pair in pairs]
        for split, pairs in source.splits.items()
    }
    _remove_others(output / "labels", {target for paths in targets.values() for target in paths})
    for folder in {target.parent for paths in targets.values() for target in paths}:
        folder.mkdir(parents=True, exist_ok=True)
    everything = [
        both for split in targets for both in zip(source.splits[split], targets[split], strict=True)
    ]
    chunks = [everything[first : first + _CHUNK] for first in range(0, len(everything), _CHUNK)]
    results: list[tuple[int, ...]] = []
    problems: list[str] = []
    for result in _run([(converter, chunk) for chunk in chunks], workers):
        problems += [one for one in result if isinstance(one, str)]
        results += result
        if progress:
            progress(len(result), len(everything))
        if len(problems) >= _MOST_PROBLEMS:
            break
    shutil.rmtree(unfinished, ignore_errors=True)
    if problems:
        more = f"; and {len(problems) - 3} more files at fault" if len(problems) > 3 else ""
        raise DeopError("; ".join(problems[:3]) + more)
    found = iter(results)
    for split, pairs in source.splits.items():
        entries = [
            Entry(pair.image, target, next(found)) for pair, target in zip(pairs, targets[split], strict=True)
        ]
        write_split(output, split, entries, source.image_root)
    write_card(output, card)
    return card
