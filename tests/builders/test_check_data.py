"""What training looks at before its first step."""

import json
import logging

import numpy as np
import pytest
from PIL import Image

from ovenet import load_config
from ovenet.builders.data import check_data, list_dataset
from ovenet.errors import UserError
from ovenet.preparation.prepare import prepare_dataset


@pytest.fixture
def check(tmp_path):
    """Looks at some pairs of a dataset with ignored borders, in whose first masks there is an object."""

    def check(num_pairs, num_with_object):
        classes = [{"name": "ground", "id": 0}, {"name": "crack", "id": 1}]
        for index in range(20):
            mask = np.zeros((24, 32), np.uint8)
            mask[:3], mask[12:14, 12:14] = 255, index < num_with_object
            for folder, pixels in (("images", mask[..., None].repeat(3, 2) + index), ("labels", mask)):
                path = tmp_path / f"mine/{folder}/{index:02}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.astype(np.uint8)).save(path)
        (tmp_path / "mine/dataset.json").write_text(json.dumps({"classes": classes, "ignore": [255]}))
        prepare_dataset("mine", tmp_path)
        keys = {"ROOT": tmp_path, "DATASET": "mine", "NUM_CLASSES": 2, "AUDIT": num_pairs}
        keys |= {"TRAIN_SET": "list/mine/train.lst", "TEST_SET": "list/mine/val.lst"}
        text = [str(part) for key, value in keys.items() for part in (f"DATASET.{key}", value)]
        cfg = load_config("folder/ovenet_hrnet_w18_small_v2", text)
        check_data(cfg, [list_dataset(cfg, name) for name in (cfg.DATASET.TRAIN_SET, cfg.DATASET.TEST_SET)])

    return check


def test_rare_objects_beside_ignored_borders_are_no_error(check, caplog):
    with caplog.at_level(logging.WARNING, logger="ovenet"):
        check(2, 1)
        check(32, 1)
    assert all("error" not in record.getMessage() for record in caplog.records)


def test_objects_in_no_mask_are_an_error_where_all_were_looked_at(check):
    with pytest.raises(UserError, match=r'255 as foreground: .* 0 and 255\b.*"id": 255'):
        check(32, 0)
