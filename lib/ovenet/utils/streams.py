"""Standard output without a reader."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

EXIT_NO_READER = 141  # exit code that shells report after SIGPIPE


def end_unread() -> NoReturn:
    """Ends the program silently, as SIGPIPE would: its reader, ``| head`` say, has closed the pipe."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the last flush of Python
    sys.exit(EXIT_NO_READER)
