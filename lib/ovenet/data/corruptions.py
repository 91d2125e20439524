"""Corrupted images: the 15 common corruptions of Hendrycks and Dietterich (2019), rain and darkness.

The 15 are those of imagecorruptions (Michaelis et al., 2019), which works for images of any size, as they are, in the
maintained package imagecorruptions-imaug. Each image has random numbers of its own, so that a test repeats to the bit
in any process and order; other versions of the library, numpy or OpenCV may draw others.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

import numpy as np

from ovenet.data.corruption_kinds import KINDS, OWN_KINDS, SEVERITIES, smallest_side
from ovenet.data.weather import darkness, rain
from ovenet.errors import UserError, nearest

LIBRARY = "imagecorruptions-imaug"
_INSTALL = f'pip install -e ".[robustness]" && pip install --no-deps {LIBRARY}'
_OWN: dict[str, Callable[[np.ndarray, int, np.random.Generator], np.ndarray]] = {"rain": rain, "darkness": darkness}
_TAKE_SEED = ("impulse_noise", "glass_blur")  # instead of drawing from numpy's global generator
_GLOBAL_GENERATOR = threading.Lock()


@dataclass(frozen=True)
class Corruption:
    """One kind of corruption at one severity, whose random numbers depend on both and on the image's path.

    Attributes:
        kind: one of `KINDS`.
        severity: 1 to 5.
    """

    kind: str
    severity: int

    def __str__(self) -> str:
        return f"{self.kind} {self.severity}"

    def __call__(self, image: np.ndarray, path: str) -> np.ndarray:
        """Corrupts an image.

        Args:
            image: ``(H, W, 3)`` uint8 RGB; stays as it is.
            path: as it stands in the list.

        Raises:
            UserError: see `corrupt`; names the image.
        """
        try:
            return corrupt(image, self.kind, self.severity, corruption_seed(path, self.kind, self.severity))
        except UserError as error:
            raise UserError(f"{path}: {error}") from error


def corruption_seed(path: str, kind: str, severity: int) -> int:
    """The seed of an image's random numbers, from 0 to 2^32 - 1, the same on every machine."""
    text = f"{path}\0{kind}\0{severity}".encode(errors="surrogateescape")  # names of files need not be Unicode
    return int.from_bytes(hashlib.sha256(text).digest()[:4], "big")


def corrupt(image: np.ndarray, name: str, severity: int, seed: int) -> np.ndarray:
    """A corrupted copy of an image; numpy's and Python's global random numbers stay as they are.

    Args:
        image: ``(H, W, 3)`` uint8 RGB.
        name: one of `KINDS`.
        severity: 1 to 5.
        seed: of the random numbers, from 0 to 2^32 - 1.

    Returns:
        ``(H, W, 3)`` uint8 RGB.

    Raises:
        UserError: there is no such kind or severity, the image is too small, or the library is not installed.
    """
    if name not in KINDS:
        raise UserError(f"there is no corruption {name!r}; the nearest is {nearest(name, KINDS)}")
    if severity not in SEVERITIES:
        raise UserError(f"{name}: the severity is {severity!r}; expected an integer from 1 to 5")
    height, width = image.shape[:2]
    if min(height, width) < smallest_side(name):
        raise UserError(
            f"{name}: the image is {width}x{height} pixels; expected at least {smallest_side(name)} on each side"
        )
    if name in OWN_KINDS:
        return _OWN[name](image, severity, np.random.default_rng(seed))
    library = _library()
    extra = {"seed": seed} if name in _TAKE_SEED else {}
    with _numpy_seeded(seed):
        return library.corrupt(np.ascontiguousarray(image), severity, name, **extra)


def prepare_corruptions(kinds: Iterable[str]) -> None:
    """Imports what kinds of corruption need, before worker processes are forked, which then need not do it each.

    Raises:
        UserError: the library is not installed.
    """
    needed = [kind for kind in kinds if kind not in OWN_KINDS]
    if needed:
        _library()
    if "glass_blur" in needed:  # numba compiles it
        corrupt(np.zeros((32, 32, 3), np.uint8), "glass_blur", 1, 0)


def library_versions() -> dict[str, str]:
    """Versions of the packages that corrupted pixels depend on, by name; those that are not installed are left out."""
    versions = {}
    for package in (LIBRARY, "numpy", "scipy", "scikit-image", "numba", "opencv-python-headless", "Pillow"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


@cache
def _library() -> ModuleType:
    try:
        version(LIBRARY)  # the package imagecorruptions has modules of the same name, and fails with numpy 2
        library = import_module("imagecorruptions")
    except (PackageNotFoundError, ImportError) as error:
        raise UserError(
            f"corruptions other than {' and '.join(OWN_KINDS)} need {LIBRARY} ({error}); install it with: {_INSTALL}"
        ) from error
    # It tells on standard output where a zoomed layer is a pixel too small, which it then handles.
    vars(import_module("imagecorruptions.corruptions"))["print"] = lambda *_: None
    return library


@contextmanager
def _numpy_seeded(seed: int) -> Iterator[None]:
    """Numpy's global generator, which the library draws from, seeded for a while."""
    with _GLOBAL_GENERATOR:
        before = np.random.get_state()
        np.random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(before)
