"""Checks across the keys of a ``dataset.json``, each of which is valid by itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ovenet.data.info import SPLITS, Color
from ovenet.data.schema import WrongValue, did_you_mean, shown
from ovenet.errors import UserError

_UNSPLIT = "all"
Placed = Iterable[tuple[str, Any]]  # values with their places in the file


def require_consistent(content: Mapping[str, Any], label_ids: Sequence[int], palette: Sequence[Color]) -> None:
    """Refuses contradictions.

    Args:
        content: accepted by `ovenet.data.keys.DESCRIPTION`, with inherited keys, and with classes.
        label_ids: of all classes, including default ids.
        palette: of all classes, including default colours.

    Raises:
        UserError: names the key, its value, and what is expected.
    """
    classes = content["classes"]
    names = [row["name"] for row in classes]
    _require_distinct((f"classes[{i}].name", name) for i, name in enumerate(names))
    for key in ("label_ids", "class_weights"):
        _require_one_each(key, content.get(key) or (), len(classes))
    if content.get("class_weights") and not any(content["class_weights"]):
        raise WrongValue("class_weights", content["class_weights"], "at least one above 0")
    ignored = _enumerate("ignore", content.get("ignore", ()))
    form = "label_ids[{}]" if content.get("label_ids") else "classes[{}].id"
    _require_ids_of_one_meaning(form, label_ids, [(p, value) for p, value in ignored if not isinstance(value, list)])
    if content.get("label_format", "ids") != "ids":
        colors = [(f"classes[{i}].color", list(color)) for i, color in enumerate(palette)]
        colors += [(place, value) for place, value in ignored if isinstance(value, list)]
        _require_distinct(colors, otherwise=', or "label_format": "ids"')
    _require_distinct(_enumerate("conditions", content.get("conditions", ())))
    if content.get("transparent") not in (None, "ignore"):
        _require_class("transparent", content["transparent"], [*names, "ignore"])
    _check_flip_pairs(content, names)
    _check_categories(content, names)
    _check_layouts(content, len(classes))


def as_list(layouts: Any) -> list[Any]:
    """The layouts of a description, where a single one may stand without a list."""
    return [layouts] if isinstance(layouts, Mapping) else layouts


def _require_distinct(values: Placed, otherwise: str = "") -> None:
    first: dict[Any, str] = {}
    for place, value in values:
        key = tuple(value) if isinstance(value, list) else value
        if key in first:
            raise WrongValue(place, value, f"another value than that of {first[key]}{otherwise}")
        first[key] = place


def _require_one_each(place: str, values: Sequence[Any], num_classes: int) -> None:
    if values and len(values) != num_classes:
        raise WrongValue(place, list(values), f"{num_classes} entries, one for each class, and not {len(values)}")


def _require_ids_of_one_meaning(form: str, label_ids: Sequence[int], ignored: Placed) -> None:
    """Refuses ids of label files that stand for two classes, or for a class and ignored pixels."""
    placed = [(form.format(index), value) for index, value in enumerate(label_ids)]
    _require_distinct(placed)
    of_class = {value: place for place, value in placed}
    for place, value in ignored:
        if value in of_class:
            raise WrongValue(place, value, f"an id of no class, and {of_class[value]} is the same")


def _check_flip_pairs(content: Mapping[str, Any], names: Sequence[str]) -> None:
    partner_at: dict[str, str] = {}
    for i, pair in enumerate(content.get("flip_pairs", ())):
        for j, name in enumerate(pair):
            place = f"flip_pairs[{i}][{j}]"
            _require_class(place, name, names)
            if name in partner_at:
                raise WrongValue(place, name, f"a class in one pair alone, and it stands in {partner_at[name]}")
            if "background" in content and name == names[0]:
                raise WrongValue(place, name, "another class than the first, which the key background leaves out")
            partner_at[name] = place


def _require_class(place: str, name: str, names: Sequence[str]) -> None:
    if name not in names:
        raise WrongValue(place, name, f"the name of a class{did_you_mean(name, names)}")


def _check_categories(content: Mapping[str, Any], names: Sequence[str]) -> None:
    """Each class belongs to one category."""
    categories = content.get("categories", ())
    if not categories:
        return
    if content.get("label_format", "ids") != "ids":
        raise WrongValue("label_format", content["label_format"], '"ids", which categories need')
    if len(categories) < 2:
        raise UserError(f"categories has {len(categories)} entries; expected at least 2")
    _require_distinct((f"categories[{i}].name", category["name"]) for i, category in enumerate(categories))
    members = [
        (f"categories[{i}].classes[{j}]", name)
        for i, category in enumerate(categories)
        for j, name in enumerate(category["classes"])
    ]
    for place, name in members:
        _require_class(place, name, names)
    _require_distinct(members)
    missing = sorted(set(names) - {name for _, name in members}, key=names.index)
    if missing:
        raise UserError(f"categories has no {shown(missing[0])}; expected each class in one of them")


def _check_layouts(content: Mapping[str, Any], num_classes: int) -> None:
    layouts = content["layouts"]
    placed = [("layouts", layouts)] if isinstance(layouts, Mapping) else _enumerate("layouts", layouts)
    splits = [*SPLITS, _UNSPLIT, *(split for _, layout in placed for split in layout.get("split_names") or ())]
    for place, split in (
        *_enumerate("unlabelled", content.get("unlabelled", ())),
        *((f"num_images.{split}", split) for split in content.get("num_images", ())),
    ):
        if split not in splits:
            raise WrongValue(place, split, f"the name of a split{did_you_mean(split, splits)}")
    for place, layout in placed:
        ids, ignored = layout.get("label_ids", ()), layout.get("ignore", ())
        if ignored and not ids:
            raise UserError(f"the key {place}.label_ids is missing; {place}.ignore needs it")
        _require_one_each(f"{place}.label_ids", ids, num_classes)
        _require_ids_of_one_meaning(f"{place}.label_ids[{{}}]", ids, _enumerate(f"{place}.ignore", ignored))


def _enumerate(place: str, values: Sequence[Any]) -> list[tuple[str, Any]]:
    return [(f"{place}[{index}]", value) for index, value in enumerate(values)]
