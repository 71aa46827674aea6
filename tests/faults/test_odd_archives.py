"""Archives whose members cannot be unpacked as they say are refused by name, before anything is written."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from deop.data.downloads.archives import unpack
from deop.errors import DeopError
from deop.settings.downloads import Download


def tar(path: Path, *members: tuple[str, bytes | None, str]) -> Path:
    """Members by name, kind and target of a link."""
    with tarfile.open(path, "w") as archive:
        for name, kind, target in (("set/a.jpg", tarfile.REGTYPE, ""), *members):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            archive.addfile(info, io.BytesIO())
    return path


FILE, FOLDER, SYMBOLIC, HARD = tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE
ODD = {
    "long name": [("set/" + "x" * 300, FILE, "")],
    "file and folder": [("set/b", FILE, ""), ("set/b", FOLDER, "")],
    "file and a file below it": [("set/b", FILE, ""), ("set/b/c.jpg", FILE, "")],
    "link and a file below it": [("set/b", SYMBOLIC, "."), ("set/b/c.jpg", FILE, "")],
    "link to itself": [("set/b", SYMBOLIC, "b")],
    "links in a circle": [("set/b", SYMBOLIC, "c"), ("set/c", SYMBOLIC, "b")],
    "link below itself": [("set/b", SYMBOLIC, "b/c")],
    "hard link to itself": [("set/b", HARD, "set/b")],
}


@pytest.mark.faults(
    "an archive has names that cannot be, a file and a folder of one name, or links in a circle",
    "it is refused by name before anything is unpacked",
)
@pytest.mark.parametrize("kind", ODD)
def test_of_tar(tmp_path, kind):
    refuse(tmp_path, tar(tmp_path / "x.tar", *ODD[kind]), "set/x" if kind == "long name" else "set/b")


@pytest.mark.faults(
    "an archive has names that cannot be, a file and a folder of one name, or links in a circle",
    "it is refused by name before anything is unpacked",
)
@pytest.mark.parametrize("name", ["", "/", "set/" + "x" * 300])
def test_of_zip(tmp_path, name):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("set/a.jpg", b"")
        archive.writestr(zipfile.ZipInfo(name), b"")
    refuse(tmp_path, path, name[:10])


def refuse(folder: Path, archive: Path, named: str) -> None:
    entry = {"archive": archive.name, "format": archive.suffix[1:], "holds": {"set/a.jpg": 1}}
    source = Download(name="data", root=str(folder / "root"), entry=entry)
    with pytest.raises(DeopError, match=rf"{archive} is not safe to unpack: '{named}"):
        unpack(source, archive, lambda *_: None)
    assert not list((folder / "root").rglob("*"))
