"""A real HTTP server on 127.0.0.1 for a folder, which can cut connections, be slow, refuse and ask for a password."""

from __future__ import annotations

import base64
import functools
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class FolderServer(ThreadingHTTPServer):
    """Serves the files of a folder.

    Attributes:
        num_cuts: so many first answers with each file's content break off in its middle.
        status: refuse everything with this status; 0 serves.
        pause_s: wait before each answer.
        password: ``name:password`` that every request has to bring; "" for none.
        requests: number of requests by method and path.
    """

    daemon_threads = True

    def __init__(self, folder: Path):
        self.num_cuts, self.status, self.pause_s, self.password = 0, 0, 0.0, ""
        self.requests: Counter[tuple[str, str]] = Counter()
        super().__init__(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_: object) -> None:
        """Says nothing: clients may give up."""

    def count(self, method: str) -> int:
        """Number of requests by a method."""
        return sum(number for (one, _), number in self.requests.items() if one == method)


class Handler(SimpleHTTPRequestHandler):
    server: FolderServer
    protocol_version = "HTTP/1.1"

    def send_head(self):
        """Answers all but a file's content, as the base class does; what is cut is sent here."""
        server = self.server
        server.requests[self.command, self.path] += 1
        time.sleep(server.pause_s)
        wanted = f"Basic {base64.b64encode(server.password.encode()).decode()}"
        is_refused = server.password and self.headers.get("Authorization") != wanted
        if server.status or is_refused:
            self.send_error(server.status or 401)
            return None
        file = super().send_head()
        if file is None or self.command == "HEAD" or server.requests["GET", self.path] > server.num_cuts:
            return file
        content = file.read()
        self.wfile.write(content[: len(content) // 2])
        file.close()
        self.close_connection = True
        return None

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def folder_server(folder: Path) -> Iterator[FolderServer]:
    """A server that runs in a thread."""
    with FolderServer(folder) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()
