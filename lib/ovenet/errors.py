"""What a user can mend, apart from what is a fault of this program."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input: the message says on one line what was received, where, and what to do. Tools exit with code 2."""


def nearest(name: str, known: Iterable[str], *, num: int = 1) -> str:
    """The known names most like a misspelled one, with commas; "" if nothing is known."""
    return ", ".join(difflib.get_close_matches(name, list(known), n=num, cutoff=0.0))
