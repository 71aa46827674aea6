"""Split files as arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from deop.data.entries import Entry, read_split
from deop.errors import DeopError

HEADER = "image,label,classes,crc32,image_crc32\n"


def test_lines_and_the_images_of_some_classes(tmp_path):
    """Against the same in plain Python."""
    rng = np.random.default_rng(0)
    whole = [
        Entry(
            tmp_path / f"photos/ü{index}.jpg",
            tmp_path / f"labels/{index}.png",
            tuple(sorted(rng.choice(9, rng.integers(0, 4), replace=False).tolist())),
            int(rng.integers(2**32)),
            index,
        )
        for index in range(40)
    ]
    lines = [
        f"ü{entry.image_crc32}.jpg,labels/{entry.image_crc32}.png,{' '.join(map(str, entry.classes))},"
        f"{entry.crc32:08x},{entry.image_crc32:08x}"
        for entry in whole
    ]
    (tmp_path / "train.csv").write_text(HEADER + "\n".join(lines), encoding="utf-8")
    entries = read_split(tmp_path / "train.csv", tmp_path / "photos")
    assert list(entries) == whole
    seen = [1, 4, 8]
    some, before = entries.having(seen)
    expected = [entry for entry in whole if set(entry.classes) & set(seen)]
    assert 10 < len(expected) < 40
    assert [entry.image for entry in some] == [entry.image for entry in expected]
    assert list(before) == [entry.classes for entry in expected]
    assert [entry.classes for entry in some] == [
        tuple(seen.index(label) for label in entry.classes if label in seen) for entry in expected
    ]
    assert len(entries.having([])[0]) == 0


@pytest.mark.faults(
    "`dataset.json`, `provenance.json` or a split file of a dataset is edited, truncated, not UTF-8 or gone",
    "the job does not start, and names the file",
)
@pytest.mark.parametrize(
    "line, words",
    [
        ("a.jpg,a.png,1 x,00000001,00000002", "classes '1 x' are no label ids"),
        ("a.jpg,a.png,1  2,00000001,00000002", "classes '1  2' are no label ids"),
        ("a.jpg,a.png,-1,00000001,00000002", "classes '-1' are no label ids"),
        ("a.jpg,a.png,1,0000000g,00000002", "checksum '0000000g' is not one of eight hexadecimal digits"),
        ("a.jpg,a.png,1,00000001,2", "checksum '2' is not one of eight"),
    ],
)
def test_a_line_that_is_not_as_it_was_written(tmp_path: Path, line, words):
    path = tmp_path / "val.csv"
    path.write_text(f"{HEADER}b.jpg,b.png,,00000001,00000002\n{line}\n")
    with pytest.raises(DeopError, match=words) as error:
        read_split(path, None)
    assert str(path) in str(error.value)
