"""Dataset descriptions: the JSON files of the catalog, and a user's own ``dataset.json``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ovenet.data.consistency import as_list, require_consistent
from ovenet.data.info import SPLITS, Category, Color, DatasetInfo, EvaluationRule, Layout, SubmissionRule
from ovenet.data.keys import CATALOG_FOLDER, DESCRIPTION
from ovenet.data.schema import WrongValue, shown
from ovenet.errors import UserError

# The layouts of an own dataset unless its description names others.
_OWN_LAYOUTS = [
    {"images": "images/{split}/**", "labels": "labels/{split}/**"},
    {"images": "{split}/images/**", "labels": "{split}/labels/**"},
    {"images": "images/**", "labels": "labels/**", "split_names": {"all": ""}},
]
_RENAMED_KEYS = {"mirrored_classes": "flip_pairs"}  # of earlier versions


def read_description(path: Path, name: str, **defaults: Any) -> DatasetInfo:
    """Reads a description; `ovenet.data.keys` and docs/data.md list its keys.

    Args:
        path: the JSON file.
        name: of the dataset.
        defaults: values of keys that are not in the file.

    Raises:
        UserError: the file is missing, no JSON, or has a wrong value; names file, key and value.
    """
    content = _read_json(path)
    inherited = _inherited_content(content)
    if {**inherited, **defaults, **content}.get("label_format", "ids") != "ids":  # which categories need
        inherited = {key: value for key, value in inherited.items() if key != "categories"}
    with _naming(path):
        try:
            return _build({**inherited, **defaults, **content}, name)
        except WrongValue as error:
            if error.key in inherited and error.key not in content:
                raise UserError(f'{error} (as "like" says; give {error.key} here, too)') from error
            raise


def own_description(path: Path, name: str) -> DatasetInfo:
    """Reads a user's ``dataset.json``: masks may be ids or colours, photographs are turned upright.

    Raises:
        UserError: as `read_description`.
    """
    return read_description(
        path, name, layouts=_OWN_LAYOUTS, label_format="either", upright=True, archives="images and labels"
    )


def blank_description(name: str, layouts: Any = None) -> DatasetInfo:
    """A dataset with layouts, None for the default ones, and two placeholders for its classes, not known yet."""
    classes = [{"name": "0"}, {"name": "1"}]
    return _build({"classes": classes, "layouts": layouts or _OWN_LAYOUTS, "archives": "images and labels"}, name)


Classes = DatasetInfo | int | Sequence[str] | Mapping[str, int | Color]


def describe_classes(classes: Classes, *, ignore: Sequence[int | Color] = (255,)) -> DatasetInfo:
    """Classes without a ``dataset.json``.

    Args:
        classes: names in the order of the ids in the masks, from 0; or a number, for ``class 0``, ``class 1``, …; or
            the id, or the colour ``(R, G, B)``, that each name has in the masks. A dataset is returned as it is.
        ignore: ids and colours of no class; those of a class do not count.

    Raises:
        UserError: there are no classes, a name stands twice, or an id or a colour is out of range.
    """
    if isinstance(classes, DatasetInfo):
        return classes
    rows = _rows_of(classes)
    used = [row.get("color", row.get("id", index)) for index, row in enumerate(rows)]
    kept = [value if isinstance(value, int) else list(value) for value in ignore]
    content = {"classes": rows, "ignore": [value for value in kept if value not in used]}
    try:
        DESCRIPTION.check(content, "")
        return _build(
            {**content, "layouts": _OWN_LAYOUTS, "label_format": "either", "upright": True, "archives": ""}, "classes"
        )
    except UserError as error:
        raise UserError(f"classes: {error}") from None


def _rows_of(classes: int | Sequence[str] | Mapping[str, int | Color]) -> list[dict[str, Any]]:
    """Classes as in ``dataset.json``."""
    if isinstance(classes, Mapping):
        return [
            {"name": name, "id": value} if isinstance(value, int) else {"name": name, "color": list(value)}
            for name, value in classes.items()
        ]
    if isinstance(classes, int) and not isinstance(classes, bool):
        return [{"name": f"class {index}"} for index in range(classes)]
    if isinstance(classes, str) or not isinstance(classes, Sequence):
        raise UserError(f"classes are {classes!r}; expected a list of names, or their number")
    return [{"name": name} for name in classes]


def begun_description(path: Path) -> dict[str, Any] | None:
    """The content of a ``dataset.json`` without classes; {} without a file, None where the file has classes.

    Raises:
        UserError: it cannot be read.
    """
    content = _read_json(path) if path.exists() else {}
    return None if {"classes", "like"} & set(content) else content


def _read_json(path: Path) -> dict[str, Any]:
    """The content of a file with valid values, earlier names of keys replaced."""
    with _naming(path):
        try:
            content = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_distinct_keys)
        except OSError as error:
            raise UserError(f"cannot read the dataset's description: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise UserError(f"not in UTF-8 (byte {error.start}); save the file as UTF-8") from error
        except UserError:
            raise
        except ValueError as error:
            raise UserError(f"not a JSON file: {error}") from error
        if not isinstance(content, dict):
            raise UserError(f"expected {{...}}, got a {type(content).__name__}")
        for old, new in _RENAMED_KEYS.items():
            if old in content and new in content:
                raise UserError(f"{old} is an earlier name of {new}; leave one of them away")
        content = {_RENAMED_KEYS.get(key, key): value for key, value in content.items()}
        DESCRIPTION.check(content, "")
        return content


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Puts the file's name before error messages."""
    try:
        yield
    except RecursionError:
        raise UserError(f"{path}: nested too deeply for a dataset's description") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content:
            raise UserError(f"the key {shown(key)} stands twice in one table; leave one of them away")
        content[key] = value
    return content


def _inherited_content(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """The keys of the dataset that ``like`` names, with those that it inherits itself."""
    if "like" not in content:
        return {}
    found = _read_json(CATALOG_FOLDER / f"{content['like']}.json")
    return {**_inherited_content(found), **found}


def _build(content: Mapping[str, Any], name: str) -> DatasetInfo:
    """The dataset of valid values.

    Raises:
        UserError: they contradict each other.
    """
    if "classes" not in content:
        raise UserError('the key classes is missing; expected a list of {"name": …} for each class')
    classes, ignored = content["classes"], content.get("ignore", [])
    class_names = tuple(row["name"] for row in classes)
    label_ids = tuple(content.get("label_ids") or (row.get("id", index) for index, row in enumerate(classes)))
    palette = tuple(tuple(row.get("color", voc_color(index))) for index, row in enumerate(classes, start=1))
    require_consistent(content, label_ids, palette)
    return DatasetInfo(
        name=name,
        class_names=class_names,
        palette=palette,
        label_ids=label_ids,
        chosen_colors=tuple(k for k, row in enumerate(classes) if "color" in row),
        ignored_ids=tuple(value for value in ignored if not isinstance(value, list)),
        ignored_colors=tuple(tuple(value) for value in ignored if isinstance(value, list)),
        layouts=tuple(
            _by_split(layout, folder, label_ids, content)
            for folder in content.get("folders", [""])
            for layout in as_list(content["layouts"])
        ),
        archives=content.get("archives", ""),
        num_images=content.get("num_images", {}),
        class_weights=tuple(content["class_weights"]) if content.get("class_weights") else None,
        conditions=tuple(content.get("conditions", ())),
        flip_pairs=tuple((class_names.index(a), class_names.index(b)) for a, b in content.get("flip_pairs", ())),
        invalid_masks=tuple((text, other) for text, other in content.get("invalid_masks", ())),
        evaluation=EvaluationRule(**content.get("evaluation", {})),
        submission=SubmissionRule(**content["submission"]) if content.get("submission") else None,
        label_format=content.get("label_format", "ids"),
        snap=content.get("snap", False),
        transparent=content.get("transparent"),
        upright=content.get("upright", False),
        optional_background="background" in content,
        val_share=content.get("val_share", 0.2),
        categories=tuple(
            Category(row["name"], tuple(row["color"]), tuple(row["classes"])) for row in content.get("categories", ())
        ),
    )


def _by_split(
    layout: Mapping[str, Any], folder: str, ids: tuple[int, ...], content: Mapping[str, Any]
) -> dict[str, Layout]:
    """One layout per split; ``{split}`` is replaced by the split's name on disk, a split's own keys take precedence."""
    stored_ids = layout.get("label_ids", ())
    split_names = layout.get("split_names") or _usual_split_names(layout)
    result = {}
    for split, name_on_disk in split_names.items():
        patterns = {key: layout.get(key) for key in ("images", "labels", "names", "names_not_in")}
        if split in SPLITS:  # another split may be called as a key of the layout is
            patterns.update(layout.get(split, {}))
        if not patterns["images"]:
            raise UserError(f"layouts has a table without images for {shown(split)}; expected their pattern")
        if "{condition}" in patterns["images"] and "conditions" not in content:
            raise UserError("layouts has {condition}, but there is no key conditions; name the folders there")
        if split in content.get("unlabelled", ()):
            patterns["labels"] = None
        result[split] = replace(
            _layout_of(patterns, folder, name_on_disk),
            stored_ids=tuple(zip(ids, stored_ids, strict=True)) if stored_ids else (),
            stored_ignored=tuple(layout.get("ignore", ())),
            num_images=layout.get("num_images", {}).get(split),
        )
    return result


def _layout_of(patterns: Mapping[str, Any], folder: str, name_on_disk: str) -> Layout:
    """The layout of a split, its patterns relative to the dataset's folder."""
    own = {key: value for key, value in patterns.items() if key != "also"}
    placed: dict[str, Any] = {
        key: f"{folder}/{value}".lstrip("/").replace("{split}", name_on_disk) if value else None
        for key, value in own.items()
    }
    also = _layout_of({**own, **patterns["also"]}, folder, name_on_disk) if "also" in patterns else None
    return Layout(**placed, also=also)


def _usual_split_names(layout: Mapping[str, Any]) -> dict[str, str]:
    """The splits' own names; without anything that tells them apart, one split that `val_share` divides."""
    is_split = any(split in layout for split in SPLITS)
    texts = [layout.get(key) or "" for key in ("images", "labels", "names", "names_not_in")]
    if is_split or any("{split}" in text for text in texts):
        return {split: split for split in SPLITS}
    return {"all": ""}


def voc_color(index: int) -> Color:
    """Colour of the PASCAL VOC colour map: the bits of the index, dealt out to red, green and blue."""
    red, green, blue = (
        sum((index >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(8)) for channel in range(3)
    )
    return red, green, blue
