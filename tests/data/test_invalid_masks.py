"""Masks of invalid pixels: where they lie, and what is said of those that are missing or wrong."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from ovenet.data.catalog import CATALOG
from ovenet.data.dataset import ListDataset
from ovenet.data.description import own_description
from ovenet.data.invalid_masks import mask_name, read_invalid_mask
from ovenet.errors import UserError

ACDC = CATALOG["acdc"]
FRAME = "gt/fog/val/GOPR1/GOPR1_frame_000001_gt"


@pytest.mark.parametrize("kind", ["labelIds", "labelTrainIds"])
def test_acdcs_masks_lie_beside_both_kinds_of_labels(kind):
    assert mask_name(f"{FRAME}_{kind}.png", ACDC) == f"{FRAME}_invIds.png"


def test_a_folder_of_ones_own_names_its_masks(tmp_path):
    (tmp_path / "dataset.json").write_text(
        '{"like": "camvid", "invalid_masks": [["_mask", "_inv"], ["labels/", "unsure/"]]}'
    )
    info = own_description(tmp_path / "dataset.json", "mine")
    assert mask_name("labels/val/1_mask.png", info) == "labels/val/1_inv.png"
    assert mask_name("labels/labels/1.tif", info) == "labels/unsure/1.tif"
    with pytest.raises(UserError, match=r"^masks/1\.png: .*\b_mask or labels/.*invalid_masks"):
        mask_name("masks/1.png", info)


@pytest.fixture
def tree(tmp_path):
    """A list of two frames of 6x8 with masks; the first has an invalid pixel, and a label of road."""
    folder, lines = tmp_path / "acdc", []
    for n in range(2):
        stem = f"GOPR1/GOPR1_frame_00000{n}"
        names = {
            f"rgb_anon/fog/val/{stem}_rgb_anon.png": np.zeros((6, 8, 3), np.uint8),
            f"gt/fog/val/{stem}_gt_labelIds.png": np.full((6, 8), 7, np.uint8),
            f"gt/fog/val/{stem}_gt_invIds.png": np.eye(6, 8, dtype=np.uint8) * (1 - n),
        }
        for name, pixels in names.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / name)
        lines.append("\t".join(list(names)[:2]))
    lines.append(lines[0].split("\t")[0])  # without a label
    (tmp_path / "val.lst").write_text("\n".join(lines))
    return tmp_path


def test_masks_are_read_where_they_are_asked_for(tree):
    dataset = ListDataset(tree, tree / "val.lst", ACDC, ignore_label=255)
    assert dataset[0].invalid is None
    dataset.read_invalid_masks()
    np.testing.assert_array_equal(dataset[0].invalid, np.eye(6, 8, dtype=bool))
    assert not dataset[1].invalid.any()
    assert dataset[2].invalid is None


def test_a_missing_mask_and_a_dataset_without_masks_are_named_before_anything_is_predicted(tree):
    path = tree / "acdc/gt/fog/val/GOPR1/GOPR1_frame_000001_gt_invIds.png"
    path.unlink()
    with pytest.raises(UserError, match=rf"^{path}: .*\b1 of 2\b.*TEST\.UNCERTAINTY"):
        ListDataset(tree, tree / "val.lst", ACDC, ignore_label=255).read_invalid_masks()
    without = replace(ACDC, invalid_masks=())
    with pytest.raises(UserError, match=r"^acdc has no masks.*TEST\.UNCERTAINTY.*\bnone\b.*invalid_masks"):
        ListDataset(tree, tree / "val.lst", without, ignore_label=255).read_invalid_masks()


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((6, 9), np.uint8), "9x6 .*8x6"),
        (np.full((6, 8), 255, np.uint8), r"value 255; expected 0 \(valid\) and 1 \(invalid\)"),
        (np.zeros((6, 8, 3), np.uint8), "RGB; expected one channel"),
        (np.zeros((6, 8), np.uint16), "I;16; expected one channel"),
    ],
)
def test_masks_of_another_size_or_with_other_values(tmp_path, pixels, message):
    path = tmp_path / "a_gt_invIds.png"
    Image.fromarray(pixels).save(path)
    with pytest.raises(UserError, match=f"^{path}: .*{message}"):
        read_invalid_mask(path, (6, 8))


def test_a_mask_of_one_bit_and_one_that_is_no_image(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.eye(6, 8, dtype=bool)).save(path)
    np.testing.assert_array_equal(read_invalid_mask(path, (6, 8)), np.eye(6, 8, dtype=bool))
    path.write_bytes(b"text")
    with pytest.raises(UserError, match=f"^{path}: the invalid mask cannot be read"):
        read_invalid_mask(path, (6, 8))


def test_stored_facts_come_back_and_those_of_other_datasets_are_as_before():
    assert type(ACDC).from_dict(json.loads(json.dumps(ACDC.as_dict()))).submission == ACDC.submission
    plain = CATALOG["cityscapes"].as_dict()
    assert "invalid_masks" not in plain
    assert plain["submission"].keys() == {"ids", "folder", "num_files"}
