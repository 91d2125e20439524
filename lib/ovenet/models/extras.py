"""Optional libraries."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ovenet.errors import UserError


def transformers_module(name: str, needed_by: str) -> Any:
    """The modeling module of a model family in transformers.

    Args:
        name: name of the family, such as ``swin``.
        needed_by: the part that needs it, for the message.

    Raises:
        UserError: transformers is not installed.
    """
    try:
        return import_module(f"transformers.models.{name}.modeling_{name}")
    except ImportError as error:
        raise UserError(
            f'transformers is not installed ({needed_by} needs it); install it with: pip install -e ".[mask2former]"'
        ) from error
