"""Divides photos into training and validation so that rare classes are in both."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence

SHARE = 0.2  # of the photos, for validation


def choose_validation(classes: Sequence[Collection[int]], *, seed: int = 0) -> list[int]:
    """Indices of the photos for validation.

    Greedy, as in Sechidis et al., "On the Stratification of Multi-Label Data", 2011: the class with the fewest photos
    left is served first, until validation has its share of it, at least one photo of a class that two photos have.

    Args:
        classes: train ids of the classes in each photo; at least two photos.
        seed: of the order among equals.
    """
    num_photos = len(classes)
    wanted_photos = min(num_photos - 1, max(1, round(SHARE * num_photos)))
    order = list(range(num_photos))
    random.Random(seed).shuffle(order)
    photos_of: dict[int, list[int]] = {}
    for index in order:
        for k in classes[index]:
            photos_of.setdefault(k, []).append(index)
    missing = {k: max(1, round(SHARE * len(photos))) if len(photos) > 1 else 0 for k, photos in photos_of.items()}
    left = {k: len(photos) for k, photos in photos_of.items()}  # photos of training, of each class
    chosen: list[int] = []

    def choose(index: int) -> None:
        chosen.append(index)
        for k in classes[index]:
            missing[k] -= 1
            left[k] -= 1

    for k in sorted(photos_of, key=lambda k: (len(photos_of[k]), k)):
        while missing[k] > 0 and len(chosen) < wanted_photos:
            allowed = [i for i in photos_of[k] if i not in chosen and all(left[c] > 1 for c in classes[i])]
            if not allowed:
                break
            choose(max(allowed, key=lambda i: sum(missing[c] > 0 for c in classes[i])))
    rest = [index for index in order if index not in chosen]
    rest.sort(key=lambda index: any(left[c] <= 1 for c in classes[index]))  # the last photo of a class only if need be
    while len(chosen) < wanted_photos:
        choose(rest.pop(0))
    return sorted(chosen)
