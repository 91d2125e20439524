"""Image-wise scores against loops over pixels and over images, written from the definitions."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from ovenet.data.info import DatasetInfo
from ovenet.evaluation.evaluate import evaluation_from_counts
from ovenet.evaluation.evaluator import SegEvaluator
from ovenet.evaluation.image_scores import image_wise_scores, num_in_tail
from ovenet.evaluation.writers import evaluation_as_dict, format_table, image_record
from ovenet.inference.inferencer import Prediction
from ovenet.structures import Sample

NAMES = ("initial", "fused")
CONDITIONS = ("fog", "rain", "snow")
INFO = DatasetInfo("four", ("a", "b", "c", "d"), ((0, 0, 0),) * 4, (0, 1, 2, 3), conditions=CONDITIONS)


def drawn_images(number=23, size=(13, 19)):
    """Names, labels and predictions: blocks of classes, and not every class in every image; the snow has no label."""
    rng = np.random.default_rng(3)
    images = []
    for index in range(number):
        classes = rng.choice(3, size=rng.integers(1, 4), replace=False)  # class 3 is only ever predicted
        block = np.ones((size[0] // 4 + 1, size[1] // 5 + 1), int)
        labels = np.kron(rng.choice(classes, (4, 5)), block)[: size[0], : size[1]]
        labels[rng.random(size) < 0.1] = 255
        folder = ("fog", "rain", "other")[index % 3]
        if index == 5:
            labels[:] = 255
            folder = "snow"
        maps = {}
        for name, share in zip(NAMES, (0.3, 0.2), strict=True):
            wrong = rng.random(size) < share * rng.random()
            maps[name] = np.where(wrong | (labels == 255), rng.integers(0, 4, size), labels)
        images.append((f"rgb/{folder}/{index}.png", labels.astype(np.int16), maps))
    return images


def evaluated(images):
    evaluator = SegEvaluator(INFO, NAMES, ignore_label=255, detailed=False, device=torch.device("cpu"))
    records = []
    for index, (name, labels, maps) in enumerate(images):
        prediction = Prediction({n: torch.from_numpy(m).to(torch.uint8) for n, m in maps.items()})
        counts = evaluator.add(labels, prediction, name)
        records.append(image_record(index, Sample(np.zeros((*labels.shape, 3), np.uint8), labels, name), counts, NAMES))
    records.append(image_record(len(images), Sample(np.zeros((2, 2, 3), np.uint8), None, "fog/no.png"), None, NAMES))
    return evaluator, json.loads(json.dumps(records))  # as images.jsonl has them


def expected_scores(images, prediction, num_classes=4):
    """The paper's formulas, with loops over the pixels; class IoU of an image by class."""
    rows = []
    for _, labels, maps in images:
        row = {}
        for k in range(num_classes):
            tp = fp = fn = 0
            for true, predicted in zip(labels.ravel().tolist(), maps[prediction].ravel().tolist(), strict=True):
                if true != 255:
                    tp += true == k and predicted == k
                    fp += true != k and predicted == k
                    fn += true == k and predicted != k
            if tp + fn:
                row[k] = tp / (tp + fp + fn)
        if row:
            rows.append(row)

    def worst(values, q):
        values = sorted(values)[: max(1, int(len(values) * q // 100))]
        return sum(values) / len(values)

    by_image = [sum(row.values()) / len(row) for row in rows]
    by_class = {k: [row[k] for row in rows if k in row] for k in range(num_classes)}
    by_class = {k: values for k, values in by_class.items() if values}

    def worst_c(q):
        return sum(worst(values, q) for values in by_class.values()) / len(by_class)

    averaged = range(10, 101, 10)
    return {
        "num_images": len(rows),
        "mean_iou_i": sum(by_image) / len(by_image),
        "worst_i": {q: worst(by_image, q) for q in (1, 5, 10)},
        "worst_i_mean": sum(worst(by_image, q) for q in averaged) / 10,
        "iou_c": {k: sum(values) / len(values) for k, values in by_class.items()},
        "images_by_class": [len(by_class.get(k, [])) for k in range(num_classes)],
        "mean_iou_c": worst_c(100),
        "worst_c": {q: worst_c(q) for q in (1, 5, 10)},
        "worst_c_mean": sum(map(worst_c, averaged)) / 10,
    }


def assert_equal(group, images):
    for name in NAMES:
        expected, own = expected_scores(images, name), group.scores[name]
        assert group.num_images == expected["num_images"]
        assert group.images_by_class.tolist() == expected["images_by_class"]
        for key in ("mean_iou_i", "worst_i", "worst_i_mean", "mean_iou_c", "worst_c", "worst_c_mean"):
            assert getattr(own, key) == pytest.approx(expected[key], abs=1e-12), key
        assert {k: v for k, v in enumerate(own.iou_c) if not np.isnan(v)} == pytest.approx(expected["iou_c"])


def test_scores_equal_loops_over_the_pixels():
    images = drawn_images()
    images += drawn_images(1, (63, 95))
    scores = image_wise_scores(evaluated(images)[1], NAMES, 4, CONDITIONS)
    assert scores.overall.num_worst == {1: 1, 5: 1, 10: 2}  # of 23
    assert_equal(scores.overall, images)
    assert list(scores.by_condition) == ["fog", "rain"]
    for condition, group in scores.by_condition.items():
        assert_equal(group, [image for image in images if f"/{condition}/" in image[0]])


def test_a_class_that_is_only_predicted_costs_the_classes_that_are_there():
    """Class 0 fills the image, a quarter of which is predicted as class 1: IoU 3/4, and none of class 1."""
    labels = np.zeros((2, 2), np.int16)
    half = {name: np.array([[0, 0], [0, 1]]) for name in NAMES}
    other = np.array([[0, 0], [1, 1]], np.int16)  # IoU 1 of both, so that class 1 has a single image
    images = [("1.png", labels, half), ("2.png", other, dict.fromkeys(NAMES, other))]
    scores = image_wise_scores(evaluated(images)[1], NAMES, 4).overall
    own = scores.scores["fused"]
    assert (own.mean_iou_i, own.worst_i[10], own.mean_iou_c) == (0.875, 0.75, (0.875 + 1) / 2)
    assert scores.images_by_class.tolist() == [2, 1, 0, 0]


@pytest.mark.parametrize(("number", "expected"), [(0, 0), (1, 1), (9, 1), (19, 1), (20, 2), (233, 23)])
def test_the_worst_tenth(number, expected):
    assert num_in_tail(number, 10) == expected


def test_table_and_json_show_them():
    images = drawn_images()
    evaluator, records = evaluated(images)
    scores = image_wise_scores(records, NAMES, 4, CONDITIONS)
    evaluation = replace(evaluation_from_counts(evaluator), images=scores)
    lines = format_table(evaluation.overall, evaluation.by_condition, None, scores).splitlines()
    expected = [expected_scores(images, name) for name in NAMES]
    shown = [f"{100 * e['worst_i'][10]:.2f}" for e in expected]
    assert any(line.split() == ["mIoU^I,", "worst", "tenth", *shown] for line in lines)
    assert any("22 images" in line and "2 of them" in line for line in lines)
    content = json.loads(json.dumps(evaluation_as_dict(evaluation, INFO), allow_nan=False))["images"]
    assert content["overall"]["images_by_class"]["d"] == 0
    assert content["overall"]["scores"]["fused"]["iou_c"]["d"] is None
    assert content["overall"]["scores"]["fused"]["worst_i"]["10"] == pytest.approx(expected[1]["worst_i"][10])
    assert set(content["conditions"]) == {"fog", "rain"}
    few = image_wise_scores(records[:3], NAMES, 4)
    assert "too few" in format_table(evaluation.overall, images=few).splitlines()[-1]


def test_nothing_labelled_gives_no_numbers():
    scores = image_wise_scores(evaluated([])[1], NAMES, 4, CONDITIONS)
    assert (scores.overall.num_images, scores.by_condition) == (0, {})
    assert np.isnan(scores.overall.scores["fused"].mean_iou_i)
