"""Downloads of archives over HTTP: interrupted transfers are resumed, and complete ones checked.

Beside an archive ``x.zip`` are ``x.zip.json``, its size, SHA-256 and URL when it was first there; during the download
``x.zip.part`` and its state, ``x.zip.part.json``; and ``x.zip.bad``, an archive with another hash than expected.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from tqdm import tqdm

from deop.errors import DeopError
from deop.settings.downloads import CatalogueEntry, Download
from deop.utils.files import file_hash, write_json
from deop.utils.progress import progress_bar

# Interrupted transfers are resumed here: the usual libraries start over when a connection breaks, and may never
# complete an archive of 19 GB.

ATTEMPTS = 5
"""How often in a row a URL may fail without progress before the next one is tried."""
BACK_OFF = 1.0
"""Seconds before the second attempt; doubled before each further one."""
TIMEOUT = (10, 60)
"""Timeouts in seconds: to connect, and between data."""

_CHUNK = 1 << 16
_RETRIED = {408, 425, 429}  # and 5xx: the server may answer otherwise later
_WEB_PAGE = re.compile(rb"\s*<(!doctype html|html|head|body)", re.IGNORECASE)


class _Broken(Exception):
    """A transfer that may succeed when retried."""


class _Refused(Exception):
    """A URL that does not serve the archive."""


class WrongArchive(DeopError):
    """An archive that is not the one of the catalogue, or not the one that was there before."""


@dataclass
class _Partial:
    """The downloaded part of an archive, and the state of the response that it belongs to."""

    path: Path

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    @property
    def _state(self) -> Path:
        return self.path.with_name(self.path.name + ".json")

    @property
    def state(self) -> dict[str, Any]:
        """``url``, ``validator`` (for If-Range) and ``bytes`` of the whole; empty if nothing can be resumed."""
        try:
            return json.loads(self._state.read_text()) if self.size else {}
        except (FileNotFoundError, json.JSONDecodeError):
            return {}

    def begin(self, state: dict[str, Any]) -> None:
        self.discard()
        write_json(self._state, state)

    def discard(self) -> None:
        self._state.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)


def record_path(archive: Path) -> Path:
    return archive.with_name(archive.name + ".json")


def read_record(archive: Path) -> dict[str, Any] | None:
    """``bytes``, ``sha256`` and ``url`` of an archive when it was first present; None if it never was."""
    try:
        return json.loads(record_path(archive).read_text())
    except FileNotFoundError:
        return None
    except json.JSONDecodeError:
        raise DeopError(f"{record_path(archive)} is damaged: remove it, and it is made anew") from None


def check(path: Path, entry: CatalogueEntry, archive: Path) -> dict[str, Any]:
    """``bytes`` and ``sha256`` of the file at ``path``, which is or will be ``archive``.

    Where ``entry`` has no hash, that in the archive's record counts.

    Raises:
        WrongArchive: another size or hash than expected.
    """
    size = path.stat().st_size
    if entry.bytes is not None and size != entry.bytes:
        raise WrongArchive(f"{path} has {size:,} bytes instead of {entry.bytes:,}")
    tqdm.write(f"checking {path} ({size / 1e9:.2f} GB)", file=sys.stderr)
    record = read_record(archive)
    expected = entry.hash or (record and f"sha256:{record['sha256']}")
    found = {}
    if expected:
        algorithm, _, digest = expected.partition(":")
        found[algorithm] = file_hash(path, algorithm)
        if found[algorithm] != digest:
            known = "" if entry.hash else f", which {record_path(archive)} holds since it was first there"
            raise WrongArchive(f"{path} has {algorithm} {found[algorithm]} instead of {digest}{known}")
    return {"bytes": size, "sha256": found.get("sha256") or file_hash(path)}


def put_aside(path: Path) -> Path:
    """Renames a bad archive, so that it is neither used nor resumed."""
    aside = path.with_name(path.name + ".bad")
    os.replace(path, aside)
    return aside


def require_space(needs: list[tuple[Path, int, str]]) -> None:
    """Checks that file systems have room.

    Args:
        needs: folder (which need not be there yet), bytes and what for.

    Raises:
        DeopError: a file system without enough room.
    """
    disks: dict[int, list[tuple[Path, int, str]]] = {}
    for folder, size, purpose in needs:
        there = next(above for above in (folder, *folder.absolute().parents) if above.exists())
        disks.setdefault(there.stat().st_dev, []).append((there, size, purpose))
    for parts in disks.values():
        needed, free = sum(size for _, size, _ in parts), shutil.disk_usage(parts[0][0]).free
        if needed > free:
            purposes = " and ".join(f"{size / 1e9:.2f} GB {purpose}" for _, size, purpose in parts)
            raise DeopError(
                f"not enough disk space at {parts[0][0]}: {purposes} are needed, {free / 1e9:.2f} GB are free; "
                "make room, or set data.root to a folder on a larger disk"
            )


def obtain(source: Download, archive: Path) -> tuple[Path, dict[str, Any]]:
    """The archive of a source, checked, and its ``bytes``, ``sha256`` and ``url`` (None where it was not fetched here).

    It is the user's (``source.path``), or at ``archive`` already, or downloaded to there.

    Raises:
        WrongArchive: an archive that was there before and is not the right one.
        DeopError: no URL delivers the archive, or there is no room for it.
    """
    entry, record = source.entry, read_record(archive)
    archive.parent.mkdir(parents=True, exist_ok=True)
    url = record["url"] if record else None
    if source.path is not None:
        path = Path(source.path)
        found = check(path, entry, archive)
    elif archive.exists():
        path = archive
        try:
            found = check(path, entry, archive)
        except WrongArchive as error:
            aside = put_aside(path)
            raise WrongArchive(f"{error}. It was moved to {aside.name}; run again to download it") from None
    else:
        path = archive
        found, url = _fetch(source, archive)
    record = {**found, "url": url}
    write_json(record_path(archive), record)
    return path, record


def _fetch(source: Download, archive: Path) -> tuple[dict[str, Any], str]:
    """Downloads ``archive`` from the first URL that gives the right one; its size and hash, and the URL."""
    entry = source.entry
    if not (urls := (*source.mirrors, *entry.urls)):
        raise DeopError(
            f"{source.name} cannot be downloaded: {entry.how_to_get or 'no URL is known'}. Then put the archive at "
            f"{archive} or unpack it in {source.root}, or set data.sources.{source.name}.path to where it is"
        )
    reasons = []
    partial = _Partial(archive.with_name(archive.name + ".part"))
    for url in urls:
        try:
            _fetch_from(url, partial, source)
            try:
                found = check(partial.path, entry, archive)
            except WrongArchive as error:
                aside = put_aside(partial.path)
                partial.discard()
                raise _Refused(f"{error} (moved to {aside.name})") from None
        except _Refused as error:
            reasons.append(f"{url}: {error}")
            tqdm.write(f"{source.name}: {reasons[-1]}", file=sys.stderr)
            continue
        os.replace(partial.path, archive)
        partial.discard()
        return found, url
    raise DeopError(
        f"{source.name} could not be downloaded. {'; '.join(reasons)}. Run again to go on where it stopped, name a "
        f"mirror in data.sources.{source.name}.mirrors, or put the archive at {archive}"
    )


def _fetch_from(url: str, partial: _Partial, source: Download) -> None:
    """Repeats requests until the archive is complete, as long as there is progress."""
    failures = 0
    while True:
        before = partial.size
        try:
            return _transfer(url, partial, source)
        except _Broken as error:
            reason = str(error)
        except requests.RequestException as error:
            if isinstance(error, ValueError):
                raise _Refused(f"not a valid URL ({error})") from None
            reason = _in_words(error)
            if partial.size > before:
                reason += f" after {partial.size:,} bytes"
        failures = 1 if partial.size > before else failures + 1
        if failures >= ATTEMPTS:
            raise _Refused(f"{reason} ({ATTEMPTS} times in a row)")
        wait = BACK_OFF * 2 ** (failures - 1)
        tqdm.write(f"{source.name}: {reason}; trying again in {wait:g} s", file=sys.stderr)
        time.sleep(wait)


def _in_words(error: requests.RequestException) -> str:
    if isinstance(error, requests.exceptions.SSLError):
        return "its certificate is not valid"
    if isinstance(error, requests.Timeout):
        return f"no answer within {TIMEOUT[1]} s"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection broke off"
    return "no connection"


def _transfer(url: str, partial: _Partial, source: Download) -> None:
    """Requests the missing part; returns when the archive is complete.

    Raises:
        _Broken, _Refused, requests.RequestException: the archive is still incomplete.
    """
    entry, state, offset = source.entry, partial.state, partial.size
    headers = {"Accept-Encoding": "identity"}
    # A part from another URL is continued only if a hash can tell whether the parts belong together.
    if state and (state["url"] == url or entry.hash):
        if offset == state["bytes"]:
            return
        headers["Range"] = f"bytes={offset}-"
        if state["url"] == url and state["validator"]:
            headers["If-Range"] = state["validator"]
    else:
        offset = 0
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
        if answer.status_code == 416:
            partial.discard()
            raise _Broken("it has changed since it was begun")
        if answer.status_code in _RETRIED or answer.status_code >= 500:
            raise _Broken(f"the server answers {answer.status_code} {answer.reason}")
        if answer.status_code not in (200, 206):
            raise _Refused(f"the server answers {answer.status_code} {answer.reason}")
        # Some servers name the compression of a .tar.gz here, and it would be undone.
        answer.raw.headers.pop("Content-Encoding", None)
        chunks = answer.iter_content(_CHUNK)
        first = next(chunks, b"")
        page = answer.headers.get("Content-Type", "").startswith("text/html")
        if page or (answer.status_code == 200 and _WEB_PAGE.match(first)):
            raise _Refused(f"it is a web page{_title(first)} instead of an archive")
        total = _total(answer, offset)
        if entry.bytes is not None and total not in (None, entry.bytes):
            raise _Refused(f"it has {total:,} bytes instead of {entry.bytes:,}")
        if answer.status_code == 206 and total != state["bytes"]:
            partial.discard()
            raise _Broken("it has changed since it was begun")
        if total is not None:
            unpacked = (Path(source.root) / entry.folder, total, "to unpack it")  # images hardly compress
            missing = (partial.path.parent, total - partial.size, f"to download {entry.archive}")
            require_space([missing, unpacked])
        if answer.status_code == 200:
            offset = 0
            etag = answer.headers.get("ETag", "")
            # A weak tag does not promise equal bytes.
            validator = answer.headers.get("Last-Modified") if etag.startswith("W/") or not etag else etag
            partial.begin({"url": url, "validator": validator, "bytes": total})
        with (
            partial.path.open("ab") as file,
            progress_bar(
                total=total,
                initial=offset,
                desc=f"downloading {entry.archive}",
                unit="B",
                unit_scale=True,
            ) as progress,
        ):
            for chunk in itertools.chain((first,), chunks):
                file.write(chunk)
                progress.update(len(chunk))
    if total is not None and partial.size != total:
        raise _Broken(f"the connection broke off after {partial.size:,} bytes")


def _total(answer: requests.Response, offset: int) -> int | None:
    """Size of the whole archive as the server states it, None if it does not."""
    if answer.status_code == 206:
        stated = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", answer.headers.get("Content-Range", ""))
        if stated is None or int(stated[1]) != offset:
            raise _Refused("it answers a request for a part with another part")
        return int(stated[2])
    length = answer.headers.get("Content-Length")
    return int(length) if length is not None else None


def _title(page: bytes) -> str:
    found = re.search(rb"<title>\s*(.*?)\s*</title>", page, re.IGNORECASE | re.DOTALL)
    return f" ({found[1].decode(errors='replace')[:80]!r})" if found else ""
