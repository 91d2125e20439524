"""Kinds of values in a JSON file with known keys, and errors that name the place of a value: see `ovenet.data.keys`."""

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
    """A wrong value in a description.

    Attributes:
        key: the top-level key, ``classes`` in ``classes[2].color``.
    """

    def __init__(self, place: str, value: Any, expected: str):
        super().__init__(f"{place} is {shown(value)}; expected {expected}")
        self.key = place.split(".")[0].split("[")[0]


class Kind(Protocol):
    """A kind of value; `expected` describes it in words."""

    @property
    def expected(self) -> str: ...

    def check(self, value: Any, place: str) -> None:
        """Raises `WrongValue`, or a `UserError` about a key, where the value is not of this kind."""


@dataclass(frozen=True)
class Plain:
    """A string, a number, a boolean, or a short list of them, tested by `accepts`."""

    expected: str
    accepts: Callable[[Any], bool]

    def check(self, value: Any, place: str) -> None:
        if not self.accepts(value):
            raise WrongValue(place, value, self.expected)


@dataclass(frozen=True)
class Choice:
    """One of a few strings."""

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
    """A list of `at_least` to `at_most` values of one kind, described by `items`; or one table without a list."""

    item: Kind
    items: str
    at_least: int = 0
    at_most: int = sys.maxsize
    may_be_one_table: bool = False

    @property
    def expected(self) -> str:
        return f"{self.item.expected}, or a list of such tables" if self.may_be_one_table else f"a list of {self.items}"

    def check(self, value: Any, place: str) -> None:
        if self.may_be_one_table and isinstance(value, dict):
            return self.item.check(value, place)
        if not isinstance(value, list):
            raise WrongValue(place, value, f"a list of {self.items}")
        if not self.at_least <= len(value) <= self.at_most:
            limit = f"least {self.at_least}" if len(value) < self.at_least else f"most {self.at_most}"
            raise UserError(f"{place} has {len(value)} entries; expected at {limit}")
        for index, item in enumerate(value):
            self.item.check(item, f"{place}[{index}]")


@dataclass(frozen=True)
class BySplit:
    """A table from splits to values of one kind."""

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
    """One key of a `Table`; `meaning` and `default` are words for the documentation."""

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
        of_splits: kind of further keys, named as in ``split_names``; None where there are none.
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


def shown(value: Any) -> str:
    """A value as JSON on one line, shortened where it is long."""
    text = json.dumps(value, ensure_ascii=False)
    text = text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"
    return "".join(c if _is_on_one_line(c) else f"\\u{ord(c):04x}" for c in text)


def did_you_mean(value: Any, known: Iterable[str]) -> str:
    """The end of a message about a misspelled name."""
    if not isinstance(value, str):
        return ""
    guess = nearest(value[:_MAX_SHOWN], known)
    return f"; did you mean {guess}?" if guess else ""


def is_number(value: Any) -> bool:
    """Whether a value is a finite number and no boolean."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _inside(place: str, key: str) -> str:
    name = key if key.replace("-", "_").isidentifier() and len(key) <= _MAX_SHOWN else shown(key)
    return f"{place}.{name}" if place else name


def is_text(value: Any) -> bool:
    """Whether a value is a string on one line."""
    return isinstance(value, str) and _is_on_one_line(value)


def is_file_name(value: Any) -> bool:
    """Whether a value may be the name of a file or a folder."""
    return is_text(value) and bool(value.strip()) and "/" not in value


def _is_on_one_line(text: str) -> bool:
    """Whether a string has no line breaks, no other control characters, and only characters that UTF-8 can encode."""
    return not any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in text)
