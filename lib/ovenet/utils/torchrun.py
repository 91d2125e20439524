"""Which torchrun started a run: it starts processes again after one has failed, and when machines leave or join."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path

from ovenet.utils import distributed
from ovenet.utils.writing import write_text

_FILE = ".launchers"


def launchers() -> list[str]:
    """The torchrun processes that have started the ranks of now; empty without torchrun."""
    return sorted({name for name in distributed.gather_objects(_launcher()) if name})


def have_begun(run_dir: Path, names: Sequence[str]) -> bool:
    """Whether one of these launchers has started the run before. The answer is rank 0's."""
    path, is_known = run_dir / _FILE, False
    if distributed.is_main() and path.exists():
        is_known = not set(names).isdisjoint(path.read_text(encoding="utf-8").splitlines())
    return distributed.broadcast(is_known)


def note_launchers(run_dir: Path, names: Sequence[str]) -> None:
    """Remembers which launchers have started the run; called on rank 0."""
    if names:
        write_text(run_dir / _FILE, "\n".join(names) + "\n")


def num_restarts() -> int:
    """How often torchrun has started this process again after a failure."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def _launcher() -> str:
    """The torchrun process above this one; its start tells it from another of the same number."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return ""
    status = Path(f"/proc/{os.getppid()}/stat")
    started = status.read_text().rpartition(")")[2].split()[19] if status.exists() else "?"
    return f"{os.environ['TORCHELASTIC_RUN_ID']} {platform.node()} {os.getppid()} {started}"
