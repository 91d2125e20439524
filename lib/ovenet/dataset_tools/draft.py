"""A first description of a folder of images and masks, from what the masks hold, and an experiment to start with."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ovenet.data.description import MAX_CLASSES, blank_description, voc_color
from ovenet.data.files import read_size
from ovenet.data.info import Color, DatasetInfo
from ovenet.data.labels import LabelDecoder
from ovenet.data.layouts import collect_pairs, find_layout
from ovenet.data.recognition import recognize_layouts
from ovenet.dataset_tools.mask_values import (
    TRANSPARENT,
    Classes,
    FileValues,
    Value,
    describe,
    find_classes,
    read_all_values,
    unify,
)
from ovenet.errors import UserError
from ovenet.utils.writing import write_text

_IGNORED = (255, (255, 255, 255))  # the usual id and colour of pixels without a label
_MAX_SIDE, _MAX_CROP = 2048, 512
_MAX_NAMED = 12


@dataclass(frozen=True)
class Draft:
    """What the masks of a folder hold.

    Attributes:
        shares: of each id or colour that may be a class, of the pixels that were read, the largest first.
        num_masks: that were read.
        num_labels: masks that are there.
        size: width and height that most images have.
        colors: of ids that have the same colour in the palettes of all masks.
        reads_palettes: masks with one channel are read by their colours, since their ids mean different things.
        snapped: share of the pixels of masks that smoothing or JPEG gave a value of no class, by the masks' names.
        doubtful: of the ids and colours, those that may be smoothed edges.
        edges: ids and colours that are smoothed edges and no classes, with their share of the pixels.
        problems: masks that training cannot read, and why.
        layouts: where images and masks lie, as ``dataset.json`` has it.
        ignored: ids and colours that the user says are no class.
    """

    shares: dict[Value, float]
    num_masks: int
    num_labels: int
    size: tuple[int, int]
    colors: dict[Value, Color]
    reads_palettes: bool
    snapped: dict[str, float]
    doubtful: tuple[Value, ...]
    edges: dict[Value, float]
    problems: tuple[str, ...]
    layouts: Mapping[str, Any] | Sequence[Mapping[str, Any]]
    ignored: frozenset[Value] = frozenset()

    @property
    def classes(self) -> list[dict]:
        """As ``dataset.json`` has them: by id, or by share where masks are colours."""
        values = [value for value in self.shares if not self.is_ignored(value)]
        if all(isinstance(value, int) for value in values):
            return [
                {"name": f"class {value}", "id": value}
                | ({"color": list(self.colors[value])} if value in self.colors else {})
                for value in sorted(values)
            ]
        return [
            {"name": TRANSPARENT, "color": list(_unused_color(self.shares))}
            if value == TRANSPARENT
            else {"name": f"class {index}", "color": list(value)}
            for index, value in enumerate(values)
        ]

    @property
    def ignore(self) -> list:
        """Ids and colours that are probably no class, as ``dataset.json`` has them."""
        return [_as_json(value) for value in self.shares if self.is_ignored(value)]

    @property
    def keys(self) -> dict[str, object]:
        """What else ``dataset.json`` needs for these masks to be found and read as they were here."""
        return {
            **({"label_format": "colors"} if self.reads_palettes else {}),
            **({"transparent": TRANSPARENT} if TRANSPARENT in self.shares else {}),
            **({"snap": True} if self.snapped else {}),
            "layouts": self.layouts,
        }

    @property
    def remarks(self) -> list[str]:
        """What the user should know, one line each."""
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
            lines.append(
                f"masks look smoothed, or have thin classes: {_named({v: self.shares[v] for v in self.doubtful})}, "
                "which are thin, and lie between two others or in smoothed masks; if these are no classes, save masks "
                f'with nearest neighbour, or keep only {self._kept()} under classes and set "snap": true'
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

    def _kept(self) -> str:
        kept = [value for value in self.shares if value not in self.doubtful and not self.is_ignored(value)]
        more = f" and {len(kept) - _MAX_NAMED} more" if len(kept) > _MAX_NAMED else ""
        return ", ".join(map(describe, kept[:_MAX_NAMED])) + more

    def is_ignored(self, value: Value) -> bool:
        """Whether an id or a colour is no class: the user says so, or it is 255 or white, but not the background."""
        return value in self.ignored or (
            value in _IGNORED and len(self.shares) > 2 and value != next(iter(self.shares))
        )


def read_draft(folder: Path, layouts: Any = None, *, ignored: Sequence[Any] = (), show_progress: bool = False) -> Draft:
    """Looks at the masks of a folder.

    Args:
        folder: the dataset's.
        layouts: where images and masks lie, as ``dataset.json`` has it; None looks for them.
        ignored: ids and colours that are no class, as ``dataset.json`` has them.
        show_progress: a bar.

    Raises:
        UserError: images and labels are not there or do not pair, or the masks hold what cannot be classes.
    """
    layouts = layouts or recognize_layouts(folder).layouts
    found = find_layout(folder, blank_description(folder.name, layouts)).values()
    pairs = [pair for layout in found for pair in collect_pairs(folder, layout, (), {}) if pair[1]]
    labels = [label for _, label in pairs]
    files, problems = read_all_values(folder, labels, show_progress=show_progress)
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
    total = sum(counts.values())
    chosen = {file.label for file in files}
    sizes = Counter(read_size(folder / image)[::-1] for image, label in pairs if label in chosen)
    return Draft(
        {value: count / total for value, count in counts.most_common()},
        len(files),
        len(labels),
        sizes.most_common(1)[0][0],
        _palette_colors(unified),
        reads_palettes,
        snapped,
        tuple(value for value in classes.doubtful if value in counts),
        {value: count / sum(sum(file.counts.values()) for file in files) for value, count in classes.edges.items()},
        (*problems, *unread),
        layouts,
        not_classes,
    )


def _count_as_read(
    folder: Path, files: Sequence[FileValues], classes: Classes, reads_palettes: bool
) -> tuple[Counter[Value], dict[str, float], list[str]]:
    """Pixels of each class as training will read them, the share of those that are snapped in smoothed masks, and why
    masks cannot be read."""
    counts: Counter[Value] = Counter()
    snapped, problems = {}, []
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
    some = ", ".join(f"{describe(value)} ({100 * share:.2g} %)" for value, share in list(shares.items())[:_MAX_NAMED])
    return some + (f" and {len(shares) - _MAX_NAMED} more" if len(shares) > _MAX_NAMED else "")


def _near_ones(files: Sequence[FileValues]) -> str:
    """Why a folder of JPEG masks may seem to hold one class."""
    lossy = next((file for file in files if file.form.is_lossy), None)
    if lossy is None or len(lossy.counts) == 1:
        return ""
    return f" that {lossy.form.file_format}, as in {lossy.label}, keeps apart from others"


def _snapped(path: Path, values: Sequence[Value], reads_palettes: bool) -> tuple[dict[Value, int], float]:
    """A smoothed mask as training will read it: pixels of each value, and the share of those that were changed.

    Raises:
        UserError: it holds what is no class and no blend of two.
    """
    if isinstance(values[0], int):
        colors = [voc_color(k) for k in range(1, len(values) + 1)]
    else:
        colors = [_unused_color(values) if value == TRANSPARENT else value for value in values]
    info = DatasetInfo(
        path.parent.name,
        class_names=tuple(map(str, values)),
        palette=tuple(colors),
        label_ids=tuple(values) if isinstance(values[0], int) else tuple(range(len(values))),
        label_format="colors" if reads_palettes else "either",
        snap=True,
        transparent=TRANSPARENT if TRANSPARENT in values else None,
    )
    content = LabelDecoder(info, ignore_label=255).read_content(path)
    numbers = np.bincount(content.train_ids.ravel(), minlength=len(values))
    return dict(zip(values, numbers.tolist(), strict=True)), content.num_snapped / content.train_ids.size


def _palette_colors(files: Sequence[FileValues]) -> dict[Value, Color]:
    """Colours of ids, where all masks have palettes and no two ids one colour."""
    if any(file.form.palette is None for file in files):
        return {}
    colors = {value: file.color_of(value) for file in files for value in file.counts if isinstance(value, int)}
    return colors if len(set(colors.values())) == len(colors) else {}


def _unused_color(values: Iterable[Value]) -> Color:
    return next(color for k in range(MAX_CLASSES + 1) if (color := voc_color(k)) not in values)


def write_draft(draft: Draft, folder: Path, begun: Mapping[str, Any] | None = None) -> None:
    """Writes ``dataset.json``.

    Args:
        draft: what it is to say.
        folder: the dataset's.
        begun: keys that the file has already, which stay as they are.
    """
    classes = ",\n    ".join(json.dumps(row) for row in draft.classes)
    keys = {**({"ignore": draft.ignore} if draft.ignore else {}), **draft.keys, **(begun or {})}
    rows = [f'"classes": [\n    {classes}\n  ]', *(f"{json.dumps(key)}: {json.dumps(v)}" for key, v in keys.items())]
    write_text(folder / "dataset.json", "{\n  " + ",\n  ".join(rows) + "\n}\n")


def write_experiment(
    name: str, path: Path, root: Path = Path("data"), *, size: tuple[int, int], num_classes: int
) -> None:
    """Writes an experiment that trains a small OVeNet on a dataset, its sizes chosen by the images'.

    Args:
        name: of the dataset.
        path: of the experiment.
        root: ``DATASET.ROOT``.
        size: width and height that most images have.
        num_classes: of the dataset.
    """
    elsewhere = "" if root == Path("data") else f"\n  ROOT: {_quoted(str(root))}"
    long_side = min(_MAX_SIDE, max(size))
    scale = long_side / max(size)
    crop = [min(_MAX_CROP, max(32, int(side * scale) // 32 * 32)) for side in size]
    write_text(
        path,
        f"""# Drafted from images of {size[0]}x{size[1]} pixels with {num_classes} classes.
_BASE_: folder/ovenet_hrnet_w18_small_v2
DATASET:
  DATASET: {_quoted(name)}{elsewhere}
  NUM_CLASSES: {num_classes}
  TRAIN_SET: {_quoted(f"list/{name}/train.lst")}
  TEST_SET: {_quoted(f"list/{name}/val.lst")}
TRAIN:
  IMAGE_SIZE: {crop}  # width and height of the crops
  BASE_SIZE: {long_side}  # long side of an image at scale 1
TEST:
  BASE_SIZE: {long_side}
""",
    )


def _quoted(text: str) -> str:
    """A text as YAML has it; JSON's escapes of what is beyond 16 bits are none there."""
    return yaml.safe_dump(text, default_style='"', allow_unicode=True, width=math.inf).strip()


def _as_json(value: Value) -> int | list[int]:
    return value if isinstance(value, int) else list(value)
