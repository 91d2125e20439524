"""Result files of images and frames that are predicted without labels."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from ovenet.data.files import is_utf8
from ovenet.data.info import DatasetInfo
from ovenet.inference.inferencer import Prediction
from ovenet.inference.pictures import colorize_offset, draw_legend, save_color_png, save_png
from ovenet.inference.video import pyav
from ovenet.utils.writing import write_bytes, write_file, write_text

KINDS = ("ids", "color", "overlay", "offset", "confidence", "shares")
PROBABILITY = "probability"  # of the predicted class; written where asked for
SHARES, LEGEND = "class_shares.csv", "legend.png"
_LEGEND_WIDTH = 480
SEED_KINDS = ("offset", "confidence")
_OPACITY = 0.55
_BAND_ROWS = 512


class ResultWriter:
    """Writes ``<folder>/<kind>/<name>.png``, offsets also as ``.npy``, a table of class shares and a legend.

    Args:
        folder: folder of all results.
        info: classes of the dataset.
        max_offset: longest offset per axis, drawn in full colour; None for a baseline.
        kinds: kinds to write, from `KINDS` and `PROBABILITY`.
    """

    def __init__(self, folder: Path, info: DatasetInfo, max_offset: float | None, kinds: Collection[str]):
        self.folder = folder
        self.info = info
        self.max_offset = max_offset
        self.kinds = kinds
        self._shares: list[list[str]] = []

    def write(self, name: str, image: np.ndarray, prediction: Prediction) -> None:
        """Writes one image's results.

        Args:
            name: a path without suffix.
            image: ``(H, W, 3)`` uint8 RGB; overwritten where an overlay is written.
            prediction: with ``fused`` labels, and with offset, confidence and probability where they are written.

        Raises:
            OSError: the file system refuses.
        """
        labels = prediction.labels["fused"].cpu().numpy()
        self.note_shares(name, labels)
        if "ids" in self.kinds:
            save_png(self.info.label_id_table()[labels], self._path("ids", name))
        if "color" in self.kinds:
            save_color_png(labels, self._path("color", name), self.info)
        if prediction.offset is not None and prediction.confidence is not None:
            self._write_seeds(name, labels.shape, prediction.offset, prediction.confidence)
        if PROBABILITY in self.kinds:
            grey = prediction.probability["fused"].mul(255).round().clamp_(0, 255).to(torch.uint8).cpu().numpy()
            save_png(grey, self._path(PROBABILITY, name))
        if "overlay" in self.kinds:
            write_image(draw_overlay(image, labels, self.info), self._path("overlay", name))

    def note_shares(self, name: str, labels: np.ndarray) -> None:
        """Keeps the share of each class of train ids ``(H, W)`` for `finish`."""
        if "shares" in self.kinds:
            counts = np.bincount(labels.ravel(), minlength=len(self.info.class_names))
            self._shares.append([name, *(f"{count / labels.size:.6f}" for count in counts)])

    def finish(self) -> None:
        """Writes the table of shares, a line for each image or frame and a column for each class, and the legend.

        Raises:
            OSError: the file system refuses.
        """
        if not {"color", "overlay"}.isdisjoint(self.kinds):
            entries = list(zip(self.info.class_names, self.info.palette, strict=True))
            write_file(self.folder / LEGEND, draw_legend(entries, _LEGEND_WIDTH).save)
        if self._shares:
            text = io.StringIO()
            csv.writer(text).writerows([["name", *self.info.class_names], *self._shares])
            write_text(self.folder / SHARES, text.getvalue())

    def paths(self, name: str) -> list[Path]:
        """All files that `write` and `finish` can write for a name."""
        seeds = [self._path("offset", name).with_suffix(".npy")] if "offset" in self.kinds else []
        shares = [self.folder / file for file in (SHARES, LEGEND)]
        return [self._path(kind, name) for kind in self.kinds if kind != "shares"] + seeds + shares

    def _write_seeds(self, name: str, size: tuple[int, ...], offset: Tensor, confidence: Tensor) -> None:
        if "offset" in self.kinds:
            save_png(self._wheel_picture(offset), self._path("offset", name))
            spans = torch.tensor([(n - 1) / 2 for n in reversed(size)]).view(2, 1, 1)
            pixels = (offset.cpu() * spans).numpy()
            write_file(self._path("offset", name).with_suffix(".npy"), lambda path: np.save(path, pixels))
        if "confidence" in self.kinds:
            grey = confidence[0].mul(255).round().to(torch.uint8).cpu().numpy()
            save_png(grey, self._path("confidence", name))

    def _wheel_picture(self, offset: Tensor) -> np.ndarray:
        """``(H, W, 3)`` uint8; in bands, since colouring takes some ninety bytes a pixel."""
        assert self.max_offset is not None  # a model that gives offsets has one
        bands = offset.cpu().split(_BAND_ROWS, dim=1)
        return np.concatenate([colorize_offset(band, self.max_offset).permute(1, 2, 0).numpy() for band in bands])

    def _path(self, kind: str, name: str) -> Path:
        return self.folder / kind / f"{name}.png"


def draw_overlay(image: np.ndarray, labels: np.ndarray, info: DatasetInfo) -> np.ndarray:
    """Draws the classes' colours over an image ``(H, W, 3)`` uint8, in its own memory, and returns it."""
    palette = np.array(info.palette, dtype=np.uint8)
    for top in range(0, len(image), _BAND_ROWS):
        band = image[top : top + _BAND_ROWS]
        band[:] = cv2.addWeighted(band, 1 - _OPACITY, palette[labels[top : top + _BAND_ROWS]], _OPACITY, 0)
    return image


def write_image(image: np.ndarray, path: Path) -> None:
    """Writes ``(H, W, 3)`` uint8 RGB as a PNG without a copy of it: its channels are swapped in place.

    Raises:
        OSError: the file system refuses.
    """
    for top in range(0, len(image), _BAND_ROWS):
        image[top : top + _BAND_ROWS] = image[top : top + _BAND_ROWS, :, ::-1].copy()
    is_done, encoded = cv2.imencode(".png", image)
    if not is_done:
        raise OSError(f"cannot write {path}: OpenCV cannot encode the image")
    write_bytes(path, encoded.data)  # OpenCV itself crashes at names that are not UTF-8


class FrameWriter:
    """An mp4 video in H.264, which browsers play, opened by its first frame and renamed when complete.

    Args:
        path: path of the file.
        rate: frames per second.

    Attributes:
        num_frames: number of frames written.

    Raises:
        UserError: PyAV is missing.
    """

    def __init__(self, path: Path, rate: float):
        self.path = path
        self._av = pyav(str(path))
        self.rate = Fraction(rate).limit_denominator(1001)
        self._unfinished = path.with_name(f".{path.stem}.unfinished{path.suffix}")
        self._container: Any = None  # PyAV's
        self.num_frames = 0

    def write(self, frame: np.ndarray) -> None:
        """Appends ``(H, W, 3)`` uint8 RGB of the first frame's size; odd sides are padded to even ones.

        Raises:
            OSError: the file cannot be written.
        """
        height, width = frame.shape[:2]
        frame = cv2.copyMakeBorder(frame, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
        if self._container is None:
            self._open(frame.shape[:2])
        with self._one_line_errors():
            self._container.mux(self._stream.encode(self._av.VideoFrame.from_ndarray(frame, "rgb24")))
        self.num_frames += 1

    def _open(self, size: tuple[int, int]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not is_utf8(self.path):
            raise OSError(f"cannot write {str(self.path)!r}: FFmpeg takes only names in UTF-8; rename the video")
        with self._one_line_errors():
            self._container = self._av.open(str(self._unfinished), "w", options={"movflags": "faststart"})
            self._stream = self._container.add_stream("libx264", self.rate, options={"crf": "20"})
            self._stream.height, self._stream.width = size
            self._stream.pix_fmt = "yuv420p"  # a pixel format that all browsers play

    @contextmanager
    def _one_line_errors(self) -> Iterator[None]:
        """Adds the file's name to the errors of FFmpeg."""
        try:
            yield
        except (self._av.error.FFmpegError, OSError) as error:
            raise OSError(f"cannot write {self.path}: {error.strerror or error}") from error

    def close(self) -> None:
        """Finishes the file, and checks that it holds all frames, which it does not on a full disk.

        Raises:
            OSError: frames are missing; no file is left.
        """
        if self._container is None:
            return
        container, self._container = self._container, None
        try:
            with self._one_line_errors():
                container.mux(self._stream.encode())
                container.close()
            num_frames = self._num_readable_frames()
            if num_frames < self.num_frames:
                raise OSError(
                    f"cannot write {self.path}: {num_frames} of {self.num_frames} frames are in the file; is the disk "
                    "full?"
                )
            self._unfinished.replace(self.path)
        finally:
            self._unfinished.unlink(missing_ok=True)

    def _num_readable_frames(self) -> int:
        """Number of frames by the file's header; 0 if the first cannot be decoded."""
        try:
            with self._av.open(str(self._unfinished)) as container:
                stream = container.streams.video[0]
                return stream.frames if next(container.decode(stream), None) is not None else 0
        except (self._av.error.FFmpegError, IndexError):
            return 0
