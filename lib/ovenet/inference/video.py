"""PyAV, which only videos need."""

from __future__ import annotations

from types import ModuleType

from ovenet.errors import UserError


def pyav(name: str) -> ModuleType:
    """The module, imported only where a video is read or written.

    Args:
        name: name of the video, for the message.

    Raises:
        UserError: PyAV is not installed, or cannot be loaded.
    """
    try:
        import av
    except ImportError as error:
        raise UserError(f"{name}: videos need PyAV, which cannot be imported ({error}); pip install av") from error
    return av
