"""Folders at the top of a checkout, which are in the package once it is installed."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def bundled_folder(name: str) -> Path:
    """``experiments`` or ``pretrained_models``."""
    installed = _PACKAGE / name
    return installed if installed.is_dir() else _PACKAGE.parents[1] / name
