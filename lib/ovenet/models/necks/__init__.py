"""Parts that turn a backbone's maps into one."""

from ovenet.models.necks.concat import ConcatNeck

__all__ = ["ConcatNeck"]
