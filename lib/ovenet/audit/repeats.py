"""Files that a list names more than once, or that two lists share under the same or different names."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from stat import S_ISREG

from ovenet.audit.reports import Finding
from ovenet.data.remote import UnreachableError

LOOKED_UP_AT_ONCE = 16
_SAMPLE_BYTES = 4096
Pairs = Sequence[tuple[str, str | None]]


def findings_about_repeats(pairs: Pairs) -> Iterator[Finding]:
    """Lines that name an image or a label again, or an image as its own label."""
    own = tuple(image for image, label in pairs if image == label)
    if own:
        message = "the line names one file as image and as label; correct the list"
        yield Finding("image as its own label", True, message, own)
    labels, images = defaultdict(set), defaultdict(set)
    for image, label in pairs:
        labels[image].add(label)
        images[label].add(image)
    two_labels = tuple(image for image, named in labels.items() if len(named) > 1)
    if two_labels:
        message = "listed with several labels, which contradict each other unless that is meant; correct the list"
        yield Finding("image with several labels", False, message, two_labels)
    times = Counter(image for image, _ in pairs)
    repeated = tuple(image for image, n in times.items() if n > 1 and len(labels[image]) == 1)
    if repeated:
        yield Finding("repeated image", False, "listed more than once, so it counts more than once", repeated)
    shared = tuple(label for label, named in images.items() if label is not None and len(named) > 1)
    if shared:
        message = "the label of several images; correct the list unless that is meant"
        yield Finding("label of several images", False, message, shared)


def shared_images(first: Pairs, second: Pairs) -> list[str]:
    """Images that two lists have in common."""
    return sorted({image for image, _ in first} & {image for image, _ in second})


def copied_images(folder: Path, first: Pairs, second: Pairs) -> list[tuple[str, str]]:
    """Images that two lists have in common under different names: files with the same bytes.

    Args:
        folder: of the dataset.
        first: a list.
        second: another list; names in both are left out.

    Returns:
        The name in each list.
    """
    both = set(shared_images(first, second))
    of_first = _by_size(folder, (image for image, _ in first if image not in both))
    of_second = _by_size(folder, (image for image, _ in second if image not in both))
    copies = []
    for size in sorted(of_first.keys() & of_second.keys()):
        looks_like = defaultdict(list)  # thousands of uncompressed files have the same size
        for one in of_first[size]:
            looks_like[_middle(folder / one)].append(one)
        copies += [
            (one, other)
            for other in of_second[size]
            for one in looks_like.get(_middle(folder / other), ())
            if (folder / one).read_bytes() == (folder / other).read_bytes()
        ]
    return copies


def _by_size(folder: Path, names: Iterable[str]) -> dict[int, list[str]]:
    """Files by their size in bytes; missing ones are left out."""
    names, by_size = list(dict.fromkeys(names)), defaultdict(list)
    with ThreadPoolExecutor(LOOKED_UP_AT_ONCE) as pool:  # network drives have a high latency
        for name, size in zip(names, pool.map(lambda name: _size(folder / name), names, chunksize=256), strict=True):
            if size:
                by_size[size].append(name)
    return by_size


def _size(path: Path) -> int:
    try:
        status = path.stat()
    except UnreachableError:
        raise
    except OSError:
        return 0
    return status.st_size if S_ISREG(status.st_mode) else 0


def _middle(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(path.stat().st_size // 2)
        return file.read(_SAMPLE_BYTES)
