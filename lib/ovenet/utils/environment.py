"""On what, and with what, a run was made."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("torch", "torchvision", "numpy", "opencv-python-headless", "Pillow", "yacs", "tensorboardX", "tqdm")


def describe_environment(repository: Path) -> dict[str, Any]:
    """Command line, versions, hardware and the state of the code.

    Args:
        repository: folder of the code; without git its state is None.
    """
    cuda = torch.cuda.is_available()
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": [sys.executable, *sys.argv],
        "directory": os.getcwd(),
        "host": platform.node(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "cuda": torch.version.cuda if cuda else None,
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else [],
        "cpu_count": os.cpu_count(),
        "launcher": {name: os.environ[name] for name in ("WORLD_SIZE", "RANK", "SLURM_JOB_ID") if name in os.environ},
        "git": {
            "commit": _git(repository, "rev-parse", "HEAD"),
            "changes": _git(repository, "status", "--porcelain"),
            "diff": _git(repository, "diff", "HEAD"),
        },
    }


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """`allow_tf32` for a while; what was set before is set again."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    allow_tf32(allowed)
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def allow_tf32(allowed: bool) -> None:
    """Lets CUDA read 10 bits of mantissa in float32 convolutions and products, or all 23, whatever torch would do."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(repository: Path, *arguments: str) -> str | None:
    try:
        command = ["git", "-C", str(repository), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
