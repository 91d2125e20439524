"""Kinds of values in a JSON file of known keys, and errors that name a value's place: see `ovenet.data.keys`."""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ovenet.data.info import SPLITS
from ovenet.errors import UserError, nearest

_MAX_SHOWN = 60  # characters of a wrong value in a message
_FEW_CHOICES = 3


class WrongValue(UserError):
    """What a key of a description holds is not what it needs.

    Attributes:
        key: the one at the top, ``classes`` of ``classes[2].color``.
    """

    def __init__(self, place: str, value: Any, expected: str):
        super().__init__(f"{place} is {shown(value)}; expected {expected}")
        self.key = place.split(".")[0].split("[")[0]


class Kind(Protocol):
    """What a key may hold.

    Attributes:
        expected: in words.
    """

    @property
    def expected(self) -> str: ...

    def check(self, value: Any, place: str) -> None:
        """Raises `WrongValue`, or a `UserError` about a key, where the value is not of this kind."""


@dataclass(frozen=True)
class Plain:
    """A text, a number, true or false, or a short list of them.

    Attributes:
        expected: see `Kind`.
        accepts: whether a value is of the kind.
    """

    expected: str
    accepts: Callable[[Any], bool]

    def check(self, value: Any, place: str) -> None:
        if not self.accepts(value):
            raise WrongValue(place, value, self.expected)


@dataclass(frozen=True)
class Choice:
    """One of a few texts."""

    choices: tuple[str, ...]

    @property
    def expected(self) -> str:
        return f"one of {', '.join(self.choices)}" if len(self.choices) > 1 else f'"{self.choices[0]}"'

    def check(self, value: Any, place: str) -> None:
        if value not in self.choices:
            hint = did_you_mean(value, self.choices) if len(self.choices) > _FEW_CHOICES else ""
            raise WrongValue(place, value, self.expected + hint)


@dataclass(frozen=True)
class ListOf:
    """A list of values of one kind.

    Attributes:
        item: their kind.
        items: what they are, in words.
        at_least: how many.
        at_most: how many.
    """

    item: Kind
    items: str
    at_least: int = 0
    at_most: int = sys.maxsize

    @property
    def expected(self) -> str:
        return f"a list of {self.items}"

    def check(self, value: Any, place: str) -> None:
        if not isinstance(value, list):
            raise WrongValue(place, value, self.expected)
        for limit, is_kept, word in (
            (self.at_least, len(value) >= self.at_least, "least"),
            (self.at_most, len(value) <= self.at_most, "most"),
        ):
            if not is_kept:
                raise UserError(f"{place} has {len(value)} entries; expected at {word} {limit}")
        for index, item in enumerate(value):
            self.item.check(item, f"{place}[{index}]")


@dataclass(frozen=True)
class BySplit:
    """A table with a value of one kind for each of some splits."""

    value: Kind

    @property
    def expected(self) -> str:
        return f'{{"train": …, "val": …}}, each {self.value.expected}'

    def check(self, value: Any, place: str) -> None:
        if not isinstance(value, dict):
            raise WrongValue(place, value, self.expected)
        for key, item in value.items():
            if not is_file_name(key):
                raise UserError(f"{_inside(place, key)}: expected the name of a split, such as {', '.join(SPLITS)}")
            self.value.check(item, _inside(place, key))


@dataclass(frozen=True)
class Key:
    """One key.

    Attributes:
        kind: what it may hold.
        meaning: in words.
        default: in words.
        is_required: it must be there.
        may_be_null: ``null`` stands for none.
    """

    kind: Kind
    meaning: str
    default: str = "none"
    is_required: bool = False
    may_be_null: bool = False


@dataclass(frozen=True)
class Table:
    """``{…}`` with known keys.

    Attributes:
        keys: by name.
        of_splits: what a key named as one in ``split_names`` holds; None where there is no such key.
    """

    keys: Mapping[str, Key]
    of_splits: Key | None = None

    @property
    def expected(self) -> str:
        return "{" + ", ".join(f'"{name}": …' for name, key in self.keys.items()) + "}"

    def check(self, value: Any, place: str) -> None:
        if not isinstance(value, dict):
            raise WrongValue(place, value, self.expected)
        known = self._known(value)
        for name in value:
            if name not in known:
                raise UserError(f"unknown key {_inside(place, name)}{did_you_mean(name, known)}")
        for name, key in known.items():
            if name in value:
                if value[name] is not None or not key.may_be_null:
                    key.kind.check(value[name], _inside(place, name))
            elif key.is_required:
                raise UserError(f"the key {_inside(place, name)} is missing; expected {key.kind.expected}")

    def _known(self, value: Mapping[str, Any]) -> Mapping[str, Key]:
        split_names = value.get("split_names")
        if self.of_splits is None or not isinstance(split_names, dict):
            return self.keys
        return {**dict.fromkeys(split_names, self.of_splits), **self.keys}


@dataclass(frozen=True)
class OneOrMore:
    """A table, or a list of such tables."""

    table: Table

    @property
    def expected(self) -> str:
        return f"{self.table.expected}, or a list of such tables"

    def check(self, value: Any, place: str) -> None:
        if isinstance(value, dict):
            self.table.check(value, place)
        else:
            ListOf(self.table, "tables", at_least=1).check(value, place)


def shown(value: Any) -> str:
    """A value on one line, as JSON has it, cut where it is long."""
    text = json.dumps(value, ensure_ascii=False)
    text = text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"
    return "".join(c if _is_on_one_line(c) else f"\\u{ord(c):04x}" for c in text)


def did_you_mean(value: Any, known: Iterable[str]) -> str:
    """What is added to a message about a misspelled name."""
    if not isinstance(value, str):
        return ""
    guess = nearest(value[:_MAX_SHOWN], known)
    return f"; did you mean {guess}?" if guess else ""


def is_number(value: Any) -> bool:
    """Whether it is a finite number; true and false are none."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _inside(place: str, key: str) -> str:
    name = key if key.replace("-", "_").isidentifier() and len(key) <= _MAX_SHOWN else shown(key)
    return f"{place}.{name}" if place else name


def is_text(value: Any) -> bool:
    """Whether it is a text on one line."""
    return isinstance(value, str) and _is_on_one_line(value)


def is_file_name(value: Any) -> bool:
    """Whether it may be the name of a file or a folder."""
    return is_text(value) and bool(value.strip()) and "/" not in value


def _is_on_one_line(text: str) -> bool:
    """Whether it holds no line breaks, no other control characters, and nothing that UTF-8 cannot hold."""
    return not any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in text)
