"""The list-file dataset and its messages about bad files."""

import numpy as np
import pytest
from PIL import Image

from ovenet.data.catalog import CATALOG, INVALID, find_dataset
from ovenet.data.dataset import AugmentedDataset, ListDataset

CAMVID = CATALOG["camvid"]


def load(root, list_file="list/camvid/val.lst", info=CAMVID, **options):
    return ListDataset(root, list_file, info, ignore_label=255, **options)


def put(root, name, pixels, mode=None):
    Image.fromarray(np.asarray(pixels)).convert(mode).save(root / "camvid" / name)


def test_samples_are_pixels_and_train_ids(tiny_data):
    dataset = load(tiny_data)
    raw = np.asarray(Image.open(tiny_data / "camvid/valannot/1.png"))
    sample = dataset[1]
    assert len(dataset) == 3
    assert sample.name == "val/1.png"
    assert sample.image.shape == (48, 64, 3)
    assert sample.image.dtype == np.uint8
    np.testing.assert_array_equal(sample.image, np.asarray(Image.open(tiny_data / "camvid/val/1.png")))
    np.testing.assert_array_equal(sample.labels, np.where(raw == 11, 255, raw))
    assert len(load(tiny_data, num_samples=2)) == 2


def test_lines_without_a_label(tiny_data):
    dataset = load(tiny_data, "list/camvid/test.lst")
    assert not dataset.has_labels
    assert dataset[0].labels is None
    with pytest.raises(ValueError, match=r"test\.lst, entry 1: no label"):
        AugmentedDataset(dataset, lambda sample, rng: sample, seed=0)


def test_grey_and_alpha_images_become_rgb(tiny_data):
    grey = np.arange(48 * 64, dtype=np.uint16).reshape(48, 64).astype(np.uint8)
    put(tiny_data, "val/0.png", grey)
    put(tiny_data, "val/1.png", np.dstack([grey] * 4))
    for index in (0, 1):
        np.testing.assert_array_equal(load(tiny_data)[index].image, np.dstack([grey] * 3))


def test_palette_labels_are_read_as_ids(tiny_data):
    ids = np.asarray(Image.open(tiny_data / "camvid/valannot/0.png"))
    image = Image.fromarray(ids).convert("P")
    image.putpalette([i % 256 for i in range(768)])
    image.putdata(ids.ravel().tolist())
    image.save(tiny_data / "camvid/valannot/0.png")
    np.testing.assert_array_equal(load(tiny_data)[0].labels, np.where(ids == 11, 255, ids))


@pytest.mark.parametrize(
    ("value", "cause"),
    [(255, "255 may be a foreground mask"), (26, "raw ids instead of train ids"), (100, "Check that the list")],
)
def test_a_foreign_label_value_is_named_with_its_likely_cause(tiny_data, value, cause):
    ids = np.zeros((48, 64), np.uint8)
    ids[5, 5] = value
    put(tiny_data, "valannot/0.png", ids)
    with pytest.raises(ValueError, match=rf"valannot/0\.png: label value {value} is no class of camvid.*{cause}"):
        load(tiny_data)[0]


def test_train_id_files_of_cityscapes_are_recognised(tiny_data):
    ids = np.full((48, 64), 255, np.uint8)
    put(tiny_data, "valannot/0.png", ids)
    (tiny_data / "cityscapes").symlink_to(tiny_data / "camvid")
    with pytest.raises(ValueError, match=r"list the \*_labelIds\.png files"):
        load(tiny_data, info=CATALOG["cityscapes"])[0]


def test_sixteen_bit_labels_are_checked_before_they_are_cut(tiny_data):
    ids = np.full((48, 64), 256 + 3, np.uint16)
    Image.fromarray(ids).save(tiny_data / "camvid/valannot/0.png")
    with pytest.raises(ValueError, match="label value 259 is no class"):
        load(tiny_data)[0]


def test_a_colour_mask_is_named(tiny_data):
    put(tiny_data, "valannot/0.png", np.zeros((48, 64, 3), np.uint8))
    with pytest.raises(ValueError, match=r"valannot/0\.png: the label is a colour image"):
        load(tiny_data)[0]


def test_sizes_must_agree(tiny_data):
    put(tiny_data, "valannot/0.png", np.zeros((48, 63), np.uint8))
    with pytest.raises(ValueError, match=r"valannot/0\.png: the label is 63x48 pixels, its image .* 64x48"):
        load(tiny_data)[0]


@pytest.mark.parametrize(("name", "role"), [("val/0.png", "image"), ("valannot/0.png", "label")])
def test_files_that_cannot_be_read_are_named(tiny_data, name, role):
    path = tiny_data / "camvid" / name
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"no image at all"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name}: the {role} cannot be read"):
            load(tiny_data)[0]
    path.unlink()
    with pytest.raises(ValueError, match=rf"{name}: the {role} does not exist"):
        load(tiny_data)[0]
    path.mkdir()
    with pytest.raises(ValueError, match=rf"{name}: the {role} is a directory"):
        load(tiny_data)[0]


def test_lists_that_cannot_be_used_are_named(tiny_data):
    with pytest.raises(ValueError, match=r"none\.lst: there is no such list file.*prepare_data"):
        load(tiny_data, "list/camvid/none.lst")
    (tiny_data / "list/camvid/empty.lst").write_text("\n\n")
    with pytest.raises(ValueError, match=r"empty\.lst: the list is empty"):
        load(tiny_data, "list/camvid/empty.lst")
    (tiny_data / "list/camvid/three.lst").write_text("a b\na b c\n")
    with pytest.raises(ValueError, match=r"three\.lst, line 2: 3 entries"):
        load(tiny_data, "list/camvid/three.lst")


@pytest.mark.parametrize("info", CATALOG.values(), ids=lambda info: info.name)
def test_catalog_entries_are_consistent(info):
    assert len(info.class_names) == len(info.palette) == len(info.label_ids) == info.num_classes
    assert len(set(info.class_names)) == len(set(info.palette)) == info.num_classes
    assert not set(info.label_ids) & set(info.ignored_ids)
    table = info.train_id_table(255)
    np.testing.assert_array_equal(table[info.label_id_table()], np.arange(info.num_classes))
    assert (table[list(info.ignored_ids)] == 255).all()
    assert table[254] == INVALID
    assert info.class_weights is None or len(info.class_weights) == info.num_classes


def test_a_negative_ignore_label_survives():
    assert CAMVID.train_id_table(-1)[11] == -1


def test_unknown_datasets_are_named():
    with pytest.raises(ValueError, match=r"DATASET\.DATASET is 'citscapes'; expected one of camvid, cityscapes"):
        find_dataset("citscapes")
