"""Safe unpacking of zip and tar archives: never outside the target, and never partly under the final name.

All members are checked before anything is written. They are unpacked into a hidden folder beside their destination, and
moved into place once all of them are there and counted.
"""

from __future__ import annotations

import errno
import filecmp
import gzip
import os
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from deop.data.downloads.manifests import Record, write_manifest
from deop.data.downloads.sources import count, differences
from deop.errors import DeopError
from deop.settings.downloads import Download
from deop.utils.progress import progress_bar

_BLOCK = 1 << 20
_LONGEST_NAME = 255  # bytes, on most file systems
_MOST_LINKS = 40  # that an operating system follows
_DISK_BLOCK = 4096  # files take whole blocks of a file system
# What a damaged archive or member makes the libraries raise; RuntimeError is one that is encrypted, or compressed
# by an unknown method.
_CORRUPT = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    gzip.BadGzipFile,
    EOFError,
    RuntimeError,
    ValueError,
    struct.error,
)


def _corrupt(error: Exception) -> bool:
    """Whether ``error`` says that an archive is damaged. Offsets that cannot be are the system's invalid arguments."""
    return isinstance(error, _CORRUPT) or (isinstance(error, OSError) and error.errno == errno.EINVAL)


class CorruptArchive(DeopError):
    """An archive that is damaged or not of its format; unpacking it again will not help."""


class Member(NamedTuple):
    """A file, folder or link in an archive: ``path`` as it is unpacked, ``size`` in bytes."""

    path: PurePosixPath
    kind: str
    size: int
    info: zipfile.ZipInfo | tarfile.TarInfo


class Archive:
    """An open zip or tar archive.

    Attributes:
        members: in the archive's order, all checked.

    Raises:
        CorruptArchive: not such an archive, or cut short.
        DeopError: a member that would leave the target, or is neither file, folder nor link.
    """

    def __init__(self, path: Path, format: str) -> None:
        self.path = path
        try:
            self._file = zipfile.ZipFile(path) if format == "zip" else tarfile.open(path)
            self.members = list(self._zip_members() if format == "zip" else self._tar_members())
        except Exception as error:
            if not _corrupt(error):
                raise
            raise CorruptArchive(f"{path} is not a whole {format} archive: {error}") from None
        self._check_tree()

    def _check_tree(self) -> None:
        """Refuses members that cannot all be there: of one name, or below what is no folder."""
        others = {member.path for member in self.members if member.kind != "folder"}
        folders = {member.path for member in self.members if member.kind == "folder"}
        for member in self.members:
            folders.update(member.path.parents)
        for path in sorted(others & folders):
            self._refuse(str(path), "is both a folder and a file or link")
        links = {member.path: member.info for member in self.members if member.kind == "link"}
        for path in links:
            if _leads_in_a_circle(path, links):
                self._refuse(str(path), "is a link that leads in a circle")

    def _zip_members(self) -> Iterator[Member]:
        for info in self._file.infolist():
            # Zip files keep links and devices as files with a Unix mode.
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                self._refuse(info.filename, "is a link or a device")
            path = self._checked(info.filename)
            yield Member(path, "folder" if info.is_dir() else "file", info.file_size, info)

    def _tar_members(self) -> Iterator[Member]:
        tar = self._file
        for info in tar:
            path = self._checked(info.name)
            kind = "file" if info.isreg() else "folder" if info.isdir() else "link"
            if info.ischr() or info.isblk() or info.isfifo():
                self._refuse(info.name, "is a device")
            if kind == "link":
                # A symbolic link's target counts from where it lies, a hard link's from the top.
                start = path.parent if info.issym() else PurePosixPath()
                to = PurePosixPath(info.linkname)
                if to.is_absolute() or _leads_out(start / to):
                    self._refuse(info.name, f"is a link out of the folder, to {info.linkname!r}")
            yield Member(path, kind, info.size if kind == "file" else 0, info)
        # tarfile takes a damaged header for the end; a real end is a block of zeros. What follows it is read
        # because gzip's checksum comes last.
        tar.fileobj.seek(tar.offset)
        if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            last = tar.members[-1].name if tar.members else "its beginning"
            raise tarfile.ReadError(f"it breaks off after {last}")
        while tar.fileobj.read(_BLOCK):
            pass

    def _checked(self, name: str) -> PurePosixPath:
        path = PurePosixPath(name.replace("\\", "/"))
        if not name.strip("/") or "\0" in name:
            self._refuse(name, "is no name of a file")
        if any(len(os.fsencode(part)) > _LONGEST_NAME for part in path.parts):
            self._refuse(f"{name[:40]}...", f"has a name of more than {_LONGEST_NAME} bytes")
        if path.is_absolute() or (path.parts[:1] and path.parts[0].endswith(":")):
            self._refuse(name, "has an absolute path")
        if ".." in path.parts:
            self._refuse(name, "leads out of the folder")
        return PurePosixPath(name)

    def _refuse(self, name: str, why: str) -> None:
        raise DeopError(f"{self.path} is not safe to unpack: {name!r} {why}. Nothing of it was unpacked")

    def extract(self, members: list[Member], target: Path, progress: Callable[[int], object]) -> list[Record]:
        """Writes ``members`` into ``target`` and returns their sizes and checksums, paths as in the archive.

        Raises:
            CorruptArchive: a member whose contents are damaged, by name.
        """
        records: dict[str, Record] = {}
        # Links come last, so that nothing is ever written through one.
        for member in sorted(members, key=lambda member: member.kind == "link"):
            path = target / member.path
            try:
                if member.kind == "folder":
                    path.mkdir(parents=True, exist_ok=True)
                elif member.kind == "link":
                    self._file.extract(member.info, target, filter="data")
                else:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with self._open(member) as source:
                        crc32 = _copy(source, path, progress)
                    records[str(member.path)] = Record(str(member.path), member.size, crc32)
            except Exception as error:
                if not _corrupt(error):
                    raise
                raise CorruptArchive(f"{self.path} is damaged at {str(member.path)!r}: {error}") from None
        return list(records.values())

    def _open(self, member: Member) -> IO[bytes]:
        if isinstance(self._file, zipfile.ZipFile):
            return self._file.open(member.info)
        return self._file.extractfile(member.info)

    def close(self) -> None:
        self._file.close()


def _leads_out(path: PurePosixPath) -> bool:
    """Whether a relative path leaves the folder that it starts from."""
    depth = 0
    for part in path.parts:
        depth += -1 if part == ".." else 1
        if depth < 0:
            return True
    return False


def _leads_in_a_circle(path: PurePosixPath, links: dict[PurePosixPath, tarfile.TarInfo]) -> bool:
    """Whether following ``path`` through the links of an archive never ends."""
    place: list[str] = []
    ahead, followed = list(path.parts), 0
    while ahead:
        part = ahead.pop(0)
        if part == "..":
            del place[-1:]
            continue
        here = PurePosixPath(*place, part)
        if here not in links:
            place.append(part)
            continue
        followed += 1
        if followed > _MOST_LINKS:
            return True
        if not links[here].issym():
            place = []
        ahead = [*PurePosixPath(links[here].linkname).parts, *ahead]
    return False


def _copy(source: IO[bytes], path: Path, progress: Callable[[int], object]) -> int:
    """Copies a member to ``path`` and returns its CRC-32."""
    crc32 = 0
    with path.open("wb") as file:
        while block := source.read(_BLOCK):
            file.write(block)
            crc32 = zlib.crc32(block, crc32)
            progress(len(block))
    return crc32


def unpack(source: Download, archive: Path, require_space: Callable[[Path, int, str], None]) -> None:
    """Unpacks ``archive`` under the root of ``source`` and writes its manifest.

    An interrupted run leaves only hidden folders, which the next one removes, or which are :func:`pending`.

    Args:
        require_space: called with the folder, the bytes that it will take and what for, before anything is written.

    Raises:
        CorruptArchive: see :class:`Archive`.
        DeopError: an archive that is not safe, that does not hold what it should, or whose files would overwrite
            others.
    """
    root, entry = Path(source.root), source.entry
    root.mkdir(parents=True, exist_ok=True)
    with _opened(archive, entry.format) as opened:
        members = [
            member
            for member in opened.members
            if not entry.members or any(fnmatchcase(str(member.path), pattern) for pattern in entry.members)
        ]
        home = next(folder for folder in _homes(source) if folder.is_dir())
        unfinished = home / f".{source.name}.unpacking"
        for folder in _homes(source):
            if (left := folder / unfinished.name).exists():
                shutil.rmtree(left)
        size = sum(-(-member.size // _DISK_BLOCK) * _DISK_BLOCK for member in members)
        require_space(home, size, f"to unpack {archive.name}")
        with progress_bar(
            total=sum(member.size for member in members),
            desc=f"unpacking {archive.name}",
            unit="B",
            unit_scale=True,
        ) as progress:
            try:
                records = opened.extract(members, unfinished / entry.into, progress.update)
            except CorruptArchive:
                shutil.rmtree(unfinished)
                raise
    wrong = differences(entry.holds, count(entry.holds, unfinished))
    if wrong:
        shutil.rmtree(unfinished)
        raise DeopError(
            f"{archive} does not hold all of {source.name}: {wrong}. Remove it, or if it is the right archive, set "
            f"data.sources.{source.name}.holds"
        )
    into = PurePosixPath(entry.into)
    write_manifest(source, (record._replace(path=str(into / record.path)) for record in records))
    whole = home / f".{source.name}.unpacked"
    os.replace(unfinished, whole)
    place(whole, root)


def pending(source: Download) -> Path | None:
    """Files that an interrupted run unpacked completely but did not move into place; pass them to :func:`place`."""
    return next(
        (whole for folder in _homes(source) if (whole := folder / f".{source.name}.unpacked").exists()), None
    )


@contextmanager
def _opened(path: Path, format: str) -> Iterator[Archive]:
    archive = Archive(path, format)
    try:
        yield archive
    finally:
        archive.close()


def _homes(source: Download) -> list[Path]:
    """Places for the hidden folders, deepest first; the first that exists keeps renaming within one file system."""
    root, folder = Path(source.root), source.entry.folder
    return [root / above for above in (folder, *folder.parents)]


def place(tree: Path, root: Path) -> None:
    """Moves everything in ``tree``, which is laid out as ``root`` is, to where it belongs.

    Raises:
        DeopError: a file that is already there, with other contents; nothing is moved then.
    """
    for path in tree.rglob("*"):
        target = root / path.relative_to(tree)
        if target.exists() and not _same(path, target):
            shutil.rmtree(tree)
            raise DeopError(
                f"{target} is already there and is not what would be unpacked to it: move it away and run again"
            )
    _move(tree, root)


def _same(path: Path, other: Path) -> bool:
    if path.is_file() and other.is_file():
        return filecmp.cmp(path, other, shallow=False)
    return path.is_dir() and other.is_dir()


def _move(folder: Path, target: Path) -> None:
    with os.scandir(folder) as entries:
        found = list(entries)
    for entry in found:
        to = target / entry.name
        if entry.is_dir(follow_symlinks=False) and to.is_dir():
            _move(Path(entry.path), to)
            continue
        try:
            os.replace(entry.path, to)
        except OSError as error:
            # another process has just made the folder
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            _move(Path(entry.path), to)
    folder.rmdir()
