"""Files that appear whole or not at all, and their checksums."""

from __future__ import annotations

import hashlib
import json

import pytest

from deop.utils.files import file_hash, whole_file, write_json


def test_a_file_appears_when_it_is_whole_and_nothing_is_left_beside_it(tmp_path):
    path = tmp_path / "new" / "folder" / "picture.png"
    with whole_file(path) as temporary:
        assert temporary.suffix == ".png"  # by which Pillow and matplotlib choose the format
        temporary.write_bytes(b"half")
        assert not path.exists()
    assert path.read_bytes() == b"half" and list(path.parent.iterdir()) == [path]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "values.json"
    write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), whole_file(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert json.loads(path.read_text()) == {"a": 1} and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
def test_the_hash_of_a_file_is_that_of_its_bytes(tmp_path, algorithm):
    data = bytes(range(256)) * 5000
    (tmp_path / "data").write_bytes(data)
    assert file_hash(tmp_path / "data", algorithm) == hashlib.new(algorithm, data).hexdigest()
