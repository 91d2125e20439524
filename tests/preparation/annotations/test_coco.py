"""Masks from COCO's file, against pycocotools and arithmetic."""

import json

import numpy as np
import pytest
from pycocotools import mask as pycoco
from tests.annotation_files import SIZE, annotation, classes, coco, imported, mask, write_image

from ovenet.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools

TREE, BIRD = [[2, 3, 12, 3, 12, 15, 2, 15]], [[20, 2, 24, 2, 24, 6, 20, 6]]


def runs_of(pixels, *, is_compressed):
    compressed = pycoco.encode(np.asfortranarray(pixels, np.uint8))["counts"].decode()
    if is_compressed:
        return {"size": list(pixels.shape), "counts": compressed}
    flat = pixels.ravel(order="F")
    lengths = [len(run) for run in np.split(flat, np.flatnonzero(flat[1:] != flat[:-1]) + 1)]
    return {"size": list(pixels.shape), "counts": [0, *lengths] if flat[0] else lengths}


@pytest.mark.parametrize("is_compressed", [False, True])
@pytest.mark.parametrize("area", [0, None, 10**6])
def test_the_smaller_lies_above(tmp_path, is_compressed, area):
    """A small bird lies on the tree, though it comes first, whatever area the file says; the background has a name."""
    bird = np.zeros(SIZE, bool)
    bird[4:7, 6:9] = True
    annotations = [annotation(5, runs_of(bird, is_compressed=is_compressed), area=area), annotation(3, TREE, area=0)]
    done, folder = imported(
        "coco", coco(tmp_path / "in", annotations).rename(tmp_path / "in/a.json"), background="rest"
    )
    expected = np.zeros(SIZE, np.uint8)
    expected[3:15, 2:12] = 2
    expected[bird] = 1
    np.testing.assert_array_equal(mask(folder), expected)
    assert classes(folder) == {"rest": 0, "bird": 1, "tree": 2}
    assert "ignore" not in json.loads((folder / "dataset.json").read_text())
    assert done.remarks == (
        "images in which classes overlap (7.5 % of the labelled pixels), the smaller shape lies above: 1 (a.png)",
    )


def test_polygons_of_an_annotation_are_joined(tmp_path):
    """A ring within a ring is no hole, as pycocotools merges them; a square is the same whichever way it is given."""
    rings = [[1, 1, 11, 1, 11, 11, 1, 11], [3, 3, 7, 3, 7, 7, 3, 7], [8.5, 8.5, 15, 9, 9, 18]]
    square = np.zeros(SIZE, bool)
    square[10:14, 20:24] = True
    annotations = [
        annotation(3, rings),
        annotation(5, [[20, 2, 24, 2, 24, 6, 20, 6]]),
        annotation(5, runs_of(square, is_compressed=True), iscrowd=1),
    ]
    _, folder = imported("coco", coco(tmp_path, annotations))
    merged = pycoco.decode(pycoco.merge(pycoco.frPyObjects(rings, *SIZE))).astype(bool)
    np.testing.assert_array_equal(mask(folder) == 2, merged)
    square[2:6, 20:24] = True
    np.testing.assert_array_equal(mask(folder) == 1, square)


def test_what_is_left_out_is_said(tmp_path):
    annotations = [
        annotation(3, TREE),
        annotation(5, [[16, 3, 20, 3, 20, 9]]),
        annotation(5, []),
        annotation(5, None),
        annotation(5, [[]]),
        annotation(5, [[3, 3, 9, 9], [17, 12, 19, 12, 19, 15]]),
        annotation(3, TREE, id=100),
        annotation(3, [[-9, -9, -2, -9, -2, -2]]),
        annotation(3, [[20, 16, 99, 16, 99, 18, 20, 18]]),
    ]
    rows = [
        {"id": 3, "name": "tree"},
        {"id": 5, "name": "bird"},
        {"id": 9, "name": "cat"},
        {"id": 0, "name": "_background_"},
    ]
    done, folder = imported("coco", coco(tmp_path, annotations, categories=rows))
    assert classes(folder) == {"bird": 1, "cat": 2, "tree": 3}
    assert done.remarks == (
        "annotations without an outline, left out: 2 (annotation 102 ('bird'), annotation 103 ('bird'))",
        "polygons with fewer than three points, left out: 2 (annotation 104 ('bird'), annotation 105 ('bird'))",
        "ids that several annotations have, all of which are drawn: 1 (annotation 100)",
        "categories that no shape has, which are classes all the same: 1 ('cat')",
        "shapes that cover no pixel of their image: 1 (annotation 107 ('tree'))",
        "shapes that reach out of their image, cut off there: 1 (annotation 108 ('tree'))",
    )
    assert (mask(folder)[12:15, 17:19] == 1).any()
    assert (mask(folder)[16:18, 20:] == 3).all()


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (
            annotation(3, [[0, 0, 5, 0, float("nan"), 5]]),
            r"annotation 101 \('tree'\): a coordinate is no finite number",
        ),
        (annotation(3, [[0, 0, 5, 0, None, 5]]), "no finite number"),
        (annotation(3, [[0, 0, 5, 0, 5]]), "5 numbers, which are no pairs"),
        (annotation(3, [0, 0, 5, 0, 5, 5]), "no list of numbers"),
        (annotation(3, [[[0, 0], [5, 0], [5, 5]]]), "no list of numbers"),
        (annotation(3, [["a"] * 6]), "no list of numbers"),
        (annotation(3, "tree"), "its segmentation is a str"),
        (annotation(3, {"size": [20, 30], "counts": [5, 5]}), r"do not make up 20 x 30 pixels \(10 pixels in all\)"),
        (annotation(3, {"size": [20, 30], "counts": [10**12]}), "one of 1000000000000"),
        (annotation(3, {"size": [20, 30], "counts": "04"}), r"do not make up"),
        (annotation(3, {"size": [20, 30]}), "no integers"),
        (annotation(3, {"size": [30, 20], "counts": [600]}), r"its mask has 20 x 30 pixels and its image 30 x 20"),
        (annotation(4, TREE), r"annotation 101: its category_id 4 is not in the file"),
        (annotation([3], TREE), "its category_id"),
        (annotation(3, TREE, image=8), r"annotation 101: its image_id 8 is not in the file"),
    ],
)
def test_broken_annotations_are_refused(tmp_path, broken, message):
    path = coco(tmp_path, [annotation(3, TREE), broken])
    with pytest.raises(UserError, match=message) as caught:
        imported("coco", path, background="rest")
    assert str(caught.value).startswith(f"{path}: annotation 101")
    assert "\n" not in str(caught.value)
    assert not (path.parent / "out").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"annotations": [{"id": 1, "image_id": 7, "caption": "a tree"}]},
            "no annotation has a segmentation.*captions",
        ),
        ({"annotations": [{"image_id": 7, "segments_info": []}]}, "no annotation has a segmentation.*panoptic"),
        ({"annotations": {}}, "'annotations' is no list"),
        ({"categories": None}, "'categories' is no list"),
        ({"images": [3]}, "'images' is no list of tables"),
        ({"annotations": []}, "there is no shape in it"),
        ({"annotations": [annotation(3, [])]}, "there is no shape in it; annotations without an outline, left out: 1"),
        ({"annotations": [annotation(3, [[90, 90, 99, 90, 99, 99]])]}, "no shape covers a pixel of its image"),
        ({"categories": [{"id": 3, "name": ""}]}, "the name of category 3 is ''"),
        ({"categories": [{"id": 3}]}, "the name of category 3 is None"),
        ({"categories": [{"id": 3, "name": "a"}, {"id": 3, "name": "b"}]}, "two category entries have the id 3"),
        ({"categories": [{"name": "a"}]}, "a category has the id None"),
        ({"images": [{"id": 7, "file_name": "a.png"}] * 2}, "two image entries have the id 7"),
        ({"images": [{"id": 7}]}, "image 7 has the file_name None"),
        ({"images": [{"id": 7, "file_name": "b.png"}]}, "its image b.png does not exist"),
        ({"images": [{"id": 7, "file_name": "../../secret.png"}]}, "outside of the dataset"),
        ({"images": [{"id": 7, "file_name": "a.png", "height": 0, "width": 5}]}, "its size is named 5 x 0"),
    ],
)
def test_bad_files(tmp_path, content, message):
    path = coco(tmp_path, [annotation(3, TREE)], **content)
    with pytest.raises(UserError, match=message) as caught:
        imported("coco", path, background="rest")
    assert str(caught.value).startswith(f"{path}: ")
    assert not (path.parent / "out").exists()


def test_two_images_of_one_name_are_refused(tmp_path):
    """Their masks would have the same file."""
    write_image(tmp_path / "images/a.jpg")
    images = [{"id": 7, "file_name": "a.png"}, {"id": 8, "file_name": "a.jpg"}]
    with pytest.raises(UserError, match=r"two images .*\ba\b.*masks"):
        imported("coco", coco(tmp_path, [annotation(3, TREE)], images=images), background="rest")


def test_names_that_lists_cannot_have(tmp_path):
    for name, message in ((".a.png", "left out of lists"), ("a\tb.png", "cannot be listed"), ("a.pcx", "type '.pcx'")):
        write_image(tmp_path / "images" / name)
        path = coco(tmp_path, [annotation(3, TREE)], images=[{"id": 7, "file_name": name}])
        with pytest.raises(UserError, match=message):
            imported("coco", path, background="rest")


@pytest.mark.parametrize(
    ("inner", "is_told"),
    [
        ([5, 6, 9, 6, 9, 12, 5, 12], True),  # within the tree
        ([14, 6, 18, 6, 18, 12, 14, 12], False),  # beside it
        ([9, 6, 14, 6, 14, 12, 9, 12], False),  # across its edge
        (TREE[0], False),
    ],
)
def test_a_ring_within_a_ring_is_filled_and_told(tmp_path, inner, is_told):
    """Some programs export holes so; COCO's polygons have none."""
    done, folder = imported("coco", coco(tmp_path, [annotation(3, [*TREE, inner]), annotation(5, BIRD)]))
    told = [line for line in done.remarks if "inside another" in line]
    assert bool(told) == is_told
    if is_told:
        assert told[0].startswith("annotations with a polygon inside another, filled as pycocotools does")
        assert told[0].endswith(": 1 (instances.json: annotation 100 ('tree'))")
        assert (mask(folder)[3:15, 2:12] == classes(folder)["tree"]).all()


def test_a_ring_in_the_bay_of_another_is_not_told(tmp_path):
    """Inside of its box, and outside of its area."""
    bay = [1, 1, 15, 1, 15, 3, 3, 3, 3, 15, 15, 15, 15, 17, 1, 17]
    done, _ = imported("coco", coco(tmp_path, [annotation(3, [bay, [6, 6, 9, 6, 9, 9]]), annotation(5, BIRD)]))
    assert not done.remarks


@pytest.mark.parametrize("folder", ["train2017", "images/train2017"])
def test_cocos_own_folders(tmp_path, folder):
    """annotations/instances_train2017.json beside train2017/; images of another split may have the same names."""
    path = coco(tmp_path, [annotation(3, TREE), annotation(5, BIRD)], name="instances_train2017.json")
    (tmp_path / folder).mkdir(exist_ok=True)
    (tmp_path / "images/a.png").rename(tmp_path / folder / "a.png")
    write_image(tmp_path / "val2017/a.png", (7, 7))
    done, out = imported("coco", path)
    assert done.num_images == 1
    assert (out / "images/train/a.png").resolve() == tmp_path / folder / "a.png"
