"""The page's server: it listens on localhost only, makes no network requests and keeps no upload.

Requests that another page could make a browser send are refused: by the name of the host that they ask for, and by a
header that no foreign page may set.
"""

from __future__ import annotations

import json
import re
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, parse_qs, urlsplit

from ovenet.errors import UserError

HOST = "127.0.0.1"
HEADER = "X-OVeNet"  # a page of another origin would have to ask for leave to set it, and gets none
MAX_WAITING = 64  # requests at once; each holds a thread, and only those at work an upload
_MAX_READING = 2
_TIMEOUT_S = 60
_LINGER_S = 5
_BLOCK = 1 << 16
_MB = 10**6
_LENGTH = re.compile("[1-9][0-9]{0,11}")


@dataclass(frozen=True)
class Answers:
    """Callbacks that make the server's answers.

    Attributes:
        page: HTML for a model's name, "" for the first.
        predict: JSON of an image file, a model's name and a runtime.
        film: an mp4 of a video file, a model's name and a runtime.
        save: a file of an image's prediction, and its type: of an image file, a model's name, a runtime and a form.
        example: an image to try, as a PNG.
    """

    page: Callable[[str], str]
    predict: Callable[[Path, str, str], dict[str, Any]]
    film: Callable[[Path, str, str], bytes]
    save: Callable[[Path, str, str, str], tuple[str, bytes]]
    example: Callable[[], bytes]


class RefusedError(Exception):
    """A refused request.

    Args:
        status: HTTP status.
        message: text of the answer.
    """

    def __init__(self, status: HTTPStatus, message: str):
        super().__init__(message)
        self.status = status


def _split(path: str) -> SplitResult:
    try:
        return urlsplit(path)
    except ValueError:
        raise RefusedError(HTTPStatus.BAD_REQUEST, "not an address") from None


class LocalServer(ThreadingHTTPServer):
    """A server on localhost.

    Args:
        handler: of its requests.
        port: 0 takes a free one.
        max_bytes: largest body of a request.

    Raises:
        UserError: the port cannot be had.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, handler: type[LocalHandler], port: int, max_bytes: int):
        self.max_bytes = max_bytes
        self.waiting = threading.BoundedSemaphore(MAX_WAITING)
        self.reading = threading.BoundedSemaphore(_MAX_READING)
        # One thread for all predictions: each thread that runs torch has its own memory and its own pool.
        self.worker = ThreadPoolExecutor(1, thread_name_prefix="prediction")
        try:
            super().__init__((HOST, port), handler)
        except OSError as error:
            raise UserError(
                f"port {port} on {HOST} cannot be had ({error.strerror}); end the program that uses it, or choose "
                "another: --port 0 is a free one"
            ) from error

    @property
    def address(self) -> str:
        """URL of the page."""
        return f"http://{HOST}:{self.server_address[1]}"

    def server_close(self) -> None:
        """Ends the server, after the prediction at hand."""
        super().server_close()
        self.worker.shutdown(cancel_futures=True)

    def log_fault(self, error: Exception) -> None:
        """Shows a fault of the program in the terminal."""
        traceback.print_exception(error)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that disconnected is not logged."""


class AppServer(LocalServer):
    """Answers requests one after the other.

    Args:
        answers: makes the page and the predictions.
        port: 0 takes a free one.
        max_mb: largest upload, in 10^6 bytes.

    Raises:
        UserError: the port cannot be had.
    """

    def __init__(self, answers: Answers, port: int, max_mb: float):
        self.answers = answers
        super().__init__(Handler, port, int(max_mb * _MB))


class LocalHandler(BaseHTTPRequestHandler):
    """One request, which the page itself made."""

    server: LocalServer
    server_version, sys_version = "ovenet", ""
    timeout = _TIMEOUT_S
    _unread = 0  # bytes of the request's body

    def _answer(self, make: Callable[[str, dict[str, str]], tuple[str, bytes]]) -> None:
        length = self.headers.get("Content-Length", "")
        self._unread = int(length) if _LENGTH.fullmatch(length) else 0
        if not self.server.waiting.acquire(blocking=False):
            self._send_text(HTTPStatus.SERVICE_UNAVAILABLE, "too many requests at once; try again in a moment")
            return
        try:
            self._require_own_page()
            url = _split(self.path)
            query = {key: values[0] for key, values in parse_qs(url.query).items()}
            kind, content = make(url.path, query)
            self._send(HTTPStatus.OK, kind, content)
        except RefusedError as error:
            self._send_text(error.status, str(error))
        except UserError as error:
            self._send_text(HTTPStatus.UNPROCESSABLE_ENTITY, str(error))
        except (TimeoutError, ConnectionError):
            self.close_connection = True
        except Exception as error:  # any fault of the program; its text may contain local paths
            self.server.log_fault(error)
            self._send_text(HTTPStatus.INTERNAL_SERVER_ERROR, "a fault of the program; its terminal says more")
        finally:
            self.server.waiting.release()

    def _require_own_page(self) -> None:
        """Refuses requests that a page of another origin made the browser send."""
        own = {f"{name}:{self.server.server_address[1]}" for name in (HOST, "localhost")}
        if self.headers.get("Host") not in own:
            raise RefusedError(HTTPStatus.FORBIDDEN, "this page is for this machine alone")
        if self.command == "POST" and self.headers.get(HEADER) != "1":
            raise RefusedError(HTTPStatus.FORBIDDEN, "predictions are asked for by the page itself")

    def _send_text(self, status: HTTPStatus, text: str) -> None:
        self.close_connection = True  # unread bytes must not be taken for the next request
        self._send(status, "text/plain; charset=utf-8", text.encode())
        self._linger()

    def _linger(self) -> None:
        """Reads on for some seconds: closing while a browser still sends would take the answer from it."""
        until = time.monotonic() + _LINGER_S
        try:
            self.connection.settimeout(_LINGER_S)
            while self._unread and time.monotonic() < until:
                block = self.rfile.read1(min(self._unread, _BLOCK))
                if not block:
                    break
                self._unread -= len(block)
        except OSError:
            self.close_connection = True

    def _send(self, status: HTTPStatus, kind: str, content: bytes) -> None:
        try:
            self.send_response(status)
            headers = {
                "Content-Type": kind,
                "Content-Length": str(len(content)),
                "Cache-Control": "no-store",
                "X-Content-Type-Options": "nosniff",
                "X-Frame-Options": "DENY",
                "Referrer-Policy": "no-referrer",
            }
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)
        except (TimeoutError, ConnectionError):
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged: the names of uploads are private."""


class Handler(LocalHandler):
    """One request to `AppServer`."""

    server: AppServer

    def do_GET(self) -> None:
        """The page."""
        self._answer(self._page)

    def do_POST(self) -> None:
        """A prediction."""
        self._answer(self._prediction)

    def _page(self, path: str, query: dict[str, str]) -> tuple[str, bytes]:
        if path == "/example":
            return "image/png", self.server.answers.example()
        if path != "/":
            raise RefusedError(HTTPStatus.NOT_FOUND, "there is no such page")
        return "text/html; charset=utf-8", self.server.answers.page(query.get("model", "")).encode()

    def _prediction(self, path: str, query: dict[str, str]) -> tuple[str, bytes]:
        if path not in ("/predict", "/film", "/save"):
            raise RefusedError(HTTPStatus.NOT_FOUND, "there is no such page")
        if not self._unread:
            raise RefusedError(HTTPStatus.LENGTH_REQUIRED, "The file is empty.")
        if self._unread > self.server.max_bytes:
            most = self.server.max_bytes / _MB
            message = f"The file is larger than {most:g} MB. Save it smaller, or start the app with a larger --max-mb."
            raise RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message)
        with self.server.reading, tempfile.TemporaryDirectory(prefix="ovenet-app-") as folder:
            file = Path(folder) / "upload"
            self._receive(file)
            try:
                return self.server.worker.submit(self._made, path, query, file).result()
            except UserError as error:
                raise UserError(str(error).replace(str(file), "the upload")) from error

    def _made(self, path: str, query: dict[str, str], file: Path) -> tuple[str, bytes]:
        """Type and content of an answer, of the upload."""
        answers, model, runtime = self.server.answers, query.get("model", ""), query.get("runtime", "")
        if path == "/film":
            return "video/mp4", answers.film(file, model, runtime)
        if path == "/save":
            return answers.save(file, model, runtime, query.get("form", ""))
        content = answers.predict(file, model, runtime)
        return "application/json", json.dumps(content, separators=(",", ":")).encode()

    def _receive(self, file: Path) -> None:
        with open(file, "wb") as target:
            while self._unread:
                block = self.rfile.read(min(self._unread, _BLOCK))
                if not block:
                    raise ConnectionError("the upload ended early")
                target.write(block)
                self._unread -= len(block)
