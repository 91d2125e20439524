"""What a ``dataset.json`` may hold, and what is said of one that holds something else."""

import copy
import json
import math
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ovenet.data.catalog import CATALOG
from ovenet.data.description import own_description, read_description
from ovenet.data.keys import CATALOG_FOLDER, DESCRIPTION
from ovenet.data.schema import ListOf, Table
from ovenet.errors import UserError

DOCS = Path(__file__).parents[2] / "docs" / "data.md"
CLASSES = [{"name": "ground"}, {"name": "crack"}]
LEFT_AND_RIGHT = [{"name": name} for name in ("body", "left arm", "right arm")]
EVERYTHING = {
    "classes": [
        {"name": "left", "id": 3, "color": [1, 2, 3]}, {"name": "right", "id": 255, "color": [4, 5, 6]},
        {"name": "rest", "id": 0, "color": [7, 8, 9]},
    ],
    "ignore": [7, [9, 9, 9]], "snap": True, "transparent": "rest", "label_format": "ids", "upright": False,
    "val_share": 0.25, "class_weights": [1, 2.5, 0],
    "flip_pairs": [["left", "right"]], "conditions": ["fog", "night"], "source": "a paper", "archives": "a.zip",
    "evaluation": {"resize": "short_side", "multiple_of": 32, "keeps_padding": True}, "folders": ["", "VOC/2012"],
    "layouts": [
        {"images": "photos/{condition}/{split}/*", "labels": "masks/{condition}/{split}/*_mask", "label_ids": [4, 5, 6],
         "ignore": [255], "split_names": {"train": "training", "val": "validation"}, "num_images": {"train": 9}},
        {"images": "photos/**", "labels": "masks/**", "train": {"names": "train.txt", "also": {"labels": "more/*"}},
         "val": {"names": None, "names_not_in": "train.txt"}},
    ],
    "unlabelled": ["test"], "label_ids": [1, 2, 4], "num_images": {"train": 10, "test": 0},
    "categories": [
        {"name": "sides", "color": [1, 1, 1], "classes": ["left", "right"]},
        {"name": "rest", "color": [2, 2, 2], "classes": ["rest"]},
    ],
    "submission": {"ids": "train_ids", "folder": "results", "num_files": None, "confidence_folder": "sure",
                   "confidence_bits": 8},
    "invalid_masks": [["_mask", "_invalid"], ["masks/", ""]],
}  # fmt: skip


def write(folder, content):
    path = folder / "dataset.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def message_of(folder, content):
    """What is said of a description, without the file's name before it."""
    path = write(folder, content)
    with pytest.raises(UserError) as caught:
        own_description(path, "mine")
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert len(text.splitlines()) == 1
    return text.removeprefix(f"{path}: ")


def test_every_key_together(tmp_path):
    info = own_description(write(tmp_path, EVERYTHING), "mine")
    assert set(EVERYTHING) | {"like", "background"} == set(DESCRIPTION.keys)
    assert (info.class_names, info.label_ids, info.ignored_ids) == (("left", "right", "rest"), (1, 2, 4), (7,))
    assert (info.upright, info.val_share, info.flip_pairs) == (False, 0.25, ((0, 1),))
    assert info.invalid_masks == (("_mask", "_invalid"), ("masks/", ""))
    assert (info.submission.confidence_folder, info.submission.confidence_bits) == ("sure", 8)
    assert info.layouts[0]["val"].labels == "masks/{condition}/validation/*_mask"
    assert info.layouts[1]["train"].also.labels == "more/*"
    assert info.layouts[2]["val"].images == "VOC/2012/photos/{condition}/validation/*"


WRONG = [
    ({"invalid_masks": [["", "b"]]}, 'invalid_masks[0] is ["", "b"]; expected two texts, the first not empty'),
    ({"invalid_masks": [["a", "../b"]]}, 'invalid_masks[0] is ["a", "../b"]; expected two texts, the first not empty'),
    ({"submission": {"ids": "train_ids", "confidence_bits": 12}}, "submission.confidence_bits is 12; expected 8 or 16"),
    ({"upright": "false"}, 'upright is "false"; expected true or false'),
    ({"upright": 0}, "upright is 0; expected true or false"),
    ({"upright": None}, "upright is null; expected true or false"),
    ({"val_share": "0.2"}, 'val_share is "0.2"; expected a number above 0 and below 1'),
    ({"val_share": 1}, "val_share is 1; expected"),
    ({"val_share": True}, "val_share is true; expected"),
    ({"val_share": math.nan}, "val_share is NaN; expected"),
    ({"label_format": "rgb"}, 'label_format is "rgb"; expected one of ids, colors, either'),
    ({"label_format": ["ids"]}, 'label_format is ["ids"]; expected one of'),
    ({"clases": []}, "unknown key clases; did you mean classes?"),
    ({"a b\n": []}, 'unknown key "a b\\n"; did you mean'),
    ({"background": True}, 'background is true; expected "optional"'),
    # classes
    ({"classes": "a,b"}, 'classes is "a,b"; expected a list of classes'),
    ({"classes": [{"name": "a"}]}, "classes has 1 entries; expected at least 2"),
    ({"classes": ["a", "b"]}, 'classes[0] is "a"; expected {"name": …, "id": …, "color": …}'),
    ({"classes": [{"name": "a"}, {"color": [1, 2, 3]}]}, "the key classes[1].name is missing; expected a string"),
    ({"classes": [{"name": "a"}, {"name": 3}]}, "classes[1].name is 3; expected a string on one line, not empty"),
    ({"classes": [{"name": "a"}, {"name": ""}]}, 'classes[1].name is ""; expected a string'),
    ({"classes": [{"name": "a"}, {"name": " "}]}, 'classes[1].name is " "; expected a string'),
    ({"classes": [{"name": "a"}, {"name": "a\nb"}]}, 'classes[1].name is "a\\nb"; expected a string'),
    ({"classes": [{"name": "a"}, {"name": "a\u2028b"}]}, 'classes[1].name is "a\\u2028b"; expected a string'),
    ({"classes": [{"name": "a"}, {"name": "a\ud800"}]}, 'classes[1].name is "a\\ud800"; expected a string'),
    ({"classes": [{"name": "a"}, {"name": "a"}]}, 'classes[1].name is "a"; expected another value than that of c'),
    ({"classes": [{"name": "a"}, {"name": "b", "colour": [1, 2, 3]}]},
     "unknown key classes[1].colour; did you mean color?"),
    ({"classes": [{"name": "a", "id": True}, {"name": "b"}]}, "classes[0].id is true; expected an integer from 0"),
    ({"classes": [{"name": "a", "id": 300}, {"name": "b"}]}, "classes[0].id is 300; expected an integer from 0"),
    ({"classes": [{"name": "a", "id": 1.0}, {"name": "b"}]}, "classes[0].id is 1.0; expected an integer"),
    ({"classes": [{"name": "a", "id": 1}, {"name": "b"}]}, "classes[1].id is 1; expected another value than that of"),
    *(({"classes": [{"name": "a"}, {"name": "b", "color": color}]},
       f"classes[1].color is {json.dumps(color)}; expected [red, green, blue], integers from 0 to 255")
      for color in ([0.5, 0, 0], [True, 0, 0], [0, 0, 256], [0, 0], "red", [None, 0, 0], {"r": 1})),
    ({"classes": [{"name": "a", "color": [1, 2, 3]}, {"name": "b", "color": [1, 2, 3]}]},
     "classes[1].color is [1, 2, 3]; expected another value than that of classes[0].color"),
    # ids
    ({"ignore": [1]}, "ignore[0] is 1; expected an id of no class, and classes[1].id is the same"),
    ({"ignore": 255}, "ignore is 255; expected a list of ids and colours"),
    ({"ignore": ["255"]}, 'ignore[0] is "255"; expected an integer from 0 to 255, or [red, green, blue], integers'),
    ({"ignore": [[128, 0, 0]]}, "ignore[0] is [128, 0, 0]; expected another value than that of classes[0].color"),
    ({"label_ids": [1]}, "label_ids is [1]; expected 2 entries, one for each class, and not 1"),
    ({"label_ids": [4, 4]}, "label_ids[1] is 4; expected another value than that of label_ids[0]"),
    ({"label_ids": "01"}, 'label_ids is "01"; expected a list of integers'),
    # masks
    ({"snap": "true"}, 'snap is "true"; expected true or false'),
    ({"transparent": "crak"}, 'transparent is "crak"; expected the name of a class; did you mean crack?'),
    ({"transparent": 0}, "transparent is 0; expected a string on one line"),
    # weights
    ({"class_weights": [1]}, "class_weights is [1]; expected 2 entries, one for each class, and not 1"),
    ({"class_weights": [0, 0]}, "class_weights is [0, 0]; expected at least one above 0"),
    ({"class_weights": ["a", 1]}, 'class_weights[0] is "a"; expected a number from 0 to 1,000,000'),
    ({"class_weights": [-1, 1]}, "class_weights[0] is -1; expected"),
    ({"class_weights": [1, math.nan]}, "class_weights[1] is NaN; expected"),
    ({"class_weights": [math.inf, 1]}, "class_weights[0] is Infinity; expected"),
    ({"class_weights": [1, 10**400]}, f"class_weights[1] is {10**59}…; expected"),
    ({"class_weights": {"crack": 2}}, 'class_weights is {"crack": 2}; expected a list of numbers'),
    # flips
    ({"flip_pairs": [["left arm", "rigth arm"]]},
     'flip_pairs[0][1] is "rigth arm"; expected the name of a class; did you mean right arm?'),
    ({"flip_pairs": [["left arm", "left arm"]]},
     'flip_pairs[0][1] is "left arm"; expected a class in one pair alone, and it stands in flip_pairs[0][0]'),
    ({"flip_pairs": [["left arm", "right arm"], ["right arm", "body"]]},
     'flip_pairs[1][0] is "right arm"; expected a class in one pair alone, and it stands in flip_pairs[0][1]'),
    ({"flip_pairs": [["left arm"]]}, 'flip_pairs[0] is ["left arm"]; expected two names of classes'),
    ({"flip_pairs": [[1, 2]]}, "flip_pairs[0] is [1, 2]; expected two names of classes"),
    ({"flip_pairs": {"left arm": "right arm"}}, "flip_pairs is {"),
    ({"flip_pairs": [["body", "left arm"]], "background": "optional"},
     'flip_pairs[0][0] is "body"; expected another class than the first, which the key background leaves out'),
    ({"mirrored_classes": [["body", "leg"]]}, 'flip_pairs[0][1] is "leg"; expected the name of a class'),
    ({"mirrored_classes": [], "flip_pairs": []}, "mirrored_classes is an earlier name of flip_pairs; leave one"),
    # splits and folders
    ({"conditions": "fog"}, 'conditions is "fog"; expected a list of names'),
    ({"conditions": [1]}, "conditions[0] is 1; expected the name of a folder"),
    ({"conditions": ["a/b"]}, 'conditions[0] is "a/b"; expected the name of a folder'),
    ({"conditions": ["fog", "fog"]}, 'conditions[1] is "fog"; expected another value than that of conditions[0]'),
    ({"unlabelled": ["tset"]}, 'unlabelled[0] is "tset"; expected the name of a split; did you mean test?'),
    ({"num_images": {"trian": 3}}, 'num_images.trian is "trian"; expected the name of a split; did you mean train?'),
    ({"num_images": {"train": "3"}}, 'num_images.train is "3"; expected an integer of at least 0'),
    ({"num_images": [3]}, 'num_images is [3]; expected {"train": …, "val": …}, each an integer of at least 0'),
    ({"folders": "VOC"}, 'folders is "VOC"; expected a list of folders'),
    ({"folders": []}, "folders has 0 entries; expected at least 1"),
    ({"folders": ["../VOC"]}, 'folders[0] is "../VOC"; expected a folder inside that of the dataset'),
    # layouts
    ({"layouts": "images/*"}, 'layouts is "images/*"; expected a list of tables'),
    ({"layouts": []}, "layouts has 0 entries; expected at least 1"),
    ({"layouts": {"labels": "b/*"}}, 'layouts has a table without images for "all"; expected their pattern'),
    ({"layouts": [{"images": "a/*", "label": "b/*"}]}, "unknown key layouts[0].label; did you mean labels?"),
    ({"layouts": {"images": ["a/*"], "labels": "b/*"}}, 'layouts.images is ["a/*"]; expected a pattern of names'),
    ({"layouts": {"images": "../a/*"}}, 'layouts.images is "../a/*"; expected a pattern of names inside the dataset'),
    ({"layouts": {"images": "a/*", "vall": {"names": "v.txt"}}}, "unknown key layouts.vall; did you mean val?"),
    ({"layouts": {"images": "a/*", "val": {"name": "v.txt"}}}, "unknown key layouts.val.name; did you mean names?"),
    ({"layouts": {"images": "a/*", "val": {"also": {"label": "v/*"}}}}, "unknown key layouts.val.also.label; did you"),
    ({"layouts": {"images": "a/*", "split_names": {"val": 1}}}, "layouts.split_names.val is 1; expected a string"),
    ({"layouts": {"images": "a/*", "split_names": ["val"]}}, 'layouts.split_names is ["val"]; expected {"train": …'),
    ({"layouts": {"images": "a/*", "split_names": {"../x": "x"}}}, 'layouts.split_names."../x": expected the name of'),
    ({"layouts": {"images": "{condition}/*"}}, "layouts has {condition}, but there is no key conditions"),
    ({"layouts": {"images": "a/*", "label_ids": [1]}}, "layouts.label_ids is [1]; expected 2 entries, one for each"),
    ({"layouts": [{"images": "a/*", "label_ids": [1, 256]}]}, "layouts[0].label_ids[1] is 256; expected an integer"),
    ({"layouts": {"images": "a/*", "label_ids": [2, 2]}}, "layouts.label_ids[1] is 2; expected another value than"),
    ({"layouts": {"images": "a/*", "label_ids": [1, 2], "ignore": [0, 2]}},
     "layouts.ignore[1] is 2; expected an id of no class, and layouts.label_ids[1] is the same"),
    ({"layouts": {"images": "a/*", "label_ids": [1, 2], "ignore": [-1]}}, "layouts.ignore[0] is -1; expected an int"),
    ({"layouts": {"images": "a/*", "ignore": [0]}}, "the key layouts.label_ids is missing; layouts.ignore needs it"),
    # tests
    ({"evaluation": {"resize": "long"}}, 'evaluation.resize is "long"; expected one of long_side, short_side, stretch'),
    ({"evaluation": {"resise": "long_side"}}, "unknown key evaluation.resise; did you mean resize?"),
    ({"evaluation": {"keeps_padding": 1}}, "evaluation.keeps_padding is 1; expected true or false"),
    *(({"evaluation": {"multiple_of": value}},
       f"evaluation.multiple_of is {json.dumps(value)}; expected an integer of at least 1")
      for value in (0, -8, 1.5, True)),
    ({"evaluation": None}, "evaluation is null; expected {"),
    ({"submission": {"ids": "labels"}}, 'submission.ids is "labels"; expected one of label_ids, train_ids'),
    ({"submission": {}}, "the key submission.ids is missing; expected one of label_ids, train_ids"),
    ({"submission": {"ids": "train_ids", "files": 3}}, "unknown key submission.files; did you mean num_files?"),
    ({"submission": {"ids": "train_ids", "num_files": -1}}, "submission.num_files is -1; expected an integer"),
    ({"like": "cityscape"}, 'like is "cityscape"; expected one of acdc, ade20k, '),
    ({"like": "cityscape"}, "; did you mean cityscapes?"),
    ({"like": "../datasets/acdc"}, 'like is "../datasets/acdc"; expected one of acdc'),
]  # fmt: skip


@pytest.mark.parametrize(("content", "message"), WRONG, ids=[json.dumps(content)[:60] for content, _ in WRONG])
def test_a_wrong_value_is_named_with_its_key(tmp_path, content, message):
    has_arms = "flip_pairs" in content or "mirrored_classes" in content
    said = message_of(tmp_path, {"classes": LEFT_AND_RIGHT if has_arms else CLASSES, **content})
    assert message in said
    assert said.startswith(message) or message.startswith("; ")


CATEGORIES = [
    ([["a", ["ground"]], ["b", ["crack", "z"]]], 'categories[1].classes[1] is "z"; expected the name of a class; did'),
    ([["a", ["ground"]], ["b", ["crack", "ground"]]], 'categories[1].classes[1] is "ground"; expected another value'),
    ([["a", ["ground"]], ["b", ["ground"]]], 'categories[1].classes[0] is "ground"; expected another value'),
    ([["a", ["ground"]], ["b", []]], 'categories has no "crack"; expected each class in one of them'),
    ([["a", ["ground", "crack"]]], "categories has 1 entries; expected at least 2"),
    ([["a", ["ground"]], ["a", ["crack"]]], 'categories[1].name is "a"; expected another value than that of categ'),
    ([["a", "ground"], ["b", ["crack"]]], 'categories[0].classes is "ground"; expected a list of names of classes'),
]


@pytest.mark.parametrize(("categories", "message"), CATEGORIES)
def test_categories_that_cannot_be(tmp_path, categories, message):
    rows = [{"name": name, "color": [0, 0, 0], "classes": classes} for name, classes in categories]
    assert message_of(tmp_path, {"classes": CLASSES, "label_format": "ids", "categories": rows}).startswith(message)
    rows = [{"name": name, "color": [0, 0, 0], "classes": [name]} for name in ("ground", "crack")]
    message = message_of(tmp_path, {"classes": CLASSES, "categories": rows})
    assert message.startswith('label_format is "either"; expected "ids", which categories need')
    del rows[1]["color"]
    message = message_of(tmp_path, {"classes": CLASSES, "label_format": "ids", "categories": rows})
    assert message.startswith("the key categories[1].color is missing")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a JSON file: "),
        ("[]", "expected {...}, got a list"),
        ("3", "expected {...}, got a int"),
        ('{"upright": true, "upright": false}', 'the key "upright" stands twice in one table; leave one of them away'),
        ('{"classes": [{"name": "a", "name": "b"}]}', 'the key "name" stands twice in one table'),
        ('{"a\\u2028": 1, "a\\u2028": 1}', 'the key "a\\u2028" stands twice in one table'),
        ('{"val_share": 1e999}', "val_share is Infinity; expected a number above 0"),
        ('{"val_share": -Infinity}', "val_share is -Infinity; expected a number above 0"),
        ('{"val_share": ' + "9" * 5000 + "}", "not a JSON file: "),
        ("{" + '"a":{' * 100_000, "nested too deeply"),
        ("[" * 900 + "]" * 900, "expected {...}, got a list"),
        ('{"val_share": ' + "[" * 900 + "]" * 900 + "}", "val_share is [[[["),
        ("{}", "the key classes is missing; expected a list of"),
    ],
    ids=lambda text: text[:40],
)
def test_files_that_are_no_description(tmp_path, text, message):
    assert message_of(tmp_path, text).startswith(message)


def test_other_encodings(tmp_path):
    path = write(tmp_path, "\ufeff" + json.dumps({"classes": CLASSES}))
    assert own_description(path, "mine").num_classes == 2
    path.write_bytes(json.dumps({"classes": [{"name": "Stra\u00dfe"}]}, ensure_ascii=False).encode("latin-1"))
    with pytest.raises(UserError, match=r"dataset\.json: .*UTF-8 \(byte 27\)"):
        own_description(path, "mine")


@pytest.mark.parametrize("name", CATALOG)
def test_an_own_dataset_may_be_like_any_of_the_catalog(tmp_path, name):
    """Also like one that is like another; categories come along where ids are read."""
    if name == "ade20k":  # whose 150 colours are not all different
        message = message_of(tmp_path, {"like": name})
        assert 'expected another value than that of classes[6].color, or "label_format": "ids"' in message
    else:
        info = own_description(write(tmp_path, {"like": name}), "mine")
        assert (info.categories, info.label_format, info.upright) == ((), "either", True)
    info = own_description(write(tmp_path, {"like": name, "label_format": "ids"}), "mine")
    assert (info.class_names, info.label_ids) == (CATALOG[name].class_names, CATALOG[name].label_ids)
    assert info.categories == CATALOG[name].categories


def test_what_is_inherited_and_does_not_fit_is_told(tmp_path):
    message = message_of(tmp_path, {"like": "cityscapes", "classes": CLASSES})
    assert message.startswith("class_weights is [0.8373, 0.918, ")
    assert message.endswith('and not 19 (as "like" says; give class_weights here, too)')
    content = {"like": "cityscapes", "classes": CLASSES, "class_weights": None, "ignore": []}
    assert own_description(write(tmp_path, content), "mine").num_classes == 2


def test_earlier_names_hold(tmp_path):
    path = write(tmp_path, {"classes": LEFT_AND_RIGHT, "mirrored_classes": [["left arm", "right arm"]]})
    assert own_description(path, "mine").flip_pairs == ((1, 2),)


@pytest.mark.parametrize("path", sorted(CATALOG_FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_the_catalog_is_read_by_the_same_checks(path, tmp_path):
    content = json.loads(path.read_text())
    read_description(write(tmp_path, content), path.stem)
    for key in content:
        with pytest.raises(UserError, match=rf"dataset\.json: .* {key}_; .* {key}\b"):
            read_description(write(tmp_path, {**content, f"{key}_": content[key]}), path.stem)


def places(content, place=()):
    """Where values stand in a description."""
    yield place
    if isinstance(content, (dict, list)):
        for key, value in content.items() if isinstance(content, dict) else enumerate(content):
            yield from places(value, (*place, key))


def with_value(content, place, value):
    if not place:
        return value
    content = copy.deepcopy(content)
    table = content
    for key in place[:-1]:
        table = table[key]
    table[place[-1]] = value
    return content


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=5)
    | st.sampled_from(["train", "left", "ids", "acdc", "images/*", "..", "", 0, 255, 256, [], {}]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5) | st.sampled_from(
        ["name", "id", "color", "images", "labels", "train", "also", "split_names"]), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


def test_a_split_may_be_called_as_a_key_of_the_layout_is(tmp_path):
    path = tmp_path / "dataset.json"
    layouts = {"images": "{split}/*", "split_names": {"images": "a", "split_names": "b", "train": "c"}}
    path.write_text(json.dumps({"classes": [{"name": "x"}, {"name": "y"}], "layouts": layouts}))
    (layout,) = own_description(path, "mine").layouts
    assert {split: own.images for split, own in layout.items()} == {
        "images": "a/*", "split_names": "b/*", "train": "c/*",
    }  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(list(places(EVERYTHING))), ANY_JSON)
def test_any_value_anywhere_is_read_or_refused_in_one_line(tmp_path_factory, place, value):
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps(with_value(EVERYTHING, place, value)))
    info, said = None, ""
    try:
        info = own_description(path, "mine")
    except UserError as error:
        said = str(error)
    if info is None:
        assert said.startswith(f"{path}: ")
        assert len(said.splitlines()) == 1
        said.encode("utf-8")
        return
    assert info.train_id_table(255).shape == (256,)
    assert sorted(info.flip_table()) == list(range(info.num_classes))
    assert type(info).from_dict(json.loads(json.dumps(info.as_dict()))).class_names


def rows_of(table, prefix="", told=()):
    """The rows of docs/data.md for a table of keys; keys that stand in several places are told once."""
    told = list(told)
    for key in {id(key): key for key in table.keys.values()}.values():
        if key in told:
            continue
        told.append(key)
        names = [name for name, one in table.keys.items() if one is key]
        kind = key.kind.item if isinstance(key.kind, ListOf) else getattr(key.kind, "table", key.kind)
        holds = key.kind.expected
        if isinstance(key.kind, Table) or getattr(key.kind, "may_be_one_table", False):
            holds = "a table" if isinstance(key.kind, Table) else "a table, or a list of them"
        yield f"| {', '.join(f'`{prefix}{name}`' for name in names)} | {holds} | {key.default} | {key.meaning} |"
        if isinstance(kind, Table):
            inner = list(rows_of(kind, f"{prefix}{names[0]}{'' if kind is key.kind else '[]'}.", told))
            yield from inner
            told += kind.keys.values()


def test_the_docs_list_every_key():
    expected = "\n".join(rows_of(DESCRIPTION))
    found = re.search(r"\| key \|.*\n\|---.*\n((?:\|.*\n)+)", DOCS.read_text(encoding="utf-8"))[1].rstrip("\n")
    assert found == expected, f"docs/data.md should have\n{expected}"
