"""The stage as a user meets it: from nothing, from a copy of their own, and from half of one."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from deop.errors import DeopError
from deop.jobs.job import Job
from deop.settings.downloads import Download
from deop.stages import download
from deop.stages.download import provide

FILES = {f"val/{number}.jpg": os.urandom(3000) for number in range(5)} | {"labels.txt": b"0: empty"}


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


ARCHIVE = zipped(FILES)


@pytest.fixture
def source(tmp_path: Path, file_server):
    """``source(path=..., **entry)``: five images in an archive of the server."""
    file_server.files["a.zip"] = ARCHIVE

    def make(name: str = "data", path: Path | None = None, keep_archives: bool = True, **entry) -> Download:
        values = {"urls": [file_server.url("a.zip")], "archive": "data.zip", "format": "zip", "into": "set"}
        return Download(
            name=name,
            root=str(tmp_path / "root"),
            path=None if path is None else str(path),
            keep_archives=keep_archives,
            entry=values | {"holds": {"set/val/*.jpg": 5}} | entry,
        )

    return make


def write_copy(folder: Path, files: dict[str, bytes] = FILES) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_stage_downloads_unpacks_and_says_so(source, file_server, tmp_path: Path) -> None:
    output = tmp_path / "out/data.json"
    settings = {
        "source": source(hash=f"sha256:{hashlib.sha256(ARCHIVE).hexdigest()}").model_dump(mode="json")
    }
    download.run(Job(stage="download", key="k", output=str(output), settings=settings))
    written = json.loads(output.read_text())
    assert written.pop("provenance")["stage"] == "download"
    assert re.fullmatch("[0-9a-f]{64}", written.pop("sha256"))
    assert written == {
        "source": "data",
        "root": str(tmp_path / "root"),
        "holds": {"set/val/*.jpg": 5},
        "archive": {
            "bytes": len(ARCHIVE),
            "sha256": hashlib.sha256(ARCHIVE).hexdigest(),
            "url": file_server.url("a.zip"),
        },
    }
    assert contents(tmp_path / "root/set") == FILES


def test_second_run_downloads_nothing_and_third_neither_without_the_archive(
    source, file_server, tmp_path
) -> None:
    first = provide(source())
    assert provide(source(keep_archives=False)) == first
    (tmp_path / "root/archives/data.zip").unlink()
    assert provide(source()) == first
    assert len(file_server.requests) == 1


def test_archive_is_removed_once_unpacked_if_that_is_asked_for(source, tmp_path: Path) -> None:
    assert provide(source(keep_archives=False))["archive"]["bytes"] == len(ARCHIVE)
    assert not (tmp_path / "root/archives/data.zip").exists()


@pytest.mark.faults(
    "unpacked files are removed", "they are unpacked again from the archive, if that was kept"
)
def test_kept_archive_mends_what_was_lost(source, file_server, tmp_path: Path) -> None:
    provide(source())
    shutil.rmtree(tmp_path / "root/set/val")
    provide(source())
    assert contents(tmp_path / "root/set") == FILES and len(file_server.requests) == 1


@pytest.mark.parametrize("linked", [None, "root", "root/set"])
def test_copy_that_is_in_place_is_used_as_it_is(
    source, file_server, tmp_path: Path, linked: str | None
) -> None:
    if linked:
        (tmp_path / "disk").mkdir()
        (tmp_path / linked).parent.mkdir(exist_ok=True)
        (tmp_path / linked).symlink_to(tmp_path / "disk")
    write_copy(tmp_path / "root/set")
    assert provide(source()) == {"holds": {"set/val/*.jpg": 5}, "archive": None}
    assert contents(tmp_path / "root/set") == FILES and not file_server.requests
    (tmp_path / "root/set/val/3.jpg").write_bytes(b"cut")
    with pytest.raises(DeopError, match=r"3\.jpg has 3 bytes instead of 3,000"):
        provide(source())


def test_copy_that_may_only_be_read_is_used_and_nothing_is_written(
    source, tmp_path: Path, monkeypatch
) -> None:
    write_copy(tmp_path / "root/set")
    monkeypatch.setattr(
        download.os, "access", lambda path, mode: False
    )  # tests may run as root, who may write anywhere
    assert provide(source())["archive"] is None
    assert [path.name for path in (tmp_path / "root").iterdir()] == ["set"]


@pytest.mark.faults("a copy of a dataset is incomplete", "one line with what is missing; it is left as it is")
@pytest.mark.parametrize("there", [4, 6])
def test_part_of_a_copy_is_an_error_and_stays_as_it_is(
    source, file_server, tmp_path: Path, there: int
) -> None:
    copy = {f"val/{number}.jpg": b"mine" for number in range(there)}
    write_copy(tmp_path / "root/set", copy)
    with pytest.raises(
        DeopError, match=rf"part of it is in .*: set/val/\*\.jpg: {there} of 5 files.*\.holds"
    ):
        provide(source())
    assert contents(tmp_path / "root/set") == copy and not file_server.requests


def test_archive_put_there_by_hand_is_unpacked(source, file_server, tmp_path: Path) -> None:
    write_copy(tmp_path / "root/archives", {"data.zip": ARCHIVE})
    found = provide(source(urls=[]))
    assert found["archive"] == {
        "bytes": len(ARCHIVE),
        "sha256": hashlib.sha256(ARCHIVE).hexdigest(),
        "url": None,
    }


@pytest.mark.parametrize("below", ["", "val", "other/set"])
def test_folder_elsewhere_is_linked_to(source, file_server, tmp_path: Path, below: str) -> None:
    """The user may name the folder itself, or one above it."""
    mine = tmp_path / "mine"
    write_copy(mine / "other/set")
    named = {"": mine / "other", "val": mine / "other/set/val", "other/set": mine / "other/set"}[below]
    found = provide(source(path=named))
    assert found == {"holds": {"set/val/*.jpg": 5}, "archive": None} and not file_server.requests
    assert (tmp_path / "root/set/val").resolve() == mine / "other/set/val"


@pytest.mark.faults("a copy of a dataset is incomplete", "one line with what is missing; it is left as it is")
def test_path_that_does_not_hold_it_all_is_named(source, tmp_path: Path, injected) -> None:
    injected(2)
    mine = write_copy(tmp_path / "mine", {"val/0.jpg": b"0", "val/1.jpg": b"1"})
    with pytest.raises(
        DeopError, match=rf"data\.sources\.data\.path: {mine} does not hold all of set/val: .*2 of 5"
    ):
        provide(source(path=mine))
    with pytest.raises(DeopError, match=r"data\.sources\.data\.path: .*/gone is not there"):
        provide(source(path=tmp_path / "gone"))
    assert not (tmp_path / "root/set").exists()


def test_users_archive_elsewhere_is_unpacked_and_kept(source, file_server, tmp_path: Path) -> None:
    mine = tmp_path / "mine.zip"
    mine.write_bytes(ARCHIVE)
    provide(source(path=mine, keep_archives=False))
    assert contents(tmp_path / "root/set") == FILES and mine.exists() and not file_server.requests


def test_two_sources_share_an_archive(source, file_server, tmp_path: Path) -> None:
    provide(source(members=["val/*"]))
    assert "labels.txt" not in contents(tmp_path / "root/set")
    provide(source(name="labels", members=["labels.txt"], holds={"set/labels.txt": 1}))
    assert contents(tmp_path / "root/set") == FILES and len(file_server.requests) == 1


@pytest.mark.faults(
    "an archive arrives cut short from a server that says it is whole",
    "it is put aside, and a rerun downloads it again",
)
def test_download_that_is_no_archive_is_put_aside_and_forgotten(source, file_server, tmp_path: Path) -> None:
    file_server.files["a.zip"] = ARCHIVE[:-100]
    with pytest.raises(DeopError, match=r"is not a whole zip archive.*moved to data\.zip\.bad; run again"):
        provide(source())
    file_server.files["a.zip"] = ARCHIVE
    provide(source())
    assert contents(tmp_path / "root/set") == FILES


@pytest.mark.faults(
    "the disk has no room for an archive or its files", "this is said before anything is written"
)
def test_no_room_to_unpack_is_found_before_anything_is_written(source, tmp_path: Path, monkeypatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    room = iter(
        [usage, usage._replace(free=6 * 4096 - 1)]
    )  # something else filled the disk during the download
    monkeypatch.setattr("deop.data.downloads.download.shutil.disk_usage", lambda _: next(room))
    with pytest.raises(DeopError, match=r"not enough disk space at .*to unpack data\.zip .*data\.root"):
        provide(source())
    assert not (tmp_path / "root/set").exists()


@pytest.mark.faults(
    "two processes are started at one job, export or archive",
    "the second waits, and does not repeat what the first finished",
)
def test_processes_at_one_source_wait_for_each_other(source, file_server, tmp_path: Path) -> None:
    code = (
        "import sys; from deop.stages.download import provide; from deop.settings.downloads import Download; "
        "provide(Download.model_validate_json(sys.argv[1]))"
    )
    command = [sys.executable, "-c", code, source().model_dump_json()]
    processes = [subprocess.Popen(command, stderr=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert contents(tmp_path / "root/set") == FILES and len(file_server.requests) == 1
