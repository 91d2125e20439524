"""Atomic writes: files and folders appear complete or not at all, and some only once."""

from __future__ import annotations

import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from ovenet.errors import UserError
from ovenet.utils.logging import get_logger

_PATIENCE_S = 600.0
_PAUSES_S = 1.0, 30.0  # the first one, which doubles, and the longest
_T = TypeVar("_T")


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Writes a file under a temporary name, and renames it when it is complete.

    Args:
        path: path of the file; its folder is created.
        write: writes to the temporary path that it is given, which has the same suffix.

    Raises:
        OSError: the file cannot be written; names it. An existing file is untouched, and no temporary file is left.
    """
    unfinished = path.with_name(f".{uuid.uuid4().hex}.unfinished{path.suffix}")  # unique to this thread and machine
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(unfinished)
        unfinished.replace(path)
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        unfinished.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Writes a file, see `write_file`."""
    write_file(path, lambda unfinished: unfinished.write_bytes(content))


def write_text(path: Path, text: str) -> None:
    """Writes a file in UTF-8, see `write_file`; file names in the text need not be Unicode."""
    write_bytes(path, text.encode("utf-8", errors="backslashreplace"))


def create_file(path: Path, text: str) -> None:
    """Writes a file that appears complete and only once: of several processes on any machines, one creates it.

    Args:
        path: path of the file, in a folder that exists and whose file system has hard links.
        text: content, in UTF-8.

    Raises:
        FileExistsError: the file is there already.
        OSError: the file cannot be written.
    """
    unfinished = path.with_name(f".{uuid.uuid4().hex}.unfinished{path.suffix}")
    try:
        unfinished.write_text(text, encoding="utf-8")
        try:
            os.link(unfinished, path)
        except FileExistsError:
            if unfinished.stat().st_nlink < 2:  # else it is this one: NFS asks again where an answer was lost
                raise
    finally:
        unfinished.unlink(missing_ok=True)


def require_atomic_creation(folder: Path) -> None:
    """Creates a folder and tries `create_file` in it.

    Raises:
        UserError: it cannot be written, or has no hard links, or two processes can create the same file.
    """
    probe = folder / f".{uuid.uuid4().hex}.probe"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        create_file(probe, "")
        try:
            create_file(probe, "")
        except FileExistsError:
            return
        finally:
            probe.unlink()
    except OSError as error:
        raise UserError(
            f"{folder}: expected a folder that can be written, on a file system with hard links "
            f"({error.strerror or error})"
        ) from error
    raise UserError(f"{folder}: two processes can create the same file; expected another file system")


def patiently(action: Callable[[], _T], stop: threading.Event, patience_s: float = _PATIENCE_S) -> _T:
    """Repeats what the file system refuses, as where a folder is away or a disk is full, with longer and longer pauses.

    Args:
        action: what is to be done.
        stop: ends the repetition.
        patience_s: seconds after which it ends, too.

    Raises:
        FileExistsError: at once.
        OSError: the last one.
    """
    (pause_s, longest_s), until = _PAUSES_S, time.monotonic() + patience_s
    while True:
        try:
            return action()
        except FileExistsError:
            raise
        except OSError as error:
            if stop.is_set() or time.monotonic() > until:
                raise
            get_logger().warning("%s; trying again in %g s", error, pause_s)
        stop.wait(pause_s)
        pause_s = min(2 * pause_s, longest_s)


@contextmanager
def unfinished_folder(folder: Path) -> Iterator[Path]:
    """A new folder of the same name on the same disk, for what is moved to `folder` when it is complete.

    It is removed afterwards, with all that was not moved.
    """
    folder = folder.resolve()
    outer = folder.parent / f".{uuid.uuid4().hex}.unfinished"
    try:
        (outer / folder.name).mkdir(parents=True)
        yield outer / folder.name
    finally:
        shutil.rmtree(outer, ignore_errors=True)
