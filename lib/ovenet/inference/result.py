"""The result of one image: mask, overlay, polygons, and files of them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from ovenet.data.info import DatasetInfo
from ovenet.errors import UserError
from ovenet.inference.images import as_viewed
from ovenet.inference.outputs import draw_overlay
from ovenet.inference.pictures import draw_legend, save_color_png
from ovenet.utils.logging import get_logger
from ovenet.utils.writing import write_bytes, write_text

FORMS = ("mask", "overlay", "geojson", "coco")
_SUFFIXES = {".png": "mask", ".geojson": "geojson", ".json": "coco"}
_MIN_AREA = 16  # pixels of a polygon
_MAX_NAMED = 4


@dataclass(frozen=True)
class SegResult:
    """The prediction of one image.

    ``numpy.asarray(result)`` is its mask; a notebook shows its overlay.

    Attributes:
        image: ``(H, W, C)`` uint8, mostly RGB, as it was predicted.
        mask: ``(H, W)`` train ids, uint8 for up to 256 classes: indices into ``info.class_names``.
        info: names, colours and label ids of the classes.
        confidence: ``(H, W)`` float32 in ``[0, 1]``, the weight of the seed's scores; None for a model without a seed.
        seed: ``(H, W, 2)`` float32, the ``(x, y)`` in pixels of each pixel's seed; None for a model without a seed.
        scores: ``(K, H, W)`` float32 probabilities of the fused prediction; None if not requested.
        probability: ``(H, W)`` float32 of the predicted class; None if not requested.
        name: of the image among several: its path in the folder without suffix, and the frame of a video; else "".
    """

    image: np.ndarray
    mask: np.ndarray
    info: DatasetInfo
    confidence: np.ndarray | None = None
    seed: np.ndarray | None = None
    scores: np.ndarray | None = None
    probability: np.ndarray | None = None
    name: str = ""

    @property
    def shape(self) -> tuple[int, int]:
        """``(H, W)``."""
        return self.mask.shape

    @cached_property
    def class_share(self) -> dict[str, float]:
        """Share of the pixels by class name, largest first; classes that do not occur are left out."""
        counts = np.bincount(self.mask.ravel(), minlength=len(self.info.class_names))
        order = [k for k in np.argsort(-counts, kind="stable") if counts[k]]
        return {self.info.class_names[k]: float(counts[k] / self.mask.size) for k in order}

    def overlay(self, *, legend: bool = True) -> Image.Image:
        """The image under the colours of its classes.

        Args:
            legend: list the classes that occur below the picture.
        """
        picture = Image.fromarray(draw_overlay(as_viewed(self.image).copy(), self.mask, self.info))
        return _with_legend(picture, self) if legend else picture

    def show(self, *, legend: bool = True) -> None:
        """Shows the overlay: in the notebook where it runs in one, else in the system's viewer.

        Without a display it warns.

        Args:
            legend: see `overlay`.
        """
        picture = self.overlay(legend=legend)
        shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
        if shell is not None and shell.has_trait("kernel"):
            sys.modules["IPython"].display.display(picture)
        elif sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
            get_logger().warning('there is no display; save the picture instead: result.save("overlay.png", "overlay")')
        else:
            picture.show()

    def polygons(self, *, min_area: float = _MIN_AREA, tolerance: float = 1.0) -> list[dict[str, Any]]:
        """Outlines of the connected areas of each class.

        Args:
            min_area: smallest area in pixels; smaller ones are left out.
            tolerance: largest distance in pixels by which simplification may move a line.

        Returns:
            For each: ``class_name``, ``train_id``, ``area`` in pixels, and ``rings``, lists of ``[x, y]`` corners of
            pixels, the outline first and then its holes.
        """
        found = []
        for train_id in np.unique(self.mask):
            name = self.info.class_names[train_id]
            for outline, *holes in _outlines(self.mask == train_id):
                area = _area(outline) - sum(map(_area, holes))
                if area >= min_area:
                    rings = [_simplify(ring, tolerance) for ring in (outline, *holes)]
                    found.append({"class_name": name, "train_id": int(train_id), "area": int(area), "rings": rings})
        return found

    def save(self, path: str | Path, form: str | None = None) -> Path:
        """Writes the prediction, replacing an existing file.

        Args:
            path: path of the file.
            form: ``mask`` (PNG of train ids with the classes' colours), ``overlay`` (PNG with a legend), ``geojson``
                (polygons in pixels) or ``coco`` (COCO's uncompressed run lengths); None derives it from the suffix:
                ``.png`` mask, ``.geojson``, ``.json`` COCO.

        Raises:
            UserError: unknown form or suffix.
            OSError: the file system refuses.
        """
        path = Path(path)
        form = form or _SUFFIXES.get(path.suffix.lower())
        if form not in FORMS:
            raise UserError(f"{path}: cannot tell what to write; name it {', '.join(_SUFFIXES)}, or set form={FORMS}")
        if form == "mask":
            save_color_png(self.mask, path, self.info)
        elif form == "overlay":
            write_bytes(path, self._png())
        else:
            content = self.as_geojson() if form == "geojson" else self.as_coco(path.stem)
            write_text(path, json.dumps(content))
        return path

    def as_geojson(self) -> dict[str, Any]:
        """A FeatureCollection of `polygons`; coordinates are pixels, y downwards."""
        features = [
            {
                "type": "Feature",
                "properties": {key: one[key] for key in ("class_name", "train_id", "area")},
                "geometry": {"type": "Polygon", "coordinates": [[*ring, ring[0]] for ring in one["rings"]]},
            }
            for one in self.polygons()
        ]
        return {"type": "FeatureCollection", "features": features}

    def as_coco(self, file_name: str = "image") -> dict[str, Any]:
        """One annotation for each class, as COCO's panoptic and stuff tools read them."""
        height, width = self.shape
        annotations: list[dict[str, Any]] = []
        for train_id in np.unique(self.mask):
            is_class = self.mask == train_id
            rows, columns = (np.flatnonzero(is_class.any(axis=axis)) for axis in (1, 0))
            box = [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": 1,
                    "category_id": int(train_id) + 1,
                    "iscrowd": 1,
                    "area": int(is_class.sum()),
                    "bbox": [int(n) for n in box],
                    "segmentation": {"size": [height, width], "counts": run_lengths(is_class)},
                }
            )
        return {
            "images": [{"id": 1, "file_name": file_name, "height": height, "width": width}],
            "categories": [{"id": k + 1, "name": name} for k, name in enumerate(self.info.class_names)],
            "annotations": annotations,
        }

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.mask, dtype=dtype, copy=True if copy is None else copy)

    def __repr__(self) -> str:
        shares = [f"{name} {100 * share:.0f} %" for name, share in self.class_share.items()]
        more = f" and {len(shares) - _MAX_NAMED} more" if len(shares) > _MAX_NAMED else ""
        return f"SegResult({self.shape[1]}x{self.shape[0]}: {', '.join(shares[:_MAX_NAMED])}{more})"

    def _repr_png_(self) -> bytes:
        return self._png()

    def _png(self) -> bytes:
        buffer = BytesIO()
        self.overlay().save(buffer, "PNG")
        return buffer.getvalue()


def run_lengths(mask: np.ndarray) -> list[int]:
    """COCO's run lengths of a ``(H, W)`` bool mask, column by column: number of False, True, False, …"""
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    lengths = np.diff(np.concatenate(([0], changes, [flat.size]))).tolist()
    return [0, *lengths] if flat[0] else lengths


def _outlines(is_class: np.ndarray) -> Iterator[list[np.ndarray]]:
    """Each connected area's outline and its holes, ``(N, 2)`` corners ``(x, y)`` of pixels.

    OpenCV's contours go through the centres of the area's pixels, also around holes. In a mask of twice the size each
    such centre lies next to a corner of a pixel.
    """
    doubled = is_class.astype(np.uint8).repeat(2, axis=0).repeat(2, axis=1)
    contours, hierarchy = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    rings = [_without_repeats((contour[:, 0] + 1) // 2) for contour in contours]
    for index, (_, _, child, parent) in enumerate(hierarchy[0]):
        if parent < 0:
            area = [rings[index]]
            while child >= 0:
                area.append(rings[child])
                child = hierarchy[0][child][0]
            yield area


def _without_repeats(ring: np.ndarray) -> np.ndarray:
    return ring[(ring != np.roll(ring, 1, axis=0)).any(axis=1)]


def _area(ring: np.ndarray) -> float:
    return cv2.contourArea(ring.astype(np.float32))


def _simplify(ring: np.ndarray, tolerance: float) -> list[list[int]]:
    """The ring with fewer corners, unless no area would be left."""
    simple = cv2.approxPolyDP(ring.astype(np.int32), tolerance, closed=True)[:, 0]
    return (simple if len(simple) >= 3 else ring).tolist()


def _with_legend(picture: Image.Image, result: SegResult) -> Image.Image:
    """The picture above a legend of the classes that occur."""
    colors = dict(zip(result.info.class_names, result.info.palette, strict=True))
    entries = [(f"{name}  {100 * share:.1f} %", colors[name]) for name, share in result.class_share.items()]
    legend = draw_legend(entries, picture.width)
    canvas = Image.new("RGB", (legend.width, picture.height + legend.height), "white")
    canvas.paste(picture)
    canvas.paste(legend, (0, picture.height))
    return canvas
