"""Decoded images and labels as memory-mapped files, from which a crop reads only its own rows.

Each source has one ``.npy`` file, whose name tells the source's size and time of change: a source that was replaced has
no entry any more. Files appear whole or not at all, so that several processes may build the same cache, and one that
was interrupted goes on.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ovenet.data.files import image_size
from ovenet.data.info import DatasetInfo
from ovenet.errors import UserError
from ovenet.utils.writing import write_file

_VERSION = 1  # of what is stored; another one is another folder
_SPARE_BYTES = 2**28  # left free on the disk


@dataclass(frozen=True)
class CachePlan:
    """What is missing in a cache.

    Attributes:
        missing: numbers of the pairs without an entry.
        num_bytes: that their entries will take.
    """

    missing: tuple[int, ...]
    num_bytes: int


class DecodedCache:
    """The entries of one dataset.

    Args:
        parent: folder of all caches; the dataset gets its own in it, by its facts and the ignore label.
        sources: ``root/<dataset's name>``.
        info: the dataset.
        ignore_label: train id of ignored pixels.

    Attributes:
        folder: of this dataset's entries.
    """

    def __init__(self, parent: Path, sources: Path, info: DatasetInfo, ignore_label: int):
        facts = json.dumps([_VERSION, str(sources.resolve()), ignore_label, info.as_dict()], sort_keys=True)
        self.folder = Path(parent) / f"{info.name}-{hashlib.sha256(facts.encode()).hexdigest()[:12]}"
        self._sources = sources
        is_small = info.num_classes <= 256 and 0 <= ignore_label < 256
        self._label_type = np.dtype(np.uint8 if is_small else np.int16)

    def entry(self, name: str) -> Path | None:
        """The entry of a source as it is now, whether or not it exists; None without the source."""
        try:
            status = (self._sources / name).stat()
        except OSError:
            return None
        return self.folder / f"{posixpath.normpath(name)}.{status.st_size}-{status.st_mtime_ns}.npy"

    def read(self, name: str) -> np.ndarray | None:
        """A source's pixels or train ids, mapped, not read; None where there is no entry."""
        path = self.entry(name)
        try:
            return None if path is None else np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray)
        except (OSError, ValueError):  # not built, removed, or damaged: the source is still there
            return None

    def plan(self, pairs: Sequence[tuple[str, str | None]], *, num_threads: int) -> CachePlan:
        """Looks for entries, and at the headers of the images that have none.

        Args:
            pairs: image and label.
            num_threads: for the file system.
        """
        with ThreadPoolExecutor(num_threads) as pool:
            is_there = pool.map(lambda pair: all(map(self._has_entry, filter(None, pair))), pairs)
            missing = tuple(number for number, there in enumerate(is_there) if not there)
            sizes = pool.map(self._num_bytes, {pairs[number] for number in missing})  # a pair may be listed twice
            return CachePlan(missing, sum(sizes))

    def require_space(self, num_bytes: int, setting: str) -> None:
        """Checks the free space.

        Raises:
            UserError: it does not suffice.
        """
        free = shutil.disk_usage(_existing(self.folder)).free
        if num_bytes + _SPARE_BYTES > free:
            raise UserError(
                f"{setting}: the decoded images need {num_bytes / 1e9:.1f} GB in {self.folder}, where {free / 1e9:.1f} "
                "GB are free; set DATASET.CACHE none, or DATASET.CACHE_DIR to a larger disk"
            )

    def build(
        self,
        pairs: Sequence[tuple[str, str | None]],
        decode: Callable[[int], tuple[np.ndarray, np.ndarray | None]],
        missing: Sequence[int],
        *,
        num_threads: int,
        on_pair: Callable[[], object] = lambda: None,
    ) -> list[str]:
        """Writes entries.

        Args:
            pairs: image and label.
            decode: image ``(H, W, 3)`` uint8 and train ids ``(H, W)`` of a pair, by its number.
            missing: the pairs to decode.
            num_threads: that decode and write.
            on_pair: called after each pair.

        Returns:
            Why pairs could not be decoded, one text each; they have no entry.

        Raises:
            OSError: an entry cannot be written.
        """

        def add(number: int) -> str:
            entries = [self.entry(name) for name in pairs[number] if name]  # before the files are read
            try:
                image, labels = decode(number)
            except UserError as error:
                return str(error)
            finally:
                on_pair()
            arrays = (image, None if labels is None else labels.astype(self._label_type))
            for path, array in zip(entries, arrays, strict=False):
                if path is not None and array is not None:
                    _write(path, array)
            return ""

        pool = ThreadPoolExecutor(num_threads)
        try:
            return [problem for problem in pool.map(add, missing) if problem]
        finally:
            pool.shutdown(cancel_futures=True)
            self._remove_outdated([name for number in missing for name in pairs[number] if name])

    def _has_entry(self, name: str) -> bool:
        path = self.entry(name)
        return path is not None and path.exists() and path.stat().st_size > 0

    def _num_bytes(self, pair: tuple[str, str | None]) -> int:
        try:
            height, width = image_size(self._sources / pair[0])
        except UserError:  # told when it is decoded
            return 0
        return height * width * (3 + (self._label_type.itemsize if pair[1] else 0))

    def _remove_outdated(self, names: Sequence[str]) -> None:
        """Removes entries of sources as they were before they changed."""
        entries = {path for path in map(self.entry, names) if path is not None}
        sources = {self.folder / posixpath.normpath(name) for name in names}
        for folder in {path.parent for path in entries if path.parent.exists()}:
            for path in folder.glob("*.npy"):
                if path not in entries and folder / path.stem.rpartition(".")[0] in sources:
                    path.unlink(missing_ok=True)


def _write(path: Path, array: np.ndarray) -> None:
    try:
        write_file(path, lambda unfinished: np.save(unfinished, array, allow_pickle=False))
    except OSError as error:
        raise OSError(f"{error}; free some space, or set DATASET.CACHE none") from error


def _existing(folder: Path) -> Path:
    while not folder.exists():
        folder = folder.parent
    return folder
