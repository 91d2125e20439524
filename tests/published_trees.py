"""The trees of ``published_trees.txt``, built with tiny images."""

import os
from pathlib import Path

import numpy as np
from PIL import Image


def read_trees():
    """Per case its entries: a split's lines, ``unlisted``, ``names``, ``ids`` and ``folder``."""
    trees, entries = {}, None
    for line in (Path(__file__).parent / "published_trees.txt").read_text().splitlines():
        if line.startswith("["):
            entries = trees.setdefault(line.strip("[]"), {})
        elif line and not line.startswith("#"):
            split, entry = line.split(": ", 1)
            entries.setdefault(split, []).append(entry)
    return trees


TREES = read_trees()


def put(path, array):
    """Writes an image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def plant(folder, tree, label):
    """Writes a tree's files and returns the lists that it should give.

    Args:
        folder: of the dataset.
        tree: one of `TREES`.
        label: what all label files hold: an id, or ``(H, W)`` uint8.
    """
    label = np.broadcast_to(np.asarray(label, np.uint8), (6, 8) if np.ndim(label) == 0 else np.shape(label))
    image = np.full((*label.shape, 3), 100, np.uint8)
    expected = {}
    for split in tree.keys() & {"train", "val", "test", "unlisted"}:
        for name, role in ((name, role) for entry in tree[split] for role, name in enumerate(entry.split(" > "))):
            if Image.registered_extensions().get(os.path.splitext(name)[1]) is None:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_text("text")
            else:
                put(folder / name, image if role == 0 and split != "unlisted" else label)
        if split != "unlisted":
            expected[split] = "".join("\t".join(entry.split(" > ")) + "\n" for entry in tree[split])
    for name, text in (entry.split(" = ") for entry in tree.get("names", ())):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text.replace(" ", "\n") + "\n")
    return expected | {"trainval": expected["train"] + expected["val"]}
