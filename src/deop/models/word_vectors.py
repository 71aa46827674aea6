"""Class names as word vectors, from files of word2vec and fastText."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from deop.errors import ClassNameError, WeightsError


class WordVectors:
    """Embeds class names with word vectors; with several files, their unit vectors are concatenated.

    A name that a file has as it is, with underscores for spaces and hyphens ("traffic_light"), in the given spelling or
    in lower case, has that vector. Any other is the mean of the vectors of its words.

    Args:
        paths: word2vec's binary format (``.bin``) or the text format of fastText and word2vec (``.vec``, ``.txt``),
            also gzipped.

    Raises:
        WeightsError: a file that is missing or cannot be read, of an unknown kind, or gensim is not installed.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = tuple(Path(path) for path in paths)
        self._files = [_read(path) for path in self.paths]

    @property
    def width(self) -> int:
        return sum(file.vector_size for file in self._files)

    def __call__(self, names: list[str]) -> Tensor:
        """Embeddings (C, D), L2-normalised, of C names.

        Raises:
            ClassNameError: a name of which a file lacks a word.
        """
        rows = [
            np.stack([_embed(name, path, file) for name in names])
            for path, file in zip(self.paths, self._files, strict=True)
        ]
        parts = [F.normalize(torch.from_numpy(row).float(), dim=1) for row in rows]
        return F.normalize(torch.cat(parts, dim=1), dim=1)


def _embed(name: str, path: Path, vectors) -> np.ndarray:
    words = re.split(r"[\s_-]+", name.strip())
    for spelling in (name, "_".join(words), "_".join(words).lower(), "-".join(words).lower()):
        if spelling in vectors:
            return vectors[spelling]
    found = []
    for word in words:
        spelling = next((form for form in (word, word.lower(), word.capitalize()) if form in vectors), None)
        if spelling is None:
            raise ClassNameError(
                f"{path}: has no vector for {word!r}, a word of class {name!r}, and none for the name as a whole; "
                "rename the class, or use vectors that have it"
            )
        found.append(vectors[spelling])
    return np.mean(found, axis=0)


@functools.cache  # systems in one process share them: they take gigabytes
def _read(path: Path):
    try:
        from gensim.models import KeyedVectors
    except ModuleNotFoundError:
        raise WeightsError(
            f"word vectors ({path}) are read with gensim, which is not installed: pip install 'deop[words]'"
        ) from None
    if not path.is_file():
        raise WeightsError(f"word vectors {path} are not there; set word_vectors to the paths of files")
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if suffix not in (".bin", ".vec", ".txt"):
        raise WeightsError(
            f"{path}: unknown kind of word vectors; valid: .bin (word2vec's binary format), .vec or .txt (the text "
            "format of fastText and word2vec), and these with .gz"
        )
    try:
        return KeyedVectors.load_word2vec_format(str(path), binary=suffix == ".bin")
    except (ValueError, EOFError, OSError, UnicodeDecodeError) as error:
        kind = "word2vec's binary format" if suffix == ".bin" else "the text format of word vectors"
        raise WeightsError(f"{path} cannot be read as {kind}: {error}") from None
