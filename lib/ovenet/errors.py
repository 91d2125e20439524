"""Errors that the user can fix, in contrast to faults of this program."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input: the message says on one line what was received, where, and what to do. Tools exit with code 2."""


def one_line(error: BaseException) -> str:
    """The message of an error on one line of at most 200 characters; its type where it has none."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def nearest(name: str, known: Iterable[str], *, num: int = 1) -> str:
    """The known names closest to a misspelled one, separated by commas; "" if there are none."""
    return ", ".join(difflib.get_close_matches(name, list(known), n=num, cutoff=0.0))
