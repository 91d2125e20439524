"""One run per folder at a time."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ovenet.errors import UserError

LOCK, _OWNER = ".lock", ".lock_owner"


@contextmanager
def run_lock(run_dir: Path, *, timeout_s: float = 0) -> Iterator[None]:
    """Locks a run's folder; the system releases the lock when the process ends, however it ends.

    Args:
        run_dir: the folder; it is created.
        timeout_s: seconds to wait for a process that holds it.

    Raises:
        UserError: another process holds it.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    owner = run_dir / _OWNER
    try:
        with FileLock(run_dir / LOCK, timeout=timeout_s):
            owner.write_text(f"process {os.getpid()} on {platform.node()}", encoding="utf-8")
            yield
    except Timeout as error:
        holder = owner.read_text(encoding="utf-8") if owner.is_file() else ""
        raise UserError(
            f"{run_dir}: another run ({holder or 'unknown process'}) writes there; wait for it, "
            "end it, or choose another OUTPUT_DIR"
        ) from error
