"""PyAV, which only videos need."""

from __future__ import annotations

from types import ModuleType

from ovenet.errors import UserError


def pyav(name: str) -> ModuleType:
    """The module, imported where a video is read or written and nowhere else.

    Args:
        name: of the video, for the message.

    Raises:
        UserError: it is not installed, or does not load.
    """
    try:
        import av
    except ImportError as error:
        raise UserError(f"{name}: videos need PyAV, which cannot be imported ({error}); pip install av") from error
    return av
