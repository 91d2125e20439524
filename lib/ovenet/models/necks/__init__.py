"""Parts that turn a backbone's maps into those that a head reads."""

from ovenet.models.necks.concat import ConcatNeck, IdentityNeck

__all__ = ["ConcatNeck", "IdentityNeck"]
