"""Values from YAML, the command line or a caller as the types of the settings that they set."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

_NAMES: dict[Any, tuple[str, str]] = {  # one value, and several
    int: ("an integer", "integers"),
    float: ("a number", "numbers"),
    bool: ("True or False", "True or False values"),
    str: ("a string", "strings"),
    NoneType: ("nothing", "nothing"),
}
_TABLE = ("a table of settings", "tables, {NAME: …}")


def convert(value: Any, hint: Any) -> Any:
    """The value as a type, where that loses nothing.

    Args:
        value: plain data: numbers, strings, lists, tables.
        hint: as in a signature; lists of any kind become tuples, integers become floats where those are expected.

    Raises:
        TypeError: the value does not fit; `described` says what does.
    """
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, UnionType):
        for option in args:
            try:
                return convert(value, option)
            except TypeError:
                continue
    elif origin is Literal:
        if value in args:
            return value
    elif origin in (tuple, list, Sequence):
        if isinstance(value, (list, tuple)):
            is_fixed = origin is tuple and args[-1] is not Ellipsis
            hints = args if is_fixed else args[:1] * len(value)
            if len(hints) == len(value):
                return tuple(convert(v, h) for v, h in zip(value, hints, strict=True))
    elif origin in (dict, Mapping):
        if isinstance(value, Mapping):
            return dict(value)
    elif hint is float:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            with suppress(OverflowError):  # an integer larger than any float
                if math.isfinite(value):
                    return float(value)
    elif isinstance(value, hint) and isinstance(value, bool) == (hint is bool):
        return value
    raise TypeError(f"{value!r} is not {described(hint)}")


def described(hint: Any, *, plural: bool = False) -> str:
    """A type in words, for messages: ``a list of numbers``."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(map(str, args))
    if origin in (Union, UnionType):
        return " or ".join(described(option) for option in args)
    if origin in (tuple, list, Sequence):
        return f"{'lists' if plural else 'a list'} of {described(args[0], plural=True)}"
    return _NAMES.get(hint, _TABLE)[plural]
