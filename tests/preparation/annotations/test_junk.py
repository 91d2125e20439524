"""Annotations of any content: an import, or one line that says what is wrong, and nothing half written."""

import json
import shutil
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.annotation_files import TYPES, annotation, coco, labelme, mask, shape, square

from ovenet.errors import UserError
from ovenet.preparation.annotations import import_annotations

JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 40)
    | st.sampled_from([1e300, 3e9, float("nan"), 10**30, "", "04", "x"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["size", "counts", "id"]), inner),
    max_leaves=6,
)
COORDINATE = st.floats(-50, 80) | st.integers(-3, 40) | st.sampled_from([1e300, -3e9])
POINTS = st.lists(st.tuples(COORDINATE, COORDINATE), max_size=6)
POLYGONS = st.lists(POINTS.map(lambda points: [value for point in points for value in point]), max_size=3)
RUNS = st.lists(st.integers(0, 600)).map(
    lambda cuts: {"size": [20, 30], "counts": [b - a for a, b in pairwise([0, *sorted(cuts), 600])]}
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("junk")


def check(form, source, folder):
    """Whether it is imported; either way nothing else is left."""
    shutil.rmtree(folder, ignore_errors=True)
    message = None
    try:
        import_annotations(form, source, folder, split="train", background="rest")
    except UserError as error:
        message = str(error)
    if message is None:
        assert mask(folder).shape == (20, 30)
        assert set(mask(folder).ravel()) <= {0, 1, 2}
    else:
        assert str(source) in message
        assert "\n" not in message
        assert not folder.exists()
    assert not list(folder.parent.glob(".*"))
    return message is None


@given(st.lists(st.tuples(st.sampled_from(TYPES[:-1]), POINTS), max_size=4))
@settings(max_examples=40, deadline=None)
def test_odd_shapes_of_labelme(place, shapes):
    """None of them is a reason to refuse the file."""
    labelme(
        place / "in", "a", [shape("house", square(1, 1, 5)), *(shape("tree", points, kind) for kind, points in shapes)]
    )
    assert check("labelme", place / "in", place / "data" / "out")


@given(st.sampled_from(TYPES) | JUNK, POINTS | JUNK, JUNK, JUNK)
@settings(max_examples=40, deadline=None)
def test_junk_in_labelme(place, kind, points, more, junk):
    for row in (shape("tree", points, kind, mask=more), junk, shape(junk, points), shape("tree", junk)):
        labelme(place / "in", "a", [shape("house", square(1, 1, 5)), row])
        check("labelme", place / "in", place / "data" / "out")


@given(st.lists(POLYGONS | RUNS, max_size=4))
@settings(max_examples=40, deadline=None)
def test_odd_annotations_of_coco(place, segmentations):
    """None of them is a reason to refuse the file."""
    rows = [annotation(3, [[1, 1, 9, 1, 9, 9]]), *(annotation(5, one) for one in segmentations)]
    assert check("coco", coco(place / "coco", rows), place / "data" / "out")


@given(JUNK, JUNK)
@settings(max_examples=40, deadline=None)
def test_junk_in_coco(place, junk, more):
    for row in (annotation(5, junk, id=more), annotation(junk, more), annotation(5, more, image=junk)):
        path = coco(place / "coco", [annotation(3, [[1, 1, 9, 1, 9, 9]]), row])
        check("coco", path, place / "data" / "out")


@given(st.dictionaries(st.sampled_from(["images", "annotations", "categories"]), JUNK, min_size=1))
@settings(max_examples=60, deadline=None)
def test_tables_of_coco(place, content):
    path = coco(place / "tables", [annotation(3, [[1, 1, 9, 1, 9, 9]])])
    path.write_text(json.dumps({**json.loads(path.read_text()), **content}))
    check("coco", path, place / "data" / "out")


@given(st.dictionaries(st.sampled_from(["shapes", "imagePath", "imageHeight", "imageWidth", "imageData"]), JUNK))
@settings(max_examples=60, deadline=None)
def test_files_of_labelme(place, content):
    path = labelme(place / "files", "a", [shape("house", square(1, 1, 5))])
    path.write_text(json.dumps({**json.loads(path.read_text()), **content}))
    check("labelme", place / "files", place / "data" / "out")


@pytest.mark.parametrize("text", ["", "{", "\0", "[" * 100_000, '{"images": [{"id": 1}', "\ud800"])
def test_no_json(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    for form, source in (("coco", path), ("labelme", tmp_path)):
        with pytest.raises(UserError, match="cannot be read as JSON"):
            import_annotations(form, source, tmp_path / "out")
