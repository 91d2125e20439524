"""Facts about datasets, against sources that are not ours."""

import json
import time

import numpy as np
import pytest
from cityscapesscripts.helpers.labels import labels as official_labels
from PIL import Image

from ovenet.data.catalog import CATALOG, find_dataset
from ovenet.data.dataset import ListDataset
from ovenet.data.description import own_description, voc_color
from ovenet.data.info import INVALID, DatasetInfo
from ovenet.data.stored_ids import with_stored_ids
from ovenet.errors import UserError
from ovenet.preparation.prepare import prepare_dataset

NUM_CLASSES = {
    "cityscapes": 19, "acdc": 19, "ade20k": 150, "camvid": 11, "synthetic": 19, "bdd100k": 19, "pascal_voc": 21,
    "pascal_context": 60, "cocostuff": 171, "lip": 20,
}  # fmt: skip


def test_all_datasets_are_there():
    assert {name: info.num_classes for name, info in CATALOG.items()} == NUM_CLASSES


@pytest.mark.parametrize("info", CATALOG.values(), ids=lambda info: info.name)
def test_entries_are_consistent(info):
    assert len(info.class_names) == len(info.palette) == len(info.label_ids) == info.num_classes
    assert len(set(info.class_names)) == info.num_classes
    assert not set(info.label_ids) & set(info.ignored_ids)
    table = info.train_id_table(255)
    np.testing.assert_array_equal(table[info.label_id_table()], np.arange(info.num_classes))
    assert (table[list(info.ignored_ids)] == 255).all()
    assert table[254] == INVALID
    assert info.class_weights is None or len(info.class_weights) == info.num_classes
    assert info.archives or info.name == "synthetic"  # which is drawn


@pytest.mark.parametrize("name", ["cityscapes", "acdc"])
def test_cityscapes_ids_names_and_colours_are_the_official_ones(name):
    info, table = CATALOG[name], CATALOG[name].train_id_table(255)
    for label in official_labels:
        if label.id < 0:  # the licence plate, which no label file holds
            continue
        assert table[label.id] == label.trainId
        if label.trainId != 255:
            assert info.class_names[label.trainId] == label.name
            assert info.palette[label.trainId] == label.color
            assert info.label_ids[label.trainId] == label.id


def test_bdd100k_has_the_train_ids_of_cityscapes():
    cityscapes, bdd = CATALOG["cityscapes"], CATALOG["bdd100k"]
    assert bdd.class_names == cityscapes.class_names
    np.testing.assert_array_equal(bdd.train_id_table(255)[:19], range(19))
    assert bdd.train_id_table(-1)[255] == -1


def test_ade20k_ignores_0_and_shifts():
    table = CATALOG["ade20k"].train_id_table(255)
    assert table[0] == 255
    assert table[1] == 0
    assert table[150] == 149
    assert CATALOG["ade20k"].class_names[0] == "wall"
    assert CATALOG["ade20k"].class_names[-1] == "flag"


def test_cocostuff_ids_are_those_of_the_164k_label_files():
    """Category ids less one; the eleven categories that COCO removed have none."""
    info = CATALOG["cocostuff"]
    by_name = dict(zip(info.class_names, info.label_ids, strict=True))
    # Category ids from the publishers' labels.txt: person 1, stop sign 13, hair drier 89, toothbrush 90, banner 92
    assert [by_name[n] for n in ("person", "stop sign", "hair drier", "toothbrush", "banner", "wood")] == [
        0, 12, 88, 89, 91, 181,
    ]  # fmt: skip
    removed = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91}
    assert set(info.label_ids) == set(range(182)) - {i - 1 for i in removed}
    assert info.train_id_table(255)[255] == 255


def test_the_pascal_voc_colours():
    """The first colours of the published colour map."""
    assert [voc_color(i) for i in range(4)] == [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0)]
    assert CATALOG["pascal_voc"].palette[15] == (192, 128, 128)  # person
    assert CATALOG["pascal_voc"].palette[20] == (0, 64, 128)  # tv/monitor


def test_pascal_context_has_59_or_60_classes(tmp_path):
    with_background = find_dataset("pascal_context", tmp_path, num_classes=60)
    without = find_dataset("pascal_ctx", tmp_path, num_classes=59)
    assert with_background.class_names[0] == "background"
    assert without.class_names == with_background.class_names[1:]
    assert without.name == "pascal_context"
    assert without.train_id_table(255)[[0, 1, 59]].tolist() == [255, 0, 58]


def test_left_and_right_change_places_in_lip():
    names, table = CATALOG["lip"].class_names, CATALOG["lip"].flip_table()
    for k, name in enumerate(names):
        flipped = name.replace("left", "?").replace("right", "left").replace("?", "right")
        assert names[table[k]] == flipped


def test_a_negative_ignore_label_survives():
    assert CATALOG["camvid"].train_id_table(-1)[11] == -1


def test_unknown_datasets_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"DATASET\.DATASET.*'citscapes'.*cityscapes.*docs/data\.md"):
        find_dataset("citscapes", tmp_path / "citscapes")


def describe(tmp_path, **content):
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps({"classes": [{"name": "ground"}, {"name": "crack"}], **content}))
    return own_description(path, "cracks")


def test_an_own_dataset_needs_no_more_than_names(tmp_path):
    info = describe(tmp_path)
    assert info.class_names == ("ground", "crack")
    assert info.label_ids == (0, 1)
    assert len(set(info.palette)) == 2
    assert info.upright


def test_an_own_dataset_may_say_everything(tmp_path):
    info = describe(
        tmp_path, classes=[{"name": "a", "id": 3, "color": [1, 2, 3]}, {"name": "b", "id": 255, "color": [4, 5, 6]}],
        ignore=[7, [9, 9, 9]], class_weights=[1, 2.5], flip_pairs=[["a", "b"]],
        evaluation={"resize": "short_side", "multiple_of": 32}, label_format="colors", upright=False,
    )  # fmt: skip
    assert info.label_ids == (3, 255)
    assert info.ignored_ids == (7,)
    assert info.ignored_colors == ((9, 9, 9),)
    assert info.class_weights == (1, 2.5)
    assert info.flip_pairs == ((0, 1),)
    assert (info.evaluation.resize, info.evaluation.multiple_of) == ("short_side", 32)


def paint(folder, name, image_suffix, masks):
    """Images of one grey level and masks, both 6x8."""
    for i, mask in enumerate(masks):
        for kind, pixels, suffix in (
            ("images", np.full((6, 8, 3), i, np.uint8), image_suffix),
            ("labels", mask, ".png"),
        ):
            path = folder / kind / f"{name}{i}{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)


def test_own_colour_masks_are_read_by_the_colours_of_the_json(tmp_path):
    folder = tmp_path / "cracks"
    mask = np.zeros((6, 8, 3), np.uint8)
    mask[:2], mask[2:4], mask[4:] = (10, 20, 30), (200, 0, 0), (255, 255, 255)
    paint(folder, "deep/er/", ".jpg", [mask] * 12)
    classes = [{"name": "ground", "color": [10, 20, 30]}, {"name": "crack", "color": [200, 0, 0]}]
    (folder / "dataset.json").write_text(json.dumps({"classes": classes, "ignore": [[255, 255, 255]]}))
    counts = prepare_dataset("cracks", tmp_path).num_lines
    assert counts["train"] + counts["val"] == counts["trainval"] == 12
    assert counts["val"] > 0
    info = find_dataset("cracks", folder)
    dataset = ListDataset(tmp_path, tmp_path / "list/cracks/train.lst", info, ignore_label=255)
    np.testing.assert_array_equal(dataset[0].labels[:, 0], [0, 0, 1, 1, 255, 255])
    Image.fromarray(mask).convert("RGBA").save(folder / dataset.pairs[0][1])
    np.testing.assert_array_equal(dataset[0].labels[:, 0], [0, 0, 1, 1, 255, 255])
    mask[0, 0] = (201, 0, 0)
    Image.fromarray(mask).save(folder / dataset.pairs[0][1])
    with pytest.raises(ValueError, match=r"\[201, 0, 0\].*cracks \(1 pixels\)"):
        dataset[0]


def test_own_id_masks_with_splits(tmp_path):
    folder = tmp_path / "own"
    for split in ("train", "val"):
        paint(folder, f"{split}/", ".PNG", [np.full((6, 8), 255, np.uint8)])
    (folder / "dataset.json").write_text(json.dumps({"classes": [{"name": "no"}, {"name": "yes", "id": 255}]}))
    prepare_dataset("own", tmp_path)
    dataset = ListDataset(tmp_path, tmp_path / "list/own/val.lst", find_dataset("own", folder), ignore_label=-1)
    assert (dataset[0].labels == 1).all()


def test_adding_own_images_moves_none_to_the_other_split(tmp_path):
    folder = tmp_path / "own"
    (folder).mkdir()
    (folder / "dataset.json").write_text(json.dumps({"classes": [{"name": "no"}, {"name": "yes"}], "val_share": 0.4}))
    before = set()
    for count in (10, 30):
        paint(folder, "", ".png", [np.zeros((6, 8), np.uint8)] * count)
        prepare_dataset("own", tmp_path)
        now = set((tmp_path / "list/own/val.lst").read_text().splitlines())
        assert before <= now
        before = now
    assert 5 <= len(now) <= 19  # 12 expected of 30


def test_as_many_classes_as_an_id_can_name(tmp_path):
    """The checks of names and ids are quadratic: 70,000 classes would take a minute."""
    (tmp_path / "dataset.json").write_text(json.dumps({"classes": [{"name": str(i)} for i in range(70_000)]}))
    started = time.monotonic()
    with pytest.raises(UserError, match=r"classes .*70000.*at most 256"):
        own_description(tmp_path / "dataset.json", "x")
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("form", [list, dict])
def test_own_layouts_without_splits_are_split_by_val_share(tmp_path, form):
    """Otherwise train, val and test would be the same list."""
    folder = tmp_path / "own"
    layout = {"images": "photos/*", "labels": "masks/*"}
    content = {"classes": [{"name": "a"}, {"name": "b"}], "layouts": [layout] if form is list else layout}
    for i in range(30):
        for kind in ("photos", "masks"):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            Image.new("L", (4, 4)).save(folder / kind / f"{i}.png")
    (folder / "dataset.json").write_text(json.dumps(content))
    prepare_dataset("own", tmp_path)
    train, val = (set((tmp_path / f"list/own/{s}.lst").read_text().splitlines()) for s in ("train", "val"))
    assert train
    assert val
    assert not train & val
    assert len(train | val) == 30
    assert not (tmp_path / "list/own/test.lst").exists()


@pytest.mark.parametrize("name", ["cityscapes", "acdc", "synthetic"])
def test_classes_of_cityscapes_merge_into_the_official_categories(tmp_path, name):
    info = find_dataset(name, tmp_path, num_classes=7)
    table = info.train_id_table(255)
    for label in official_labels:
        if label.id >= 0:
            assert table[label.id] == (info.class_names.index(label.category) if label.trainId != 255 else 255)
    assert info.submission is None
    again = DatasetInfo.from_dict(json.loads(json.dumps(info.as_dict())))
    assert again.train_id_table(255).tolist() == table.tolist()
    assert find_dataset(name, tmp_path, num_classes=19).num_classes == 19


def test_a_dataset_of_an_earlier_checkpoint_is_read():
    old = {("mirrored_classes" if k == "flip_pairs" else k): v for k, v in CATALOG["lip"].as_dict().items()}
    assert DatasetInfo.from_dict(old).flip_pairs == CATALOG["lip"].flip_pairs


def test_a_layout_of_ones_own_may_have_other_ids(tmp_path):
    layouts = [
        {"images": "a/*", "labels": "b/*"},
        {"images": "c/*", "labels": "d/*", "label_ids": [7, 3], "ignore": [9]},
    ]
    info = describe(tmp_path, layouts=layouts, ignore=[255])
    assert with_stored_ids(info, ["b/1.png"]) == info
    assert with_stored_ids(info, ["d/1.png"]).train_id_table(255)[[7, 3, 9]].tolist() == [0, 1, 255]
    assert with_stored_ids(info, ["d/1.png"]).train_id_table(255)[255] == INVALID
