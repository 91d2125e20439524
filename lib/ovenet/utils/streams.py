"""Standard output that nobody reads any more."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

EXIT_NO_READER = 141  # what shells report of a program that SIGPIPE ended


def end_unread() -> NoReturn:
    """Ends the program as SIGPIPE would, without a word: its reader, ``| head`` say, has had enough."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what the end of Python still writes
    sys.exit(EXIT_NO_READER)
