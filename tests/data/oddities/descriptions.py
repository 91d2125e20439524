"""Slips in a ``dataset.json`` that was written by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tests.data.oddities import Oddity, Truth
from tests.data.oddities.folders import dataset

CLASSES = [{"name": "road", "id": 0}, {"name": "wall", "id": 1}, {"name": "sign", "id": 2}]


def described(root: Path, name: str, content: Any) -> Truth:
    """A sound folder with a description; text is written as it is."""
    truth = dataset(root, name)
    text = content if isinstance(content, str) else json.dumps(content)
    (root / name / "dataset.json").write_text(text)
    return truth


def _slip(name: str, says: tuple[str, ...], **keys: Any) -> Oddity:
    build: Callable[[Path], Truth] = partial(described, name=name, content={"classes": CLASSES, **keys})
    return Oddity(name, build, refused_by="prepare", says=("dataset.json", *says))


DESCRIPTIONS = [
    Oddity("by-hand", partial(described, name="by-hand", content={"classes": CLASSES})),
    _slip("text-for-true", ("upright", "false"), upright="false"),
    _slip("true-for-id", ("id", "true"), classes=[{"name": "road", "id": True}, *CLASSES[2:]]),
    _slip("colour-of-shares", ("color", "0.5"), classes=[{"name": "road", "color": [0.5, 0, 0]}, *CLASSES[1:]]),
    _slip("number-for-name", ("name", "7"), classes=[{"name": 7}, *CLASSES[1:]]),
    _slip("unknown-partner", ("flip_pairs", "raod", "road"), flip_pairs=[["raod", "wall"]]),
    _slip("two-partners", ("flip_pairs", "road"), flip_pairs=[["road", "wall"], ["road", "sign"]]),
    _slip("misspelt-key", ("ignored", "ignore"), ignored=[255]),
    _slip("weights-as-text", ("class_weights",), class_weights=["1", "1", "1"]),
    _slip("share-as-text", ("val_share",), val_share="0.2"),
    Oddity(
        "key-given-twice",
        partial(
            described, name="key-given-twice", content='{"classes": [], "classes": [{"name": "a"}, {"name": "b"}]}'
        ),
        refused_by="prepare",
        says=("dataset.json", "classes"),
    ),
    Oddity(
        "cut-json",
        partial(described, name="cut-json", content='{"classes": ['),
        refused_by="prepare",
        says=("dataset.json",),
    ),
]
