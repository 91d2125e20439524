"""What the gallery stores can be read back as it was, but for the coarser grid."""

import base64
import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from ovenet.inference.inferencer import Prediction
from ovenet.report.gallery import choose_images, picture_data, picture_sides
from ovenet.structures import Sample
from tests.report.conftest import CONFIDENCE, GRID_SIDE, OFFSET, case


def decoded(text):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB")).astype(int)


def test_other_displacements_are_read_back_to_a_thousandth_of_the_longest():
    sample, prediction = case(0)
    field = torch.randn(2, 30, 40) / 100
    data = picture_data(sample, replace(prediction, fields={"SRM": field}), 3, photo_side=80, grid_side=40)
    longest = data["fields"]["SRM"]["longest"]
    assert longest == pytest.approx(field.abs().max().item())
    high_x, high_y, low = np.moveaxis(decoded(data["fields"]["SRM"]["offset"]).astype(int), -1, 0)
    x, y = (high_x << 4) | (low >> 4), (high_y << 4) | (low & 15)
    read = (np.stack((x, y)) / 4095 * 2 - 1) * longest
    np.testing.assert_allclose(read, field.numpy(), atol=longest / 4000)


def test_maps_offsets_and_scores_are_read_back():
    sample, prediction = case(1)
    data = picture_data(sample, prediction, 3, photo_side=200, grid_side=GRID_SIDE)
    assert (data["size"], data["stride"]) == ([60, 80], 2)
    np.testing.assert_array_equal(decoded(data["maps"]["label"])[..., 0], sample.labels)
    for name, labels in prediction.labels.items():
        np.testing.assert_array_equal(decoded(data["maps"][name])[..., 1], labels)
    high_x, high_y, low = np.moveaxis(decoded(data["offset"]), -1, 0)
    x, y = (high_x * 16 + low // 16) / 4095 * 4 - 2, (high_y * 16 + low % 16) / 4095 * 4 - 2
    assert x.shape == (30, 40)
    np.testing.assert_allclose(x, OFFSET[0], atol=0.0005)
    np.testing.assert_allclose(y, OFFSET[1], atol=0.0005)
    np.testing.assert_allclose(decoded(data["confidence"])[..., 0], CONFIDENCE * 255, atol=0.5)
    classes, shares = (decoded(data["best"]["fused"][key]) for key in ("classes", "shares"))
    np.testing.assert_array_equal(classes[..., 0], prediction.labels["fused"][::2, ::2])
    np.testing.assert_array_equal(shares[5, 5], [round(255 * s) for s in (0.8 + 0.2 / 3, 0.2 / 3, 0.2 / 3)])


def test_large_images_are_shrunk_and_small_ones_are_not():
    sample, prediction = case(0)
    assert decoded(picture_data(sample, prediction, 3, photo_side=40, grid_side=40)["photo"]).shape == (30, 40, 3)
    assert decoded(picture_data(sample, prediction, 3, photo_side=800, grid_side=40)["photo"]).shape == (60, 80, 3)


def test_two_classes_have_no_third_best():
    sample = Sample(np.zeros((6, 8, 3), np.uint8), None, "a.png")
    labels, scores = torch.zeros(6, 8, dtype=torch.uint8), torch.full((2, 6, 8), 3.0)
    two = Prediction({"fused": labels}, scores={"fused": scores})
    data = picture_data(sample, two, 2, photo_side=8, grid_side=8)
    assert "label" not in data["maps"]
    assert "offset" not in data
    assert decoded(data["best"]["fused"]["shares"])[0, 0].tolist() == [128, 128, 0]


def test_the_worst_and_the_most_changed_images_are_chosen_first():
    records = [
        {"index": i, "scores": {"fused": {"mean_iou": i / 100}}, "changed": (i * 37 % 100) / 100} for i in range(100)
    ]
    chosen = {record["index"] for record in choose_images(records, 30)}
    assert len(chosen) == 30
    assert set(range(10)) <= chosen
    assert {i for i in range(100) if i * 37 % 100 >= 90} <= chosen
    assert choose_images(records, 200) == records


def test_the_largest_gains_and_losses_are_chosen_too():
    records = [
        {"index": i, "scores": {"initial": {"mean_iou": 0.5 + (i * 37 % 100) / 1000}, "fused": {"mean_iou": 0.5}}}
        for i in range(100)
    ]
    records.append({"index": 100, "scores": {"initial": {"mean_iou": None}, "fused": {"mean_iou": None}}})
    chosen = {record["index"] for record in choose_images(records, 30)}
    assert len(chosen) == 30
    assert {i for i in range(100) if i * 37 % 100 in (0, 1, 2, 97, 98, 99)} <= chosen


def test_more_images_get_less_room_each():
    assert picture_sides(10) > picture_sides(100) > picture_sides(1000)
