"""An HTTP server that does what servers and lines do to large downloads: cut them, refuse parts, answer nonsense."""

from __future__ import annotations

import hashlib
import threading
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple


class Request(NamedTuple):
    path: str
    range: str | None
    sent: int


class FileServer:
    """Serves ``files``; for a file, ``cuts`` and ``statuses`` are used up by one request after the other.

    Attributes:
        files: contents by path.
        cuts: bytes after which the connection is closed.
        statuses: what is answered in place of the file.
        headers: of a file's answers, over the usual ones; None leaves one out.
        without_ranges: files of which no parts are served.
        requests: what was asked for, and the bytes of the file that were sent.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.cuts: dict[str, list[int]] = defaultdict(list)
        self.statuses: dict[str, list[int]] = defaultdict(list)
        self.headers: dict[str, dict[str, str | None]] = defaultdict(dict)
        self.without_ranges: set[str] = set()
        self.requests: list[Request] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.answer(self)

            def log_message(self, *arguments: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)

    def __enter__(self) -> FileServer:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}/{path}"

    def ranges(self, path: str) -> list[str | None]:
        return [request.range for request in self.requests if request.path == path]

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        path = handler.path.lstrip("/")
        asked = handler.headers.get("Range")
        status = self.statuses[path].pop(0) if self.statuses[path] else 200 if path in self.files else 404
        if status != 200:
            self.requests.append(Request(path, asked, 0))
            handler.send_error(status)
            return
        data = self.files[path]
        headers: dict[str, str | None] = {
            "ETag": f'"{hashlib.md5(data).hexdigest()}"',
            "Content-Type": "application/octet-stream",
        } | self.headers[path]
        start = 0
        unchanged = handler.headers.get("If-Range") in (None, headers["ETag"])
        if asked and unchanged and path not in self.without_ranges:
            start, status = int(asked.removeprefix("bytes=").removesuffix("-")), 206
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        body = data[start:]
        handler.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            if value is not None:
                handler.send_header(name, value)
        handler.end_headers()
        body = body[: self.cuts[path].pop(0)] if self.cuts[path] else body
        self.requests.append(Request(path, asked, len(body)))
        handler.wfile.write(body)
