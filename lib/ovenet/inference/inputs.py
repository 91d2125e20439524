"""Inputs of a prediction, from command line arguments: images, folders, globs, videos, cameras and a pipe."""

from __future__ import annotations

import glob
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import cv2
import numpy as np

from ovenet.data.files import IMAGE_SUFFIXES, read_image
from ovenet.data.foreign import name_file
from ovenet.errors import UserError
from ovenet.inference.video import pyav
from ovenet.utils.logging import get_logger

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")
_CAMERA = "camera:"
PIPE = "-"
_LARGEST_CAMERA = 2**31 - 1
_DEFAULT_RATE = 25.0
_MAX_MISSING = 100  # frames that a file's header promises and the file lacks
_UNREADABLE = {
    "video": "cannot be opened as a video",
    "pipe": "holds no video that can be read; send a stream, such as ffmpeg -i IN -f matroska - | …",
}


@dataclass(frozen=True)
class Input:
    """One input of a prediction.

    Attributes:
        kind: kind of input.
        source: path of the file, or number of the camera, or file descriptor of the pipe.
        name: name of the results, a path without suffix.
    """

    kind: Literal["image", "video", "camera", "pipe"]
    source: Path | int
    name: str

    def __str__(self) -> str:
        return {"camera": f"camera {self.source}", "pipe": "the pipe"}.get(self.kind, str(self.source))


def find_inputs(arguments: Sequence[str], *, frames: bool = False) -> list[Input]:
    """The inputs that command line arguments name.

    Args:
        arguments: files; folders, searched for images and videos at any depth; patterns with ``*``; cameras as
            ``camera:0``; ``-`` for a video from standard input.
        frames: whether each frame of a video gets results, in a folder named after the video.

    Raises:
        UserError: an argument does not exist or holds no input, or two results would have the same name.
    """
    inputs: list[Input] = []
    for argument in arguments:
        inputs += _inputs_of(argument)
    names: dict[str, Input] = {}
    for one in inputs:
        if one.name in names:
            raise UserError(
                f"{one} and {names[one.name]}: both results would be called {one.name}; predict them into two folders"
            )
        names[one.name] = one
    if frames:
        _require_room_for_frames(names)
    return inputs


def _require_room_for_frames(names: Mapping[str, Input]) -> None:
    for name, one in names.items():
        for folder in PurePosixPath(name).parents:
            video = names.get(str(folder))
            if video is not None and video.kind != "image":
                raise UserError(
                    f"{one} and {video}: results of the one would lie among the frames of the other; predict them into "
                    "two folders"
                )


def _inputs_of(argument: str) -> list[Input]:
    if not argument:
        raise UserError(f"an empty name; expected an image, a folder, a pattern, a video or {_CAMERA}0")
    if argument == PIPE:
        return [Input("pipe", sys.stdin.fileno(), "pipe")]
    if argument.startswith(_CAMERA):
        number = argument.removeprefix(_CAMERA)
        if not (number.isascii() and number.isdigit() and int(number) <= _LARGEST_CAMERA):
            raise UserError(f"{argument}: expected the number of a camera, such as {_CAMERA}0")
        return [Input("camera", int(number), f"camera_{number}")]
    path = Path(argument)
    if path.is_dir():
        found = [_of_file(p, p.relative_to(path)) for p in sorted(path.rglob("*")) if _kind(p)]
        if not found:
            raise UserError(
                f"{argument}: a folder with no image and no video in it ({_what_is_in(path)}); name another one"
            )
        return _distinct(found)
    if path.exists():
        return [_of_file(path, Path(path.name))]
    if glob.has_magic(argument):
        paths = sorted(Path(p) for p in glob.glob(argument, recursive=True))
        base = Path(*_before_magic(path))
        found = [_of_file(p, _below(p, base)) for p in paths if _kind(p)]
        if found:
            return _distinct(found)
        raise UserError(f"{argument}: no image and no video has such a name")
    raise UserError(f"{argument}: does not exist; expected an image, a folder, a pattern, a video or {_CAMERA}0")


def _what_is_in(folder: Path) -> str:
    """What a folder holds instead of images, for messages."""
    first = next((path for path in sorted(folder.rglob("*")) if path.is_file()), None)
    if first is None:
        return "it is empty"
    what = name_file(first)
    return f"{first.name} is {what or 'no image'}"


def _below(path: Path, base: Path) -> Path:
    """A path relative to a folder; only its last part where it leads out of the folder."""
    relative = Path(os.path.normpath(path.relative_to(base)))
    return Path(path.name) if ".." in relative.parts else relative


def _before_magic(path: Path) -> Iterator[str]:
    for part in path.parts[:-1]:
        if glob.has_magic(part):
            return
        yield part


def _kind(path: Path) -> Literal["image", "video"] | None:
    suffix = path.suffix.lower()
    if not path.is_file():
        return None
    return "image" if suffix in IMAGE_SUFFIXES else "video" if suffix in VIDEO_SUFFIXES else None


def _of_file(path: Path, name: Path) -> Input:
    return Input(_kind(path) or "image", path, PurePosixPath(name.with_suffix("")).as_posix())


def _distinct(inputs: list[Input]) -> list[Input]:
    """Adds the suffix to names that are not distinct, as of ``a.jpg`` beside ``a.png``."""
    count: dict[str, int] = {}
    for one in inputs:
        count[one.name] = count.get(one.name, 0) + 1
    return [
        one if count[one.name] == 1 else Input(one.kind, one.source, f"{one.name}{Path(str(one.source)).suffix}")
        for one in inputs
    ]


def is_one_image(inputs: Sequence[Input], argument: str) -> bool:
    """Whether an argument is the name of one image file, and no folder, pattern or video."""
    return len(inputs) == 1 and inputs[0].kind == "image" and Path(argument).is_file()


def frame_name(one: Input, index: int) -> str:
    """Name of the results of a frame."""
    return f"{one.name}/{index:06d}"


def read_inputs(inputs: Sequence[Input]) -> Iterator[tuple[str, np.ndarray]]:
    """The images, and the frames of the videos and cameras, one after the other.

    An input, or a frame, that cannot be read is skipped with a warning unless it is the only input.

    Args:
        inputs: from `find_inputs`.

    Returns:
        Names of results, and ``(H, W, 3)`` uint8 RGB.
    """
    for one in inputs:
        try:
            if one.kind == "image":
                assert isinstance(one.source, Path)
                yield one.name, read_image(one.source)
            else:
                yield from _read_frames(one)
        except UserError as error:
            if len(inputs) == 1:
                raise
            get_logger().warning("skipped: %s", error)


def _read_frames(one: Input) -> Iterator[tuple[str, np.ndarray]]:
    reader = FrameReader(one)
    try:
        for index, frame in enumerate(reader):
            if frame is None:
                get_logger().warning("skipped: %s: frame %d cannot be decoded", one, index)
            else:
                yield frame_name(one, index), frame
    finally:
        reader.close()


class FrameReader:
    """The frames of a video, a camera or a pipe.

    Args:
        one: input of kind ``video``, ``camera`` or ``pipe``.

    Attributes:
        rate: frames per second.
        num_frames: number of frames by the file's header; 0 if unknown.

    Raises:
        UserError: the input cannot be opened.
    """

    def __init__(self, one: Input):
        self._source: _Camera | _Stream = _Camera(one) if one.kind == "camera" else _Stream(one)
        rate = self._source.rate
        self.rate = rate if 0 < rate < 1000 else _DEFAULT_RATE
        self.num_frames = self._source.num_frames

    def __iter__(self) -> Iterator[np.ndarray | None]:
        """``(H, W, 3)`` uint8 RGB, turned as players show it; None for a frame that cannot be decoded."""
        return self._source.frames()

    def close(self) -> None:
        """Releases the file or the camera."""
        self._source.close()


class _Camera:
    """A camera, opened by OpenCV: FFmpeg, and so PyAV, has no numbers for the cameras of Windows."""

    num_frames = 0

    def __init__(self, one: Input):
        self._capture = cv2.VideoCapture(int(str(one.source)))
        if not self._capture.isOpened():
            raise UserError(f"{one}: cannot be opened as a video")
        self.rate = self._capture.get(cv2.CAP_PROP_FPS)

    def frames(self) -> Iterator[np.ndarray]:
        while True:
            is_read, frame = self._capture.read()
            if not is_read:
                return
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)

    def close(self) -> None:
        self._capture.release()


class _Stream:
    """A video file or a pipe, decoded by PyAV."""

    def __init__(self, one: Input):
        av = pyav(str(one))
        self._error = av.error.FFmpegError
        try:
            self._file = FileIO(os.dup(one.source) if isinstance(one.source, int) else one.source)
        except OSError as error:
            raise UserError(f"{one}: cannot be opened ({error.strerror})") from error
        try:
            self._container = av.open(self._file)
            self._stream = self._container.streams.video[0]
        except (self._error, IndexError) as error:
            self._file.close()
            what = name_file(one.source) if isinstance(one.source, Path) else ""
            raise UserError(f"{one}: {_UNREADABLE[one.kind]}{f' ({what})' if what else ''}") from error
        self._stream.thread_type = "AUTO"
        self.rate = float(self._stream.average_rate or 0)
        length_s = (self._container.duration or 0) / av.time_base
        self.num_frames = 0 if one.kind == "pipe" else self._stream.frames or round(length_s * self.rate)

    def frames(self) -> Iterator[np.ndarray | None]:
        packets = self._container.demux(self._stream)
        index = 0
        with suppress(self._error):  # a stream that ends within a packet
            for packet in packets:
                try:
                    frames = packet.decode()
                except self._error:
                    frames = [None]
                for frame in frames:
                    yield None if frame is None else _upright(frame)
                index += len(frames)
        for _ in range(min(self.num_frames - index, _MAX_MISSING)):  # of a file that was cut off
            yield None

    def close(self) -> None:
        self._container.close()
        self._file.close()


def _upright(frame: Any) -> np.ndarray:
    """A frame of PyAV as ``(H, W, 3)`` uint8 RGB, turned by its display matrix."""
    pixels = frame.to_ndarray(format="rgb24")
    matrix = next((bytes(data) for data in frame.side_data if data.type.name == "DISPLAYMATRIX"), None)
    if matrix is None:
        return pixels
    to_x, to_y = np.frombuffer(matrix, np.int32)[:2]  # where the frame's x axis points, y downwards
    return np.ascontiguousarray(np.rot90(pixels, -round(math.atan2(to_y, to_x) / (math.pi / 2))))
