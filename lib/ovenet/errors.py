"""Errors that the user can fix, as opposed to bugs of this program."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class UserError(ValueError):
    """Bad input. The one-line message names the key or file, the value and the remedy; tools exit with code 2."""


def one_line(error: BaseException, max_length: int = 200) -> str:
    """The message of an error on one line of at most `max_length` characters; the name of its type if it is empty."""
    return " ".join(str(error).split())[:max_length] or type(error).__name__


def nearest(name: str, known: Iterable[str], *, num: int = 1) -> str:
    """The known names closest to a misspelled one, separated by commas; "" if there are none."""
    return ", ".join(difflib.get_close_matches(name, list(known), n=num, cutoff=0.0))


def first_of(names: Sequence[str], most: int = 3) -> str:
    """The first names of a list, separated by commas, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
