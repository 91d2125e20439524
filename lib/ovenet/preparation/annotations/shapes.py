"""The results of reading annotations: images with their shapes, and remarks."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ovenet.data.schema import is_text
from ovenet.errors import UserError
from ovenet.preparation.annotations.spans import join, polygon_spans, resize
from ovenet.structures import Size

IGNORED = "__ignore__"  # labelme's name for pixels of no class
BACKGROUND = "_background_"  # labelme's name for pixels that no shape covers
_MAX_NAMED = 3


@dataclass(frozen=True)
class Shape:
    """An area of one class, in pixels of the size in its file.

    Attributes:
        name: of the class.
        where: the shape, for messages.
        rings: polygons ``(N, 2)`` of finite ``(x, y)``; the shape is their union.
        spans: pixels instead of polygons, see `spans`; None for polygons.
    """

    name: str
    where: str
    rings: Sequence[np.ndarray] = ()
    spans: np.ndarray | None = None

    def draw(self, named: Size, size: Size) -> np.ndarray:
        """Its spans in an image.

        Args:
            named: the size to which its coordinates refer.
            size: of the image, which was resized where it differs.
        """
        if self.spans is not None:
            return self.spans if named == size else resize(self.spans, named, size)
        scale = np.divide(size, named)[::-1]
        return join([polygon_spans(ring * scale, size) for ring in self.rings])

    def leaves(self, named: Size) -> bool:
        """Whether it reaches more than a pixel beyond the image."""
        return any((ring < -1).any() or (ring > np.array(named[::-1]) + 1).any() for ring in self.rings)


@dataclass(frozen=True)
class Annotated:
    """An image and its shapes, from bottom to top.

    Attributes:
        image: the file; its name where the image is embedded.
        name: relative to the dataset, without suffix.
        where: its name in the annotations, for messages.
        named: ``(H, W)`` in the annotations; None where they have no size.
        shapes: drawn in this order.
        embedded_in: the file of labelme in which the image is embedded; None where `image` is a file.
    """

    image: Path
    name: str
    where: str
    named: Size | None
    shapes: list[Shape]
    embedded_in: Path | None = None


@dataclass
class Remarks:
    """Remarks for the user, by kind: their number, and the first examples."""

    found: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, kind: str, where: str) -> None:
        """Adds a remark of a kind."""
        self.found[kind].append(where)

    def lines(self) -> list[str]:
        """One line for each kind."""
        examples = {
            kind: ", ".join([*places[:_MAX_NAMED], *["…"] * (len(places) > _MAX_NAMED)])
            for kind, places in self.found.items()
        }
        return [f"{kind}: {len(self.found[kind])} ({some})" for kind, some in examples.items()]


def class_name(value: Any, what: str) -> str:
    """The name of a class in annotations, without spaces around it.

    Raises:
        UserError: it is no string, empty, or has several lines.
    """
    name = str(value).strip() if isinstance(value, (str, int)) and not isinstance(value, bool) else ""
    if not name or not is_text(name):
        raise UserError(f"the {what} is {value!r}; expected the name of a class, on one line")
    return name


def points_of(values: Any) -> np.ndarray:
    """Points ``(N, 2)`` from a list of pairs.

    Raises:
        UserError: they are no pairs of finite numbers.
    """
    try:
        points = np.array(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise UserError("its points are no pairs of numbers; draw it again, or remove it") from None
    if points.size == 0:
        return np.zeros((0, 2))
    if points.ndim != 2 or points.shape[1] != 2:
        raise UserError("its points are no pairs of numbers; draw it again, or remove it")
    if not np.isfinite(points).all():
        raise UserError("a point is no finite number (NaN or infinity); draw it again, or remove it")
    return points


def named_size(height: Any, width: Any, what: str) -> Size | None:
    """The size ``(H, W)`` in annotations; None where they have no size.

    Raises:
        UserError: a side is no number of pixels.
    """
    if height is None and width is None:
        return None
    for side in (height, width):
        if not (isinstance(side, (int, float)) and not isinstance(side, bool) and side >= 1 and side == side // 1):
            raise UserError(f"{what}: its size is named {width!r} x {height!r}; expected integers of pixels")
    return int(height), int(width)


def read_json(path: Path) -> dict[str, Any]:
    """The content of a JSON file.

    Raises:
        UserError: it cannot be read, or is no table.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}, line {error.lineno}, column {error.colno}: cannot be read as JSON ({error.msg}); export it again"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({type(error).__name__}); export it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected {{...}}, got a {type(content).__name__}")
    return content
