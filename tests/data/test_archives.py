"""Unpacking: unsafe and damaged archives, and runs that are killed."""

from __future__ import annotations

import io
import os
import signal
import stat
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from deop.data.downloads.archives import CorruptArchive, pending, place, unpack
from deop.data.downloads.manifests import read_manifest
from deop.data.downloads.sources import count
from deop.errors import DeopError
from deop.settings.downloads import Download

FILES = {f"set/{part}/{number}.jpg": bytes([number]) * 5000 for part in ("a", "b") for number in range(3)}
HOLDS = {"set/a/*.jpg": 3, "set/b/*.jpg": 3}


def any_space(*_: object) -> None:
    pass


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def write_tar(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


WRITERS = {
    "x.zip": write_zip,
    "x.tar": write_tar,
    "x.tar.gz": lambda path, files: write_tar(path, files, "w:gz"),
}


def source(root: Path, archive: Path, **entry) -> Download:
    values = {"archive": archive.name, "format": "zip" if archive.suffix == ".zip" else "tar", "holds": HOLDS}
    return Download(name="data", root=str(root), entry=values | entry)


def everything(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", WRITERS)
def test_files_come_out_as_they_went_in_and_are_recorded(tmp_path: Path, kind: str) -> None:
    archive = WRITERS[kind](tmp_path / kind, {f"./{name}": data for name, data in FILES.items()})
    data = source(
        tmp_path / "root", archive, into="top", holds={f"top/{name}": n for name, n in HOLDS.items()}
    )
    unpack(data, archive, any_space)
    for name, content in FILES.items():
        assert (tmp_path / "root/top" / name).read_bytes() == content
    records = read_manifest(data)
    assert [record.path for record in records] == sorted(f"top/{name}" for name in FILES)
    assert {record.size for record in records} == {5000}
    assert len({record.crc32 for record in records}) == 3


def test_only_the_members_asked_for_are_unpacked(tmp_path: Path) -> None:
    archive = write_tar(tmp_path / "x.tar", FILES | {"labels.txt": b"0: empty"})
    unpack(
        source(tmp_path / "root", archive, members=["labels.txt"], holds={"labels.txt": 1}),
        archive,
        any_space,
    )
    assert everything(tmp_path / "root") == {"labels.txt", "archives/data.manifest.csv.gz"}


def tar_member(name: str, type: bytes = tarfile.REGTYPE, linkname: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = type, linkname
    return info


UNSAFE = {
    "absolute": tar_member("/tmp/out.txt"),
    "upwards": tar_member("set/../../out.txt"),
    "symbolic link, absolute": tar_member("set/link", tarfile.SYMTYPE, "/etc"),
    "symbolic link, upwards": tar_member("set/link", tarfile.SYMTYPE, "../../out"),
    "hard link": tar_member("set/link", tarfile.LNKTYPE, "../out.txt"),
    "device": tar_member("set/device", tarfile.CHRTYPE),
    "pipe": tar_member("set/pipe", tarfile.FIFOTYPE),
}


@pytest.mark.faults(
    "an archive has members that lead out of its folder, or devices and pipes",
    "it is refused by name before anything is unpacked",
)
@pytest.mark.parametrize("case", UNSAFE)
@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_unsafe_tar_is_refused_by_name_before_anything_is_written(
    tmp_path: Path, case: str, mode: str
) -> None:
    archive = write_tar(tmp_path / "x.tar", FILES)
    with tarfile.open(archive, mode) as file:
        file.addfile(tar_member("set/first.txt"))
        file.addfile(UNSAFE[case])
    with pytest.raises(DeopError, match=rf"x\.tar is not safe to unpack: '{UNSAFE[case].name}' .*Nothing"):
        unpack(source(tmp_path / "root", archive), archive, any_space)
    assert not everything(tmp_path / "root")
    assert {path.name for path in tmp_path.iterdir()} == {"x.tar", "root"}


@pytest.mark.faults(
    "an archive has members that lead out of its folder, or devices and pipes",
    "it is refused by name before anything is unpacked",
)
@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("/tmp/out.txt", stat.S_IFREG),
        ("set/../../out.txt", stat.S_IFREG),
        ("..\\out.txt", stat.S_IFREG),
        ("C:\\out.txt", stat.S_IFREG),
        ("set/link", stat.S_IFLNK),
        ("set/device", stat.S_IFCHR),
    ],
)
def test_unsafe_zip_is_refused_by_name_before_anything_is_written(
    tmp_path: Path, name: str, mode: int
) -> None:
    archive = write_zip(tmp_path / "x.zip", FILES)
    info = zipfile.ZipInfo(name)
    info.external_attr = (mode | 0o644) << 16
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr(info, "../../out")
    with pytest.raises(DeopError, match="is not safe to unpack") as error:
        unpack(source(tmp_path / "root", archive), archive, any_space)
    assert repr(name) in str(error.value)
    assert not everything(tmp_path / "root")
    assert {path.name for path in tmp_path.iterdir()} == {"x.zip", "root"}


@pytest.mark.faults(
    "an archive has members that lead out of its folder, or devices and pipes",
    "it is refused by name before anything is unpacked",
)
def test_chain_of_links_does_not_lead_out(tmp_path: Path) -> None:
    """Each link stays inside by its name; the second leads out through the first."""
    archive = tmp_path / "x.tar"
    with tarfile.open(archive, "w") as file:
        file.addfile(tar_member("set", tarfile.DIRTYPE))
        file.addfile(tar_member("set/up", tarfile.SYMTYPE, ".."))
        file.addfile(tar_member("set/out", tarfile.SYMTYPE, "up/../.."))
        file.addfile(tar_member("set/out/written.txt"))
    with pytest.raises(DeopError):
        unpack(source(tmp_path / "root", archive), archive, any_space)
    assert not [path for path in tmp_path.rglob("written.txt") if not path.is_relative_to(tmp_path / "root")]


def test_links_inside_are_kept(tmp_path: Path) -> None:
    archive = write_tar(tmp_path / "x.tar", FILES)
    with tarfile.open(archive, "a") as file:
        file.addfile(tar_member("set/b/link.jpg", tarfile.SYMTYPE, "../a/1.jpg"))
        file.addfile(tar_member("set/b/hard.jpg", tarfile.LNKTYPE, "set/a/2.jpg"))
    unpack(source(tmp_path / "root", archive, holds=HOLDS | {"set/b/*.jpg": 5}), archive, any_space)
    assert (tmp_path / "root/set/b/link.jpg").read_bytes() == FILES["set/a/1.jpg"]
    assert (tmp_path / "root/set/b/hard.jpg").read_bytes() == FILES["set/a/2.jpg"]


@pytest.mark.faults(
    "an archive is damaged, cut short or something else", "it is refused by name, and nothing is unpacked"
)
def test_damaged_zip_member_is_named(tmp_path: Path) -> None:
    archive = tmp_path / "x.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as file:
        for name, data in FILES.items():
            file.writestr(name, data)
    damaged = bytearray(archive.read_bytes())
    damaged[damaged.index(FILES["set/b/1.jpg"]) + 5000 + 200 + 5000] ^= (
        1  # amid the second file of that content
    )
    archive.write_bytes(damaged)
    with pytest.raises(CorruptArchive, match=r"x\.zip is damaged at 'set/.*\.jpg': Bad CRC-32"):
        unpack(source(tmp_path / "root", archive), archive, any_space)
    assert not everything(tmp_path / "root")


@pytest.mark.faults(
    "an archive is damaged, cut short or something else", "it is refused by name, and nothing is unpacked"
)
@pytest.mark.parametrize("kind", WRITERS)
def test_archive_that_is_cut_short_is_refused(tmp_path: Path, kind: str) -> None:
    archive = WRITERS[kind](tmp_path / kind, FILES)
    whole = archive.read_bytes()
    if kind == "x.tar":  # cut between two members, where tarfile sees an end
        whole = whole[: 3 * (512 + 5120)]
    archive.write_bytes(whole[: len(whole) - (0 if kind == "x.tar" else 60)])
    with pytest.raises(CorruptArchive, match=r"is not a whole (zip|tar) archive"):
        unpack(source(tmp_path / "root", archive), archive, any_space)
    assert not everything(tmp_path / "root")


@pytest.mark.faults(
    "an archive is damaged, cut short or something else", "it is refused by name, and nothing is unpacked"
)
def test_flipped_byte_of_a_compressed_tar_is_found_before_anything_is_written(tmp_path: Path) -> None:
    archive = write_tar(tmp_path / "x.tar.gz", {name: os.urandom(5000) for name in FILES}, "w:gz")
    damaged = bytearray(archive.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    archive.write_bytes(damaged)
    with pytest.raises(CorruptArchive, match=r"x\.tar\.gz is not a whole tar archive"):
        unpack(source(tmp_path / "root", archive), archive, any_space)
    assert not everything(tmp_path / "root")


@pytest.mark.faults(
    "an archive is damaged, cut short or something else", "it is refused by name, and nothing is unpacked"
)
def test_damaged_header_in_a_tar_is_not_taken_for_its_end(tmp_path: Path) -> None:
    archive = write_tar(tmp_path / "x.tar", FILES)
    damaged = bytearray(archive.read_bytes())
    damaged[4 * (512 + 5120) + 20] ^= 1
    archive.write_bytes(damaged)
    with pytest.raises(CorruptArchive, match=r"breaks off after set/b/0\.jpg"):
        unpack(source(tmp_path / "root", archive), archive, any_space)


@pytest.mark.faults(
    "an archive is damaged, cut short or something else", "it is refused by name, and nothing is unpacked"
)
def test_something_else_than_an_archive_is_named(tmp_path: Path, injected) -> None:
    injected(len(WRITERS))
    for name in WRITERS:
        (tmp_path / name).write_bytes(b"not an archive" * 100)
        with pytest.raises(CorruptArchive, match=f"{name} is not a whole"):
            unpack(source(tmp_path / "root", tmp_path / name), tmp_path / name, any_space)


@pytest.mark.faults(
    "an archive lacks files that it should hold", "it is refused by name, and nothing is left of it"
)
def test_archive_without_all_that_it_should_hold_leaves_nothing(tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "x.zip", FILES)
    with pytest.raises(DeopError, match=r"does not hold all of data: set/b/\*\.jpg: 3 of 4 files"):
        unpack(source(tmp_path / "root", archive, holds=HOLDS | {"set/b/*.jpg": 4}), archive, any_space)
    assert not everything(tmp_path / "root")


def test_space_is_asked_for_by_what_the_files_take_up(tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "x.zip", FILES)
    asked = []
    unpack(source(tmp_path / "root", archive), archive, lambda *arguments: asked.append(arguments))
    assert asked == [(tmp_path / "root", 6 * 8192, "to unpack x.zip")]  # 5000 bytes in blocks of 4096


def test_folder_on_another_disk_is_unpacked_into(tmp_path: Path) -> None:
    """Of a folder that the user linked, files are only renamed within: another disk could not be renamed to."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "root").mkdir()
    (tmp_path / "root/set").symlink_to(tmp_path / "disk")
    archive = write_zip(tmp_path / "x.zip", FILES)
    asked = []
    unpack(source(tmp_path / "root", archive), archive, lambda *arguments: asked.append(arguments))
    assert asked[0][0] == tmp_path / "root/set"
    assert everything(tmp_path / "disk") == {name.removeprefix("set/") for name in FILES}


@pytest.mark.faults("other files lie where an archive is unpacked", "they are named, and left alone")
def test_other_files_are_not_overwritten(tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "x.zip", FILES | {"set/README": b"theirs", "set/same": b"same"})
    (tmp_path / "root/set").mkdir(parents=True)
    (tmp_path / "root/set/README").write_bytes(b"mine")
    (tmp_path / "root/set/same").write_bytes(b"same")
    with pytest.raises(DeopError, match="root/set/README is already there"):
        unpack(source(tmp_path / "root", archive), archive, any_space)
    assert (tmp_path / "root/set/README").read_bytes() == b"mine"
    assert not any(count(HOLDS, tmp_path / "root").values())
    (tmp_path / "root/set/README").unlink()
    unpack(source(tmp_path / "root", archive), archive, any_space)
    assert count(HOLDS, tmp_path / "root") == HOLDS


KILLED = """
import sys, time
from pathlib import Path
from deop.data.downloads import archives
from deop.settings.downloads import Download

archive, source, slow = Path(sys.argv[1]), Download.model_validate_json(sys.argv[2]), sys.argv[3]
original = getattr(archives, slow)
def slowly(*arguments):
    result = original(*arguments)
    print("one", flush=True)
    time.sleep(60)
    return result
setattr(archives, slow, slowly)
archives.unpack(source, archive, lambda *_: None)
"""


def kill_in(slow: str, archive: Path, data: Download) -> None:
    """Unpacks in a process that is killed when it first returns from the function ``slow``."""
    command = [sys.executable, "-c", KILLED, str(archive), data.model_dump_json(), slow]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout.readline() == b"one\n"
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.faults("unpacking is killed", "nothing half unpacked counts; a rerun gives the same files")
def test_killed_unpacking_leaves_nothing_that_counts_and_starts_again(tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "x.zip", FILES)
    data = source(tmp_path / "root", archive)
    kill_in("_copy", archive, data)
    assert everything(tmp_path / "root") == {".data.unpacking/set/a/0.jpg"}
    assert not any(count(HOLDS, tmp_path / "root").values()) and pending(data) is None
    (tmp_path / "root/set").mkdir()  # so that the next run works in another folder
    unpack(data, archive, any_space)
    assert everything(tmp_path / "root") == {*FILES, "archives/data.manifest.csv.gz"}


@pytest.mark.faults("unpacking is killed", "nothing half unpacked counts; a rerun gives the same files")
def test_killed_before_all_is_in_place_is_finished_by_the_next_run(tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "x.zip", FILES)
    data = source(tmp_path / "root", archive)
    (tmp_path / "root/set").mkdir(parents=True)
    kill_in("_same", archive, data)  # which is first asked of root/set, before anything is moved
    assert not any(count(HOLDS, tmp_path / "root").values())
    os.replace(
        pending(data) / "set/a", tmp_path / "root/set/a"
    )  # as if it had been killed in the midst of moving
    place(pending(data), tmp_path / "root")
    assert count(HOLDS, tmp_path / "root") == HOLDS and pending(data) is None
    assert not [path for path in tmp_path.rglob(".data*")]
