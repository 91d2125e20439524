"""A folder of images and masks becomes a dataset and an experiment."""

import json

import numpy as np
import pytest
from PIL import Image

from ovenet.config import load_config
from ovenet.data.prepare import prepare_dataset
from ovenet.dataset_tools.draft import read_draft, write_draft, write_experiment
from ovenet.errors import UserError

SIZE = (40, 60)  # height and width
NOISE = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), np.uint8)


@pytest.fixture
def folder(tmp_path):
    """A function that writes ten images with masks made of 8-bit ids or colours; returns the dataset's folder."""

    def write(masks, suffix=".png"):
        for kind in ("images", "labels"):
            (tmp_path / "cracks" / kind).mkdir(parents=True, exist_ok=True)
        for index, mask in enumerate(masks):
            Image.new("RGB", SIZE[::-1], (index, 0, 0)).save(tmp_path / f"cracks/images/{index}.png")
            Image.fromarray(mask).save(tmp_path / f"cracks/labels/{index}{suffix}")
        return tmp_path / "cracks"

    return write


def ids(*parts):
    """A mask whose rows have these ids, in equal parts."""
    return np.repeat(np.array(parts, np.uint8), SIZE[0] // len(parts))[:, None].repeat(SIZE[1], axis=1)


def test_ids(folder):
    root = folder([ids(0, 7, 7, 255)] * 10)
    draft = read_draft(root)
    assert draft.shares == {7: 0.5, 0: 0.25, 255: 0.25}
    assert draft.size == (60, 40)
    write_draft(draft, root)
    content = json.loads((root / "dataset.json").read_text())
    assert [(row["name"], row["id"]) for row in content["classes"]] == [("class 0", 0), ("class 7", 7)]
    assert content["ignore"] == [255]
    assert prepare_dataset("cracks", root.parent).num_lines["trainval"] == 10


def test_colours(folder):
    palette = np.array([[0, 0, 0], [200, 10, 30], [255, 255, 255]], np.uint8)
    root = folder([palette[ids(0, 0, 0, 1)]] * 8 + [palette[ids(2, 2, 1, 1)]] * 2)
    draft = read_draft(root)
    assert list(draft.shares) == [(0, 0, 0), (200, 10, 30), (255, 255, 255)]
    assert sum(draft.shares.values()) == pytest.approx(1)
    write_draft(draft, root)
    content = json.loads((root / "dataset.json").read_text())
    assert [row["color"] for row in content["classes"]] == [[0, 0, 0], [200, 10, 30]]
    assert content["ignore"] == [[255, 255, 255]]
    assert prepare_dataset("cracks", root.parent).num_lines["trainval"] == 10


def test_the_experiment_loads_from_anywhere(folder, tmp_path):
    draft = read_draft(folder([ids(0, 1)] * 10))
    write_experiment(draft, "cracks", tmp_path / "elsewhere.yaml")
    cfg = load_config(tmp_path / "elsewhere.yaml")
    assert (cfg.DATASET.DATASET, cfg.DATASET.NUM_CLASSES, cfg.MODEL.SEED.NAME) == ("cracks", 2, "fork")
    assert (list(cfg.TRAIN.IMAGE_SIZE), cfg.TRAIN.BASE_SIZE) == ([32, 32], 60)


def test_a_name_that_looks_like_a_number_stays_a_name(folder, tmp_path):
    write_experiment(read_draft(folder([ids(0, 1)] * 10)), "2024", tmp_path / "a.yaml")
    assert load_config(tmp_path / "a.yaml").DATASET.DATASET == "2024"


@pytest.mark.parametrize(
    ("masks", "suffix", "message"),
    [
        ([ids(3)] * 10, ".png", "the masks hold 1 value beside 255, and a task needs two classes"),
        (
            [np.random.default_rng(0).integers(0, 255, (*SIZE, 3), np.uint8)] * 10,
            ".png",
            "more than 256 ids or colours",
        ),
        ([ids(0, 1)] * 5 + [np.zeros((*SIZE, 3), np.uint8)] * 5, ".png", "some masks are ids and some are colours"),
        ([ids(0, 1).astype(np.uint16)] * 10, ".png", "a mask of mode I;16; expected ids of 8 bits, or colours"),
    ],
)
def test_what_cannot_be_classes(folder, masks, suffix, message):
    with pytest.raises(UserError, match=message):
        read_draft(folder(masks, suffix))


def test_an_image_without_a_mask_is_left_out(folder):
    root = folder([ids(0, 1)] * 9 + [ids(0, 7)])
    (root / "labels/9.png").unlink()
    draft = read_draft(root)
    assert (draft.num_masks, set(draft.shares)) == (9, {0, 1})


def test_what_a_begun_description_says_stays(folder):
    root = folder([ids(0, 1, 255, 255)] * 10)
    draft = read_draft(root, {"images": "images/*", "labels": "labels/*"})
    write_draft(draft, root, {"ignore": [255, 7], "val_share": 0.5})
    content = json.loads((root / "dataset.json").read_text())
    assert (content["ignore"], content["val_share"]) == ([255, 7], 0.5)
    assert content["layouts"] == {"images": "images/*", "labels": "labels/*"}
    assert [row["id"] for row in content["classes"]] == [0, 1]
