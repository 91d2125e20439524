"""The ids of classes: ids in an existing ``dataset.json`` are kept, new classes follow."""

from __future__ import annotations

import shlex
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ovenet.data.description import own_description, voc_color
from ovenet.data.keys import MAX_CLASSES
from ovenet.errors import UserError
from ovenet.preparation.annotations.shapes import BACKGROUND, IGNORED, read_json

UNLABELLED = 0  # id of pixels that no shape covers; classes count from 1
_USUALLY_IGNORED = 255


@dataclass(frozen=True)
class ClassTable:
    """The classes of a dataset.

    Attributes:
        ids: by name, including labelme's ``__ignore__``.
        unlabelled: id of pixels that no shape covers.
        content: of ``dataset.json``.
        added: names that were not in it before.
        upright: whether photographs are turned as their EXIF tag says.
    """

    ids: dict[str, int]
    unlabelled: int
    content: dict[str, Any]
    added: tuple[str, ...]
    upright: bool


def require_two_classes(names: Collection[str], background: str, source: Path) -> None:
    """Refuses a dataset with a single class, which is no task; arguments as in `new_table`.

    Raises:
        UserError: says how to get two.
    """
    classes = sorted({*names} - _not_classes(background))
    if not classes:
        raise UserError(f"{source}: there is no shape of a class beside {background or IGNORED!r}")
    if len(classes) + bool(background) < 2:
        raise UserError(
            f"{source}: all shapes are {classes[0]!r}, and a task needs two classes; "
            "name the class of pixels that no shape covers: --background CLASS"
        )


def new_table(names: Collection[str], background: str, source: Path) -> ClassTable:
    """Ids from 1 in the order of the names; 0 stands for pixels that no shape covers.

    Args:
        names: of the shapes.
        background: the class of pixels that no shape covers; "" ignores them.
        source: the annotations, for messages.

    Raises:
        UserError: there are too many.
    """
    classes = sorted({*names} - _not_classes(background))
    if len(classes) + bool(background) > MAX_CLASSES - 1:
        raise UserError(f"{source}: {len(classes)} classes; masks of 8 bits hold {MAX_CLASSES - 1}")
    ids = {name: index for index, name in enumerate(classes, start=1)}
    ignored = UNLABELLED
    if background:
        ids = {background: UNLABELLED, **ids}
        ignored = _USUALLY_IGNORED
    content: dict[str, Any] = {"classes": [{"name": name, "id": number} for name, number in ids.items()]}
    if not background or IGNORED in names:
        content["ignore"] = [ignored]
    content["upright"] = True
    return ClassTable(_with_aliases(ids, ignored, background), UNLABELLED, content, tuple(classes), True)


def extended_table(path: Path, names: Collection[str], background: str) -> ClassTable:
    """The table of an existing ``dataset.json``: no id changes, new classes are appended.

    Args:
        path: the file.
        names: see `new_table`.
        background: see `new_table`; must be as before.

    Raises:
        UserError: the file is broken, its masks are not ids, or pixels that no shape covers had another meaning.
    """
    info, content = own_description(path, path.parent.name), read_json(path)
    if info.label_format == "colors":
        raise UserError(f"{path}: its masks are colours, and annotations become ids; import into another dataset")
    ids = dict(zip(info.class_names, info.label_ids, strict=True))
    unlabelled = _unlabelled(path, ids, info.ignored_ids, background)
    ignored = [value for value in info.ignored_ids if value != unlabelled] or [*info.ignored_ids]
    if not ignored and IGNORED in names:
        ignored = [next(i for i in range(_USUALLY_IGNORED, -1, -1) if i not in ids.values())]
        content["ignore"] = [*content.get("ignore", []), *ignored]
    added = sorted({*names} - {*ids} - _not_classes(background))
    if added and "classes" not in content:
        raise UserError(f"{path}: it has no classes of its own to which {', '.join(added)} could be added")
    used = {*ids.values(), *info.ignored_ids, *ignored, unlabelled}
    free = [i for i in range(1 + max(ids.values()), MAX_CLASSES) if i not in used]
    free += [i for i in range(1, MAX_CLASSES) if i not in used and i not in free]
    if len(added) > len(free):
        raise UserError(f"{path}: {len(ids)} classes, and {len(added)} more do not fit into masks of 8 bits")
    colors = [*info.palette, *info.ignored_colors]
    for name, number in zip(added, free, strict=False):
        index = next(i for i in range(len(colors) + 1, 2 * MAX_CLASSES) if voc_color(i) not in colors)
        colors.append(voc_color(index))
        content["classes"].append({"name": name, "id": number, "color": list(colors[-1])})
        ids[name] = number
    if added and "label_ids" in content:
        content["label_ids"] = [*content["label_ids"], *(ids[name] for name in added)]
    aliases = _with_aliases(ids, ignored[0] if ignored else unlabelled, background)
    return ClassTable(aliases, unlabelled, content, tuple(added), info.upright)


def _not_classes(background: str) -> set[str]:
    return {IGNORED, background} | ({BACKGROUND} if background else set())


def _with_aliases(ids: dict[str, int], ignored: int, background: str) -> dict[str, int]:
    aliases = {IGNORED: ignored, **({BACKGROUND: ids[background]} if background else {})}
    return {**aliases, **ids}


def _unlabelled(path: Path, ids: dict[str, int], ignored: tuple[int, ...], background: str) -> int:
    """The id of pixels that no shape covers, as in earlier imports."""
    at_zero = next((name for name, number in ids.items() if number == UNLABELLED), None)
    if background:
        if background in ids and UNLABELLED not in ignored:
            return ids[background]
        so_far = (
            "are ignored" if UNLABELLED in ignored else f"are {at_zero!r}" if at_zero else "are none of its classes"
        )
        raise UserError(
            f"--background {background}: pixels that no shape covers {so_far} in {path}; "
            + (f"say --background {shlex.quote(at_zero)}" if at_zero else "leave it out")
        )
    if at_zero is not None:
        raise UserError(
            f"{path}: pixels that no shape covers have the id of {at_zero!r}; say --background {shlex.quote(at_zero)}"
        )
    if not ignored:
        raise UserError(f'{path}: no id is ignored, which pixels without a shape could have; add "ignore": [0]')
    return UNLABELLED if UNLABELLED in ignored else ignored[0]
