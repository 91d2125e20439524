"""The keys of ``dataset.json``: what each may hold, its default and its meaning.

`DESCRIPTION` is the one table of them: files are checked by it, and the table in docs/data.md is held to it by a test.
"""

from __future__ import annotations

import sys
from pathlib import Path, PurePosixPath
from typing import Any

from ovenet.data.info import SPLITS
from ovenet.data.schema import BySplit, Choice, Key, ListOf, OneOrMore, Plain, Table, is_file_name, is_number, is_text

MAX_CLASSES = 256
CATALOG_FOLDER = Path(__file__).parent / "datasets"
_MAX_WEIGHT = 10**6


def _is_inside(value: Any) -> bool:
    """Whether it is a path that leads to no folder above."""
    return is_text(value) and ".." not in PurePosixPath(value).parts


def _is_id(value: Any) -> bool:
    return type(value) is int and 0 <= value <= 255


def _is_color(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(map(_is_id, value))


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(name, str) for name in value)


_TEXT = Plain("a text on one line", is_text)
_NAME = Plain("a text on one line, not empty", lambda value: is_text(value) and bool(value.strip()))
_FOLDER_NAME = Plain("the name of a folder", is_file_name)
_FLAG = Plain("true or false", lambda value: isinstance(value, bool))
_ID = Plain("a whole number from 0 to 255", _is_id)
_COLOR = Plain("[red, green, blue], whole numbers from 0 to 255", _is_color)
_ID_OR_COLOR = Plain(f"{_ID.expected}, or {_COLOR.expected}", lambda value: _is_id(value) or _is_color(value))
_PAIR = Plain("two names of classes", _is_pair)
_COUNT = Plain("a whole number of at least 0", lambda value: type(value) is int and 0 <= value <= sys.maxsize)
_MULTIPLE = Plain("a whole number of at least 1", lambda value: type(value) is int and 1 <= value <= sys.maxsize)
_SHARE = Plain("a number above 0 and below 1", lambda value: is_number(value) and 0 < value < 1)
_WEIGHT = Plain(f"a number from 0 to {_MAX_WEIGHT:,}", lambda value: is_number(value) and 0 <= value <= _MAX_WEIGHT)
_FOLDER = Plain("a folder inside that of the dataset", _is_inside)
_PATTERN = Plain(
    "a pattern of names inside the dataset's folder", lambda value: _is_inside(value) and bool(value.strip())
)
_IDS = ListOf(_ID, "whole numbers from 0 to 255")
_CLASS_NAMES = ListOf(_NAME, "names of classes")

_PATTERNS = {
    "images": Key(
        _PATTERN,
        "images, without their suffix; `*` is a part of a name, `**` any folders",
        "required for each split",
    ),
    "labels": Key(_PATTERN, "masks, likewise; the same stands for the wildcards", may_be_null=True),
    "names": Key(_PATTERN, "file with the wildcard's text of each image of the split", "all images", may_be_null=True),
    "names_not_in": Key(_PATTERN, "file of another split; all labels but its are this one's", may_be_null=True),
}
_OF_SPLIT = Key(
    Table({**_PATTERNS, "also": Key(Table(_PATTERNS), "where further images of the split lie")}),
    "the same keys for one split; those that it gives win",
)
_LAYOUT = Table(
    {
        **_PATTERNS,
        "split_names": Key(
            BySplit(_TEXT),
            "what `{split}` stands for in the patterns",
            'the splits\' own names; without `{split}`, `{"all": ""}`, which `val_share` divides',
            may_be_null=True,
        ),
        "label_ids": Key(_IDS, "one for each class, where these label files hold other ids"),
        "ignore": Key(_IDS, "ids that are ignored in these label files; goes with their `label_ids`"),
        "num_images": Key(BySplit(_COUNT), "published images in this form"),
        **dict.fromkeys(SPLITS, _OF_SPLIT),
    },
    of_splits=_OF_SPLIT,
)
_CLASS = Table(
    {
        "name": Key(_NAME, "of the class; no two are alike", "required", is_required=True),
        "id": Key(_ID, "that stands for it in label files", "its place in the list, from 0"),
        "color": Key(_COLOR, "that stands for it in colour masks, and in pictures", "a colour of PASCAL VOC's map"),
    }
)
_EVALUATION = Table(
    {
        "resize": Key(
            Choice(("long_side", "short_side", "stretch")), "how an image is brought to `BASE_SIZE`, see below",
            "`long_side`",
        ),
        "multiple_of": Key(_MULTIPLE, "pixels, up to a multiple of which both sides are padded", "1"),
        "keeps_padding": Key(
            _FLAG, "the public test takes the padding for a part of the image, see `TEST.PROTOCOL`", "`false`"
        ),
    }
)  # fmt: skip
_CATEGORY = Table(
    {
        "name": Key(_NAME, "of the category; no two are alike", "required", is_required=True),
        "color": Key(_COLOR, "in pictures", "required", is_required=True),
        "classes": Key(_CLASS_NAMES, "its classes", "required", is_required=True),
    }
)
_SUBMISSION = Table(
    {
        "ids": Key(Choice(("label_ids", "train_ids")), "that the server takes", "required", is_required=True),
        "folder": Key(_FOLDER, "of the files inside the zip", '`""`'),
        "num_files": Key(_COUNT, "that the server expects", "any number", may_be_null=True),
    }
)
DESCRIPTION = Table(
    {
        "classes": Key(
            ListOf(_CLASS, "classes", at_least=2, at_most=MAX_CLASSES),
            "2 to 256 classes, in the order of the train ids", "required, or `like`",
        ),
        "ignore": Key(ListOf(_ID_OR_COLOR, "ids and colours"), "ids and colours of pixels that are ignored"),
        "label_format": Key(
            Choice(("ids", "colors", "either")),
            "what masks are read as; `colors` also where they are palette or grey images, `either` by the image",
            "`either`",
        ),
        "snap": Key(
            _FLAG, "pixels at smoothed edges of masks, and those that JPEG changed, are of the class nearest to them",
            "`false`: they are refused",
        ),
        "transparent": Key(
            _NAME, "the class of fully transparent pixels in colour masks, or `ignore`",
            "the colour that is hidden there, where it can mean one thing only", may_be_null=True,
        ),
        "upright": Key(_FLAG, "turn photographs as their EXIF tag says, as viewers do", "`true`"),
        "val_share": Key(_SHARE, "share kept for validation where there is no split", "0.2"),
        "class_weights": Key(
            ListOf(_WEIGHT, "numbers"), "one for each class, not all 0, used by `LOSS.CLASS_BALANCE`", may_be_null=True
        ),
        "flip_pairs": Key(
            ListOf(_PAIR, "pairs of names"),
            "classes that change places when an image is flipped; each has one partner",
        ),
        "conditions": Key(ListOf(_FOLDER_NAME, "names"), "folders whose images are scored separately too"),
        "evaluation": Key(_EVALUATION, "how images are resized for a test", "as its keys"),
        "layouts": Key(
            OneOrMore(_LAYOUT),
            'where files lie, such as `{"images": "photos/{split}/*", "labels": "masks/{split}/*_mask"}`; the first '
            "table that fits is taken", "as above",
        ),
        "folders": Key(ListOf(_FOLDER, "folders", at_least=1), "inside which the layouts may begin", '`[""]`'),
        "unlabelled": Key(ListOf(_NAME, "splits"), "splits without labels"),
        "label_ids": Key(_IDS, "one for each class, in place of their `id`", may_be_null=True),
        "categories": Key(
            ListOf(_CATEGORY, "categories"),
            "in which the classes may be merged: with as many `DATASET.NUM_CLASSES` these are the classes; at least 2, "
            "every class belongs to one, and `label_format` is `ids`",
        ),
        "submission": Key(_SUBMISSION, "what a test server takes", may_be_null=True),
        "like": Key(
            Choice(tuple(sorted(path.stem for path in CATALOG_FOLDER.glob("*.json")))),
            "a dataset of the catalog whose keys hold unless given here, save `layouts`, `label_format` and `upright`",
        ),
        "background": Key(Choice(("optional",)), "with one `DATASET.NUM_CLASSES` less, class 0 is ignored"),
        "num_images": Key(BySplit(_COUNT), "published images; fewer are said"),
        "archives": Key(_TEXT, "what to unpack, for messages", "`images and labels`"),
        "source": Key(_TEXT, "where the data is from; for readers of the file"),
    }
)  # fmt: skip
