"""The forms of a prediction, by hand."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from ovenet.data.info import DatasetInfo
from ovenet.errors import UserError
from ovenet.inference.result import SegResult, run_lengths
from ovenet.utils.logging import configure_logging

INFO = DatasetInfo("town", ("ground", "house", "tree"), ((10, 20, 30), (200, 0, 0), (0, 200, 0)), (7, 8, 9))


@pytest.fixture
def result():
    """A house of 10 x 8 pixels with a window of 4 x 2, and a tree of one pixel."""
    mask = np.zeros((20, 30), np.uint8)
    mask[5:13, 4:14] = 1
    mask[8:10, 7:11] = 0
    mask[2, 25] = 2
    return SegResult(np.full((20, 30, 3), 100, np.uint8), mask, INFO)


def test_shares(result):
    assert list(result.class_share) == ["ground", "house", "tree"]
    assert result.class_share["house"] == pytest.approx(72 / 600)
    assert sum(result.class_share.values()) == pytest.approx(1)
    assert repr(result) == "SegResult(30x20: ground 88 %, house 12 %, tree 0 %)"


def test_it_is_its_mask_for_numpy(result):
    np.testing.assert_array_equal(np.asarray(result), result.mask)
    assert np.asarray(result, dtype=np.float32).dtype == np.float32


def test_polygons_have_holes(result):
    ground, window, house = sorted(result.polygons(min_area=5), key=lambda one: (one["train_id"], -one["area"]))
    assert (house["class_name"], house["area"]) == ("house", 72)
    assert sorted(house["rings"][0]) == [[4, 5], [4, 13], [14, 5], [14, 13]]
    assert len(house["rings"]) == 2
    assert (window["train_id"], window["area"]) == (0, 8)
    assert ground["area"] == 600 - 80 - 1
    assert not [one for one in result.polygons() if one["class_name"] == "tree"]  # smaller than 16 pixels
    (tree,) = [one for one in result.polygons(min_area=0) if one["class_name"] == "tree"]
    assert sorted(tree["rings"][0]) == [[25, 2], [25, 3], [26, 2], [26, 3]]


def test_areas_of_polygons_are_the_classes():
    """Of noise, whose areas touch at corners, hold holes and are one pixel wide."""
    mask = np.random.default_rng(0).integers(0, 3, (24, 31)).astype(np.uint8)
    noise = SegResult(np.zeros((24, 31, 3), np.uint8), mask, INFO)
    for train_id in range(3):
        areas = sum(one["area"] for one in noise.polygons(min_area=0) if one["train_id"] == train_id)
        assert areas == (mask == train_id).sum()


@pytest.mark.parametrize("seed", range(3))
def test_run_lengths_are_cocos(seed):
    mask = np.random.default_rng(seed).random((7, 5)) > 0.4
    counts, values, value = run_lengths(mask), [], False
    for length in counts:
        values += [value] * length
        value = not value
    np.testing.assert_array_equal(np.array(values).reshape(5, 7).T, mask)


def test_every_file(result, tmp_path):
    result.save(tmp_path / "a.png")
    saved = Image.open(tmp_path / "a.png")
    np.testing.assert_array_equal(np.asarray(saved), result.mask)
    assert saved.convert("RGB").getpixel((5, 5)) == (200, 0, 0)
    geo = json.loads(result.save(tmp_path / "a.geojson").read_text())
    assert {f["properties"]["class_name"] for f in geo["features"]} == {"ground", "house"}
    for feature in geo["features"]:
        for ring in feature["geometry"]["coordinates"]:
            assert ring[0] == ring[-1]
    coco = json.loads(result.save(tmp_path / "a.json").read_text())
    house = coco["annotations"][1]
    assert (house["category_id"], house["area"], house["bbox"]) == (2, 72, [4, 5, 10, 8])
    assert sum(house["segmentation"]["counts"]) == 600
    with pytest.raises(UserError, match=r"a\.bin: .*\.png, \.geojson, \.json.*form="):
        result.save(tmp_path / "a.bin")
    assert {p.name for p in tmp_path.iterdir()} == {"a.png", "a.geojson", "a.json"}


def test_the_overlay_has_a_legend(result, tmp_path):
    plain, named = result.overlay(legend=False), result.overlay()
    assert plain.size == (30, 20)
    assert named.height > plain.height
    np.testing.assert_allclose(plain.getpixel((5, 5)), [0.45 * 100 + 0.55 * 200, 45, 45], atol=1)
    colors = {color for _, color in named.crop((0, 20, *named.size)).getcolors(10000)}
    assert {(10, 20, 30), (200, 0, 0), (0, 200, 0)} <= colors
    assert (result.image == 100).all()  # drawn on a copy
    result.save(tmp_path / "o.png", "overlay")
    assert Image.open(tmp_path / "o.png").size == named.size
    assert result._repr_png_()[:4] == b"\x89PNG"


def test_without_a_display_a_picture_is_not_shown_but_told(result, monkeypatch, capsys):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    configure_logging()
    result.show()
    (line,) = capsys.readouterr().err.splitlines()
    assert "display" in line
    assert "save" in line
