"""Word vectors from files of both formats, written here byte by byte, and class names composed from their words."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from deop.errors import ClassNameError, WeightsError

pytest.importorskip("gensim", reason="word vectors are an extra: pip install 'deop[words]'")
from deop.models.word_vectors import WordVectors

VECTORS = {
    "dog": [1.0, 2.0, -1.0],
    "traffic": [0.5, 0.0, 1.0],
    "light": [-1.0, 1.0, 0.25],
    "fire_hydrant": [2.0, 2.0, 2.0],
    "Zebra": [0.0, 3.0, 4.0],
}


def binary(path: Path) -> Path:
    """word2vec's own format: a line of sizes; then each word, a space, its floats (little endian) and a newline."""
    with path.open("wb") as file:
        file.write(f"{len(VECTORS)} 3\n".encode())
        for word, values in VECTORS.items():
            file.write(word.encode() + b" " + struct.pack("<3f", *values) + b"\n")
    return path


def text(path: Path) -> Path:
    """fastText's .vec: a line of sizes; then each word and its numbers, separated by spaces."""
    lines = [
        f"{len(VECTORS)} 3",
        *(f"{word} {' '.join(map(str, values))}" for word, values in VECTORS.items()),
    ]
    content = ("\n".join(lines) + "\n").encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.fixture(params=["binary", "text", "text.gz"])
def file(request, tmp_path) -> Path:
    if request.param == "binary":
        return binary(tmp_path / "words.bin")
    return text(tmp_path / f"words.vec{'.gz' if request.param == 'text.gz' else ''}")


def unit(values) -> torch.Tensor:
    return F.normalize(torch.tensor(values), dim=0)


def test_names_have_the_vector_of_the_file(file):
    found = WordVectors([str(file)])(["dog", "fire hydrant", "zebra"])
    for row, word in zip(found, ("dog", "fire_hydrant", "Zebra"), strict=True):
        torch.testing.assert_close(row, unit(VECTORS[word]))


def test_other_names_are_the_mean_of_their_words(file):
    mean = [(a + b) / 2 for a, b in zip(VECTORS["traffic"], VECTORS["light"])]
    vectors = WordVectors([str(file)])
    for name in ("traffic light", "Traffic Light", "traffic-light"):
        torch.testing.assert_close(vectors([name])[0], unit(mean))


def test_vectors_of_several_files_are_concatenated(tmp_path):
    vectors = WordVectors([str(binary(tmp_path / "a.bin")), str(text(tmp_path / "b.vec"))])
    assert vectors.width == 6
    torch.testing.assert_close(vectors(["dog"])[0], unit([*unit(VECTORS["dog"]), *unit(VECTORS["dog"])]))


def test_a_missing_word_is_named_with_its_class_and_file(file):
    with pytest.raises(
        ClassNameError, match=rf"{file.name}: has no vector for 'giraffe', a word of class 'dog giraffe'"
    ):
        WordVectors([str(file)])(["dog", "dog giraffe"])


def test_files_that_cannot_be_used_are_named(tmp_path):
    with pytest.raises(WeightsError, match=r"gone\.bin are not there"):
        WordVectors([str(tmp_path / "gone.bin")])
    (tmp_path / "words.npy").write_bytes(b"")
    with pytest.raises(WeightsError, match=r"words\.npy: unknown kind of word vectors; valid: \.bin"):
        WordVectors([str(tmp_path / "words.npy")])
    whole = binary(tmp_path / "cut.bin").read_bytes()
    (tmp_path / "cut.bin").write_bytes(whole[:-8])
    with pytest.raises(WeightsError, match=r"cut\.bin cannot be read as word2vec's binary format"):
        WordVectors([str(tmp_path / "cut.bin")])
