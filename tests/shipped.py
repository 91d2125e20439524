"""What the repository holds, in contrast to what a user keeps in its folders."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXPERIMENTS = ROOT / "experiments"


def experiment_name(path: Path) -> str:
    """``<dataset>/<experiment>``, whether or not the file lies in ``published``."""
    return f"{path.relative_to(EXPERIMENTS).parts[0]}/{path.stem}"


def shipped(pattern: str, folder: Path = EXPERIMENTS) -> list[Path]:
    """The files of a folder that git knows, by name; all of them where it is no checkout.

    Args:
        pattern: relative to the folder, as `pathlib.Path.glob` takes it.
        folder: of which.
    """
    found = sorted(folder.glob(pattern))
    git = ["git", "-C", str(folder), "ls-files", "-z", "--", "."]
    try:
        names = subprocess.run(git, capture_output=True, check=True).stdout.split(b"\0")
    except (OSError, subprocess.CalledProcessError):
        return found
    known = {folder / os.fsdecode(name) for name in names if name}
    return [path for path in found if path in known] if known else found  # an archive unpacked inside another checkout
