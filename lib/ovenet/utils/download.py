"""Downloads of large files: resumed where they were cut off, checked, and under their name only when they are whole.

By the standard library: `torch.hub.download_url_to_file` checks hashes, but begins anew after a cut and knows of no
other process, and huggingface_hub, which comes with timm, is for its own hub.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterator
from functools import lru_cache
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from filelock import FileLock, Timeout
from tqdm import tqdm

from ovenet.errors import UserError, one_line
from ovenet.version import version

_TIMEOUT_S = 30
_BLOCK = 1 << 20
_MB = 10**6
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")


def download(address: str, path: Path, sha256: str, *, notice: str = "") -> None:
    """Fetches a file, unless it is there, or another process fetches it meanwhile.

    What has arrived lies beside it as ``.NAME.part``; after a cut, or in the next call, the rest is asked for.

    Args:
        address: of the file, http or https.
        path: where to put it; the folder is created.
        sha256: how the digest of the file begins, in hexadecimal.
        notice: line to print when the download begins.

    Raises:
        UserError: it cannot be fetched or written, or has another digest.
    """
    if urlsplit(address).scheme not in ("http", "https"):
        raise UserError(f"{address}: cannot be downloaded; expected an address that begins with http:// or https://")
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            held = lock.acquire(timeout=0)
        except Timeout:
            _say(f"{path.name}: another process downloads it; waiting")
            held = lock.acquire()
        with held:
            if not path.is_file():
                _say(notice)
                _fetch(address, path, sha256)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{path}: cannot be written ({reason}); set TORCH_HOME to another folder") from error


def begins_with(path: Path, sha256: str) -> bool:
    """Whether a file's digest begins so."""
    stat = path.stat()
    return _digest(path, stat.st_size, stat.st_mtime_ns).startswith(sha256)


@lru_cache(maxsize=64)
def _digest(path: Path, size: int, time_ns: int) -> str:
    """SHA-256 of a file in hexadecimal; its size and time tell a changed file from the one read before."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _fetch(address: str, path: Path, sha256: str) -> None:
    part = path.with_name(f".{path.name}.part")
    if not (sha256 and part.is_file() and begins_with(part, sha256)):
        _receive(address, path, part)
        if not begins_with(part, sha256):
            begin = _digest(part, part.stat().st_size, part.stat().st_mtime_ns)[: len(sha256)]
            part.unlink()
            raise UserError(
                f"{address}: what arrived has a sha256 that begins with {begin}, expected {sha256}; it was not kept: "
                f"try again, or get the file elsewhere and put it at {path}"
            )
    part.replace(path)


def _receive(address: str, path: Path, part: Path) -> None:
    """Asks for the rest of a file until all is there, or an attempt brings nothing."""
    before = part.stat().st_size if part.is_file() else 0
    while True:
        try:
            total = _receive_more(address, path, part)
            reason = "the connection was cut off"
        except (URLError, HTTPException, TimeoutError, ConnectionError) as error:
            if isinstance(error, HTTPError) and error.code == 416 and part.is_file():  # more than the file has
                part.unlink()
                before = 0
                continue
            total, reason = None, _reason(error)
        arrived = part.stat().st_size if part.is_file() else 0
        if total == arrived:
            return
        if arrived <= before:
            kept = f"; {arrived / _MB:.1f} MB are kept, and the next try goes on from there" if arrived else ""
            raise UserError(
                f"{address}: cannot be downloaded ({reason}){kept}; without a network, get the file elsewhere and put "
                f"it at {path}"
            )
        before = arrived


def _receive_more(address: str, path: Path, part: Path) -> int | None:
    """Appends what one connection brings, and returns the size of the whole file.

    Raises:
        URLError, HTTPException, TimeoutError, ConnectionError: there was no answer, or a refusal.
        UserError: the disk is full, or the like.
    """
    start = part.stat().st_size if part.is_file() else 0
    headers = {"User-Agent": f"ovenet/{version()}"} | ({"Range": f"bytes={start}-"} if start else {})
    with urlopen(Request(address, headers=headers), timeout=_TIMEOUT_S) as response:
        match = _RANGE.fullmatch(response.headers.get("Content-Range", "")) if response.status == 206 else None
        if match is not None and int(match[1]) == start:
            total: int | None = int(match[2])
        else:
            start = 0
            length = response.headers.get("Content-Length", "")
            total = int(length) if length.isdigit() else None
        try:
            with (
                part.open("ab" if start else "wb") as file,
                tqdm(
                    desc=path.name, total=total, initial=start, unit="B", unit_scale=True,
                    disable=not sys.stderr.isatty(), dynamic_ncols=True,
                ) as bar,
            ):  # fmt: skip
                for block in _blocks(response):
                    file.write(block)
                    bar.update(len(block))
        except OSError as error:
            part.unlink(missing_ok=True)  # on a full disk it would be in the way
            raise UserError(
                f"{path}: cannot be written ({error.strerror or error}); {(total or 0) / _MB:.1f} MB need room, or set "
                "TORCH_HOME to another folder"
            ) from error
    return part.stat().st_size if total is None else total


def _blocks(response: HTTPResponse) -> Iterator[bytes]:
    """What arrives, until the end or a cut."""
    while True:
        try:
            block = response.read1(_BLOCK)
        except (OSError, HTTPException):
            return
        if not block:
            return
        yield block


def _reason(error: Exception) -> str:
    if isinstance(error, HTTPError):
        return f"HTTP {error.code} {error.reason}"
    return one_line(error.reason if isinstance(error, URLError) and isinstance(error.reason, Exception) else error)


def _say(text: str) -> None:
    if text:
        tqdm.write(text, file=sys.stderr)
