"""The list-file dataset and its messages about bad files."""

import struct
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from ovenet.data.catalog import CATALOG
from ovenet.data.dataset import AugmentedDataset, ListDataset
from ovenet.data.files import format_line, image_size, read_image, read_list
from ovenet.errors import UserError

CAMVID = CATALOG["camvid"]


def load(root, list_file="list/camvid/val.lst", info=CAMVID, **options):
    return ListDataset(root, root / list_file, info, ignore_label=255, **options)


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
    with pytest.raises(ValueError, match=r"test\.lst.* 1: .*`image label`"):
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
    [
        (255, "foreground"),
        (12, "may count from 1"),
        (26, "raw ids.*train ids"),
        (100, "the list"),
    ],
)
def test_a_foreign_label_value_is_named_with_its_likely_cause(tiny_data, value, cause):
    ids = np.zeros((48, 64), np.uint8)
    ids[5, 5] = value
    put(tiny_data, "valannot/0.png", ids)
    with pytest.raises(ValueError, match=rf"valannot/0\.png: .*{value}.*camvid.*{cause}"):
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
    with pytest.raises(ValueError, match=r"valannot/0\.png: .*value 259 .*camvid"):
        load(tiny_data)[0]


def test_a_colour_mask_is_named(tiny_data):
    put(tiny_data, "valannot/0.png", np.zeros((48, 64, 3), np.uint8))
    with pytest.raises(ValueError, match=r"valannot/0\.png: .*\(RGB\).*dataset\.json"):
        load(tiny_data)[0]


def test_sizes_must_agree(tiny_data):
    put(tiny_data, "valannot/0.png", np.zeros((48, 63), np.uint8))
    with pytest.raises(ValueError, match=r"valannot/0\.png: .*63x48.*64x48"):
        load(tiny_data)[0]


@pytest.mark.parametrize(("name", "role"), [("val/0.png", "image"), ("valannot/0.png", "label")])
def test_files_that_cannot_be_read_are_named(tiny_data, name, role):
    path = tiny_data / "camvid" / name
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"no image at all"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name}: .*{role}.*replace it"):
            load(tiny_data)[0]
    path.unlink()
    with pytest.raises(ValueError, match=rf"{name}: .*{role}.*DATASET\.ROOT"):
        load(tiny_data)[0]
    path.mkdir()
    with pytest.raises(ValueError, match=rf"{name}: .*{role}.*directory"):
        load(tiny_data)[0]


def test_sixteen_bits_are_scaled_and_not_clipped(tiny_data):
    grey = np.arange(48 * 64, dtype=np.uint16).reshape(48, 64) * 21
    Image.fromarray(grey).save(tiny_data / "camvid/val/0.png")
    np.testing.assert_array_equal(load(tiny_data)[0].image, np.dstack([(grey // 256).astype(np.uint8)] * 3))
    Image.fromarray(grey.astype(np.float32)).save(tiny_data / "camvid/val/1.tiff")
    (tiny_data / "camvid/val/1.tiff").rename(tiny_data / "camvid/val/1.png")
    with pytest.raises(ValueError, match=r"val/1\.png: .*floating-point"):
        load(tiny_data)[1]


def test_palette_and_cmyk_images_are_read_by_their_colours(tiny_data):
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[:24] = (255, 0, 0)
    Image.fromarray(pixels).quantize(4).save(tiny_data / "camvid/val/0.png")
    np.testing.assert_array_equal(load(tiny_data)[0].image, pixels)
    Image.fromarray(pixels).convert("CMYK").save(tiny_data / "camvid/val/1.tiff")
    (tiny_data / "camvid/val/1.tiff").rename(tiny_data / "camvid/val/1.png")
    np.testing.assert_array_equal(load(tiny_data)[1].image, pixels)


def test_photographs_are_turned_where_the_dataset_says_so(tiny_data):
    """EXIF orientation 6: the stored picture is to be turned clockwise."""
    stored = np.zeros((64, 48, 3), np.uint8)
    stored[:32] = 200  # the upper half becomes the right half
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(stored).save(tiny_data / "camvid/val/0.jpg", exif=exif, quality=100)
    (tiny_data / "camvid/val/0.jpg").rename(tiny_data / "camvid/val/0.png")
    image = load(tiny_data, info=replace(CAMVID, upright=True))[0].image
    assert image.shape == (48, 64, 3)
    assert image[:, :30].max() < 20
    assert image[:, 34:].min() > 180
    with pytest.raises(ValueError, match=r'64x48.*48x64.*EXIF.*"upright": true'):
        load(tiny_data)[0]
    put(tiny_data, "valannot/0.png", np.zeros((64, 48), np.uint8))
    np.testing.assert_array_equal(load(tiny_data)[0].image > 100, stored > 100)
    with pytest.raises(ValueError, match=r'EXIF.*"upright": false'):
        load(tiny_data, info=replace(CAMVID, upright=True))[0]


def test_a_list_may_not_leave_its_folder(tiny_data):
    for entry in ("../secret.png", "val/../../secret.png", "/etc/secret.png"):
        (tiny_data / "list/camvid/bad.lst").write_text(f"val/0.png valannot/0.png\n{entry} valannot/0.png\n")
        with pytest.raises(ValueError, match=r"bad\.lst, line 2: .*secret\.png .*outside"):
            load(tiny_data, "list/camvid/bad.lst")
    (tiny_data / "list/camvid/good.lst").write_text("val/../train/0.png\ttrainannot/0.png\n")
    assert load(tiny_data, "list/camvid/good.lst")[0].labels is not None


def test_a_link_to_nowhere_is_named(tiny_data):
    (tiny_data / "camvid/val/0.png").unlink()
    (tiny_data / "camvid/val/0.png").symlink_to(tiny_data / "moved.png")
    with pytest.raises(ValueError, match=r"val/0\.png: .*link.*moved\.png"):
        load(tiny_data)[0]


def test_lists_that_cannot_be_used_are_named(tiny_data):
    with pytest.raises(ValueError, match=r"none\.lst: .*DATASET\.TRAIN_SET"):
        load(tiny_data, "list/camvid/none.lst")
    (tiny_data / "list/camvid/empty.lst").write_text("\n\n")
    with pytest.raises(ValueError, match=r"empty\.lst: .*empty"):
        load(tiny_data, "list/camvid/empty.lst")
    (tiny_data / "list/camvid/three.lst").write_text("a b\na b c\n")
    with pytest.raises(ValueError, match=r"three\.lst, line 2: 3 entries"):
        load(tiny_data, "list/camvid/three.lst")


ODD_NAMES = ["a\u2028b.png", "a\x0bb.png", "a\x85b.png", "a\xa0b.png", "a\x1cb.png", "a\u3000b.png"]


@pytest.mark.parametrize("name", ODD_NAMES)
@pytest.mark.parametrize("label", ["label.png", None])
def test_lists_are_split_at_line_breaks_tabs_and_spaces_alone(tmp_path, name, label):
    path = tmp_path / "x.lst"
    path.write_text(format_line(name, label) + format_line("b.png", label), encoding="utf-8")
    assert read_list(path) == [(name, label), ("b.png", label)]
    path.write_text(f"{name} {label or ''}\r\nb.png\r\n", encoding="utf-8", newline="")
    assert read_list(path) == [(name, label), ("b.png", None)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a.png b.png\n".encode("utf-16"), r"x\.lst: not in UTF-8"),
        ("é.png b.png\n".encode("latin-1"), r"x\.lst: not in UTF-8"),
        (b"\xef\xbb\xbfa.png b.png\n", r"x\.lst: begins with a byte order mark"),
    ],
)
def test_lists_in_another_encoding_are_named(tmp_path, content, message):
    (tmp_path / "x.lst").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_list(tmp_path / "x.lst")


@pytest.mark.parametrize("error", [NotImplementedError("x"), RuntimeError("x"), KeyError("x"), struct.error("x")])
def test_whatever_a_decoder_raises_is_a_bad_image(tmp_path, monkeypatch, error):
    """Pillow's plugins for AVIF and DDS raise such errors for damaged content, whatever the suffix says."""
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")

    def broken(_):
        raise error

    monkeypatch.setattr(PngImageFile, "load", broken)
    with pytest.raises(UserError, match=r"a\.png: .*image.*replace it"):
        read_image(tmp_path / "a.png")


def test_a_damaged_dds_is_a_bad_image(tmp_path):
    header = b"DDS " + struct.pack("<7I", 124, 0x1007, 4, 4, 0, 0, 0) + bytes(44)
    pixel_format = struct.pack("<2I4s5I", 32, 4, b"DX10", 0, 0, 0, 0, 0)
    (tmp_path / "a.png").write_bytes(header + pixel_format + bytes(20) + struct.pack("<5I", 9999, 3, 0, 1, 0))
    with pytest.raises(UserError, match=r"a\.png: .*image.*replace it"):
        read_image(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a\.png: .*image.*replace it"):
        image_size(tmp_path / "a.png")


def test_label_files_of_different_ids_are_not_mixed(tmp_path):
    list_path = tmp_path / "list/acdc/mixed.lst"
    list_path.parent.mkdir(parents=True)
    kinds = ("gt_labelIds", "gt_labelTrainIds")
    list_path.write_text("".join(f"rgb_anon/fog/val/G/{kind}.png gt/fog/val/G/1_{kind}.png\n" for kind in kinds))
    with pytest.raises(UserError, match=r"1_gt_labelIds\.png.*1_gt_labelTrainIds\.png: .*one kind"):
        ListDataset(tmp_path, list_path, CATALOG["acdc"], ignore_label=255)


def test_train_ids_are_not_taken_for_label_ids(tmp_path):
    """ACDC ignores 255, so nothing else would tell them apart."""
    list_path = tmp_path / "list/acdc/moved.lst"
    list_path.parent.mkdir(parents=True)
    list_path.write_text("images/1.png labels/1_gt_labelTrainIds.png\n")
    with pytest.raises(UserError, match=r"labels/1_gt_labelTrainIds\.png: .*acdc.*gt/"):
        ListDataset(tmp_path, list_path, CATALOG["acdc"], ignore_label=255)
