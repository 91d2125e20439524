"""Decoded images and labels as memory-mapped files, from which a crop reads only its own rows.

Each source has one ``.npy`` file, whose name tells the source's size and time of change: a source that was replaced has
no entry any more. Files appear whole or not at all, so that several processes may build the same cache, and one that
was interrupted goes on. Where the sources lie at an address, entries are added as these are read, and else before.

With a bound, what came first stays: epochs read everything equally often, and so replacing would only cost time.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock

from ovenet.data.files import image_size
from ovenet.data.info import DatasetInfo
from ovenet.data.remote import RemotePath, is_remote
from ovenet.errors import UserError
from ovenet.utils.logging import get_logger
from ovenet.utils.writing import write_file

_VERSION = 1  # of what is stored; another one is another folder
_SPARE_BYTES = 2**28  # left free on the disk
_HEADER_BYTES = 128  # of an entry


@dataclass(frozen=True)
class CachePlan:
    """What is missing in a cache.

    Attributes:
        missing: numbers of the pairs without an entry.
        num_bytes: that their entries will take; 0 where the sources lie at an address, and nobody knows.
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
        limit_bytes: most that the entries of all datasets in `parent` may take; None for no bound.

    Attributes:
        folder: of this dataset's entries.
        fills: whether entries are added as the sources are read, instead of before.
        is_mapped: `read` maps an entry, for crops that need few of its rows; else it reads all.
    """

    def __init__(
        self, parent: Path, sources: Path, info: DatasetInfo, ignore_label: int, *, limit_bytes: int | None = None
    ):
        facts = json.dumps([_VERSION, str(sources.resolve()), ignore_label, info.as_dict()], sort_keys=True)
        self.folder = Path(parent) / f"{info.name}-{hashlib.sha256(facts.encode()).hexdigest()[:12]}"
        self.fills = is_remote(sources)
        self._sources = sources
        self._parent, self._limit_bytes = Path(parent), limit_bytes
        self._is_full = False  # to this process
        self.is_mapped = True
        is_small = info.num_classes <= 256 and 0 <= ignore_label < 256
        self._label_type = np.dtype(np.uint8 if is_small else np.int16)

    def entry(self, name: str) -> Path | None:
        """The entry of a source as it is now, whether or not it exists; None without the source."""
        version = _version(self._sources / name)
        return None if version is None else self.folder / f"{posixpath.normpath(name)}.{version}.npy"

    def read(self, name: str) -> np.ndarray | None:
        """A source's pixels or train ids; None where there is no entry."""
        path = self.entry(name)
        try:
            if path is None:
                return None
            return np.load(path, mmap_mode="r" if self.is_mapped else None, allow_pickle=False).view(np.ndarray)
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
            if self.fills:
                return CachePlan(missing, 0)
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
            Why pairs could not be decoded, one text each; they have no entry, nor have those beyond the bound.

        Raises:
            OSError: an entry cannot be written.
        """

        def add(number: int) -> str:
            entries = self._entries(pairs[number])  # before the files are read
            try:
                if not self._is_full:
                    self._store(entries, *decode(number))
            except UserError as error:
                return str(error)
            finally:
                on_pair()
            return ""

        pool = ThreadPoolExecutor(num_threads)
        try:
            return [problem for problem in pool.map(add, missing) if problem]
        finally:
            pool.shutdown(cancel_futures=True)

    def fill(self, pair: tuple[str, str | None], image: np.ndarray, labels: np.ndarray | None) -> None:
        """Adds the files of a pair that were just read, unless the bound or the disk is reached.

        Args:
            pair: image and label.
            image: ``(H, W, 3)`` uint8.
            labels: train ids ``(H, W)``; None without a label.
        """
        if self._is_full:
            return
        try:
            if shutil.disk_usage(_existing(self.folder)).free < image.nbytes + _SPARE_BYTES:
                raise OSError("the disk is full")
            self._store(self._entries(pair), image, labels)
        except OSError as error:
            self._is_full = True
            get_logger().warning("%s: nothing more is added (%s); the rest is read anew", self.folder, error)

    def room(self) -> int | None:
        """Bytes that the bound leaves, after counting what there is; None without a bound."""
        if self._limit_bytes is None:
            return None
        with self._counting(anew=True) as used:
            return max(0, self._limit_bytes - used[0])

    def remove_outdated(self, pairs: Sequence[tuple[str, str | None]]) -> None:
        """Removes entries of the files of pairs as they were before they changed."""
        names = [name for pair in pairs for name in pair if name]
        entries = {path for path in map(self.entry, names) if path is not None}
        sources = {self.folder / posixpath.normpath(name) for name in names}
        for folder in {path.parent for path in entries if path.parent.exists()}:
            for path in folder.glob("*.npy"):
                if path not in entries and folder / path.stem.rpartition(".")[0] in sources:
                    path.unlink(missing_ok=True)

    def _entries(self, pair: tuple[str, str | None]) -> list[Path | None]:
        return [self.entry(name) for name in pair if name]

    def _store(self, entries: Sequence[Path | None], image: np.ndarray, labels: np.ndarray | None) -> None:
        """Writes the entries of a pair if the bound allows it."""
        arrays = (image, None if labels is None else labels.astype(self._label_type))
        new = [
            (path, array)
            for path, array in zip(entries, arrays, strict=False)
            if path is not None and array is not None
        ]
        if self._limit_bytes is not None:
            num_bytes = sum(array.nbytes + _HEADER_BYTES for _, array in new)
            with self._counting() as used:
                self._is_full = used[0] + num_bytes > self._limit_bytes
                used[0] += 0 if self._is_full else num_bytes
        if not self._is_full:
            for path, array in new:
                _write(path, array)

    @contextmanager
    def _counting(self, *, anew: bool = False) -> Iterator[list[int]]:
        """The bytes of all entries in the parent folder, which the block may change; one process at a time."""
        self._parent.mkdir(parents=True, exist_ok=True)
        file = self._parent / ".bytes"
        with FileLock(f"{file}.lock"):
            try:
                used = [int(file.read_text(encoding="ascii"))]
            except (OSError, ValueError):  # none yet, or a process was killed as it wrote
                anew = True
            if anew:
                used = [sum(path.stat().st_size for path in self._parent.rglob("*.npy"))]
            yield used
            file.write_text(str(used[0]), encoding="ascii")

    def _has_entry(self, name: str) -> bool:
        path = self.entry(name)
        return path is not None and path.exists() and path.stat().st_size > 0

    def _num_bytes(self, pair: tuple[str, str | None]) -> int:
        try:
            height, width = image_size(self._sources / pair[0])
        except UserError:  # told when it is decoded
            return 0
        return height * width * (3 + (self._label_type.itemsize if pair[1] else 0))


def _version(source: Path) -> str | None:
    """A text that changes with a file; None without the file."""
    if isinstance(source, RemotePath):
        return source.version()
    try:
        status = source.stat()
    except OSError:
        return None
    return f"{status.st_size}-{status.st_mtime_ns}"


def _write(path: Path, array: np.ndarray) -> None:
    try:
        write_file(path, lambda unfinished: np.save(unfinished, array, allow_pickle=False))
    except OSError as error:
        raise OSError(f"{error}; free some space, or set DATASET.CACHE none") from error


def _existing(folder: Path) -> Path:
    while not folder.exists():
        folder = folder.parent
    return folder
