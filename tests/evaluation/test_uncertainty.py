"""Uncertainty-aware IoU, against slow loops over pixels and thresholds and against arithmetic by hand."""

import numpy as np
import pytest
import torch

from ovenet.data.info import DatasetInfo
from ovenet.errors import UserError
from ovenet.evaluation.evaluate import evaluation_from_counts
from ovenet.evaluation.evaluator import SegEvaluator
from ovenet.evaluation.uncertainty import LEVELS, UncertaintyCounter, scored_names, thresholds, uncertainty_curve
from ovenet.evaluation.writers import evaluation_as_dict, format_table
from ovenet.inference.inferencer import Prediction

NAMES = ("initial", "seed", "fused")
FOUR = DatasetInfo(
    "four", ("a", "b", "c", "d"), ((0, 0, 0), (9, 0, 0), (0, 9, 0), (0, 0, 9)), (0, 1, 2, 3), conditions=("fog", "rain")
)
CPU = torch.device("cpu")


def random_case(seed, size=(13, 19)):
    """Labels without the last class, ignored pixels, marked or not, and confidences, a third of them at thresholds."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, size).astype(np.int16)
    labels[rng.random(size) < 0.1] = 255
    invalid = rng.random(size) < 0.3
    maps, probability = {}, {}
    for name in NAMES:
        guess = np.where(rng.random(size) < 0.5, rng.integers(0, 4, size), np.minimum(labels, 3))
        maps[name] = torch.from_numpy(guess.astype(np.uint8))
        values = np.where(rng.random(size) < 0.3, rng.choice(thresholds(4), size), rng.uniform(0.25, 1, size))
        probability[name] = torch.from_numpy(values.astype(np.float32))
    seed_confidence = torch.from_numpy(rng.random((1, *size), np.float32))
    return labels, invalid, Prediction(maps, torch.zeros(2, *size), seed_confidence, probability=probability)


def confidence_of(prediction, kind, name, y, x):
    p, f = float(prediction.probability[name][y, x]), float(prediction.confidence[0, y, x])
    value = {"probability": p, "seed": f, "product": float(np.float32(p) * np.float32(f))}[kind]
    return round(float(np.float32(value) * np.float32(65535)))  # as a map of 16 bits holds it


def slow_uiou(cases, kind, name, num_classes=4):
    """UIoU by threshold, the mean over the classes in the labels, as the definition says."""
    pixels = [
        (labels[y, x], int(prediction.labels[name][y, x]), confidence_of(prediction, kind, name, y, x), invalid[y, x])
        for labels, invalid, prediction in cases
        for y, x in zip(*np.nonzero(labels != 255), strict=True)
    ]
    curve = []
    for step in range(101):
        threshold = round((1 / num_classes + step / 100 * (1 - 1 / num_classes)) * 65535)
        scores = []
        for k in range(num_classes):
            tp = ti = fp = fn = fi = 0
            for true, guess, confidence, is_invalid in pixels:
                called_invalid = confidence < threshold
                if true == k:
                    ti += called_invalid and bool(is_invalid)
                    fi += called_invalid and not is_invalid
                    tp += not called_invalid and guess == k
                    fn += not called_invalid and guess != k
                else:
                    fp += not called_invalid and guess == k
            if tp + ti + fn + fi:
                scores.append((tp + ti) / (tp + ti + fp + fn + fi))
        curve.append(sum(scores) / len(scores))
    return curve


def evaluated(cases, kind, names=("x/fog/1.png", "x/rain/2.png")):
    evaluator = SegEvaluator(FOUR, NAMES, ignore_label=255, detailed=False, device=CPU, uncertainty=kind)
    for (labels, invalid, prediction), name in zip(cases, names, strict=True):
        evaluator.add(labels, prediction, name, invalid=invalid)
    return evaluator


@pytest.mark.parametrize("kind", ["probability", "seed", "product"])
def test_every_threshold_equals_a_loop_over_the_pixels(kind):
    cases = [random_case(0), random_case(1, (7, 9))]
    scores = evaluation_from_counts(evaluated(cases, kind)).uncertainty
    assert scores.confidence == kind
    assert tuple(scores.overall) == (NAMES if kind == "probability" else ("fused",))
    np.testing.assert_allclose(scores.thresholds[[0, 50, 100]], [0.25, 0.625, 1])
    for name in scores.overall:
        expected = slow_uiou(cases, kind, name)
        np.testing.assert_allclose(scores.overall[name].mean_uiou, expected, rtol=1e-12)
        assert scores.overall[name].average == pytest.approx(sum(expected) / 101)
        np.testing.assert_allclose(scores.by_condition["rain"][name].mean_uiou, slow_uiou(cases[1:], kind, name))
    marked = sum(int((invalid & (labels != 255)).sum()) for labels, invalid, _ in cases)
    assert scores.invalid_share == marked / sum(int((labels != 255).sum()) for labels, *_ in cases)


def test_the_first_threshold_of_the_probability_is_the_plain_iou():
    """No pixel is called invalid there, even where all classes have the probability 1/K."""
    labels, invalid, prediction = random_case(2)
    prediction.probability["fused"].fill_(1 / 4)
    evaluation = evaluation_from_counts(evaluated([(labels, invalid, prediction)], "probability", ["1.png"]))
    curve = evaluation.uncertainty.overall["fused"].mean_uiou
    assert curve[0] == pytest.approx(evaluation.overall["fused"].mean_iou)
    np.testing.assert_allclose(curve[1:], curve[1])  # all are called invalid: TI over the class's pixels
    shares = [invalid[labels == k].mean() for k in range(3)]
    assert curve[1] == pytest.approx(np.mean(shares))


def test_six_pixels_by_hand():
    """At 0.75, of a: TP, FI, and FN taken for b; of b: TI, TP, and that FP. The ignored pixel does not count."""
    labels = np.array([[0, 0, 0, 1, 1, 255]], np.int16)
    invalid = np.array([[0, 0, 1, 1, 0, 1]], bool)
    predicted = np.array([[0, 0, 1, 0, 1, 1]], np.uint8)
    levels = np.rint(np.array([[0.9, 0.6, 0.8, 0.5, 0.75, 0.1]]) * (LEVELS - 1)).astype(np.int32)
    counts = UncertaintyCounter(2, 255).count(labels, invalid, predicted, levels)
    assert counts.sum() == 5 + 2  # labelled pixels, and wrong ones again by the predicted class
    curve = uncertainty_curve(counts)
    a, b = 1 / 3, 2 / 3  # a: TP 1, FI 1, FN 1; b: TP 1, TI 1, FP 1
    assert curve.mean_uiou[50] == pytest.approx((a + b) / 2)
    assert curve.mean_uiou[0] == pytest.approx((2 / 4 + 1 / 3) / 2)  # plain IoU
    assert curve.mean_uiou[100] == pytest.approx((1 / 3 + 1 / 2) / 2)  # all called invalid: TI only


def test_shares_of_the_images_sum_to_the_whole():
    cases = [random_case(seed, (5, 7)) for seed in range(4)]
    names = ["fog/1", "rain/2", "3", "fog/4"]
    whole = evaluated(cases, "product", names)
    one, other = evaluated(cases[::2], "product", names[::2]), evaluated(cases[1::2], "product", names[1::2])
    one.merge(other.counts)
    assert torch.equal(one.counts["uncertainty"], whole.counts["uncertainty"])
    assert evaluated(cases[:1], "none", ["1"]).counts.keys() == {"confusion"}


def test_results_and_table_say_what_has_no_confidence_and_what_is_not_there():
    evaluation = evaluation_from_counts(evaluated([random_case(3)], "seed", ["x/fog/1.png"]))
    content = evaluation_as_dict(evaluation, FOUR)["uncertainty"]
    assert content["confidence"] == "seed"
    assert content["overall"].keys() == {"fused"}
    assert content["by_condition"].keys() == {"fog"}
    assert len(content["thresholds"]) == len(content["overall"]["fused"]["mean_uiou"]) == 101
    assert content["overall"]["fused"]["by_class"]["d"] is None
    average = 100 * content["overall"]["fused"]["average"]
    table = format_table(evaluation.overall, evaluation.by_condition, uncertainty=evaluation.uncertainty)
    row = next(line for line in table.splitlines() if line.startswith("AUIoU, fog"))
    assert row.split()[2:] == ["–", "–", f"{average:.2f}"]


def test_images_without_a_labelled_pixel_have_no_score():
    labels, invalid, prediction = random_case(4)
    evaluation = evaluation_from_counts(evaluated([(np.full_like(labels, 255), invalid, prediction)], "seed", ["1"]))
    assert np.isnan(evaluation.uncertainty.overall["fused"].average)
    assert evaluation_as_dict(evaluation, FOUR)["uncertainty"]["invalid_share"] is None


def test_the_seeds_confidence_needs_a_seed():
    assert scored_names("none", ("fused",)) == ()
    assert scored_names("probability", ("fused",)) == ("fused",)
    with pytest.raises(UserError, match=r"TEST\.UNCERTAINTY is product\b.*\bprobability\b"):
        scored_names("product", ("fused",))
