"""Kinds of corruption by name and group. Names only: a configuration is read without the libraries that corrupt."""

from __future__ import annotations

from collections.abc import Iterable

from ovenet.errors import UserError, nearest

GROUPS: dict[str, tuple[str, ...]] = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness", "rain", "darkness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
}
KINDS = tuple(kind for kinds in GROUPS.values() for kind in kinds)
OWN_KINDS = ("rain", "darkness")  # of this package; the others are Hendrycks and Dietterich's
COMMON_KINDS = tuple(kind for kind in KINDS if kind not in OWN_KINDS)
SEVERITIES = (1, 2, 3, 4, 5)
_SETS = {"all": KINDS, "common": COMMON_KINDS, **GROUPS}
_MIN_SIDE = 32  # of an image, in pixels, as the library says
# Motion blur shifts by up to 40 pixels. The library leaves out shifts beyond the border, which would darken the image.
_MIN_SIDES = {"motion_blur": 41}


def kinds_of(names: Iterable[str], where: str) -> tuple[str, ...]:
    """The kinds that names of kinds and of sets (``all``, ``common``, or a group) stand for, each once, in fixed order.

    Args:
        names: in any order.
        where: the key or option that has them, for the message.

    Raises:
        UserError: a name is unknown.
    """
    chosen: set[str] = set()
    for name in names:
        if name not in _SETS and name not in KINDS:
            raise UserError(
                f"{where}: there is no corruption {name!r}; the nearest is {nearest(name, (*_SETS, *KINDS))}. "
                f"There are {', '.join(KINDS)}, and the sets {', '.join(_SETS)}"
            )
        chosen.update(_SETS.get(name, (name,)))
    return tuple(kind for kind in KINDS if kind in chosen)


def smallest_side(kind: str) -> int:
    """The shortest side, in pixels, of an image that can have a kind of corruption."""
    return _MIN_SIDES.get(kind, _MIN_SIDE)
