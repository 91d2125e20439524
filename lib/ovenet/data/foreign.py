"""What a file is that is no image, in words: a PDF document, a text file."""

from __future__ import annotations

from pathlib import Path

_HEAD_BYTES = 4096
_SIGNATURES = (
    (b"%PDF", "a PDF document"),
    (b"PK\x03\x04", "a ZIP archive, or a document of an office program"),
    (b"\x1f\x8b", "an archive compressed with gzip"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!", "a RAR archive"),
    (b"\x93NUMPY", "an array of NumPy"),
    (b"\x89HDF", "an HDF5 file"),
    (b"CDF\x01", "a NetCDF file"),
    (b"\xd0\xcf\x11\xe0", "a document of an office program"),
    (b"\x7fELF", "a program"),
    (b"ID3", "a sound file"),
    (b"OggS", "a sound or video file"),
    (b"\x1aE\xdf\xa3", "a video"),
    (b"SQLite format 3", "a database"),
)
_AT_FOUR = (  # the brand of a container after its size and the word ftyp
    (("heic", "heix", "mif1", "msf1", "hevc"), "a HEIC photograph, which has to be saved as JPEG or PNG first"),
    (("M4A ",), "a sound file"),
)
_RIFF = {b"AVI ": "a video", b"WAVE": "a sound file"}


def name_file(path: Path) -> str:
    """What a file is, see `name_content`; "" where it cannot be read."""
    try:
        with path.open("rb") as file:
            return name_content(file.read(_HEAD_BYTES))
    except OSError:
        return ""


def name_content(content: bytes) -> str:
    """What the content of a file is, by its first bytes; "" for an unknown kind.

    Args:
        content: of a file that is no image, or its first 4096 bytes.
    """
    if not content:
        return "an empty file"
    for signature, name in _SIGNATURES:
        if content.startswith(signature):
            return name
    if content[4:8] == b"ftyp":
        brand = content[8:12].decode("latin-1")
        return next((name for brands, name in _AT_FOUR if brand in brands), "a video")
    if content[:4] == b"RIFF":
        return _RIFF.get(content[8:12], "")
    return _name_text(content[:_HEAD_BYTES])


def _name_text(head: bytes) -> str:
    if b"\0" in head:
        return ""
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3 or len(head) < _HEAD_BYTES:  # else a character that was cut off
            return ""
        text = head[: error.start].decode("utf-8")
    if any(ord(character) < 32 and character not in "\t\n\r\f\x1b" for character in text):
        return ""
    start = text.lstrip("\ufeff \t\r\n").lower()
    if "<svg" in start:
        return "an SVG drawing, which has to be saved as PNG first"
    return "a page of HTML" if start.startswith(("<!doctype html", "<html")) else "a text file"
