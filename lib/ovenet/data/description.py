"""Dataset descriptions: the JSON files of the catalog, and a user's own ``dataset.json``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ovenet.data.info import SPLITS, Category, Color, DatasetInfo, EvaluationRule, Layout, SubmissionRule
from ovenet.errors import UserError

# Where the files of an own dataset are looked for unless its description says otherwise.
_OWN_LAYOUTS = [
    {"images": "images/{split}/**", "labels": "labels/{split}/**"},
    {"images": "{split}/images/**", "labels": "{split}/labels/**"},
    {"images": "images/**", "labels": "labels/**", "split_names": {"all": ""}},
]
MAX_CLASSES = 256
_CATALOG_FOLDER = Path(__file__).parent / "datasets"
_KEYS = {
    "like", "source", "archives", "classes", "class_weights", "label_ids", "ignore", "label_format", "upright",
    "background", "flip_pairs", "conditions", "num_images", "folders", "layouts", "unlabelled", "val_share",
    "evaluation", "submission", "categories", "snap", "transparent",
}  # fmt: skip
_RENAMED_KEYS = {"mirrored_classes": "flip_pairs"}  # of earlier versions


def read_description(path: Path, name: str, **defaults: Any) -> DatasetInfo:
    """Reads a description; docs/data.md lists its keys.

    Args:
        path: the JSON file.
        name: of the dataset.
        defaults: values of keys that the file does not give.

    Raises:
        UserError: the file is missing, no JSON, or a value is not what its key needs; names file and key.
    """
    content = {**defaults, **{_RENAMED_KEYS.get(key, key): value for key, value in _read_json(path).items()}}
    unknown = sorted(set(content) - _KEYS)
    if unknown:
        raise UserError(f"{path}: unknown key {unknown[0]!r}; expected some of {', '.join(sorted(_KEYS))}")
    if "like" in content:
        content = {**_read_json(_CATALOG_FOLDER / f"{content.pop('like')}.json"), **content}
    try:
        return _build(content, name)
    except KeyError as error:
        raise UserError(f"{path}: the key {error} is missing") from error
    except (TypeError, AttributeError) as error:
        raise UserError(f"{path}: a value has the wrong form ({error}); docs/data.md shows each key") from error
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error


def own_description(path: Path, name: str) -> DatasetInfo:
    """Reads a user's ``dataset.json``: masks may be ids or colours, photographs are turned upright.

    Raises:
        UserError: as `read_description`.
    """
    return read_description(
        path, name, layouts=_OWN_LAYOUTS, label_format="either", upright=True, archives="images and labels"
    )


def blank_description(name: str) -> DatasetInfo:
    """A folder whose classes are not known yet: two of them, for the sake of its layouts."""
    return _build(
        {"classes": [{"name": "0"}, {"name": "1"}], "layouts": _OWN_LAYOUTS, "archives": "images and labels"}, name
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot read the dataset's description: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not in UTF-8 (byte {error.start}); save the file as UTF-8") from error
    except ValueError as error:
        raise UserError(f"{path}: not a JSON file: {error}") from error
    except RecursionError:
        raise UserError(f"{path}: nested too deeply for a dataset's description") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected {{...}}, got a {type(content).__name__}")
    return content


def _build(content: Mapping[str, Any], name: str) -> DatasetInfo:
    classes = content["classes"]
    if len(classes) > MAX_CLASSES:  # before checks that compare every class with every other
        raise UserError(f"classes has {len(classes)} entries; expected at most {MAX_CLASSES}, as ids have 8 bits")
    class_names = tuple(row["name"] for row in classes)
    label_ids = tuple(content.get("label_ids") or (row.get("id", index) for index, row in enumerate(classes)))
    palette = tuple(_color(row["color"]) if "color" in row else voc_color(i) for i, row in enumerate(classes, start=1))
    ignored = content.get("ignore", [])
    info = DatasetInfo(
        name=name,
        class_names=class_names,
        palette=palette,
        label_ids=label_ids,
        ignored_ids=tuple(value for value in ignored if not isinstance(value, list)),
        ignored_colors=tuple(_color(value) for value in ignored if isinstance(value, list)),
        layouts=tuple(
            _by_split(layout, folder, label_ids, content.get("unlabelled", ()), content.get("conditions"))
            for folder in content.get("folders", [""])
            for layout in _as_list(content["layouts"])
        ),
        archives=content.get("archives", ""),
        num_images=content.get("num_images", {}),
        class_weights=tuple(content["class_weights"]) if content.get("class_weights") else None,
        conditions=tuple(content.get("conditions", ())),
        flip_pairs=tuple((class_names.index(a), class_names.index(b)) for a, b in content.get("flip_pairs", ())),
        evaluation=EvaluationRule(**content.get("evaluation", {})),
        submission=SubmissionRule(**content["submission"]) if content.get("submission") else None,
        label_format=content.get("label_format", "ids"),
        snap=content.get("snap", False),
        transparent=content.get("transparent"),
        upright=content.get("upright", False),
        optional_background=content.get("background") == "optional",
        val_share=content.get("val_share", 0.2),
        categories=tuple(
            Category(row["name"], _color(row["color"]), tuple(row["classes"])) for row in content.get("categories", ())
        ),
    )
    _check(info)
    return info


def _by_split(
    layout: Mapping[str, Any], folder: str, ids: tuple[int, ...], unlabelled: list[str], conditions: list[str] | None
) -> dict[str, Layout]:
    """One layout per split; ``{split}`` stands for the split's name on disk, the splits' own keys win."""
    stored_ids, stored_ignored = tuple(layout.get("label_ids", ())), tuple(layout.get("ignore", ()))
    if stored_ids or stored_ignored:
        if len(stored_ids) != len(ids):
            raise UserError(f"layouts has {len(stored_ids)} label_ids for {len(ids)} classes")
        _check_ids(stored_ids, stored_ignored)
    pairs = tuple(zip(ids, stored_ids, strict=True)) if stored_ids else ()
    split_names = layout.get("split_names") or _usual_split_names(layout)
    result = {}
    for split, name_on_disk in split_names.items():
        patterns = {key: layout.get(key) for key in ("images", "labels", "names", "names_not_in")}
        patterns.update(layout.get(split, {}))
        if split in unlabelled:
            patterns["labels"] = None
        result[split] = replace(
            _placed(patterns, folder, name_on_disk),
            stored_ids=pairs,
            stored_ignored=stored_ignored,
            num_images=layout.get("num_images", {}).get(split),
        )
        if conditions is None and "{condition}" in result[split].images:
            raise UserError("layouts has {condition}, but there is no key 'conditions'")
    return result


def _placed(patterns: Mapping[str, Any], folder: str, name_on_disk: str) -> Layout:
    """The layout of a split, its patterns relative to the dataset's folder."""
    own = {key: value for key, value in patterns.items() if key != "also"}
    placed = {key: f"{folder}/{value}".lstrip("/") if value else None for key, value in own.items()}
    return Layout(
        **{key: value.replace("{split}", name_on_disk) if value else None for key, value in placed.items()},
        also=_placed({**own, **patterns["also"]}, folder, name_on_disk) if "also" in patterns else None,
    )


def _as_list(layouts: Any) -> list[Any]:
    """Of one layout too, which may stand alone."""
    return [layouts] if isinstance(layouts, Mapping) else layouts


def _usual_split_names(layout: Mapping[str, Any]) -> dict[str, str]:
    """The splits' own names; without anything that tells them apart, one split that `val_share` divides."""
    is_split = any(split in layout for split in SPLITS)
    texts = [layout.get(key) or "" for key in ("images", "labels", "names", "names_not_in")]
    if is_split or any("{split}" in text for text in texts):
        return {split: split for split in SPLITS}
    return {"all": ""}


def _color(value: Any) -> Color:
    if not (isinstance(value, (list, tuple)) and len(value) == 3 and all(0 <= channel <= 255 for channel in value)):
        raise UserError(f"{value!r} is no colour; expected [red, green, blue], each 0 to 255")
    return tuple(value)


def voc_color(index: int) -> Color:
    """Colour of the PASCAL VOC colour map: the bits of the index, dealt out to red, green and blue."""
    return tuple(sum((index >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(8)) for channel in range(3))


def _check(info: DatasetInfo) -> None:
    """Refuses contradictions.

    Raises:
        UserError: says which key.
    """
    if info.num_classes < 2:
        raise UserError(f"classes has {info.num_classes} entries; expected at least 2")
    colors = () if info.label_format == "ids" else (*info.palette, *info.ignored_colors)
    for what, values in (("class name", info.class_names), ("color", colors)):
        _check_distinct(what, values)
    _check_ids(info.label_ids, info.ignored_ids)
    for key, values in (("label_ids", info.label_ids), ("class_weights", info.class_weights)):
        if values is not None and len(values) != info.num_classes:
            raise UserError(f"{key} has {len(values)} entries for {info.num_classes} classes")
    for key, value, allowed in (
        ("label_format", info.label_format, ("ids", "colors", "either")),
        ("evaluation.resize", info.evaluation.resize, ("long_side", "short_side", "stretch")),
    ):
        if value not in allowed:
            raise UserError(f"{key} is {value!r}; expected one of {', '.join(allowed)}")
    weights = info.class_weights
    if weights is not None and not (all(is_number(w) and w >= 0 for w in weights) and sum(weights) > 0):
        raise UserError(f"class_weights is {list(weights)}; expected numbers of at least 0, not all 0")
    multiple = info.evaluation.multiple_of
    if type(multiple) is not int or multiple < 1:
        raise UserError(f"evaluation.multiple_of is {multiple!r}; expected a whole number of at least 1")
    if type(info.evaluation.keeps_padding) is not bool:
        raise UserError(f"evaluation.keeps_padding is {info.evaluation.keeps_padding!r}; expected true or false")
    _check_categories(info)
    if type(info.snap) is not bool:
        raise UserError(f"snap is {info.snap!r}; expected true or false")
    if info.transparent not in (None, "ignore", *info.class_names):
        raise UserError(f"transparent is {info.transparent!r}; expected the name of a class, or 'ignore'")
    if not 0 < info.val_share < 1:
        raise UserError(f"val_share is {info.val_share}; expected more than 0 and less than 1")


def _check_distinct(what: str, values: tuple) -> None:
    repeated = next((value for value in values if values.count(value) > 1), None)
    if repeated is not None:
        raise UserError(f"the {what} {repeated!r} stands for two classes")


def _check_ids(label_ids: tuple[int, ...], ignored_ids: tuple[int, ...]) -> None:
    """Refuses ids of label files that contradict each other."""
    _check_distinct("id", label_ids)
    for value in (*label_ids, *ignored_ids):
        if not (isinstance(value, int) and 0 <= value <= 255):
            raise UserError(f"id {value!r} is outside 0 to 255")
    for value in label_ids:
        if value in ignored_ids:
            raise UserError(f"id {value} is both a class and ignored")


def _check_categories(info: DatasetInfo) -> None:
    """Each class belongs to one category.

    Raises:
        UserError: says which does not.
    """
    if not info.categories:
        return
    if info.label_format != "ids":
        raise UserError(f"categories needs label_format 'ids', got {info.label_format!r}")
    names = [name for category in info.categories for name in category.classes]
    for name in (*names, *info.class_names):
        number = names.count(name) if name in info.class_names else 0
        if number != 1:
            raise UserError(f"categories has the class {name!r} {number} times; expected each class of classes once")
    empty = next((category.name for category in info.categories if not category.classes), None)
    if empty is not None or len(info.categories) < 2:
        raise UserError(f"categories has {len(info.categories)} entries; expected at least 2, each with classes")


def is_number(value: Any) -> bool:
    """Whether it is a finite number; true and false are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
