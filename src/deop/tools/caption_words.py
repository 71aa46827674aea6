"""Captions of real images as lists of their nouns and adjectives, which OpenSeg learns from."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from deop.errors import DeopError
from deop.utils.files import whole_file
from deop.utils.progress import progress_bar

TAGGER = "averaged_perceptron_tagger_eng"
Tag = Callable[[list[str]], list[tuple[str, str]]]


class Written(NamedTuple):
    """How many captions were written, of how many images; how many captions had no image, and how many no word."""

    captions: int
    images: int
    without_image: int
    without_word: int


def run(sources: list[Path], images: Path, output: Path) -> Written:
    """Writes a CSV with columns ``image`` and ``words``, a line a caption, for ``captions`` and ``more_captions``.

    Args:
        sources: captions of COCO (``captions_train2017.json``) or Localized Narratives (``.jsonl``).
        images: the folder of the images.
        output: the CSV; paths of images are relative to its folder.

    Raises:
        DeopError: files that cannot be read or are of another kind, no caption of an image in ``images``, or NLTK or
            its tagger is missing.
    """
    tag = load_tagger()
    try:
        there = {entry.name for entry in os.scandir(images)}
    except OSError as error:
        raise DeopError(f"folder of images {images} cannot be read: {error.strerror}") from None
    seen: set[str] = set()
    written = without_image = without_word = 0
    place = Path(os.path.relpath(os.path.realpath(images), os.path.realpath(output.parent)))
    with whole_file(output) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("image", "words"))
        for name, caption in progress_bar(_captions(sources), desc="caption-words"):
            if name not in there:
                without_image += 1
            elif words := nouns_and_adjectives(caption, tag):
                table.writerow(((place / name).as_posix(), ";".join(words)))
                seen.add(name)
                written += 1
            else:
                without_word += 1
        if not written:
            raise DeopError(f"no caption of {', '.join(map(str, sources))} is of an image in {images}")
    return Written(written, len(seen), without_image, without_word)


def nouns_and_adjectives(caption: str, tag: Tag) -> list[str]:
    """The words of a caption that are nouns or adjectives, in lower case and each once, in their order."""
    tokens = re.findall(r"[^\W\d_]+(?:['’-][^\W\d_]+)*|[.,;:!?]", caption.lower())
    return list(dict.fromkeys(word for word, kind in tag(tokens) if kind[:2] in ("NN", "JJ")))


def load_tagger() -> Tag:
    """NLTK's part-of-speech tagger of English.

    Raises:
        DeopError: NLTK is not installed, or its tagger was not downloaded.
    """
    try:
        from nltk.tag.perceptron import PerceptronTagger
    except ImportError:
        raise DeopError(
            "words are tagged with NLTK, which is not installed: pip install 'deop[captions]'"
        ) from None
    try:
        return PerceptronTagger().tag
    except LookupError:
        raise DeopError(
            f"NLTK's tagger is not there: python -m nltk.downloader {TAGGER} (with NLTK_DATA set to a folder, it is "
            "looked for there as well)"
        ) from None


def _captions(sources: Iterable[Path]) -> Iterator[tuple[str, str]]:
    """The file name of the image and the text of every caption."""
    for source in sources:
        try:
            with source.open(encoding="utf-8") as file:
                yield from _narratives(file) if source.suffix == ".jsonl" else _of_coco(json.load(file))
        except OSError as error:
            raise DeopError(f"captions {source} cannot be read: {error.strerror}") from None
        except (ValueError, KeyError, TypeError) as error:
            raise DeopError(
                f"captions {source} are neither COCO's (a JSON with images and annotations) nor Localized Narratives "
                f"(a .jsonl with image_id and caption in every line): {type(error).__name__}: {error}"
            ) from None


def _of_coco(annotations: dict) -> Iterator[tuple[str, str]]:
    names = {image["id"]: image["file_name"] for image in annotations["images"]}
    for caption in annotations["annotations"]:
        yield names[caption["image_id"]], caption["caption"]


def _narratives(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    for line in lines:
        narrative = json.loads(line)
        name = narrative["image_id"]
        if narrative.get("dataset_id", "").startswith("mscoco"):
            name = f"{int(name):012d}"  # COCO's own file name
        yield f"{name}.jpg", narrative["caption"]
