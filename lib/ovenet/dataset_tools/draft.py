"""A first description of a folder of images and masks, from what the masks hold, and an experiment to start with."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from ovenet.data.description import MAX_CLASSES, blank_description, voc_color
from ovenet.data.files import image_size, open_image
from ovenet.data.layouts import collect_pairs, find_layout
from ovenet.data.recognition import recognize_layouts
from ovenet.errors import UserError
from ovenet.utils.writing import write_text

MAX_MASKS = 200  # that are read
_IGNORED = (255, (255, 255, 255))  # the usual id and colour of pixels without a label
_MAX_SIDE, _MAX_CROP = 2048, 512
Value = int | tuple[int, int, int]


@dataclass(frozen=True)
class Draft:
    """What the masks of a folder hold.

    Attributes:
        shares: of each id or colour, of the pixels that were read, the largest first.
        num_masks: that were read.
        size: width and height that most images have.
        layouts: where images and masks lie, as ``dataset.json`` has it.
    """

    shares: dict[Value, float]
    num_masks: int
    size: tuple[int, int]
    layouts: dict = field(default_factory=dict)

    @property
    def classes(self) -> list[dict]:
        """As ``dataset.json`` has them: by id, or by share where masks are colours."""
        values = [value for value in self.shares if value not in _IGNORED]
        if all(isinstance(value, int) for value in values):
            return [
                {"name": f"class {value}", "id": value, "color": list(voc_color(index))}
                for index, value in enumerate(sorted(values), start=1)
            ]
        return [{"name": f"class {index}", "color": list(color)} for index, color in enumerate(values)]

    @property
    def ignore(self) -> list:
        """Ids and colours that are probably no class, as ``dataset.json`` has them."""
        return [_as_json(value) for value in self.shares if value in _IGNORED]

    def is_ignored(self, value: Value) -> bool:
        """Whether an id or a colour is probably no class."""
        return value in _IGNORED


def read_draft(folder: Path, layouts: dict | list | None = None) -> Draft:
    """Looks at the masks of a folder.

    Args:
        folder: the dataset's.
        layouts: where images and masks lie, as ``dataset.json`` has it; None looks for them.

    Raises:
        UserError: images and labels are not there or do not pair, or the masks hold what cannot be classes.
    """
    layouts = layouts or recognize_layouts(folder).layouts
    found = find_layout(folder, blank_description(folder.name, layouts)).values()
    pairs = [pair for layout in found for pair in collect_pairs(folder, layout, (), {}) if pair[1]]
    chosen = pairs[:: max(1, -(-len(pairs) // MAX_MASKS))]
    counts: Counter[Value] = Counter()
    for _, label in chosen:
        counts.update(_values(open_image(folder / label, "label"), folder / label))
        if len(counts) > MAX_CLASSES:
            raise UserError(
                f"{folder / label}: with it there are more than {MAX_CLASSES} ids or colours; save masks as PNG, "
                "and scale them without smoothing"
            )
    kinds = {type(value) for value in counts}
    if len(kinds) > 1:
        raise UserError(f"{folder}: some masks are ids and some are colours; write {folder / 'dataset.json'} by hand")
    total = sum(counts.values())
    sizes = Counter(image_size(folder / image)[::-1] for image, _ in chosen)
    draft = Draft(
        {value: count / total for value, count in counts.most_common()},
        len(chosen),
        sizes.most_common(1)[0][0],
        layouts,
    )
    if len(draft.classes) < 2:
        raise UserError(
            f"{folder}: the masks hold {len(draft.classes)} value beside 255, and a task needs two classes; "
            f"write {folder / 'dataset.json'} by hand (docs/data.md)"
        )
    return draft


def write_draft(draft: Draft, folder: Path, begun: Mapping[str, Any] | None = None) -> None:
    """Writes ``dataset.json``.

    Args:
        draft: what it is to say.
        folder: the dataset's.
        begun: keys that the file has already, which stay as they are.
    """
    classes = ",\n    ".join(json.dumps(row) for row in draft.classes)
    drafted = {"ignore": draft.ignore, "layouts": draft.layouts}
    content = {**{key: value for key, value in drafted.items() if value}, **(begun or {})}
    entries = [f'"classes": [\n    {classes}\n  ]', *(f'"{k}": {json.dumps(v)}' for k, v in content.items())]
    write_text(folder / "dataset.json", "{\n  " + ",\n  ".join(entries) + "\n}\n")


def write_experiment(draft: Draft, name: str, path: Path, root: Path = Path("data")) -> None:
    """Writes an experiment that trains a small OVeNet on the folder, its sizes chosen by the images'.

    Args:
        draft: of the folder.
        name: of the dataset.
        path: of the experiment.
        root: ``DATASET.ROOT``.
    """
    elsewhere = "" if root == Path("data") else f"\n  ROOT: {_quoted(str(root))}"
    long_side = min(_MAX_SIDE, max(draft.size))
    scale = long_side / max(draft.size)
    crop = [min(_MAX_CROP, max(32, int(side * scale) // 32 * 32)) for side in draft.size]
    write_text(
        path,
        f"""# Drafted from images of {draft.size[0]}x{draft.size[1]} pixels with {len(draft.classes)} classes.
_BASE_: folder/ovenet_hrnet_w18_small_v2
DATASET:
  DATASET: {_quoted(name)}{elsewhere}
  NUM_CLASSES: {len(draft.classes)}
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


def _values(mask: Image.Image, path: Path) -> Counter[Value]:
    """How many pixels have each id, or each colour."""
    if mask.mode in ("L", "P", "1"):
        pixels = np.asarray(mask.convert("L") if mask.mode == "1" else mask)
        return Counter({int(v): int(n) for v, n in zip(*np.unique(pixels, return_counts=True), strict=True)})
    if mask.mode not in ("RGB", "RGBA"):
        raise UserError(f"{path}: a mask of mode {mask.mode}; expected ids of 8 bits, or colours")
    colors, numbers = np.unique(np.asarray(mask.convert("RGB")).reshape(-1, 3), axis=0, return_counts=True)
    return Counter({tuple(map(int, color)): int(n) for color, n in zip(colors, numbers, strict=True)})


def _as_json(value: Value) -> int | list[int]:
    return value if isinstance(value, int) else list(value)
