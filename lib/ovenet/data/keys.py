"""The keys of ``dataset.json``: kind, default and meaning of each.

`DESCRIPTION` is the one table of them: files are checked by it, and a test compares it with the table in docs/data.md.
"""

from __future__ import annotations

import sys
from pathlib import Path, PurePosixPath
from typing import Any

from ovenet.data.info import SPLITS
from ovenet.data.schema import BySplit, Choice, Key, ListOf, Plain, Table, is_file_name, is_number, is_text

MAX_CLASSES = 256
CATALOG_FOLDER = Path(__file__).parent / "datasets"
_MAX_WEIGHT = 10**6


def _is_inside(value: Any) -> bool:
    """Whether a value is a path without ``..``."""
    return is_text(value) and ".." not in PurePosixPath(value).parts


def _is_integer(value: Any, least: int, most: int = sys.maxsize) -> bool:
    return type(value) is int and least <= value <= most


def _is_id(value: Any) -> bool:
    return _is_integer(value, 0, 255)


def _is_color(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(map(_is_id, value))


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(name, str) for name in value)


def _is_replacement(value: Any) -> bool:
    return _is_pair(value) and all(map(_is_inside, value)) and bool(value[0])


_TEXT = Plain("a string on one line", is_text)
_NAME = Plain("a string on one line, not empty", lambda value: is_text(value) and bool(value.strip()))
_FOLDER_NAME = Plain("the name of a folder", is_file_name)
_FLAG = Plain("true or false", lambda value: isinstance(value, bool))
_ID = Plain("an integer from 0 to 255", _is_id)
_COLOR = Plain("[red, green, blue], integers from 0 to 255", _is_color)
_ID_OR_COLOR = Plain(f"{_ID.expected}, or {_COLOR.expected}", lambda value: _is_id(value) or _is_color(value))
_PAIR = Plain("two names of classes", _is_pair)
_REPLACEMENT = Plain("two texts, the first not empty", _is_replacement)
_BITS = Plain("8 or 16", lambda value: type(value) is int and value in (8, 16))
_COUNT = Plain("an integer of at least 0", lambda value: _is_integer(value, 0))
_MULTIPLE = Plain("an integer of at least 1", lambda value: _is_integer(value, 1))
_SHARE = Plain("a number above 0 and below 1", lambda value: is_number(value) and 0 < value < 1)
_WEIGHT = Plain(f"a number from 0 to {_MAX_WEIGHT:,}", lambda value: is_number(value) and 0 <= value <= _MAX_WEIGHT)
_FOLDER = Plain("a folder inside that of the dataset", _is_inside)
_PATTERN = Plain(
    "a pattern of names inside the dataset's folder", lambda value: _is_inside(value) and bool(value.strip())
)
_IDS = ListOf(_ID, "integers from 0 to 255")
_CLASS_NAMES = ListOf(_NAME, "names of classes")

_PATTERNS = {
    "images": Key(
        _PATTERN,
        "images, without their suffix; `*` is a part of a name, `**` any folders",
        "required for each split",
    ),
    "labels": Key(_PATTERN, "masks, without their suffix; the wildcards match the same text", may_be_null=True),
    "names": Key(_PATTERN, "file with the wildcard's text of each image of the split", "all images", may_be_null=True),
    "names_not_in": Key(_PATTERN, "file of another split; all other labels belong to this split", may_be_null=True),
}
_OF_SPLIT = Key(
    Table({**_PATTERNS, "also": Key(Table(_PATTERNS), "where further images of the split lie")}),
    "the same keys for one split, which take precedence",
)
_LAYOUT = Table(
    {
        **_PATTERNS,
        "split_names": Key(
            BySplit(_TEXT),
            "the text of `{split}` in the patterns",
            'the splits\' own names; without `{split}`, `{"all": ""}`, which `val_share` divides',
            may_be_null=True,
        ),
        "label_ids": Key(_IDS, "id of each class in these label files, where it differs"),
        "ignore": Key(_IDS, "ignored ids in these label files; only with their `label_ids`"),
        "num_images": Key(BySplit(_COUNT), "number of published images in this form"),
        **dict.fromkeys(SPLITS, _OF_SPLIT),
    },
    of_splits=_OF_SPLIT,
)
_CLASS = Table(
    {
        "name": Key(_NAME, "name of the class, unique", "required", is_required=True),
        "id": Key(_ID, "id of the class in label files", "its index in the list"),
        "color": Key(_COLOR, "colour of the class in colour masks and pictures", "a colour of PASCAL VOC's map"),
    }
)
_EVALUATION = Table(
    {
        "resize": Key(
            Choice(("long_side", "short_side", "stretch")), "how an image is resized to `BASE_SIZE`, see below",
            "`long_side`",
        ),
        "multiple_of": Key(_MULTIPLE, "both sides are padded to a multiple of so many pixels", "1"),
        "keeps_padding": Key(
            _FLAG, "the public test treats the padding as part of the image, see `TEST.PROTOCOL`", "`false`"
        ),
    }
)  # fmt: skip
_CATEGORY = Table(
    {
        "name": Key(_NAME, "name of the category, unique", "required", is_required=True),
        "color": Key(_COLOR, "colour in pictures", "required", is_required=True),
        "classes": Key(_CLASS_NAMES, "names of its classes", "required", is_required=True),
    }
)
_SUBMISSION = Table(
    {
        "ids": Key(Choice(("label_ids", "train_ids")), "which ids the server expects", "required", is_required=True),
        "folder": Key(_FOLDER, "folder of the files inside the zip", '`""`'),
        "num_files": Key(_COUNT, "number of files that the server expects", "any number", may_be_null=True),
        "confidence_folder": Key(
            _FOLDER, "folder of the confidence maps inside the zip, which `TEST.UNCERTAINTY` asks for",
            "no confidence maps", may_be_null=True,
        ),
        "confidence_bits": Key(_BITS, "bits of a confidence map; its largest value is a confidence of 1", "16"),
    }
)  # fmt: skip
DESCRIPTION = Table(
    {
        "classes": Key(
            ListOf(_CLASS, "classes", at_least=2, at_most=MAX_CLASSES),
            "2 to 256 classes, in the order of the train ids", "required, or `like`",
        ),
        "ignore": Key(ListOf(_ID_OR_COLOR, "ids and colours"), "ids and colours of ignored pixels"),
        "label_format": Key(
            Choice(("ids", "colors", "either")),
            "how masks are read; `colors` also for palette and grey images, `either` as the image is stored",
            "`either`",
        ),
        "snap": Key(
            _FLAG, "pixels at smoothed edges of masks, and pixels that JPEG changed, get the nearest class",
            "`false`: they are refused",
        ),
        "transparent": Key(
            _NAME, "the class of fully transparent pixels in colour masks, or `ignore`",
            "the colour hidden there, where it is unambiguous", may_be_null=True,
        ),
        "upright": Key(_FLAG, "turn photographs as their EXIF tag says, as viewers do", "`true`"),
        "val_share": Key(_SHARE, "share of the images for validation where there is no split", "0.2"),
        "class_weights": Key(
            ListOf(_WEIGHT, "numbers"), "weight of each class, not all 0, for `LOSS.CLASS_BALANCE`", may_be_null=True
        ),
        "flip_pairs": Key(
            ListOf(_PAIR, "pairs of names"),
            "classes that are exchanged when an image is flipped; each has one partner",
        ),
        "conditions": Key(ListOf(_FOLDER_NAME, "names"), "folders of images that are also scored separately"),
        "invalid_masks": Key(
            ListOf(_REPLACEMENT, "pairs of texts"),
            "masks of invalid pixels for `TEST.UNCERTAINTY`: a mask's path is its label's, the last place of the first "
            "text replaced by the second; the first pair whose text is there holds",
        ),
        "evaluation": Key(_EVALUATION, "how images are resized for a test", "as its keys"),
        "layouts": Key(
            ListOf(_LAYOUT, "tables", at_least=1, may_be_one_table=True),
            'where files lie, such as `{"images": "photos/{split}/*", "labels": "masks/{split}/*_mask"}`; the first '
            "table that fits is taken", "as above",
        ),
        "folders": Key(ListOf(_FOLDER, "folders", at_least=1), "folders in which the layouts may begin", '`[""]`'),
        "unlabelled": Key(ListOf(_NAME, "splits"), "splits without labels"),
        "label_ids": Key(_IDS, "id of each class, in place of `classes[].id`", may_be_null=True),
        "categories": Key(
            ListOf(_CATEGORY, "categories"),
            "categories that are the classes where `DATASET.NUM_CLASSES` is their number; at least 2, every class "
            "belongs to one, and `label_format` is `ids`",
        ),
        "submission": Key(_SUBMISSION, "format of the test server", may_be_null=True),
        "like": Key(
            Choice(tuple(sorted(path.stem for path in CATALOG_FOLDER.glob("*.json")))),
            "a dataset of the catalog that gives the missing keys, except `layouts`, `label_format` and `upright`",
        ),
        "background": Key(Choice(("optional",)), "with one `DATASET.NUM_CLASSES` less, class 0 is ignored"),
        "num_images": Key(BySplit(_COUNT), "number of published images; fewer are remarked"),
        "archives": Key(_TEXT, "files to unpack, for messages", "`images and labels`"),
        "source": Key(_TEXT, "origin of the data, for readers of the file"),
    }
)  # fmt: skip
