"""A page with only the viewer, for images without labels: in `ovenet infer` and `ovenet app`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ovenet.report.gallery import MAX_BYTES, MAX_IMAGES
from ovenet.report.template import colours, in_script, page_template
from ovenet.structures import SYMBOLS
from ovenet.utils.writing import write_text


@dataclass(frozen=True)
class AppSettings:
    """Settings of a page that requests its images from a server.

    Attributes:
        models: names of the models to choose from.
        runtimes: names of the runtimes to choose from.
        model, runtime: the current choice.
        max_mb: largest upload, in 10^6 bytes.
        downloads: forms of `SegResult.save` that the server answers, and their names on the page.
    """

    models: tuple[str, ...]
    runtimes: tuple[str, ...]
    model: str
    runtime: str
    max_mb: float
    downloads: tuple[tuple[str, str], ...]


class GalleryPage:
    """A page with only the viewer, for images without labels.

    Args:
        title: title of the page.
        facts: a line about the model.
        class_names: ``K`` names.
        palette: ``K`` colours ``(R, G, B)``.
        max_offset: see `Segmentor.max_offset`.
    """

    def __init__(
        self,
        title: str,
        facts: str,
        class_names: Sequence[str],
        palette: Sequence[Sequence[int]],
        max_offset: float | None,
    ):
        self._title, self._facts, self._max_offset = title, facts, max_offset
        self._classes = class_names, palette
        self._images: list[dict[str, Any]] = []
        self._pictures: list[tuple[str, str]] = []
        self._num_bytes = self._num_given = 0

    def add(self, name: str, data: Mapping[str, Any]) -> None:
        """Adds an image's `picture_data`, if the page has room for it."""
        self._num_given += 1
        text = in_script(data)
        if len(self._images) < MAX_IMAGES and self._num_bytes + len(text) < MAX_BYTES:
            index = len(self._images)
            self._num_bytes += len(text)
            self._images.append({"index": index, "name": name, "changed": None, "scores": [{}]})
            self._pictures.append((f"picture-0-{index}", text))

    def write(self, path: Path, *, command: str = "") -> None:
        """Writes the page; `command` is shown at its foot.

        Raises:
            OSError: the file cannot be written.
        """
        write_text(path, self.render(command=command))

    def render(self, *, command: str = "", app: AppSettings | None = None) -> str:
        """The page as HTML, for a server if `app` is given."""
        predictions = ["fused"] if self._max_offset is None else list(SYMBOLS)
        run = {"name": self._title, "predictions": predictions, "has_seed": self._max_offset is not None, "fields": []}
        longest = self._max_offset or 1.0
        data = {
            **colours(*self._classes, longest),
            "is_labelled": False,
            "runs": [{**run, "max_offset": longest}],
            "images": self._images,
            "app": None if app is None else asdict(app),
        }
        context = {
            "title": self._title,
            "runs": [{"name": self._title, "facts": self._facts, "columns": []}],
            "has_seed": run["has_seed"],
            "sections": [],
            "command": command,
            "page_data": in_script(data),
            "pictures": self._pictures,
            "num_pictures": len(self._images),
            "note": "" if app else f"{len(self._images)} of {self._num_given} images are shown.",
            "app": app,
        }
        return page_template().render(context)
