"""Checksums inside the files that ``torch.save`` writes.

A zip archive ends with the length of its comment in two bytes, and the comment, which ``torch.save`` leaves empty: the
checksum is put there, so that other programs still read the file.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import BinaryIO

_COMMENT_LENGTH_BYTES = 2
_MARK = b"sha256:"
_LENGTH = len(_MARK) + 64
_BLOCK = 1 << 20


def seal(path: Path) -> None:
    """Adds a file's checksum, and syncs it to the disk."""
    with open(path, "rb+") as file:
        file.seek(-_COMMENT_LENGTH_BYTES, os.SEEK_END)
        end = file.tell()
        digest = _digest(file, end)
        file.seek(end)
        file.write(_LENGTH.to_bytes(_COMMENT_LENGTH_BYTES, "little") + _MARK + digest.encode())
        file.flush()
        os.fsync(file.fileno())


def is_sealed(path: Path) -> bool:
    """Whether a file carries a checksum."""
    return _checksum_of(path) is not None


def _checksum_of(path: Path) -> str | None:
    """The checksum that a file carries; None if it carries none."""
    size = path.stat().st_size
    if size < _LENGTH + _COMMENT_LENGTH_BYTES:
        return None
    with open(path, "rb") as file:
        file.seek(-_LENGTH, os.SEEK_END)
        end = file.read()
    return end[len(_MARK) :].decode("latin-1") if end.startswith(_MARK) else None


def seal_is_broken(path: Path) -> bool:
    """Whether a file carries a checksum that is not its own; files without one, such as others' weights, pass."""
    checksum = _checksum_of(path)
    if checksum is None:
        return False
    with open(path, "rb") as file:
        return _digest(file, path.stat().st_size - _LENGTH - _COMMENT_LENGTH_BYTES) != checksum


def _digest(file: BinaryIO, end: int) -> str:
    """SHA-256 of the first `end` bytes."""
    file.seek(0)
    digest = hashlib.sha256()
    while end > 0 and (block := file.read(min(end, _BLOCK))):
        digest.update(block)
        end -= len(block)
    return digest.hexdigest()
