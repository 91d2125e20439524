"""Drafts a description of a folder of images and masks from the masks' values, and an experiment to start with."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ovenet.data.description import blank_description, voc_color
from ovenet.data.files import read_size
from ovenet.data.info import Color, DatasetInfo
from ovenet.data.keys import MAX_CLASSES
from ovenet.data.labels import LabelDecoder
from ovenet.errors import UserError, first_of
from ovenet.preparation.backbones import FoundBackbone, find_backbone
from ovenet.preparation.layouts import collect_pairs, find_layout
from ovenet.preparation.mask_values import (
    TRANSPARENT,
    Classes,
    FileValues,
    Value,
    describe,
    find_classes,
    read_all_values,
    unify,
)
from ovenet.preparation.recipe import SEED, SEED_LOSS, Photos, recipe, usual_schedule
from ovenet.preparation.recipe import write_experiment as write_recipe
from ovenet.preparation.recognition import recognize_layouts
from ovenet.structures import Size
from ovenet.utils.writing import write_text

_IGNORED = (255, (255, 255, 255))  # the usual id and colour of pixels without a label
_VAL_SHARE = 0.2
_MAX_NAMED = 12


@dataclass(frozen=True)
class Draft:
    """The values in the masks of a folder.

    Attributes:
        shares: share of the pixels of each id or colour that may be a class, in decreasing order.
        num_masks: number of masks whose pixels were read.
        num_labels: number of masks in the folder.
        size: width and height of most images.
        colors: colours of ids in the palettes of the masks, where these agree.
        reads_palettes: masks with one channel are read by their colours, since their ids have different meanings.
        snapped: share of the pixels changed by smoothing or JPEG, by the masks' names.
        doubtful: ids and colours in `shares` that may be smoothed edges.
        edges: share of the pixels of each id and colour that is a smoothed edge and no class.
        problems: messages about masks that training cannot read.
        layouts: as in ``dataset.json``.
        ignored: ids and colours that the user has named as no class.
    """

    shares: dict[Value, float]
    num_masks: int
    num_labels: int
    size: Size
    colors: dict[Value, Color]
    reads_palettes: bool
    snapped: dict[str, float]
    doubtful: tuple[Value, ...]
    edges: dict[Value, float]
    problems: tuple[str, ...]
    layouts: Mapping[str, Any] | Sequence[Mapping[str, Any]]
    ignored: frozenset[Value] = frozenset()

    @property
    def classes(self) -> list[dict[str, Any]]:
        """As in ``dataset.json``: in the order of ids, or of shares where masks are colours."""
        values = [value for value in self.shares if not self.is_ignored(value)]
        ids = sorted(value for value in values if isinstance(value, int))
        if len(ids) == len(values):
            colors = ({"color": list(self.colors[i])} if i in self.colors else {} for i in ids)
            return [{"name": f"class {i}", "id": i, **color} for i, color in zip(ids, colors, strict=True)]
        return [
            {"name": TRANSPARENT, "color": list(_unused_color(self.shares))}
            if value == TRANSPARENT
            else {"name": f"class {index}", "color": _as_json(value)}
            for index, value in enumerate(values)
        ]

    @property
    def ignore(self) -> list[Any]:
        """Ids and colours that are probably no class, as in ``dataset.json``."""
        return [_as_json(value) for value in self.shares if self.is_ignored(value)]

    @property
    def keys(self) -> dict[str, Any]:
        """The other keys of a ``dataset.json`` with which these masks are found and read in the same way."""
        return {
            **({"label_format": "colors"} if self.reads_palettes else {}),
            **({"transparent": TRANSPARENT} if TRANSPARENT in self.shares else {}),
            **({"snap": True} if self.snapped else {}),
            "layouts": self.layouts,
        }

    @property
    def remarks(self) -> list[str]:
        """Remarks for the user, one line each."""
        lines = []
        if self.reads_palettes:
            lines.append(
                "palettes differ from mask to mask, or some masks are indices and some colours; so all are read by "
                'their colours: "label_format": "colors"'
            )
        if TRANSPARENT in self.shares:
            lines.append('transparent pixels are a class of their own; name another, or "ignore", under "transparent"')
        first = next(iter(self.shares))
        if first in _IGNORED and len(self.shares) > 2 and not self.is_ignored(first):
            lines.append(
                f"{describe(first)} covers the most pixels, and is drafted as a class; where it marks pixels without a "
                'label, add it to "ignore" in its place'
            )
        if self.doubtful:
            kept = [describe(v) for v in self.shares if v not in self.doubtful and not self.is_ignored(v)]
            lines.append(
                f"masks look smoothed, or have thin classes: {_named({v: self.shares[v] for v in self.doubtful})}, "
                "which are thin, and lie between two others or in smoothed masks; if these are no classes, save masks "
                f'with nearest neighbour, or keep only {first_of(kept, _MAX_NAMED)} under classes and set "snap": true'
            )
        if self.edges:
            lines.append(f"smoothed edges, and no classes: {_named(self.edges)}")
        if self.snapped:
            lines.append(
                f"{len(self.snapped)} of {self.num_masks} masks were smoothed or stored as JPEG; their pixels of no "
                'class are read as the class that they are nearest to: "snap": true'
            )
            most = sorted(self.snapped.items(), key=lambda item: -item[1])
            lines += [f"  {label}: {100 * share:.2g} % of its pixels" for label, share in most[:_MAX_NAMED]]
            if len(most) > _MAX_NAMED:
                lines.append(f"  and {len(most) - _MAX_NAMED} more with at most {100 * most[_MAX_NAMED][1]:.2g} % each")
        return [*lines, *(f"not read, and not counted: {problem}" for problem in self.problems)]

    def is_ignored(self, value: Value) -> bool:
        """Whether an id or a colour is no class: the user named it, or it is 255 or white, but not the background."""
        return value in self.ignored or (
            value in _IGNORED and len(self.shares) > 2 and value != next(iter(self.shares))
        )


def read_draft(folder: Path, layouts: Any = None, *, ignored: Sequence[Any] = ()) -> Draft:
    """Reads the masks of a folder.

    Args:
        folder: of the dataset.
        layouts: as in ``dataset.json``; None recognises them.
        ignored: ids and colours of no class, as in ``dataset.json``.

    Raises:
        UserError: images and labels are missing or do not pair, or the masks hold values that cannot be classes.
    """
    layouts = layouts or recognize_layouts(folder).layouts
    found = find_layout(folder, blank_description(folder.name, layouts)).values()
    pairs = [pair for layout in found for pair in collect_pairs(folder, layout, (), {})]
    labels = [label for _, label in pairs if label]
    files, problems = read_all_values(folder, labels)
    unified, reads_palettes = unify(folder, files)
    classes = find_classes(folder, unified)
    counts, snapped, unread = _count_as_read(folder, unified, classes, reads_palettes)
    if classes.edges and 2 * len(unread) > len(classes.smoothed):  # they are no edges, then
        classes = find_classes(folder, unified, has_edges=False)
        counts, snapped, unread = _count_as_read(folder, unified, classes, reads_palettes)
    not_classes = frozenset(tuple(value) if isinstance(value, list) else value for value in ignored)
    num_left = len(counts.keys() - not_classes)
    if num_left < 2 and unread:
        raise UserError(unread[0])
    if num_left < 2:
        raise UserError(
            f"{folder}: the masks hold {num_left} value{_near_ones(files)}, and a task needs two classes; "
            f"write {folder / 'dataset.json'} by hand (docs/data.md)"
        )
    total, num_pixels = sum(counts.values()), sum(sum(file.counts.values()) for file in files)
    chosen = {file.label for file in files}
    sizes = Counter(read_size(folder / image)[::-1] for image, label in pairs if label in chosen)
    return Draft(
        shares={value: count / total for value, count in counts.most_common()},
        num_masks=len(files),
        num_labels=len(labels),
        size=sizes.most_common(1)[0][0],
        colors=_palette_colors(unified),
        reads_palettes=reads_palettes,
        snapped=snapped,
        doubtful=tuple(value for value in classes.doubtful if value in counts),
        edges={value: count / num_pixels for value, count in classes.edges.items()},
        problems=(*problems, *unread),
        layouts=layouts,
        ignored=not_classes,
    )


def _count_as_read(
    folder: Path, files: Sequence[FileValues], classes: Classes, reads_palettes: bool
) -> tuple[Counter[Value], dict[str, float], list[str]]:
    """Pixels of each class as training will read them, the share of snapped pixels in each smoothed mask, and messages
    about masks that cannot be read."""
    counts: Counter[Value] = Counter()
    snapped: dict[str, float] = {}
    problems = []
    for file in files:
        if file.label not in classes.smoothed:
            counts.update(file.counts)
            continue
        try:
            found, snapped[file.label] = _snapped(folder / file.label, classes.values, reads_palettes)
            counts.update(found)
        except UserError as error:
            problems.append(str(error))
    return +counts, snapped, problems


def _named(shares: Mapping[Value, float]) -> str:
    """Some values with their shares of the pixels."""
    return first_of([f"{describe(value)} ({100 * share:.2g} %)" for value, share in shares.items()], _MAX_NAMED)


def _near_ones(files: Sequence[FileValues]) -> str:
    """Why a folder of JPEG masks may seem to have one class."""
    lossy = next((file for file in files if file.form.is_lossy), None)
    if lossy is None or len(lossy.counts) == 1:
        return ""
    return f" that {lossy.form.file_format}, as in {lossy.label}, keeps apart from others"


def _snapped(path: Path, values: Sequence[Value], reads_palettes: bool) -> tuple[dict[Value, int], float]:
    """A smoothed mask as training will read it: pixels of each value, and the share of the snapped ones.

    Raises:
        UserError: it holds a value of no class that is no blend of two.
    """
    info = DatasetInfo(
        path.parent.name,
        class_names=tuple(map(str, values)),
        palette=tuple(
            value if isinstance(value, tuple) else voc_color(k) if isinstance(value, int) else _unused_color(values)
            for k, value in enumerate(values, start=1)
        ),
        label_ids=tuple(value if isinstance(value, int) else k for k, value in enumerate(values)),
        label_format="colors" if reads_palettes else "either",
        snap=True,
        transparent=TRANSPARENT if TRANSPARENT in values else None,
    )
    content = LabelDecoder(info, ignore_label=255).read_content(path)
    numbers = np.bincount(content.train_ids.ravel(), minlength=len(values))
    return dict(zip(values, numbers.tolist(), strict=True)), content.num_snapped / content.train_ids.size


def _palette_colors(files: Sequence[FileValues]) -> dict[Value, Color]:
    """Colours of ids, where all masks have palettes and no two ids the same colour."""
    if any(file.form.palette is None for file in files):
        return {}
    colors: dict[Value, Color] = {
        value: file.color_of(value) for file in files for value in file.counts if isinstance(value, int)
    }
    return colors if len(set(colors.values())) == len(colors) else {}


def _unused_color(values: Iterable[Value]) -> Color:
    return next(color for k in range(MAX_CLASSES + 1) if (color := voc_color(k)) not in values)


def write_draft(draft: Draft, folder: Path, begun: Mapping[str, Any] | None = None) -> None:
    """Writes ``dataset.json``.

    Args:
        draft: its content.
        folder: of the dataset.
        begun: keys that the file has already, which are kept.
    """
    classes = ",\n    ".join(json.dumps(row) for row in draft.classes)
    keys = {**({"ignore": draft.ignore} if draft.ignore else {}), **draft.keys, **(begun or {})}
    rows = [f'"classes": [\n    {classes}\n  ]', *(f"{json.dumps(key)}: {json.dumps(v)}" for key, v in keys.items())]
    write_text(folder / "dataset.json", "{\n  " + ",\n  ".join(rows) + "\n}\n")


def write_experiment(
    name: str,
    path: Path,
    root: Path = Path("data"),
    *,
    size: Size,
    num_classes: int,
    num_images: int = 30,
    on_gpu: bool = False,
) -> FoundBackbone:
    """Writes an experiment that trains a small network on a dataset, with sizes that suit the images.

    Args:
        name: of the dataset.
        path: of the experiment.
        root: ``DATASET.ROOT``.
        size: width and height of most images.
        num_classes: of the dataset.
        num_images: of the dataset, of which a fifth is for validation.
        on_gpu: see `recipe`.

    Returns:
        The backbone of the experiment.
    """
    photos = Photos(size, max(1, round(num_images * (1 - _VAL_SHARE))), num_classes)
    backbone = find_backbone()
    sections = recipe(photos, backbone, usual_schedule(photos.num_train), on_gpu=on_gpu)
    elsewhere = {} if root == Path("data") else {"ROOT": str(root)}
    dataset = {"DATASET": name, **elsewhere, "NUM_CLASSES": num_classes, **list_settings(name)}
    comments = (
        f"Drafted from images of {size[0]}x{size[1]} pixels with {num_classes} classes: {backbone.about}.",
        "TRAIN.IMAGE_SIZE is width and height of the crops, BASE_SIZE the long side of an image at scale 1.",
        "There is no seed, which needs more photos and time to pay off. One that does not cost much:",
        f"MODEL.SEED: {json.dumps(SEED)}, LOSS: {json.dumps(SEED_LOSS)}",
    )
    write_recipe(path, dataset, sections, comments=comments)
    return backbone


def list_settings(name: str) -> dict[str, str]:
    """``DATASET.TRAIN_SET`` and ``DATASET.TEST_SET`` of a user's dataset."""
    return {"TRAIN_SET": f"list/{name}/train.lst", "TEST_SET": f"list/{name}/val.lst"}


def _as_json(value: Value) -> Any:
    return list(value) if isinstance(value, tuple) else value
