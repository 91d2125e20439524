"""A real HTTP server on 127.0.0.1 for downloads, which can cut connections, refuse, and do without ranges."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FileServer(ThreadingHTTPServer):
    """Serves contents by path.

    Attributes:
        files: content by path.
        cuts: numbers of bytes after which the next answers break off, one for each answer.
        status: refuse with this status instead; 0 serves.
        has_ranges: answer requests for a part of a file with that part.
        pause_s: wait before each answer.
        requests: the ``Range`` header of each request, None without one.
    """

    daemon_threads = True

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.cuts: list[int] = []
        self.status, self.has_ranges, self.pause_s = 0, True, 0.0
        self.requests: list[str | None] = []
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: FileServer

    def do_GET(self) -> None:
        server, wanted = self.server, self.headers.get("Range")
        server.requests.append(wanted)
        time.sleep(server.pause_s)
        content = server.files.get(self.path)
        if server.status or content is None:
            self.send_error(server.status or 404)
            return
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and server.has_ranges else 0
        if start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if wanted and server.has_ranges else 200)
        if wanted and server.has_ranges:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        cut = server.cuts.pop(0) if server.cuts else len(content)
        self.wfile.write(content[start : start + cut])
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def file_server() -> Iterator[FileServer]:
    """A server that runs in a thread."""
    with FileServer() as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()
