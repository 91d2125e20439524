"""Sizes and turns: photographs that were resized after annotating, and those with an EXIF tag."""

import json

import numpy as np
import pytest
from PIL import Image, ImageOps
from pycocotools import mask as pycoco
from tests.annotation_files import ORIENTATION, annotation, coco, imported, labelme, mask, shape, square, write_image

from ovenet.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools


@pytest.mark.parametrize(("size", "scale"), [((10, 15), 0.5), ((80, 120), 4)])
@pytest.mark.parametrize("form", ["labelme", "coco"])
def test_resized_images(tmp_path, form, size, scale):
    """Annotated with 30 x 20 pixels, then made smaller or larger: a square of 8 pixels at (4, 4), another of 4."""
    if form == "labelme":
        source = tmp_path / "in"
        labelme(source, "a", [shape("box", square(4, 4, 8)), shape("dot", square(16, 8, 4))], suffix=".png")
        write_image(source / "a.png", size)
    else:
        dot = np.zeros((20, 30), np.uint8, order="F")
        dot[8:12, 16:20] = 1
        runs = {"size": [20, 30], "counts": pycoco.encode(dot)["counts"].decode()}
        source = coco(tmp_path, [annotation(5, [[4, 4, 12, 4, 12, 12, 4, 12]]), annotation(3, runs)])
        write_image(tmp_path / "images/a.png", size)
    done, folder = imported(form, source)
    expected = np.zeros((20, 30), np.uint8)
    expected[4:12, 4:12], expected[8:12, 16:20] = 1, 2
    expected = expected[::2, ::2] if scale < 1 else expected.repeat(4, axis=0).repeat(4, axis=1)
    np.testing.assert_array_equal(mask(folder), expected)
    where = "a.json" if form == "labelme" else "a.png"
    assert done.remarks == (
        f"images that were resized after annotating, shapes are scaled: 1 ({where}, 30x20 to {size[1]}x{size[0]})",
    )


@pytest.mark.parametrize(
    ("named", "size", "fits"),
    [
        ((20, 30), (20, 30), True),
        ((3000, 4000), (768, 1024), True),
        ((2667, 4000), (67, 100), True),  # 66.7 rounded up
        ((2667, 4000), (66, 100), True),  # or down
        ((2667, 4000), (65, 100), False),
        ((67, 100), (2667, 4000), True),  # annotated on a small version
        ((20, 30), (30, 20), False),
        ((20, 30), (30, 30), False),
    ],
)
def test_the_aspect_has_to_fit(tmp_path, named, size, fits):
    sky, sea = shape("sky", [[0, 0], [90, 0], [90, 90]]), shape("sea", [[0, 0], [90, 90], [0, 90]])
    labelme(tmp_path / "in", "a", [sky, sea], imageHeight=named[0], imageWidth=named[1], suffix=".png")
    write_image(tmp_path / "in/a.png", size)
    if fits:
        _, folder = imported("labelme", tmp_path / "in")
        assert mask(folder).shape == size
        return
    message = rf"in: a\.json was annotated with {named[1]}x{named[0]} pixels, and .* \S+a\.png has {size[1]}x{size[0]},"
    with pytest.raises(UserError, match=message):
        imported("labelme", tmp_path / "in")


def mark(size):
    """A triangle that no turn brings onto itself, and its points."""
    points = [[1.0, 1.0], [size[1] - 2.0, 1.0], [1.0, size[0] - 9.0]]
    [runs] = pycoco.frPyObjects([np.ravel(points).tolist()], *size)
    return points, pycoco.decode(runs)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("is_turned", [False, True])
@pytest.mark.parametrize("upright", [True, False])
def test_turned_photographs(tmp_path, orientation, is_turned, upright):
    """The mask belongs to the photograph as training reads it, whichever way it was annotated.

    Another photograph, 30 x 20 with a turn by a quarter, tells by its size whether the program turned them.
    """
    stored = write_image(tmp_path / "images/a.jpg", (20, 30), orientation)
    teller = write_image(tmp_path / "images/b.jpg", (20, 30), 6)
    with Image.open(stored) as image:
        size = ImageOps.exif_transpose(image).size[::-1] if is_turned else (20, 30)
    points, drawn = mark(size)
    other = (30, 20) if is_turned else (20, 30)
    path = coco(
        tmp_path,
        [annotation(3, [np.ravel(points).tolist()]), annotation(5, [[1, 1, 9, 1, 9, 9]], image=8)],
        images=[
            {"id": 7, "file_name": stored.name, "height": size[0], "width": size[1]},
            {"id": 8, "file_name": teller.name, "height": other[0], "width": other[1]},
        ],
    )
    folder = path.parent / "out"
    folder.mkdir()
    rows = [{"name": "tree", "id": 1}, {"name": "bird", "id": 2}]
    (folder / "dataset.json").write_text(json.dumps({"classes": rows, "ignore": [0], "upright": upright}))
    done, _ = imported("coco", path)
    expected = Image.fromarray(drawn)
    if is_turned != upright and orientation != 1:
        exif = expected.getexif()
        exif[ORIENTATION] = orientation if upright else {6: 8, 8: 6}.get(orientation, orientation)
        expected = ImageOps.exif_transpose(expected)
    np.testing.assert_array_equal(mask(folder) == 1, np.asarray(expected) == 1)
    told = orientation not in (2, 3, 4)
    state = "upright" if is_turned else "as they are stored"
    assert done.remarks == (
        ()
        if told
        else (f"photographs whose size does not tell their EXIF turn, taken for annotated {state}: 1 (a.jpg)",)
    )


@pytest.mark.parametrize("form", ["labelme", "coco"])
def test_nothing_tells_the_turn(tmp_path, form):
    """Then they were turned, as programs show photographs, and it is said."""
    points, drawn = mark((20, 30))
    if form == "labelme":
        labelme(tmp_path / "in", "a", [shape("tree", points)])
        write_image(tmp_path / "in/a.jpg", (20, 30), 3)
    else:
        write_image(tmp_path / "images/a.jpg", (20, 30), 3)
        path = coco(tmp_path, [annotation(3, [np.ravel(points).tolist()])], images=[{"id": 7, "file_name": "a.jpg"}])
    done, folder = imported(form, tmp_path / "in" if form == "labelme" else path, background="rest")
    np.testing.assert_array_equal(mask(folder) > 0, drawn > 0)
    assert json.loads((folder / "dataset.json").read_text())["upright"] is True
    assert "taken for annotated upright: 1" in done.remarks[-1]


def test_resized_and_turned(tmp_path):
    """Annotated upright with 20 x 30 pixels, and the file is stored with 60 x 40."""
    labelme(tmp_path / "in", "p", [shape("low", [[0, 15], [20, 15], [20, 30], [0, 30]])], imageHeight=30, imageWidth=20)
    write_image(tmp_path / "in/p.jpg", (40, 60), 6)
    _, folder = imported("labelme", tmp_path / "in", background="high")
    expected = np.zeros((60, 40), np.uint8)
    expected[30:] = 1
    np.testing.assert_array_equal(mask(folder, "p"), expected)
