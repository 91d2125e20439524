"""Counts of small images, against slow loops and arithmetic by hand."""

import numpy as np
import pytest
import torch

from ovenet.data.info import DatasetInfo
from ovenet.evaluation import boundaries
from ovenet.evaluation.details import SEGMENT_SIZES, calibration, details_from_counts
from ovenet.evaluation.evaluate import evaluation_from_counts
from ovenet.evaluation.evaluator import CONFIDENCE_LEVELS, DISTANCES_PX, LENGTHS_PX, SegEvaluator
from ovenet.evaluation.writers import details_as_dict, image_record
from ovenet.inference.inferencer import Prediction
from ovenet.structures import Sample

NAMES = ("initial", "seed", "fused")
AB = DatasetInfo("ab", ("a", "b", "c"), ((0, 0, 0), (255, 0, 0), (0, 255, 0)), (0, 1, 2), conditions=("fog", "rain"))
CPU = torch.device("cpu")


def make_evaluator(names=NAMES, *, detailed=True):
    return SegEvaluator(AB, names, ignore_label=255, detailed=detailed, device=CPU)


def random_case(seed, size=(23, 31)):
    rng = np.random.default_rng(seed)
    labels = np.kron(rng.integers(0, 3, (5, 7)), np.ones((5, 5), int))[: size[0], : size[1]].astype(np.int16)
    labels[rng.random(size) < 0.05] = 255
    maps = {}
    for name in NAMES:
        wrong = rng.random(size) < 0.3
        maps[name] = torch.from_numpy(np.where(wrong, rng.integers(0, 3, size), np.where(labels == 255, 0, labels)))
    offset = torch.from_numpy(rng.uniform(-0.6, 0.6, (2, *size))).float()
    confidence = torch.from_numpy(rng.random((1, *size))).float()
    return labels, Prediction({name: m.to(torch.uint8) for name, m in maps.items()}, offset, confidence)


def slow_distance(labels):
    """1 + distance to the nearest pixel that touches another class, by comparing every pair."""
    height, width = labels.shape
    contour = []
    for y in range(height):
        for x in range(width):
            if labels[y, x] == 255:
                continue
            around = labels[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
            if ((around != labels[y, x]) & (around != 255)).any():
                contour.append((y, x))
    ys, xs = np.array(contour).T
    grid_y, grid_x = np.mgrid[:height, :width]
    return 1 + np.sqrt(((grid_y[..., None] - ys) ** 2 + (grid_x[..., None] - xs) ** 2).min(axis=-1))


def test_counts_equal_those_of_a_loop_over_the_pixels():
    labels, prediction = random_case(0)
    evaluator = make_evaluator()
    evaluator.add(labels, prediction, "x/fog/1.png")
    distance = slow_distance(labels)
    confusion = np.zeros(evaluator.counts["confusion"].shape, np.int64)
    seed = np.zeros(evaluator.counts["seed"].shape, np.int64)
    level = np.zeros((2, CONFIDENCE_LEVELS), np.int64)
    lengths = np.zeros(len(LENGTHS_PX) + 1, np.int64)
    height, width = labels.shape
    for y, x in zip(*np.nonzero(labels != 255), strict=True):
        band = sum(distance[y, x] > end for end in DISTANCES_PX)
        right = []
        for index, name in enumerate(NAMES):
            guess = int(prediction.labels[name][y, x])
            confusion[1, index, band, labels[y, x], guess] += 1
            right.append(int(guess == labels[y, x]))
        dx = float(prediction.offset[0, y, x]) * (width - 1) / 2
        dy = float(prediction.offset[1, y, x]) * (height - 1) / 2
        at = labels[round(min(max(y + dy, 0), height - 1)), round(min(max(x + dx, 0), width - 1))]
        target = 2 if at == 255 else int(at == labels[y, x])
        seed[band, target, right[0], right[1], right[2]] += 1
        if target < 2:
            level[target, round(float(prediction.confidence[0, y, x]) * (CONFIDENCE_LEVELS - 1))] += 1
        lengths[sum((dx**2 + dy**2) ** 0.5 > end for end in LENGTHS_PX)] += 1
    np.testing.assert_array_equal(evaluator.counts["confusion"], confusion)
    np.testing.assert_array_equal(evaluator.counts["seed"], seed)
    np.testing.assert_array_equal(evaluator.counts["length"], lengths)
    np.testing.assert_array_equal(evaluator.counts["confidence"].sum(dim=1), level.sum(axis=1))
    moved = np.abs(np.cumsum(evaluator.counts["confidence"].numpy() - level, axis=1)).max()
    assert moved <= 1  # a float32 product may round to the level next to it


def test_the_plain_evaluator_counts_the_same_confusion():
    labels, prediction = random_case(1)
    detailed, plain = make_evaluator(), make_evaluator(detailed=False)
    for evaluator in (detailed, plain):
        evaluator.add(labels, prediction, "1.png")
    assert set(plain.counts) == {"confusion"}
    assert torch.equal(plain.counts["confusion"].sum(dim=2), detailed.counts["confusion"].sum(dim=2))


def test_segments_by_size_by_hand():
    labels = np.zeros((200, 200), np.int16)  # the rest: 40000 - 400 - 2500 pixels of a, which are large
    labels[:20, :20] = 1  # 400 pixels, small
    labels[100:150, 100:150] = 2  # 2500 pixels, medium
    guess = labels.copy()
    guess[:12, :20] = 0  # 160 of the 400 stay right
    guess[100:120, 100:150] = 0  # 1500 of the 2500 stay right
    evaluator = make_evaluator(("fused",))
    evaluator.add(labels, Prediction({"fused": torch.from_numpy(guess)}), "1.png")
    segments = details_from_counts(evaluator).segments
    assert segments.sizes == SEGMENT_SIZES
    assert segments.num_segments.tolist() == [1, 1, 1]
    np.testing.assert_allclose(segments.recall["fused"], [160 / 400, 1500 / 2500, 1])
    assert segments.found["fused"].tolist() == [0, 1, 1]


def test_a_perfect_prediction_has_perfect_scores():
    labels, _ = random_case(2)
    right = torch.from_numpy(np.where(labels == 255, 0, labels)).to(torch.uint8)
    prediction = Prediction(dict.fromkeys(NAMES, right), torch.zeros(2, 23, 31), torch.ones(1, 23, 31))
    evaluator = make_evaluator()
    evaluator.add(labels, prediction, "1.png")
    details = details_from_counts(evaluator)
    for scores in (*details.boundaries.mean_iou.values(), *details.boundaries.mean_f_score.values()):
        np.testing.assert_array_equal(scores, 1.0)
    assert details.edges.trimap_iou["fused"][-1] == 1
    assert details.seeds.right_class == 1
    assert np.isnan(details.seeds.right_class_where_wrong)
    assert details.seeds.broken == {"seed": 0, "fused": 0}
    assert details.calibration.expected_error == 0
    assert details.calibration.area_under_risk == 0
    assert details.seeds.length_pixels[0] == (labels != 255).sum()
    assert "NaN" not in str(details_as_dict(details))


def test_corrected_and_broken_pixels_by_hand():
    labels = np.array([[0, 0, 1, 1]], np.int16)
    maps = {"initial": [[0, 1, 1, 0]], "seed": [[1, 0, 1, 0]], "fused": [[0, 0, 0, 0]]}
    offset = torch.zeros(2, 1, 4)
    offset[0, 0, 1] = 2 / 3  # one pixel of four: from 0 to 1's class
    prediction = Prediction({n: torch.tensor(m) for n, m in maps.items()}, offset, torch.ones(1, 1, 4))
    evaluator = make_evaluator()
    counts = evaluator.add(labels, prediction, "1.png")
    seeds = details_from_counts(evaluator).seeds
    assert seeds.right_class == 3 / 4
    assert seeds.right_class_where_wrong == 1 / 2  # of pixels 1 and 3, the seed of 3
    assert seeds.corrected == {"seed": 1 / 2, "fused": 1 / 2}
    assert seeds.broken == {"seed": 1 / 2, "fused": 1 / 2}
    record = image_record(7, Sample(np.zeros((1, 4, 3), np.uint8), labels, "1.png"), counts, NAMES)
    assert (record["index"], record["corrected"], record["broken"], record["changed"]) == (7, 1, 1, 0.5)
    assert record["scores"]["initial"]["iou"] == {0: pytest.approx(1 / 3), 1: pytest.approx(1 / 3)}


def test_calibration_by_hand():
    counts = np.zeros((2, 101), np.int64)  # levels of 0.01, bins of 1/15
    counts[1, 100], counts[0, 100] = 8, 2  # confidence 1.00: 80 % right, gap 0.20
    counts[1, 60], counts[0, 60] = 1, 3  # 0.60: 25 % right, gap 0.35
    counts[0, 10] = 6  # 0.10: 0 % right, gap 0.10
    result = calibration(counts)
    assert result.expected_error == pytest.approx((10 * 0.20 + 4 * 0.35 + 6 * 0.10) / 20)
    assert result.bin_pixels[[14, 9, 1]].tolist() == [10, 4, 6]
    assert result.bin_accuracy[[14, 9, 1]].tolist() == [0.8, 0.25, 0]
    assert result.bin_confidence[[14, 9, 1]] == pytest.approx([1.0, 0.6, 0.1])
    # surest first: risk 2/10 for the first half, 5/14 for the next fifth, 11/20 for the rest
    assert result.area_under_risk == pytest.approx(0.5 * 2 / 10 + 0.2 * 5 / 14 + 0.3 * 11 / 20)
    assert result.risk[-1] == pytest.approx(11 / 20)


def test_nothing_seen_gives_no_numbers_and_no_warning():
    details = details_from_counts(make_evaluator())
    assert np.isnan(details.calibration.expected_error)
    assert np.isnan(details.edges.trimap_iou["fused"]).all()
    assert details_as_dict(details)["seeds"]["right_class"] is None


def test_tallies_add_up():
    cases = [random_case(seed) for seed in range(4)]
    whole, parts = make_evaluator(), [make_evaluator(), make_evaluator()]
    for index, (labels, prediction) in enumerate(cases):
        whole.add(labels, prediction, f"rain/{index}.png")
        parts[index % 2].add(labels, prediction, f"rain/{index}.png")
    parts[0].merge(parts[1].counts)
    assert all(torch.equal(whole.counts[name], parts[0].counts[name]) for name in whole.counts)
    assert set(evaluation_from_counts(whole).by_condition) == {"rain"}


def test_the_last_digit_of_a_distance_moves_no_pixel(monkeypatch):
    """OpenCV's distances differ by rounding from call to call: 2.0000002 is 2."""
    labels, prediction = random_case(0)
    exact = make_evaluator()
    exact.add(labels, prediction, "1.png")
    distance_to = boundaries.distance_to
    for factor in (1 - 2e-7, 1 + 2e-7):
        monkeypatch.setattr(boundaries, "distance_to", lambda mask, f=factor: distance_to(mask) * np.float32(f))
        moved = make_evaluator()
        moved.add(labels, prediction, "1.png")
        assert torch.equal(moved.counts["confusion"], exact.counts["confusion"])
