"""Settings as dataclass fields, declared beside their component: type, default, meaning, range and role in one place.

`ovenet.config.schema` composes these dataclasses into the tree that users edit, and hands each component its own;
`ovenet.config.checks` checks values against them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Role = Literal["result", "input", "place", "speed"]
LARGEST_INTEGER = 2**31 - 1  # the limit of C libraries, and above any sensible count


@dataclass(frozen=True)
class Setting:
    """Metadata of one setting; type and default are those of its dataclass field.

    Attributes:
        meaning: one line with the unit.
        one_of: allowed values; empty for no such limit.
        at_least: lower bound, included.
        above: lower bound, excluded.
        at_most: upper bound, included.
        below: upper bound, excluded.
        role: ``result``: the value changes what a training computes; ``input``: the file that it names does;
            ``place``: it only says where files and logs are; ``speed``: it only changes time, memory, what is written
            (``PRINT_FREQ``, checkpoints, reports) and where a run begins again (``RESUME``).
        in_test: the value changes the counts of a test of given weights.
    """

    meaning: str
    one_of: tuple[Any, ...] = ()
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    role: Role = "result"
    in_test: bool = False

    def allows(self, value: Any) -> bool:
        """Whether a value of the right type is in the range."""
        if self.one_of:
            return value in self.one_of
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return True
        most = LARGEST_INTEGER if self.at_most is None and isinstance(value, int) else self.at_most
        return not (
            (self.at_least is not None and value < self.at_least)
            or (self.above is not None and value <= self.above)
            or (most is not None and value > most)
            or (self.below is not None and value >= self.below)
        )

    def expected(self, value: Any) -> str:
        """The range that a value violates, for the error message."""
        is_above_all = isinstance(value, int) and self.at_most is None and value > LARGEST_INTEGER
        return f"at most {LARGEST_INTEGER}" if is_above_all and not self.one_of else self.range_text

    @property
    def range_text(self) -> str:
        """The range, for messages and docs; "" where every value of the type is allowed."""
        if self.one_of:
            return "one of " + ", ".join(map(str, self.one_of))
        bounds = (
            ("at least", self.at_least),
            ("more than", self.above),
            ("at most", self.at_most),
            ("below", self.below),
        )
        return " and ".join(f"{words} {bound}" for words, bound in bounds if bound is not None)


def setting(
    default: Any,
    meaning: str,
    *,
    one_of: tuple[Any, ...] = (),
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    role: Role = "result",
    in_test: bool = False,
) -> Any:
    """A dataclass field that is a setting; see `Setting` for the arguments."""
    metadata = Setting(meaning, one_of, at_least, above, at_most, below, role, in_test)
    return dataclasses.field(default=default, metadata={Setting: metadata})


def settings_of(component: type) -> dict[str, tuple[dataclasses.Field[Any], Setting]]:
    """The settings of a dataclass by key, in upper case: each with its field and metadata."""
    return {
        field.name.rstrip("_").upper(): (field, field.metadata[Setting])
        for field in dataclasses.fields(component)
        if Setting in field.metadata
    }


def flatten(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the values of nested tables by their whole keys, ``SECTION.KEY``."""
    for name, value in content.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
