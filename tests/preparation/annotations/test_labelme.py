"""Masks from labelme's files, against shapes that are drawn by loops."""

import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as pycoco
from tests.annotation_files import SIZE, classes, imported, labelme, mask, shape, square, write_image

from ovenet.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools


def png(array) -> str:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def drawn(tmp_path, *shapes, **options):
    """The mask of one image with these shapes and a sky on its topmost rows, and what was said."""
    sky = shape("sky", [[0, 0], [30, 0], [30, 1], [0, 1]])
    labelme(tmp_path / "in", "a", [sky, *shapes])
    done, folder = imported("labelme", tmp_path / "in", **options)
    pixels = mask(folder).copy()
    pixels[:1] = 0
    return pixels, classes(folder), done.remarks


def test_shapes(tmp_path):
    house = shape("house", [[2, 3], [12, 3], [12, 15], [2, 15]])
    door = shape("door", [[8, 15], [5, 9]], "rectangle")
    pixels, ids, remarks = drawn(tmp_path, house, door)
    expected = np.zeros(SIZE, np.uint8)
    expected[3:15, 2:12] = ids["house"]
    expected[9:15, 5:8] = ids["door"]  # drawn later
    np.testing.assert_array_equal(pixels, expected)
    assert ids == {"door": 1, "house": 2, "sky": 3}
    # 18 pixels of the door lie on the house; 120 of the house and 30 of the sky have a shape.
    assert remarks == (
        "images in which classes overlap (12 % of the labelled pixels), the later shape lies above: 1 (a.json)",
    )


def test_a_square_is_the_same_as_polygon_rectangle_and_run_lengths(tmp_path):
    """Four pixels long and wide, 16 in all, as COCO's tools count."""
    box = np.ones((4, 4), np.uint8)
    areas = []
    for number, one in enumerate(
        [
            shape("box", square(5, 6, 4)),
            shape("box", [[5, 6], [9, 10]], "rectangle"),
            shape("box", square(5, 6, 4), "oriented_rectangle"),
            shape("box", [[5, 6], [8, 9]], "mask", mask=png(box)),  # both corners are inside
        ]
    ):
        pixels, _, remarks = drawn(tmp_path / str(number), one)
        assert not remarks
        assert (pixels > 0).sum() == 16
        areas.append(pixels)
    for one in areas[1:]:
        np.testing.assert_array_equal(one, areas[0])


def test_polygons_are_pycocotools(tmp_path):
    ring = [[3.2, 4.9], [21.7, 2.1], [28.4, 18.8], [11.1, 9.3], [7.7, 17.2]]
    pixels, _, _ = drawn(tmp_path, shape("lake", ring))
    [runs] = pycoco.frPyObjects([np.ravel(ring).tolist()], *SIZE)
    np.testing.assert_array_equal(pixels > 0, pycoco.decode(runs).astype(bool))


@pytest.mark.parametrize("radius", [0.8, 5, 9])
def test_circles(tmp_path, radius):
    pixels, _, _ = drawn(tmp_path, shape("sun", [[15.0, 10.0], [15.0, 10.0 + radius]], "circle"))
    y, x = np.mgrid[:20, :30] + 0.5
    distance = np.hypot(x - 15, y - 10)
    is_clear = abs(distance - radius) > 0.45  # pycocotools' outlines are up to that off the middle of pixels
    is_clear[:1] = False
    np.testing.assert_array_equal((pixels > 0)[is_clear], (distance < radius)[is_clear])


def test_shapes_without_area_are_drawn_as_labelme_draws_them(tmp_path):
    """Lines ten pixels wide and points of radius five, and it is said."""
    pixels, ids, remarks = drawn(
        tmp_path,
        shape("wire", [[0, 10], [10, 10]], "line"),
        shape("wire", [[10, 10], [14, 10], [14, 20]], "linestrip"),
        shape("bird", [[24, 10]], "point"),
    )
    assert (pixels[5:15, :14] == ids["wire"]).all()
    assert (pixels[10:, 9:19] == ids["wire"]).all()
    assert not (pixels[15:, :9] == ids["wire"]).any()
    assert abs((pixels == ids["bird"]).sum() - 25 * np.pi) < 6
    assert remarks == (
        "shapes without area, drawn as labelme's own masks have them (lines 10 pixels wide, points 10): 3 "
        "(a.json shape 1 ('wire'), a.json shape 2 ('wire'), a.json shape 3 ('bird'))",
    )


def test_what_is_left_out_is_said(tmp_path):
    house = shape("house", square(5, 5, 4))
    pixels, ids, remarks = drawn(
        tmp_path,
        shape("tree", []),
        shape("tree", [[3, 3]]),
        shape("tree", [[3, 3], [9, 9]]),
        house,
        shape("tree", [[3, 3]], "rectangle"),
        shape("tree", [[3, 3], [9, 9], [4, 4]], "circle"),
        shape("tree", [[1, 1], [2, 2]], "points"),
        shape("house", [[40, 3], [50, 3], [50, 9]]),
        shape("house", [[25, 15], [3e9, 15], [3e9, 3e9], [25, 3e9]]),
    )
    expected = np.zeros(SIZE, np.uint8)
    expected[5:9, 5:9] = expected[15:, 25:] = ids["house"]
    np.testing.assert_array_equal(pixels, expected)
    assert "tree" not in ids
    assert remarks == (
        "shapes of type 'polygon' without at least 3 points, left out: 3 "
        "(a.json shape 1 ('tree'), a.json shape 2 ('tree'), a.json shape 3 ('tree'))",
        "shapes of type 'rectangle' without 2 or 4 points, left out: 1 (a.json shape 5 ('tree'))",
        "shapes of type 'circle' without 2 points, left out: 1 (a.json shape 6 ('tree'))",
        "shapes of type 'points', which mark an object and not its pixels, left out: 1 (a.json shape 7 ('tree'))",
        "shapes that cover no pixel of their image: 1 (a.json shape 8 ('house'))",
        "shapes that reach out of their image, cut off there: 1 (a.json shape 9 ('house'))",
    )


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (
            shape("tree", [[0, 0], [float("nan"), 5], [9, 9]]),
            r"a\.json: shape 1 \('tree'\): a point is no finite number",
        ),
        (shape("tree", [[0, 0], [float("inf"), 5], [9, 9]]), "no finite number"),
        (shape("tree", [[0, 0], [10**400, 5], [9, 9]]), "no pairs of numbers"),
        (shape("tree", [[0, 0], [5], [9, 9]]), "no pairs of numbers"),
        (shape("tree", [[0, 0, 1], [5, 5, 1], [9, 9, 1]]), "no pairs of numbers"),
        (shape("tree", [0, 0, 5, 5, 9, 9]), "no pairs of numbers"),
        (shape("tree", [["a", "b"]] * 3), "no pairs of numbers"),
        (shape("tree", {"x": 3}), "no pairs of numbers"),
        (shape("tree", square(0, 0, 5), "blob"), "its type 'blob' is none of labelme's"),
        (shape("tree", square(0, 0, 5), ["x"]), "its type"),
        (shape("", square(0, 0, 5)), r"shape 1: the label is ''; expected the name of a class"),
        (shape("  ", square(0, 0, 5)), "the label is '  '"),
        (shape(None, square(0, 0, 5)), "the label is None"),
        (shape(["tree"], square(0, 0, 5)), "the label is"),
        (shape(True, square(0, 0, 5)), "the label is True"),
        ("tree", "shape 1: a str; expected a table"),
        (shape("tree", [[1, 1], [4, 4]], "mask"), "its mask is no base64 text"),
        (shape("tree", [[1, 1], [4, 4]], "mask", mask="%"), "its mask is no base64 text"),
        (shape("tree", [[1, 1], [4, 4]], "mask", mask="AAAA"), "its mask cannot be read"),
        (shape("tree", [[1, 1]], "mask", mask="AAAA"), "the two corners of its box"),
        (
            shape("tree", [[1, 1], [4, 4]], "mask", mask=png(np.ones((3, 4), np.uint8))),
            "4 x 3 pixels and its box 4 x 4",
        ),
        (shape("tree", [[1, 1], [4, 4]], "mask", mask=png(np.ones((4, 4, 3), np.uint8))), "its mask has colours"),
    ],
)
def test_broken_shapes_are_refused(tmp_path, broken, message):
    labelme(tmp_path / "in", "a", [shape("sky", square(0, 0, 5)), broken])
    with pytest.raises(UserError, match=message) as caught:
        imported("labelme", tmp_path / "in", background="other")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "in/a.json"))
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_masks_are_cut_off_at_the_image(tmp_path):
    ring = np.ones((6, 8), np.uint8)
    ring[2:4, 2:6] = 0
    pixels, ids, _ = drawn(
        tmp_path,
        shape("pond", [[-3, 16], [4, 21]], "mask", mask=png(ring)),
        shape("pond", [[40, 16], [47, 21]], "mask", mask=png(ring)),
    )
    expected = np.zeros((30, 40), np.uint8)
    expected[16:22, :8] = ring  # the image begins three to the right
    np.testing.assert_array_equal(pixels, expected[:20, 3:33] * ids["pond"])


def test_names_of_labelme(tmp_path):
    """What is called __ignore__ has no class; _background_ is the class that no shape covers."""
    pixels, ids, _ = drawn(tmp_path, shape("house", square(2, 2, 9)), shape("__ignore__", square(4, 4, 3)))
    assert ids == {"house": 1, "sky": 2}
    assert (pixels[4:7, 4:7] == 0).all()
    assert (pixels == 1).sum() == 81 - 9
    assert json.loads((tmp_path / "out/dataset.json").read_text())["ignore"] == [0]

    other = tmp_path / "other"
    shapes = [
        shape("house", square(2, 2, 9)),
        shape("__ignore__", square(4, 4, 3)),
        shape("_background_", square(8, 8, 3)),
    ]
    pixels, ids, _ = drawn(other, *shapes, background="ground")
    assert ids == {"ground": 0, "house": 1, "sky": 2}
    assert (pixels[4:7, 4:7] == 255).all()
    assert (pixels[8:11, 8:11] == 0).all()
    assert json.loads((other / "out/dataset.json").read_text())["ignore"] == [255]


def test_labels_that_differ_in_spaces_or_are_numbers(tmp_path):
    _, ids, _ = drawn(tmp_path, shape("sky ", square(2, 2, 9)), shape(5, square(4, 4, 3)))
    assert ids == {"5": 1, "sky": 2}


def test_embedded_images(tmp_path):
    """Where the file is gone, the image that the JSON file holds is taken."""
    picture = np.random.default_rng(0).integers(0, 255, (*SIZE, 3)).astype(np.uint8)
    labelme(
        tmp_path / "in",
        "a",
        [shape("sky", square(0, 0, 5)), shape("sea", square(9, 9, 5))],
        with_image=False,
        imageData=png(picture),
    )
    done, folder = imported("labelme", tmp_path / "in")
    np.testing.assert_array_equal(np.asarray(Image.open(folder / "images/train/a.png")), picture)
    assert done.remarks == ("images that are no files, taken from the JSON files (imageData): 1 (a.json)",)


@pytest.mark.parametrize(
    ("data", "message"), [("AAAA", "cannot be read as an image"), ("%", "no base64 text"), (7, "no base64")]
)
def test_bad_embedded_images(tmp_path, data, message):
    labelme(tmp_path / "in", "a", [shape("sky", square(0, 0, 5))], with_image=False, imageData=data)
    with pytest.raises(UserError, match=message):
        imported("labelme", tmp_path / "in", background="other")


def test_images_that_are_annotated_twice_or_not_at_all(tmp_path):
    shapes = [shape("sky", square(0, 0, 5)), shape("sea", square(9, 9, 5))]
    labelme(tmp_path / "in", "a", shapes)
    write_image(tmp_path / "in/sub/c.jpg")
    labelme(tmp_path / "in", "d", [])
    done, _ = imported("labelme", tmp_path / "in")
    assert done.num_images == 2
    assert done.remarks == (
        "images without a JSON file, left out: 1 (sub/c.jpg)",
        "images without any shape: 1 (d.json)",
    )
    labelme(tmp_path / "in", "b", shapes, with_image=False, imagePath="a.jpg")
    with pytest.raises(UserError, match=r"/b\.json: .*same image .*/a\.json"):
        imported("labelme", tmp_path / "in")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "a.json, line 1, column 2: cannot be read as JSON"),
        ("[]", "expected {...}, got a list"),
        ('{"shapes": 3}', "not a file of labelme"),
        ('{"shapes": []}', "not a file of labelme"),
        ('{"shapes": [], "imagePath": 3}', "not a file of labelme"),
        ('{"shapes": [], "imagePath": "a.jpg", "imageHeight": "20", "imageWidth": 30}', "its size is named 30 x '20'"),
        ('{"shapes": [], "imagePath": "a.jpg", "imageHeight": -20, "imageWidth": 30}', "expected integers"),
        ('{"shapes": [], "imagePath": "gone.jpg", "imageData": null}', "does not exist; put it beside the JSON file"),
    ],
)
def test_bad_files(tmp_path, text, message):
    name = "b" if "gone" in text else "a"
    labelme(tmp_path / "in", "a", [shape("sky", square(0, 0, 5))])
    (tmp_path / f"in/{name}.json").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        imported("labelme", tmp_path / "in")
    assert str(caught.value).startswith(str(tmp_path / f"in/{name}.json"))


def test_a_class_whose_name_has_two_lines(tmp_path):
    labelme(tmp_path / "in", "a", [shape("blue\nsky", square(0, 0, 5)), shape("sea", square(6, 0, 5))])
    with pytest.raises(UserError, match=r"in/a\.json: shape 0: .*'blue\\nsky'.*one line"):
        imported("labelme", tmp_path / "in")
    assert not (tmp_path / "out").exists()


def test_a_polygon_that_crosses_itself_is_told(tmp_path):
    """A star drawn in one go: its middle is gone around twice, and is no part of it."""
    angles = 2 * np.pi * np.arange(5) * 2 / 5
    star = np.stack([12 + 9 * np.sin(angles), 10 - 9 * np.cos(angles)], axis=1)
    outline = star[[0, 3, 1, 4, 2]]  # the same corners in the order around
    labelme(tmp_path / "in", "a", [shape("star", star.tolist()), shape("sky", square(24, 0, 5))])
    labelme(tmp_path / "in", "b", [shape("star", outline.tolist()), shape("sky", square(24, 0, 5))])
    done, folder = imported("labelme", tmp_path / "in")
    assert len(done.remarks) == 1
    assert re.match(r"polygons that cross themselves.*: 1 \(a\.json shape 0 \('star'\)\)$", done.remarks[0])
    assert mask(folder, "a")[10, 12] == 0
    assert mask(folder, "b")[10, 12] == classes(folder)["star"]
