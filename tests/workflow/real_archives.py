"""The archives of the paper's datasets in miniature, in the layouts of their owners, and a server for them."""

from __future__ import annotations

import functools
import hashlib
import http.server
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import real_layouts
import yaml

from deop.data.downloads.sources import CATALOGUE

KINDS = ("coco_stuff", "pascal_voc", "pascal_context", "ade20k", "ade20k_full")

# Where an archive holds less of the folder that it is unpacked in, or more, than its first source names.
MEMBERS = {
    "voc2012": {"VOCdevkit/VOC2012"},
    "voc2010": {"VOCdevkit/VOC2010"},
    "pascal_context": {"trainval", "labels.txt"},
}


def write_archives(folder: Path) -> dict[str, dict[str, Any]]:
    """Writes small archives to ``folder``; what is different about each, as ``data.sources`` of a configuration.

    The archive that its owners hand out on request has no address here either.
    """
    unpacked = folder.with_name(folder.name + "-unpacked")
    for kind in KINDS:
        real_layouts.LAYOUTS[kind](unpacked)
    folder.mkdir()
    catalogue, changes = yaml.safe_load(CATALOGUE.read_text()), {}
    for name, entry in catalogue.items():
        archive, into = folder / entry["archive"], unpacked / entry.get("into", ".")
        holds = {pattern: len(list(unpacked.glob(pattern))) for pattern in entry["holds"]}
        assert all(holds.values()), (name, holds)
        top = {Path(pattern).relative_to(entry.get("into", ".")).parts[0] for pattern in holds}
        if not archive.exists():
            _pack(archive, into, sorted(MEMBERS.get(name, top)))
        changes[name] = {
            "holds": holds,
            "bytes": archive.stat().st_size,
            "hash": "sha256:" + hashlib.sha256(archive.read_bytes()).hexdigest(),
        }
    return changes


def _pack(archive: Path, folder: Path, members: list[str]) -> None:
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as packed:
            for member in members:
                for path in sorted((folder / member).rglob("*")):
                    packed.write(path, path.relative_to(folder))
        return
    with tarfile.open(archive, "w:gz" if archive.suffix in (".gz", ".tgz") else "w") as packed:
        for member in members:
            packed.add(folder / member, member)


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: Any) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address at which the files of ``folder`` can be downloaded."""
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(_Quiet, directory=str(folder))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
