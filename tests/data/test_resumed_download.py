"""Archives fetched over a real connection that breaks, and from servers that answer other things."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import shutil
from pathlib import Path

import pytest
import requests

from deop.data.downloads import download
from deop.data.downloads.download import WrongArchive, obtain
from deop.errors import DeopError
from deop.settings.downloads import Download

SIZE = 400_000
DATA = random.Random(0).randbytes(SIZE)
OTHER = random.Random(1).randbytes(SIZE)


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@pytest.fixture(autouse=True)
def waits(monkeypatch) -> list[float]:
    """The pauses between attempts, which are not made."""
    made: list[float] = []
    monkeypatch.setattr(download.time, "sleep", made.append)
    return made


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return tmp_path / "root/archives/data.zip"


@pytest.fixture
def source(tmp_path: Path, file_server):
    """``source(mirrors=..., bytes=..., ...)``: one whose archive is ``a.zip`` of the server."""

    def make(mirrors: tuple[str, ...] = (), path: str | None = None, **entry) -> Download:
        values = {"urls": [file_server.url("a.zip")], "archive": "data.zip", "format": "zip"}
        return Download(
            name="data",
            root=str(tmp_path / "root"),
            mirrors=mirrors,
            path=path,
            entry=values | {"holds": {"data/*.jpg": 3}} | entry,
        )

    return make


@pytest.mark.faults(
    "a download breaks off",
    "it goes on from where it stopped, in a later run as well, and only if the file is still the same",
)
def test_broken_connection_is_taken_up_where_it_stopped(file_server, source, archive, injected) -> None:
    injected(2)
    file_server.files["a.zip"] = DATA
    file_server.cuts["a.zip"] = [150_000, 100_000]
    path, record = obtain(source(hash=sha256(DATA), bytes=SIZE), archive)
    assert path == archive and archive.read_bytes() == DATA
    assert record == {
        "bytes": SIZE,
        "sha256": hashlib.sha256(DATA).hexdigest(),
        "url": file_server.url("a.zip"),
    }
    first, second, third = file_server.requests
    assert first.range is None
    assert 0 < int(second.range[6:-1]) <= 150_000 < int(third.range[6:-1]) <= 250_000
    assert third.sent == SIZE - int(third.range[6:-1])  # the rest and no more
    assert sorted(path.name for path in archive.parent.iterdir()) == ["data.zip", "data.zip.json"]


@pytest.mark.faults(
    "a download breaks off",
    "it goes on from where it stopped, in a later run as well, and only if the file is still the same",
)
@pytest.mark.parametrize("etag", ['"1"', 'W/"1"', None])
def test_later_run_takes_up_what_an_earlier_one_left(file_server, source, archive, monkeypatch, etag) -> None:
    file_server.files["a.zip"] = DATA
    file_server.headers["a.zip"]["ETag"] = etag
    file_server.cuts["a.zip"] = [150_000]
    with monkeypatch.context() as patch:
        patch.setattr(download, "ATTEMPTS", 1)
        with pytest.raises(DeopError, match=r"broke off after 1\d\d,\d\d\d bytes"):
            obtain(source(), archive)
    assert not archive.exists()
    there = archive.with_name("data.zip.part").stat().st_size
    obtain(source(), archive)
    assert archive.read_bytes() == DATA
    assert there > 100_000 and file_server.ranges("a.zip") == [None, f"bytes={there}-"]


@pytest.mark.faults(
    "a download breaks off",
    "it goes on from where it stopped, in a later run as well, and only if the file is still the same",
)
def test_file_that_changed_meanwhile_is_fetched_anew(file_server, source, archive, monkeypatch) -> None:
    file_server.files["a.zip"] = DATA
    file_server.cuts["a.zip"] = [150_000]
    original = requests.get

    def change_after_first(*arguments, **options):
        if file_server.requests:
            file_server.files["a.zip"] = OTHER
        return original(*arguments, **options)

    monkeypatch.setattr(requests, "get", change_after_first)
    obtain(source(), archive)
    assert archive.read_bytes() == OTHER


@pytest.mark.faults(
    "a download breaks off",
    "it goes on from where it stopped, in a later run as well, and only if the file is still the same",
)
def test_server_that_serves_no_parts_starts_over(file_server, source, archive) -> None:
    file_server.files["a.zip"] = DATA
    file_server.without_ranges.add("a.zip")
    file_server.cuts["a.zip"] = [150_000]
    obtain(source(hash=sha256(DATA)), archive)
    assert archive.read_bytes() == DATA


@pytest.mark.faults(
    "a server is busy, lacks the file or does not answer",
    "it is asked again with growing pauses, then the next address; in the end one line with what to do",
)
def test_busy_server_is_asked_again_with_growing_pauses(
    file_server, source, archive, waits, injected
) -> None:
    injected(3)
    file_server.files["a.zip"] = DATA
    file_server.statuses["a.zip"] = [503, 500, 429]
    obtain(source(), archive)
    assert waits == [1, 2, 4]
    assert archive.read_bytes() == DATA


@pytest.mark.faults(
    "a server is busy, lacks the file or does not answer",
    "it is asked again with growing pauses, then the next address; in the end one line with what to do",
)
def test_server_that_stays_busy_is_given_up(file_server, source, archive, injected) -> None:
    injected(download.ATTEMPTS)
    file_server.statuses["a.zip"] = [503] * 9
    with pytest.raises(DeopError, match=r"a\.zip: the server answers 503 .* \(5 times in a row\)"):
        obtain(source(), archive)
    assert len(file_server.requests) == download.ATTEMPTS


@pytest.mark.faults(
    "a server is busy, lacks the file or does not answer",
    "it is asked again with growing pauses, then the next address; in the end one line with what to do",
)
def test_mirrors_come_first_and_missing_files_are_not_asked_for_again(
    file_server, source, archive, waits
) -> None:
    file_server.files |= {"a.zip": DATA, "mirror.zip": DATA}
    mirrors = (file_server.url("gone.zip"), file_server.url("mirror.zip"))
    _, record = obtain(source(mirrors=mirrors), archive)
    assert [request.path for request in file_server.requests] == ["gone.zip", "mirror.zip"]
    assert record["url"] == mirrors[1] and not waits


@pytest.mark.faults(
    "a server is busy, lacks the file or does not answer",
    "it is asked again with growing pauses, then the next address; in the end one line with what to do",
)
def test_nobody_listening_is_an_error_that_says_what_to_do(source, archive) -> None:
    with pytest.raises(DeopError, match=rf"no connection \(5 times in a row\).*put the archive at {archive}"):
        obtain(source(urls=["http://127.0.0.1:9/a.zip"]), archive)


@pytest.mark.faults(
    "a download breaks off",
    "it goes on from where it stopped, in a later run as well, and only if the file is still the same",
)
@pytest.mark.parametrize("pinned", [True, False])
def test_another_mirror_completes_a_part_only_if_a_hash_tells_it_is_right(
    file_server, source, archive, monkeypatch, pinned
) -> None:
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    file_server.files |= {"a.zip": DATA, "mirror.zip": DATA}
    file_server.cuts["mirror.zip"] = [150_000]
    obtain(source(mirrors=(file_server.url("mirror.zip"),), hash=sha256(DATA) if pinned else None), archive)
    assert archive.read_bytes() == DATA
    [asked] = file_server.ranges("a.zip")
    assert (asked is not None) == pinned


@pytest.mark.faults(
    "a server sends a web page, or a file of another size or hash",
    "it is not used and costs nothing of what is there; the next address is tried",
)
@pytest.mark.parametrize("type", ["text/html; charset=utf-8", "application/zip"])
def test_web_page_is_not_taken_for_an_archive(file_server, source, archive, type) -> None:
    file_server.files["a.zip"] = b"<!DOCTYPE html><html><title>Sign in</title></html>"
    file_server.headers["a.zip"]["Content-Type"] = type
    with pytest.raises(DeopError, match=r"a\.zip: it is a web page \('Sign in'\)"):
        obtain(source(), archive)
    assert not list(archive.parent.iterdir())


@pytest.mark.faults(
    "a server sends a web page, or a file of another size or hash",
    "it is not used and costs nothing of what is there; the next address is tried",
)
def test_web_page_costs_nothing_of_what_was_fetched_before(file_server, source, archive, monkeypatch) -> None:
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    file_server.files["a.zip"] = DATA
    file_server.cuts["a.zip"] = [150_000]
    with pytest.raises(DeopError, match="broke off"):
        obtain(source(), archive)
    file_server.files["a.zip"] = b"<html><title>Sign in</title></html>"
    with pytest.raises(DeopError, match="it is a web page"):
        obtain(source(), archive)
    file_server.files["a.zip"] = DATA
    obtain(source(), archive)
    assert archive.read_bytes() == DATA and file_server.requests[-1].sent < SIZE


@pytest.mark.faults(
    "a server sends a web page, or a file of another size or hash",
    "it is not used and costs nothing of what is there; the next address is tried",
)
def test_wrong_hash_is_named_put_aside_and_the_next_url_is_tried(file_server, source, archive) -> None:
    file_server.files |= {"a.zip": DATA, "mirror.zip": OTHER}
    with pytest.raises(
        DeopError, match=rf"{sha256(OTHER)[7:]} instead of {sha256(DATA)[7:]} \(moved to data.zip.part.bad\)"
    ):
        obtain(source(urls=[file_server.url("mirror.zip")], hash=sha256(DATA)), archive)
    assert sorted(path.name for path in archive.parent.iterdir()) == ["data.zip.part.bad"]
    obtain(source(mirrors=(file_server.url("mirror.zip"),), hash=sha256(DATA)), archive)
    assert archive.read_bytes() == DATA
    assert file_server.ranges("a.zip") == [None]  # nothing of the bad file was resumed


def test_md5_is_checked_too(file_server, source, archive) -> None:
    file_server.files["a.zip"] = DATA
    _, record = obtain(source(hash=f"md5:{hashlib.md5(DATA).hexdigest()}"), archive)
    assert record["sha256"] == hashlib.sha256(DATA).hexdigest()


@pytest.mark.faults(
    "a server sends a web page, or a file of another size or hash",
    "it is not used and costs nothing of what is there; the next address is tried",
)
def test_wrong_size_is_named_before_anything_is_fetched(file_server, source, archive) -> None:
    file_server.files["a.zip"] = DATA
    with pytest.raises(DeopError, match="it has 400,000 bytes instead of 400,001"):
        obtain(source(bytes=SIZE + 1), archive)
    assert not list(archive.parent.iterdir())


def test_compression_that_a_server_names_is_not_undone(file_server, source, archive) -> None:
    file_server.files["a.zip"] = gzip.compress(DATA)
    file_server.headers["a.zip"]["Content-Encoding"] = "gzip"
    obtain(source(), archive)
    assert gzip.decompress(archive.read_bytes()) == DATA


def test_answer_without_a_length_is_fetched_whole(file_server, source, archive) -> None:
    file_server.files["a.zip"] = DATA
    file_server.headers["a.zip"]["Content-Length"] = None
    obtain(source(), archive)
    assert archive.read_bytes() == DATA


@pytest.mark.faults(
    "an archive on disk has changed",
    "it is named and not used; one that was downloaded is put aside, and downloaded again",
)
def test_flipped_byte_of_an_archive_is_found_by_the_hash_recorded_at_first(
    file_server, source, archive
) -> None:
    file_server.files["a.zip"] = DATA
    obtain(source(), archive)
    obtain(source(), archive)
    assert len(file_server.requests) == 1
    flipped = bytearray(DATA)
    flipped[SIZE // 2] ^= 1
    archive.write_bytes(flipped)
    with pytest.raises(WrongArchive, match=rf"{archive} has sha256 .* instead of .*moved to data\.zip\.bad"):
        obtain(source(), archive)
    obtain(source(), archive)
    assert archive.read_bytes() == DATA


def test_archive_put_there_by_hand_is_checked_and_used(file_server, source, archive) -> None:
    archive.parent.mkdir(parents=True)
    archive.write_bytes(DATA)
    _, record = obtain(source(hash=sha256(DATA)), archive)
    assert record["url"] is None and not file_server.requests
    archive.write_bytes(DATA[:-1])
    with pytest.raises(WrongArchive, match="399,999 bytes instead of 400,000"):
        obtain(source(bytes=SIZE), archive)


@pytest.mark.faults(
    "an archive on disk has changed",
    "it is named and not used; one that was downloaded is put aside, and downloaded again",
)
def test_users_archive_elsewhere_is_used_and_never_moved(file_server, source, archive, tmp_path) -> None:
    mine = tmp_path / "mine.zip"
    mine.write_bytes(DATA)
    path, record = obtain(source(path=str(mine)), archive)
    assert path == mine and json.loads((archive.parent / "data.zip.json").read_text()) == record
    mine.write_bytes(OTHER)
    with pytest.raises(WrongArchive, match=rf"{mine} has sha256"):
        obtain(source(path=str(mine)), archive)
    assert mine.read_bytes() == OTHER and not file_server.requests


def test_what_has_no_url_says_how_to_get_it_and_where_to_put_it(source, archive) -> None:
    with pytest.raises(
        DeopError, match=rf"ask its owners.*put the archive at {archive} or unpack it in .*root"
    ):
        obtain(source(urls=[], how_to_get="ask its owners"), archive)


@pytest.mark.faults(
    "the disk has no room for an archive or its files", "this is said before anything is written"
)
def test_full_disk_is_found_before_the_download_and_what_is_there_counts(
    file_server, source, archive, monkeypatch
) -> None:
    file_server.files["a.zip"] = DATA
    usage = shutil.disk_usage(archive.anchor)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: usage._replace(free=2 * SIZE - 100_000))
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    with pytest.raises(
        DeopError, match=r"not enough disk space at .*to download data\.zip and .* to unpack it"
    ):
        obtain(source(), archive)
    assert not any(path.stat().st_size > 1000 for path in archive.parent.iterdir())
    file_server.cuts["a.zip"] = [150_000]
    with monkeypatch.context() as patch:
        patch.setattr(download.shutil, "disk_usage", lambda _: usage)
        with pytest.raises(DeopError, match="broke off"):
            obtain(source(), archive)
    obtain(source(), archive)
    assert archive.read_bytes() == DATA
