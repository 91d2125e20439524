"""Masks from annotations of other programs, against shapes that are drawn by loops."""

import json

import numpy as np
import pytest
from PIL import Image

from ovenet.dataset_tools.annotations import import_annotations
from ovenet.errors import UserError


def image(path, size=(20, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((*size, 3), np.uint8)).save(path)
    return path


def labelme(folder, name, shapes):
    image(folder / f"{name}.jpg")
    content = {"version": "5.4.1", "imagePath": f"..\\old\\{name}.jpg", "imageHeight": 20, "imageWidth": 30}
    (folder / f"{name}.json").write_text(json.dumps({**content, "shapes": shapes}))


def shape(label, points, kind="polygon"):
    return {"label": label, "points": points, "shape_type": kind, "group_id": None, "flags": {}}


def labels(path):
    return np.asarray(Image.open(path))


def test_labelme(tmp_path):
    source = tmp_path / "in"
    house = shape("house", [[2, 3], [12, 3], [12, 15], [2, 15]])
    door = shape("door", [[5, 9], [8, 15]], "rectangle")
    labelme(source, "a", [house, door])
    labelme(source, "b", [shape("sun", [[20, 10], [25, 10]], "circle")])
    assert import_annotations("labelme", source, tmp_path / "out") == 2
    content = json.loads((tmp_path / "out/dataset.json").read_text())
    assert content["classes"] == [{"name": n, "id": i} for i, n in enumerate(["door", "house", "sun"], start=1)]
    assert content["ignore"] == [0]
    expected = np.zeros((20, 30), np.uint8)
    expected[3:16, 2:13] = 2
    expected[9:16, 5:9] = 1  # drawn later
    np.testing.assert_array_equal(labels(tmp_path / "out/labels/a.png"), expected)
    y, x = np.mgrid[:20, :30]
    circle = (x - 20) ** 2 + (y - 10) ** 2 <= 25
    assert (labels(tmp_path / "out/labels/b.png") == 3 * circle).mean() > 0.96  # the outline is part of it
    assert (tmp_path / "out/images/a.jpg").is_symlink()


def test_a_photograph_that_labelme_turned(tmp_path):
    """Its file is 30 wide and 20 high, with a tag that says: upright it is 20 wide and 30 high."""
    photo = Image.fromarray(np.zeros((20, 30, 3), np.uint8))
    exif = photo.getexif()
    exif[0x0112] = 6
    (tmp_path / "in").mkdir()
    photo.save(tmp_path / "in/p.jpg", exif=exif)
    content = {"imagePath": "p.jpg", "imageHeight": 30, "imageWidth": 20}
    content["shapes"] = [shape("low", [[0, 15], [19, 15], [19, 29], [0, 29]])]
    (tmp_path / "in/p.json").write_text(json.dumps(content))
    import_annotations("labelme", tmp_path / "in", tmp_path / "out")
    mask = labels(tmp_path / "out/labels/p.png")
    assert mask.shape == (30, 20)
    assert mask[15:].all()
    assert json.loads((tmp_path / "out/dataset.json").read_text())["upright"] is True


def compress(lengths):
    """COCO's text of run lengths, written from its description: signed 5-bit groups, the lowest first."""
    text = ""
    for index, length in enumerate(lengths):
        value = length - (lengths[index - 2] if index > 2 else 0)
        while True:
            bits, value = value & 31, value >> 5
            is_last = value == (-1 if bits & 16 else 0)
            text += chr(bits + (0 if is_last else 32) + 48)
            if is_last:
                break
    return text


def coco(folder, segmentations):
    image(folder / "images/sub/a.png")
    annotations = [
        {"id": i, "image_id": 7, "category_id": category, "area": area, "iscrowd": 0, "segmentation": segmentation}
        for i, (category, area, segmentation) in enumerate(segmentations)
    ]
    content = {
        "images": [{"id": 7, "file_name": "sub/a.png", "height": 20, "width": 30}],
        "categories": [{"id": 3, "name": "tree"}, {"id": 5, "name": "bird"}],
        "annotations": annotations,
    }
    (folder / "annotations").mkdir()
    path = folder / "annotations/instances.json"
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("is_compressed", [False, True])
def test_coco(tmp_path, is_compressed):
    """A small bird lies on the tree, though it comes first; the background has a name."""
    bird = np.zeros((20, 30), bool)
    bird[4:7, 6:9] = True
    flat = bird.ravel(order="F")
    lengths = [len(list(run)) for run in np.split(flat, np.flatnonzero(flat[1:] != flat[:-1]) + 1)]
    counts = compress(lengths) if is_compressed else lengths
    tree = [[2, 3, 12, 3, 12, 15, 2, 15]]
    path = coco(tmp_path / "in", [(5, 9, {"size": [20, 30], "counts": counts}), (3, 143, tree)])
    import_annotations("coco", path, tmp_path / "out", background="rest", copy=True)
    expected = np.zeros((20, 30), np.uint8)
    expected[3:16, 2:13] = 2
    expected[bird] = 1
    np.testing.assert_array_equal(labels(tmp_path / "out/labels/sub/a.png"), expected)
    content = json.loads((tmp_path / "out/dataset.json").read_text())
    assert [row["name"] for row in content["classes"]] == ["rest", "bird", "tree"]
    assert "ignore" not in content
    assert not (tmp_path / "out/images/sub/a.png").is_symlink()


def test_two_images_of_one_name_are_refused(tmp_path):
    """Their masks would have the same file."""
    path = coco(tmp_path / "in", [(3, 1, [[0, 0, 9, 0, 9, 9]])])
    content = json.loads(path.read_text())
    image(tmp_path / "in/images/sub/a.jpg")
    content["images"].append({"id": 8, "file_name": "sub/a.jpg", "height": 20, "width": 30})
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="two images are called sub/a"):
        import_annotations("coco", path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bad_annotations(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        import_annotations("labelme", tmp_path / "none", tmp_path / "out")
    with pytest.raises(UserError, match="no such file"):
        import_annotations("coco", tmp_path / "none.json", tmp_path / "out")
    source = tmp_path / "in"
    source.mkdir()
    with pytest.raises(UserError, match="no annotated image"):
        import_annotations("labelme", source, tmp_path / "out")
    labelme(source, "a", [shape("road", [[0, 0], [9, 9]], "line")])
    with pytest.raises(UserError, match=r"^\S+: a shape of type 'line' has no area"):
        import_annotations("labelme", source, tmp_path / "out")
    labelme(source, "a", [shape("road", [[0, 0], [9, 9], [0, 9]])])
    (source / "a.jpg").unlink()
    with pytest.raises(UserError, match="does not exist; put it beside"):
        import_annotations("labelme", source, tmp_path / "out")
    (source / "a.json").write_text('{"shapes": 3}')
    with pytest.raises(UserError, match="not a file of labelme"):
        import_annotations("labelme", source, tmp_path / "out")
    (source / "a.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read as JSON"):
        import_annotations("labelme", source, tmp_path / "out")
    path = coco(tmp_path / "c", [(3, 1, {"size": [20, 30], "counts": [5, 5]})])
    with pytest.raises(UserError, match=r"^\S+: the run lengths of a tree make 10 pixels"):
        import_annotations("coco", path, tmp_path / "out")
    content = json.loads(path.read_text())
    content["annotations"], content["images"][0]["file_name"] = [], "../../secret.png"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="outside of the dataset"):
        import_annotations("coco", path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine").touch()
    with pytest.raises(UserError, match="has files in it"):
        import_annotations("coco", path, tmp_path / "full")
