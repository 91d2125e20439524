"""Imports: what a dataset becomes, split by split, and that nothing is written where one is refused."""

import json
import re

import numpy as np
import pytest
from PIL import Image
from tests.annotation_files import annotation, classes, coco, labelme, mask, shape, square, write_image

from ovenet.errors import UserError
from ovenet.preparation.annotations import import_annotations
from ovenet.preparation.annotations.table import extended_table, new_table
from ovenet.preparation.prepare import prepare_dataset

TREE, BIRD = [[2, 3, 12, 3, 12, 15, 2, 15]], [[20, 2, 24, 2, 24, 6, 20, 6]]


def files(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def test_an_import_without_splits(tmp_path):
    """As many images as leave some for validation; links, or copies."""
    for number in range(5):
        labelme(tmp_path / "in", f"{number}", [shape("house", square(2, 2, 9)), shape("door", square(12, 2, 5))])
    done = import_annotations("labelme", tmp_path / "in", tmp_path / "out")
    assert (done.num_images, done.split, done.missing_splits, done.remarks) == (5, None, (), ())
    assert json.loads((tmp_path / "out/dataset.json").read_text()) == {
        "classes": [{"name": "door", "id": 1}, {"name": "house", "id": 2}],
        "ignore": [0],
        "upright": True,
    }
    assert len(files(tmp_path / "out")) == 11
    assert (tmp_path / "out/images/0.jpg").is_symlink()
    import_annotations("labelme", tmp_path / "in", tmp_path / "copied", copy=True)
    assert not (tmp_path / "copied/images/0.jpg").is_symlink()
    assert files(tmp_path / "copied") == files(tmp_path / "out")


@pytest.mark.parametrize(
    ("place", "split"),
    [
        ("instances_train2017.json", "train"),
        ("instances_val.json", "val"),
        ("instances-Validation.json", "val"),
        ("valid/_annotations.coco.json", "val"),
        ("test/instances.json", "test"),
        ("val/instances_train.json", "train"),
        ("instances.json", None),
        ("constrain_valve.json", None),
        ("trainval.json", None),
        ("val2017/instances.json", "val"),
        ("test_site/instances.json", None),
        ("train_val.json", None),
    ],
)
def test_names_of_splits(tmp_path, place, split):
    path = coco(tmp_path / "in", [annotation(3, TREE), annotation(5, BIRD)])
    (tmp_path / place).parent.mkdir(exist_ok=True)
    path = path.rename(tmp_path / place)
    write_image(path.parent / "a.png")
    if split is None:
        with pytest.raises(UserError, match=r"one image.*validation"):
            import_annotations("coco", path, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        return
    assert import_annotations("coco", path, tmp_path / "out").split == split
    assert (tmp_path / f"out/labels/{split}/a.png").is_file()
    labelme(tmp_path / "labelled" / split, "b", [shape("a", square(1, 1, 5)), shape("b", square(7, 7, 5))])
    assert import_annotations("labelme", tmp_path / "labelled" / split, tmp_path / "other").split == split


def test_folders_of_splits_in_one_import(tmp_path):
    for name in ("train/a", "train/b", "val/c", "test/d"):
        labelme(tmp_path / "in", name, [shape("house", square(2, 2, 9)), shape("door", square(12, 2, 5))])
    labelme(tmp_path / "more", "e", [shape("house", square(2, 2, 9))])
    done = import_annotations("labelme", tmp_path / "in", tmp_path / "out")
    assert (done.num_images, done.split, done.remarks) == (4, None, ())
    assert prepare_dataset("out", tmp_path).num_lines == {"train": 2, "val": 1, "test": 1, "trainval": 3}
    with pytest.raises(UserError, match="split test already"):
        import_annotations("labelme", tmp_path / "more", tmp_path / "out", split="test")


def test_a_second_import_adds_a_split(tmp_path):
    """Ids stay as they are, new classes follow, and the files of the first import are not touched."""
    rows = [{"id": 1, "name": "bird"}, {"id": 2, "name": "ant"}, {"id": 3, "name": "tree"}]
    train = coco(
        tmp_path, [annotation(3, TREE), annotation(1, BIRD)], name="instances_train.json", categories=[rows[0], rows[2]]
    )
    first = import_annotations("coco", train, tmp_path / "out")
    assert (first.split, first.missing_splits, first.added) == ("train", ("val",), ("bird", "tree"))
    before = files(tmp_path / "out")
    val = coco(tmp_path, [annotation(3, TREE), annotation(2, BIRD)], name="instances_val.json", categories=rows)
    second = import_annotations("coco", val, tmp_path / "out")
    assert (second.split, second.missing_splits, second.added) == ("val", (), ("ant",))
    assert classes(tmp_path / "out") == {"bird": 1, "tree": 2, "ant": 3}
    expected = np.zeros((20, 30), np.uint8)
    expected[3:15, 2:12], expected[2:6, 20:24] = 2, 3
    np.testing.assert_array_equal(mask(tmp_path / "out", split="val"), expected)
    del before["dataset.json"]
    assert files(tmp_path / "out").items() >= before.items()
    assert len(files(tmp_path / "out")) == 5

    labelme(tmp_path / "more", "c", [shape("tree", square(1, 1, 5))])
    third = import_annotations("labelme", tmp_path / "more", tmp_path / "out", split="test")
    assert (third.split, third.added) == ("test", ())
    assert set(np.unique(mask(tmp_path / "out", "c", "test"))) == {0, 2}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "has splits already; say which these images are: --split val"),
        (
            {"split": "train"},
            "has a split train already; name another with --split, or remove images/train and labels/tr",
        ),
        (
            {"split": "val", "background": "rest"},
            "--background rest: pixels that no shape covers are ignored in .*leave it",
        ),
    ],
)
def test_second_imports_that_do_not_fit(tmp_path, options, message):
    path = coco(tmp_path, [annotation(3, TREE), annotation(5, BIRD)])
    import_annotations("coco", path, tmp_path / "out", split="train")
    before = files(tmp_path)
    with pytest.raises(UserError, match=message):
        import_annotations("coco", path, tmp_path / "out", **options)
    assert files(tmp_path) == before


def test_the_background_stays_what_it_was(tmp_path):
    path = coco(tmp_path, [annotation(3, TREE)])
    import_annotations("coco", path, tmp_path / "out", split="train", background="all else")
    for background, message in (
        ("", "have the id of 'all else'; say --background 'all else'$"),  # as a shell takes it
        ("sky", "are 'all else' in .*; say --background 'all else'$"),
    ):
        with pytest.raises(UserError, match=message):
            import_annotations("coco", path, tmp_path / "out", split="val", background=background)
    done = import_annotations("coco", path, tmp_path / "out", split="val", background="all else")
    assert done.added == ()
    np.testing.assert_array_equal(mask(tmp_path / "out", split="val"), mask(tmp_path / "out"))


def test_a_dataset_without_splits_takes_no_other(tmp_path):
    for number in range(5):
        labelme(tmp_path / "in", f"{number}", [shape("house", square(2, 2, 9)), shape("door", square(12, 2, 5))])
    import_annotations("labelme", tmp_path / "in", tmp_path / "out")
    before = files(tmp_path)
    with pytest.raises(UserError, match=r"no split \(labels/0\.png\)"):
        import_annotations("labelme", tmp_path / "in", tmp_path / "out", split="val")
    assert files(tmp_path) == before


def test_a_dataset_that_is_no_import(tmp_path):
    """A table alone is taken, files without one are not, nor a tree of another form."""
    path = coco(tmp_path, [annotation(3, TREE), annotation(5, BIRD)])
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "mine").touch()
    with pytest.raises(UserError, match=r"already.*dataset.json"):
        import_annotations("coco", path, folder, split="val")
    rows = [{"name": "tree", "id": 7, "color": [1, 2, 3]}, {"name": "ant", "id": 2}]
    (folder / "dataset.json").write_text(
        json.dumps({"classes": rows, "ignore": [255], "upright": False, "val_share": 0.3})
    )
    (folder / "train/images").mkdir(parents=True)
    with pytest.raises(UserError, match="train"):
        import_annotations("coco", path, folder, split="val")
    (folder / "train/images").rmdir()
    (folder / "train").rmdir()
    import_annotations("coco", path, folder, split="val")
    assert classes(folder) == {"tree": 7, "ant": 2, "bird": 8}
    assert set(np.unique(mask(folder, split="val"))) == {255, 7, 8}
    content = json.loads((folder / "dataset.json").read_text())
    assert (content["upright"], content["val_share"], content["classes"][0]) == (False, 0.3, rows[0])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"class_weights": [1, 2]}, "class_weights .* entries"),
        ({"layouts": {"images": "photos/{split}/*", "labels": "masks/{split}/*"}}, "photos/train"),
        ({"label_format": "colors"}, "its masks are colours"),
        ({"ignore": []}, "no id is ignored"),
        (
            {"classes": [{"name": "tree"}, {"name": "ant"}], "ignore": [255]},
            "have the id of 'tree'; say --background tree",
        ),
        ({"classes": [{"name": "tree"}]}, "expected at least 2"),
        ({"clases": []}, "unknown key \\W?clases"),
    ],
)
def test_tables_that_cannot_take_the_classes(tmp_path, more, message):
    path = coco(tmp_path, [annotation(3, TREE), annotation(5, BIRD)])
    folder = tmp_path / "out"
    folder.mkdir()
    rows = [{"name": "tree", "id": 1}, {"name": "ant", "id": 2}]
    (folder / "dataset.json").write_text(json.dumps({"classes": rows, "ignore": [0], **more}))
    before = files(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        import_annotations("coco", path, folder, split="val")
    assert str(folder) in str(caught.value)
    assert "unfinished" not in str(caught.value)
    assert files(tmp_path) == before


def test_one_class(tmp_path):
    """It is refused before anything is written, so that the same command with --background does it."""
    path = coco(tmp_path, [annotation(3, TREE)])
    with pytest.raises(UserError, match=r"'tree'.*two classes.*--background CLASS"):
        import_annotations("coco", path, tmp_path / "out", split="train")
    assert not (tmp_path / "out").exists()
    import_annotations("coco", path, tmp_path / "out", split="train", background="rest")
    assert classes(tmp_path / "out") == {"rest": 0, "bird": 1, "tree": 2}
    labelme(tmp_path / "in", "a", [shape("rest", square(1, 1, 5))])
    with pytest.raises(UserError, match=r"no shape.*'rest'"):
        import_annotations("labelme", tmp_path / "in", tmp_path / "other", split="train", background="rest")


def test_more_classes_than_ids(tmp_path):
    names = {f"{number:03d}" for number in range(255)}
    assert len(new_table(names, "", tmp_path).content["classes"]) == 255
    with pytest.raises(UserError, match=re.escape("256 classes; masks of 8 bits hold 255")):
        new_table({*names, "x"}, "", tmp_path)
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps(new_table(names, "", tmp_path).content))
    with pytest.raises(UserError, match="255 classes, and 1 more"):
        extended_table(path, {"x"}, "")


def test_colors_of_added_classes_are_new(tmp_path):
    """Where masks may be colours no two classes can share one."""
    path = tmp_path / "dataset.json"
    third = [128, 128, 0]  # of the colour map, which the next class would get
    rows = [{"name": "a", "id": 1, "color": third}, {"name": "b", "id": 2}]
    path.write_text(json.dumps({"classes": rows, "ignore": [0]}))
    path.write_text(json.dumps(extended_table(path, {"c", "d"}, "").content))
    assert extended_table(path, set(), "").ids == {"__ignore__": 0, "a": 1, "b": 2, "c": 3, "d": 4}


def test_what_fails_while_writing_leaves_nothing(tmp_path, monkeypatch):
    path = coco(tmp_path, [annotation(3, TREE), annotation(5, BIRD)])

    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        import_annotations("coco", path, tmp_path / "data/out", split="train")
    assert files(tmp_path / "data") == {}
    assert not list((tmp_path / "data").iterdir())


def test_bad_sources(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        import_annotations("labelme", tmp_path / "none", tmp_path / "out")
    with pytest.raises(UserError, match="no such file"):
        import_annotations("coco", tmp_path / "none.json", tmp_path / "out")
    (tmp_path / "in").mkdir()
    with pytest.raises(UserError, match="no annotated image"):
        import_annotations("labelme", tmp_path / "in", tmp_path / "out")
    (tmp_path / "in/a.json").write_text('{"shapes": [], "imagePath": "a.jpg"}')
    (tmp_path / "in/a.jpg").write_text("no image")
    labelme(tmp_path / "in", "a", [shape("a", square(1, 1, 5)), shape("b", square(1, 1, 5))], with_image=False)
    with pytest.raises(UserError, match=r"a\.jpg: .*image.*replace it"):
        import_annotations("labelme", tmp_path / "in", tmp_path / "out")
