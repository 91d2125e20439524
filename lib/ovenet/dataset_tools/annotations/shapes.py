"""What readers of annotations give: images with their shapes, and what there is to say about them."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ovenet.data.schema import is_text
from ovenet.dataset_tools.annotations.spans import Size, join, polygon_spans, resize
from ovenet.errors import UserError

IGNORED = "__ignore__"  # labelme's names for pixels that belong to no class, and for those that no shape covers
BACKGROUND = "_background_"
_MAX_NAMED = 3


@dataclass(frozen=True)
class Shape:
    """An area of one class, in pixels of the size that its file names.

    Attributes:
        name: of the class.
        where: which shape it is, for messages.
        rings: polygons ``(N, 2)`` of finite ``(x, y)``, whose areas are joined.
        spans: pixels instead of polygons, see `spans`; None for those.
    """

    name: str
    where: str
    rings: Sequence[np.ndarray] = ()
    spans: np.ndarray | None = None

    def draw(self, named: Size, size: Size) -> np.ndarray:
        """Its spans in an image.

        Args:
            named: the size that its coordinates are of.
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
    """An image and its shapes, those below first.

    Attributes:
        image: the file; where there is none, its name.
        name: relative to the dataset, without suffix.
        where: its name in the file of annotations, for messages.
        named: ``(H, W)`` that the annotations name; None where they name none.
        shapes: drawn in this order.
        embedded_in: the file of labelme that holds the image itself; None where `image` is a file.
    """

    image: Path
    name: str
    where: str
    named: Size | None
    shapes: list[Shape]
    embedded_in: Path | None = None


@dataclass
class Remarks:
    """What a user should know, by kind: how often, and the first examples."""

    found: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, kind: str, where: str) -> None:
        """Notes one more of a kind."""
        self.found[kind].append(where)

    def add_all(self, kind: str, places: Sequence[str]) -> None:
        """Notes several of a kind."""
        self.found[kind] += places

    def lines(self) -> list[str]:
        """One for each kind."""
        return [f"{kind}: {len(places)} ({name_first(places)})" for kind, places in self.found.items()]


def name_first(names: Sequence[str]) -> str:
    """The first few of them, and that there are more."""
    return ", ".join(names[:_MAX_NAMED]) + (", …" if len(names) > _MAX_NAMED else "")


def class_name(value: Any, what: str) -> str:
    """The name of a class from a file of annotations; spaces around it do not count.

    Raises:
        UserError: it is no text, empty, or has several lines.
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
    """The size that annotations name; None where they name none.

    Raises:
        UserError: a side is no number of pixels.
    """
    if height is None and width is None:
        return None
    for side in (height, width):
        if not (isinstance(side, (int, float)) and not isinstance(side, bool) and side >= 1 and side == side // 1):
            raise UserError(f"{what}: its size is named {width!r} x {height!r}; expected whole numbers of pixels")
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
