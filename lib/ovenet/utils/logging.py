"""The logger of the package and the tools."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

_NAME = "ovenet"
FILE_ONLY = "file_only"  # `extra={FILE_ONLY: True}` keeps a line off the terminal, where a progress bar shows it


def get_logger() -> logging.Logger:
    """The package's logger; silent below warnings until `configure_logging` is called."""
    return logging.getLogger(_NAME)


def configure_logging(*, is_main: bool = True, file: Path | None = None) -> None:
    """Sends log lines to stderr, and appends them to a file; other ranks log only warnings.

    Args:
        is_main: whether this is rank 0.
        file: log file of rank 0.
    """
    logging.raiseExceptions = False  # do not print a traceback for a log that cannot be written, as on a full disk
    logger = get_logger()
    logger.setLevel(logging.INFO if is_main else logging.WARNING)
    logger.propagate = False
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    terminal = logging.StreamHandler(sys.stderr)
    terminal.addFilter(lambda record: not getattr(record, FILE_ONLY, False))
    handlers: list[logging.Handler] = [terminal]
    if file is not None and is_main:
        handlers.append(logging.FileHandler(file, encoding="utf-8", errors="backslashreplace"))
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname).1s %(message)s", "%Y-%m-%d %H:%M:%S"))
        logger.addHandler(handler)
