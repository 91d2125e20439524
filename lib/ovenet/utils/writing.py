"""Atomic writes: files and folders appear complete or not at all."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


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
