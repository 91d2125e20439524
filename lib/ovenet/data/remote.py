"""Files at an address, such as ``s3://bucket/folder`` or ``https://host/folder``, read through fsspec.

A `RemotePath` stands wherever a `Path` to read from does. Broken connections are tried again; a file that stays out of
reach is an `UnreachableError`, which is neither a missing file nor a broken one.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import random
import re
import time
from collections.abc import Callable
from pathlib import Path, PosixPath
from stat import S_IFREG
from typing import IO, Any, TypeVar
from urllib.parse import quote, unquote, urlsplit

from ovenet.errors import UserError, one_line
from ovenet.utils.logging import get_logger

T = TypeVar("T")
_SEPARATOR = "://"
_WEB, _S3, _GOOGLE = ("http", "https"), ("s3", "s3a"), ("gs", "gcs")
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "http": "http", "https": "http"}  # of pyproject.toml
NUM_TRIES = 8
_TRIES_OF_GOOGLE = 2  # its library tries six times each, for half a minute
_FIRST_WAIT_S = 0.1  # doubled after each try: at most 12.7 s in all
_LONGEST_S = 120.0  # after which no further try begins
_CONNECT_S, _ANSWER_S = 10, 30  # until there is a connection, and without a byte on it
_WORTH_ANOTHER_TRY = (408, 425, 429)  # of the statuses 4xx of HTTP
_REFUSED, _MISSING = (401, 403, 407), (404, 410)
_NO_CREDENTIALS = (
    "NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "ProfileNotFound",
    "TokenRetrievalError", "UnauthorizedSSOTokenError", "DefaultCredentialsError", "RefreshError",
)  # fmt: skip
_MAX_MESSAGE = 100  # characters of a server, which may send a page
_FAULTS = (TypeError, AttributeError, NameError, LookupError, AssertionError)  # of a program, not of a connection
_IDENTITIES = ("ETag", "etag", "md5Hash", "Content-MD5", "generation", "LastModified", "Last-Modified", "mtime")
_RANDOM = random.SystemRandom()  # processes that were forked alike wait for different times

_filesystems: dict[tuple[int, str], Any] = {}  # of this process: a fork cannot use the connections of its parent
_found: dict[str, dict[str, Any]] = {}  # what is known of files, which are taken not to change while a command runs


class UnreachableError(ConnectionError):
    """A file at an address that could not be read, though it may be there and sound; the message is one line."""


class RemotePath(PosixPath):
    """A file or folder at an address, with what reading needs of `pathlib.Path`.

    A path that begins with ``/`` joined to it is one of this machine. Files are read whole. Anything that would pass it
    to the operating system, as writing does, raises `UserError`.
    """

    __slots__ = ()

    def __str__(self) -> str:
        return super().__str__().replace(":/", _SEPARATOR, 1)

    def __fspath__(self) -> str:
        raise UserError(f"{self}: an address can only be read from; give a folder of this machine for that")

    def __truediv__(self, other: Any) -> Any:
        return Path(other) if str(other).startswith("/") else super().__truediv__(other)

    def resolve(self, strict: bool = False) -> RemotePath:
        """The same address."""
        return self

    def exists(self, *, follow_symlinks: bool = True) -> bool:
        """Whether there is such a file, or a folder where the protocol has folders.

        Raises:
            UnreachableError: nobody knows.
        """
        return self._status() is not None

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        """Whether there is such a file; see `exists`."""
        status = self._status()
        return status is not None and status["type"] == "file"

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        """Whether there is such a folder; False over HTTP, which has none; see `exists`."""
        status = self._status()
        return status is not None and status["type"] == "directory"

    def is_symlink(self) -> bool:
        """False."""
        return False

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """The size of a file; other numbers are 0.

        Raises:
            FileNotFoundError: there is no such file.
        """
        status = self._status()
        if status is None:
            raise FileNotFoundError(f"{self}: no such file")
        return os.stat_result((S_IFREG, 0, 0, 0, 0, 0, status["size"] or 0, 0, 0, 0))

    def version(self) -> str | None:
        """A short text that changes with the file, as far as its server tells; None without the file."""
        status = self._status()
        if status is None:
            return None
        identity = repr([str(status[key]) for key in _IDENTITIES if status.get(key)])
        return f"{status['size'] or 0}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"

    def read_bytes(self) -> bytes:
        """The whole file.

        Raises:
            FileNotFoundError: there is no such file.
            UnreachableError: it cannot be read.
        """
        return _with_patience(self, lambda filesystem, address: filesystem.cat_file(address))

    def read_text(self, encoding: str | None = None, errors: str | None = None, newline: str | None = None) -> str:
        """The whole file as text."""
        return self.read_bytes().decode(encoding or "utf-8", errors or "strict")

    def open(self, mode: str = "r", *_: Any, **__: Any) -> IO[Any]:  # type: ignore[override]
        """The whole file in memory; only ``rb``."""
        if mode != "rb":
            self.__fspath__()
        return io.BytesIO(self.read_bytes())

    def _status(self) -> dict[str, Any] | None:
        """What the server says of the file, asked once; None if there is none."""
        known = _found.get(str(self))
        if known is None:
            try:
                known = _with_patience(self, lambda filesystem, address: filesystem.info(address))
            except FileNotFoundError:
                return None
            _found[str(self)] = known
        return known


def data_root(text: str) -> Path:
    """The folder that ``DATASET.ROOT`` names: of this machine, also as ``file://…``, or at an address.

    Raises:
        UserError: see `check_address`.
    """
    if not is_address(text):
        return Path(text)
    check_address(text, "DATASET.ROOT")
    protocol, _, rest = text.partition(_SEPARATOR)
    if protocol == "file":
        return Path(unquote(rest))
    return RemotePath(f"{protocol}:/{unquote(rest) if protocol in _WEB else rest}")


def is_address(text: str) -> bool:
    """Whether a text is an address, as opposed to a path of this machine."""
    return _SEPARATOR in text


def check_address(text: str, key: str) -> None:
    """Refuses an address with a secret in it, since settings are stored with every result, and a malformed one.

    The message does not repeat it.

    Args:
        text: the value of a setting; a path of this machine passes.
        key: the setting.

    Raises:
        UserError: the address has a user name, a password or a query, or is none.
    """
    if not is_address(text):
        return
    protocol, _, rest = text.partition(_SEPARATOR)
    if "?" in rest or "@" in rest.partition("/")[0]:
        raise UserError(
            f"{key}: an address with a user name, a password or a query, which would be stored with every result; give "
            "credentials in the environment, and the address without (docs/data.md)"
        )
    try:
        is_sound = bool(re.fullmatch(r"[a-z][a-z0-9+.-]*", protocol)) and urlsplit(text).port != -1
    except ValueError:  # no such host or port
        is_sound = False
    if not is_sound or not rest.strip("/"):
        raise UserError(f"{key}: no address; expected one such as s3://bucket/folder or https://host/folder")


def local_folder(text: str, option: str) -> Path:
    """The folder that a command writes into.

    Args:
        text: the value of an option.
        option: its name.

    Raises:
        UserError: it is an address.
    """
    if is_address(text):
        raise UserError(
            f"{option}: an address, to which nothing is written; prepare a folder of this machine, and copy it there"
        )
    return Path(text)


def is_remote(path: Path) -> bool:
    """Whether a path is at an address."""
    return isinstance(path, RemotePath)


def _with_patience(path: RemotePath, request: Callable[[Any, str], T]) -> T:
    """The answer to a request; where the connection fails, it is tried again after longer and longer waits.

    Raises:
        FileNotFoundError: there is no such file.
        UnreachableError: access is refused, or it failed `NUM_TRIES` times or for two minutes.
    """
    protocol = path.parts[0].rstrip(":")
    address = str(path)
    if protocol in _WEB:
        address = f"{protocol}{_SEPARATOR}{quote(address.partition(_SEPARATOR)[2], safe='/:[]')}"
    filesystem, started, wait_s = _filesystem(protocol), time.monotonic(), _FIRST_WAIT_S
    num_tries = _TRIES_OF_GOOGLE if protocol in _GOOGLE else NUM_TRIES
    for number in range(1, num_tries + 1):
        try:
            return request(filesystem, address)
        except _FAULTS:
            raise
        except Exception as caught:  # each library has exceptions of its own
            error: BaseException = caught
            if protocol in _WEB and isinstance(caught, FileNotFoundError) and caught.__cause__ is not None:
                error = caught.__cause__  # fsspec says of every failure to look at a file over HTTP that there is none
        _raise_if_final(path, error)
        seconds = time.monotonic() - started
        if number == num_tries or seconds > _LONGEST_S:
            raise UnreachableError(
                f"{path}: cannot be read ({_reason(error)}; {number} tries in {seconds:.0f} s); check the connection "
                "and the server"
            )
        get_logger().warning("%s: %s; try %d of %d follows", path, _reason(error), number + 1, num_tries)
        time.sleep(wait_s * _RANDOM.uniform(0.5, 1))
        wait_s *= 2
    raise AssertionError


def _raise_if_final(path: RemotePath, error: BaseException) -> None:
    """Raises what another try would not change; see `_with_patience`."""
    status = _status(error)
    if status in _MISSING or (status is None and isinstance(error, FileNotFoundError)):
        raise FileNotFoundError(f"{path}: no such file")
    if status in _REFUSED or isinstance(error, PermissionError) or type(error).__name__ in _NO_CREDENTIALS:
        raise UnreachableError(
            f"{path}: access is refused ({_reason(error)}); give credentials in the environment (docs/data.md)"
        )
    if status is not None and 400 <= status < 500 and status not in _WORTH_ANOTHER_TRY:
        raise UnreachableError(f"{path}: cannot be read ({_reason(error)}); check DATASET.ROOT")


def _status(error: BaseException) -> int | None:
    """The status of HTTP that an error of aiohttp or gcsfs is about, if it is about one."""
    if isinstance(error, OSError) and str(error).startswith("Forbidden"):  # gcsfs
        return 403
    numbers = (getattr(error, name, None) for name in ("status", "code"))
    return next((number for number in numbers if isinstance(number, int)), None)


def _reason(error: BaseException) -> str:
    """An error in a few words, without what an address or a proxy may give away in it."""
    status = _status(error)
    if status is not None:
        words = " ".join(str(getattr(error, "message", "")).split())
        text = f"HTTP {status} {words[:_MAX_MESSAGE]}".strip()
    else:
        text, name = one_line(error), type(error).__name__
        text = text if text == name else f"{name}: {text}"
    return re.sub(r"\?[^\s'\")]*", "?…", re.sub(r"//[^/\s@]*@", "//…@", text))


def _filesystem(protocol: str) -> Any:
    """The file system of a protocol in this process.

    Raises:
        UserError: there is no such protocol, or its library is missing.
    """
    key = (os.getpid(), protocol)
    if key not in _filesystems:
        import fsspec  # only where data lies elsewhere

        try:
            _filesystems[key] = fsspec.filesystem(protocol, skip_instance_cache=True, **_options(protocol))
            _filesystems[key].retries = 1  # s3fs: no tries but ours
        except ImportError as error:
            extra = _EXTRAS.get(protocol)
            way = f"pip install 'ovenet[{extra}]'" if extra else "install the library that fsspec names"
            raise UserError(f"DATASET.ROOT {protocol}{_SEPARATOR}: {way} ({one_line(error)})") from error
        except ValueError as error:
            raise UserError(f"DATASET.ROOT {protocol}{_SEPARATOR}: {one_line(error)}") from error
    return _filesystems[key]


def _options(protocol: str) -> dict[str, Any]:
    """Limits of time, and no tries by the library of S3, nor a question about a file before reading it."""
    if protocol in _WEB:
        from aiohttp import ClientTimeout

        timeout = ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=_ANSWER_S)
        return {"encoded": True, "client_kwargs": {"timeout": timeout, "trust_env": True}}  # proxies and .netrc
    if protocol in _GOOGLE:
        logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # else each failure is a traceback before it is told here
    if protocol in _S3:
        limits = {"connect_timeout": _CONNECT_S, "read_timeout": _ANSWER_S, "retries": {"max_attempts": 0}}
        return {"config_kwargs": limits, "max_concurrency": 1}
    return {}
