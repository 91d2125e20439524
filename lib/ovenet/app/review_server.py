"""The server of `ovenet review`, as closed as the app's: a browser names images by their place, never by a path."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from ovenet.app.server import HEADER, LocalHandler, LocalServer, RefusedError

_PLACE = re.compile("[0-9]{1,6}")
_VERSION = re.compile("[0-9a-f]{16}")


@dataclass(frozen=True)
class ReviewAnswers:
    """Callbacks that make the server's answers.

    Attributes:
        number: of images.
        page: the HTML.
        image: JSON of the image at a place.
        save: JSON about a saved label, from its place, the version that it began from and its bytes.
    """

    number: int
    page: Callable[[], str]
    image: Callable[[int], dict[str, Any]]
    save: Callable[[int, str, bytes], dict[str, Any]]


class ReviewServer(LocalServer):
    """Answers requests one after the other.

    Args:
        answers: makes the page, and reads and writes labels.
        port: 0 takes a free one.
        max_pixels: of the largest image.

    Raises:
        UserError: the port cannot be had.
    """

    def __init__(self, answers: ReviewAnswers, port: int, max_pixels: int):
        self.answers = answers
        super().__init__(ReviewHandler, port, max_pixels)


class ReviewHandler(LocalHandler):
    """One request to `ReviewServer`."""

    server: ReviewServer

    def do_GET(self) -> None:
        """The page, or an image."""
        self._answer(self._get)

    def do_POST(self) -> None:
        """A corrected label."""
        self._answer(self._save)

    def _get(self, path: str, query: dict[str, str]) -> tuple[str, bytes]:
        answers, worker = self.server.answers, self.server.worker
        if path == "/":
            return "text/html; charset=utf-8", worker.submit(answers.page).result().encode()
        if path != "/image":
            raise RefusedError(HTTPStatus.NOT_FOUND, "there is no such page")
        if self.headers.get(HEADER) != "1":
            raise RefusedError(HTTPStatus.FORBIDDEN, "images are asked for by the page itself")
        return _json(worker.submit(answers.image, self._place(query)).result())

    def _save(self, path: str, query: dict[str, str]) -> tuple[str, bytes]:
        if path != "/save":
            raise RefusedError(HTTPStatus.NOT_FOUND, "there is no such page")
        place, version = self._place(query), query.get("version", "")
        if not _VERSION.fullmatch(version):
            raise RefusedError(HTTPStatus.BAD_REQUEST, "expected the version of a label")
        if not self._unread:
            raise RefusedError(HTTPStatus.LENGTH_REQUIRED, "expected a label")
        if self._unread > self.server.max_bytes:
            raise RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "larger than any of the images")
        with self.server.reading:
            content = self.rfile.read(self._unread)
            if len(content) < self._unread:
                raise ConnectionError("the upload ended early")
            self._unread = 0
            return _json(self.server.worker.submit(self.server.answers.save, place, version, content).result())

    def _place(self, query: dict[str, str]) -> int:
        place = query.get("place", "")
        if not _PLACE.fullmatch(place) or int(place) >= self.server.answers.number:
            raise RefusedError(HTTPStatus.NOT_FOUND, "there is no such image")
        return int(place)


def _json(content: dict[str, Any]) -> tuple[str, bytes]:
    return "application/json", json.dumps(content, separators=(",", ":")).encode()
