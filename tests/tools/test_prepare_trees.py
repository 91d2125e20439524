"""Every tree of a publisher's page or a README of the public code is prepared, and its labels mean what they did."""

import json
import re

import numpy as np
import pytest
from cityscapesscripts.helpers.labels import labels as official_labels
from tests.published_trees import TREES, plant, put

from ovenet.data.catalog import CATALOG, find_dataset
from ovenet.data.dataset import ListDataset

IGNORE = 255
# COCO's category ids without those that were given up (github.com/nightrome/cocostuff, labels.txt).
COCO = [i for i in range(1, 183) if i not in {12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91}]


def counted(num_classes, *, first=0, ignored=()):
    """Stored ids that count from `first`, each with its train id."""
    return {first + k: k for k in range(num_classes)} | dict.fromkeys(ignored, IGNORE)


CITYSCAPES = {label.id: label.trainId for label in official_labels if label.id >= 0}
# What the label files of a dataset hold, and those of its trees that say otherwise: stored id to train id.
IDS = {
    "cityscapes": CITYSCAPES,
    "synthetic": CITYSCAPES,
    "acdc": CITYSCAPES | {255: IGNORE},
    "ade20k": counted(150, first=1, ignored=[0]),
    "camvid": counted(11, ignored=[11]),
    "bdd100k": counted(19, ignored=[255]),
    "pascal_voc": counted(21, ignored=[255]),
    "pascal_context": counted(60),
    "cocostuff": {category - 1: k for k, category in enumerate(COCO)} | {255: IGNORE},
    "lip": counted(20),
    "cityscapes, train ids": counted(19, ignored=[255]),
    "cocostuff, train ids": counted(171, ignored=[255]),
    "cocostuff, train ids from 1": counted(171, first=1, ignored=[0]),
    "cocostuff, category ids": {category: k for k, category in enumerate(COCO)} | {0: IGNORE},
}


@pytest.mark.parametrize("case", TREES)
def test_published_trees_are_prepared_and_read(tmp_path, run_tool, case):
    name, tree = case.split(",")[0], TREES[case]
    ids = IDS[", ".join([name, *tree.get("ids", [])])]
    stored = np.array([[*ids]] * 2, np.uint8)
    root, folder = tmp_path / "data", tree.get("folder", [name])[0]
    expected = plant(root / folder, tree, stored)
    command = (
        "prepare_data",
        folder,
        "--root",
        root,
        *(("--train", 1, "--val", 1, "--test", 1, "--size", 64, 64) if name == "synthetic" else ()),
    )
    done = run_tool(*command)
    assert done.code == 0, done.err
    lists = root / "list" / name
    found = {p.stem: p.read_text() for p in lists.iterdir() if "_" not in p.stem}
    if name != "synthetic":  # whose command draws further scenes
        assert found == expected
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*")}
    assert run_tool(*command).code == 0
    assert {p: p.stat().st_mtime_ns for p in root.rglob("*")} == before
    for split in ("train", "val"):
        dataset = ListDataset(root, lists / f"{split}.lst", CATALOG[name], ignore_label=IGNORE)
        for index, (_, label) in enumerate(dataset.pairs):
            if name != "synthetic" or "drawn_0_0" in label:
                np.testing.assert_array_equal(dataset[index].labels, [[*ids.values()]] * 2)


@pytest.mark.parametrize("case", [case for case in TREES if case.startswith("cocostuff")])
def test_the_log_says_which_ids_label_files_are_read_as(tmp_path, run_tool, caplog, case):
    spans = {"train ids": "0 to 170", "train ids from 1": "1 to 171", "category ids": "1 to 182"}
    plant(tmp_path / TREES[case].get("folder", ["cocostuff"])[0], TREES[case], 1)
    assert run_tool("prepare_data", "cocostuff", "--root", tmp_path).code == 0
    with caplog.at_level("INFO", "ovenet"):
        ListDataset(tmp_path, tmp_path / "list/cocostuff/val.lst", CATALOG["cocostuff"], ignore_label=IGNORE)
    lines = [record.message for record in caplog.records if " ids " in record.message]
    expected = [spans[kind] for kind in TREES[case].get("ids", [])]
    assert len(lines) == len(expected)
    assert all(f"ids {span}" in line for line, span in zip(lines, expected, strict=True))


def test_pascal_context_of_59_classes_ignores_the_background(tmp_path, run_tool):
    ids = counted(59, first=1, ignored=[0])
    plant(tmp_path / "pascal_context", TREES["pascal_context"], np.array([[*ids]], np.uint8))
    assert run_tool("prepare_data", "pascal_context", "--root", tmp_path).code == 0
    info = find_dataset("pascal_context", tmp_path, num_classes=59)
    dataset = ListDataset(tmp_path, tmp_path / "list/pascal_context/val.lst", info, ignore_label=IGNORE)
    np.testing.assert_array_equal(dataset[0].labels, [[*ids.values()]])


def test_train_ids_of_cityscapes_are_read_as_categories_too(tmp_path, run_tool):
    """Flat: 2 classes; construction: building, wall, fence; object: pole, light, sign; nature: 2; sky; human: 2; 6."""
    categories = [0] * 2 + [1] * 3 + [2] * 3 + [3] * 2 + [4] + [5] * 2 + [6] * 6 + [IGNORE]
    plant(tmp_path / "cityscapes", TREES["cityscapes, train ids alone"], np.array([[*range(19), 255]], np.uint8))
    assert run_tool("prepare_data", "cityscapes", "--root", tmp_path).code == 0
    info = find_dataset("cityscapes", tmp_path, num_classes=7)
    dataset = ListDataset(tmp_path, tmp_path / "list/cityscapes/val.lst", info, ignore_label=IGNORE)
    np.testing.assert_array_equal(dataset[0].labels, [categories])


def test_the_test_images_of_ade20k_are_told_apart_from_those_that_are_missing(tmp_path, run_tool):
    plant(tmp_path / "ade20k", TREES["ade20k, official"], 1)
    done = run_tool("prepare_data", "ade20k", "--root", tmp_path)
    assert re.search(r"note: test: no images .*release_test/testing/\*", done.err)


def compressed(runs):
    """Run lengths as COCO writes them: differences to the length before the last one, 5 bits a character, low first."""
    text = ""
    for index, run in enumerate(runs):
        value = run - runs[index - 2] if index > 2 else run
        while True:
            bits, value = value & 31, value >> 5
            ends = value == (-1 if bits & 16 else 0)
            text += chr(48 + (bits if ends else bits | 32))
            if ends:
                break
    return text


def plant_annotations(devkit, **changes):
    """HRNet's tree of PASCAL-Context: images, and one JSON file of all shapes. `changes` go into each image's entry."""
    names, images, shapes = ("2008_000002", "2008_000003", "2008_000004"), [], []
    for image_id, (phase, name) in enumerate(zip(("train", "val", "test"), names, strict=True)):
        put(devkit / f"JPEGImages/{name}.jpg", np.zeros((3, 40, 3), np.uint8))
        entry = {"image_id": image_id, "file_name": f"{name}.jpg", "phase": phase, "height": 3, "width": 40}
        images.append(entry | changes)
        # By columns: 6 pixels of nothing, then 3 x 36 of a shape, 6 of nothing; and a bicycle in the last column.
        for category, runs in ((2, [6, 108, 6]), (23, [117, 3])):
            segmentation = {"size": [3, 40], "counts": compressed(runs)}
            shapes.append({"image_id": image_id, "category_id": category, "segmentation": segmentation})
    (devkit / "trainval_merged.json").write_text(json.dumps({"images": images, "annos_segmentation": shapes}))


def test_pascal_context_is_prepared_from_its_annotation_file(tmp_path, run_tool):
    """HRNet's tree has no label files: its code reads them from one JSON file."""
    plant_annotations(tmp_path / "pascal_ctx/VOCdevkit/VOC2010")
    done = run_tool("prepare_data", "pascal_ctx", "--root", tmp_path)
    assert done.code == 0, done.err
    assert re.search(r"pascal_ctx: 2 label files .*trainval_merged\.json", done.out)
    info = CATALOG["pascal_context"]
    expected = ["background"] * 2 + ["aeroplane"] * 36 + ["background", "bicycle"]
    for split, name in (("train", "2008_000002"), ("val", "2008_000003")):
        dataset = ListDataset(tmp_path, tmp_path / f"list/pascal_context/{split}.lst", info, ignore_label=IGNORE)
        assert dataset.pairs[0][0].endswith(f"JPEGImages/{name}.jpg")
        np.testing.assert_array_equal(dataset[0].labels, [[info.class_names.index(k) for k in expected]] * 3)
    assert "written" not in run_tool("prepare_data", "pascal_ctx", "--root", tmp_path).out


def test_a_copy_leaves_the_users_folder_as_it_is(tmp_path, run_tool):
    theirs = tmp_path / "theirs"
    plant_annotations(theirs / "VOCdevkit/VOC2010")
    before = sorted(theirs.rglob("*"))
    command = ("prepare_data", "pascal_context", "--root", tmp_path / "data", "--source", theirs, "--copy")
    for _ in range(2):
        done = run_tool(*command)
        assert done.code == 0, done.err
    assert sorted(theirs.rglob("*")) == before
    devkit = tmp_path / "data/pascal_context/VOCdevkit/VOC2010"
    assert {p.stem for p in (devkit / "SegmentationClassContext").iterdir()} == {"2008_000002", "2008_000003"}
    assert (tmp_path / "data/list/pascal_context/trainval.lst").read_text().count("\n") == 2


@pytest.mark.parametrize(
    "changes", [{"height": -1}, {"height": 0}, {"height": "3"}, {"file_name": None}, {"width": 1.5}]
)
def test_a_damaged_annotation_file_is_named(tmp_path, run_tool, changes):
    plant_annotations(tmp_path / "pascal_ctx", **changes)
    done = run_tool("prepare_data", "pascal_ctx", "--root", tmp_path)
    assert done.code == 2
    assert "trainval_merged.json" in done.err


def test_the_annotation_file_of_pascal_context_is_asked_for_by_its_place(tmp_path, run_tool):
    devkit = tmp_path / "pascal_ctx/VOCdevkit/VOC2010"
    put(devkit / "JPEGImages/2008_000002.jpg", np.zeros((3, 40, 3), np.uint8))
    done = run_tool("prepare_data", "pascal_ctx", "--root", tmp_path)
    assert done.code == 2
    assert f"{devkit / 'trainval_merged.json'} alone" in done.err


def test_scenes_that_are_there_are_linked_and_none_drawn(tmp_path, run_tool):
    """It used to draw 250 scenes, refuse the folder because of them, and send back to itself."""
    plant(tmp_path / "drawn", TREES["synthetic"], 7)
    (tmp_path / "empty").mkdir()
    done = run_tool("prepare_data", "synthetic", "--root", tmp_path / "data", "--source", tmp_path / "empty")
    assert done.code == 2
    assert "prepare" not in done.err.split("empty", 1)[1]
    done = run_tool("prepare_data", "synthetic", "--root", tmp_path / "data", "--source", tmp_path / "drawn")
    assert done.code == 0, done.err
    assert (tmp_path / "data/list/synthetic/train.lst").read_text().count("\n") == 1


@pytest.mark.parametrize(
    ("case", "folder"),
    [
        ("cityscapes, after mmsegmentation's converter", "cityscapes"),
        ("ade20k, with the test archive beside", "ade"),
        ("pascal_voc, after mmsegmentation's converter", ""),
        ("pascal_context", ""),
        ("cocostuff, after mmsegmentation's converter", "coco_stuff164k"),
        ("cocostuff, 10k after mmsegmentation's converter", "coco_stuff10k"),
        ("lip, as mmsegmentation has it", "LIP"),
        ("bdd100k", "bdd100k"),
    ],
)
def test_folders_of_mmsegmentation_are_linked_as_the_docs_say(tmp_path, run_tool, case, folder):
    name = case.split(",")[0]
    expected = plant(tmp_path / "theirs" / folder, TREES[case], 1)
    done = run_tool("prepare_data", name, "--root", tmp_path / "data", "--source", tmp_path / "theirs" / folder)
    assert done.code == 0, done.err
    assert (tmp_path / f"data/list/{name}/train.lst").read_text() == expected["train"]
    assert ("of the 9000 published images" in done.err) == ("10k" in case)
