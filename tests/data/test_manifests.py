"""Changes of unpacked files, found by the manifest."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from deop.data.downloads.manifests import manifest_path, read_manifest, record_files, verify
from deop.errors import DeopError
from deop.settings.downloads import Download

HOLDS = {"set/images/*.jpg": 300, "set/labels/*.png": 300, "set/list.txt": 1}


@pytest.fixture
def source(tmp_path: Path) -> Download:
    """A dataset that is in place and recorded, with files that are not of it."""
    for folder, suffix in (("images", "jpg"), ("labels", "png")):
        (tmp_path / "set" / folder).mkdir(parents=True)
        for number in range(300):
            (tmp_path / f"set/{folder}/{number:03}.{suffix}").write_bytes(os.urandom(100 + number))
    (tmp_path / "set/list.txt").write_text("000")
    (tmp_path / "set/notes.txt").write_text("mine")
    entry = {"archive": "x.zip", "format": "zip", "holds": HOLDS}
    source = Download(name="data", root=str(tmp_path), entry=entry)
    record_files(source)
    return source


def test_unchanged_files_pass(source: Download) -> None:
    assert len(read_manifest(source)) == 601
    assert verify(source) == verify(source, full=True) == HOLDS


@pytest.mark.faults("unpacked files are changed, cut short, renamed, missing or too many", "they are named")
def test_flipped_byte_of_a_label_is_found_by_name(source: Download, tmp_path: Path) -> None:
    label = tmp_path / "set/labels/123.png"
    data = bytearray(label.read_bytes())
    data[50] ^= 1
    label.write_bytes(data)
    assert verify(source) == HOLDS  # sizes are as they were
    with pytest.raises(DeopError, match=rf"data: 1 of 601 files changed.*{label} has other contents"):
        verify(source, full=True)


@pytest.mark.faults("unpacked files are changed, cut short, renamed, missing or too many", "they are named")
def test_cut_and_missing_files_are_found_by_name_without_reading(
    source: Download, tmp_path: Path, injected
) -> None:
    injected(2)
    os.truncate(tmp_path / "set/images/007.jpg", 50)
    with pytest.raises(DeopError, match=r"images/007\.jpg has 50 bytes instead of 107"):
        verify(source)
    os.rename(tmp_path / "set/labels/001.png", tmp_path / "set/labels/1.png")  # the count stays
    with pytest.raises(DeopError, match=r"2 of 601 files.*007\.jpg.*labels/001\.png is missing"):
        verify(source)


@pytest.mark.faults("unpacked files are changed, cut short, renamed, missing or too many", "they are named")
@pytest.mark.parametrize(("extra", "found"), [(1, 301), (-1, 299)])
def test_wrong_counts_are_named(source: Download, tmp_path: Path, extra: int, found: int) -> None:
    if extra > 0:
        (tmp_path / "set/images/new.jpg").touch()
    else:
        (tmp_path / "set/images/000.jpg").unlink()
    with pytest.raises(DeopError, match=rf"set/images/\*\.jpg: {found} of 300 files$"):
        verify(source)


@pytest.mark.faults("unpacked files are changed, cut short, renamed, missing or too many", "they are named")
def test_many_changes_are_counted_and_some_named(source: Download, tmp_path: Path) -> None:
    for label in (tmp_path / "set/labels").iterdir():
        os.truncate(label, 1)
    with pytest.raises(DeopError, match=r"300 of 601 files.*; and 297 more\.") as error:
        verify(source)
    assert str(error.value).count(" has 1 bytes") == 3


@pytest.mark.faults("the list of an archive's checksums is damaged", "it is named, with what to do")
def test_damaged_manifest_is_named(source: Download) -> None:
    os.truncate(manifest_path(source), 100)
    with pytest.raises(DeopError, match=rf"{manifest_path(source)} cannot be read .*remove it"):
        verify(source)
