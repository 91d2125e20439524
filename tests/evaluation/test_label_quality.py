"""Likely label errors, against the papers' formulas as loops over pixels."""

import itertools
import json
import math

import numpy as np
import pytest
import torch

from ovenet.data.info import DatasetInfo
from ovenet.evaluation.evaluator import SegEvaluator
from ovenet.evaluation.label_quality import LabelProbabilities, finish_records
from ovenet.evaluation.writers import image_record
from ovenet.inference.inferencer import ClassBand, Prediction
from ovenet.structures import Sample

K = 4
INFO = DatasetInfo("four", ("a", "b", "c", "d"), ((0, 0, 0), (9, 0, 0), (0, 9, 0), (0, 0, 9)), (0, 1, 2, 3))
NAMES = ("initial", "seed", "fused")
CPU = torch.device("cpu")


def random_case(seed, size=(13, 19)):
    """Labels without the last class, probabilities in steps of 1/32 (exact in floats), and seeds one pixel beside."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, K - 1, size).astype(np.int16)
    labels[rng.random(size) < 0.1] = 255
    shares = rng.multinomial(32, rng.dirichlet(np.ones(K)), size).astype(np.float32) / 32
    probabilities = torch.from_numpy(shares).permute(0, 2, 1).contiguous()  # (H, K, W)
    fused = probabilities.argmax(dim=1).byte()
    other = torch.from_numpy(rng.integers(0, K, size).astype(np.uint8))
    offset = torch.zeros(2, *size)
    offset[0] = 2 / (size[1] - 1)  # one pixel to the right
    confidence = torch.from_numpy(rng.integers(0, 33, (1, *size)).astype(np.float32) / 32)
    return labels, probabilities, Prediction({"initial": other, "seed": other, "fused": fused}, offset, confidence)


def record_of(index, case, bands=(5, 4, 4)):
    """The record that an evaluator makes, from probabilities in bands out of order."""
    labels, probabilities, prediction = case
    of_labels = LabelProbabilities(labels, K, CPU)
    starts = np.cumsum((0, *bands))
    for first, last in list(itertools.pairwise(starts))[::-1]:
        band = probabilities[first:last]
        maps = (band, band.argmax(dim=1), band.amax(dim=1))
        of_labels.add(ClassBand(range(first, last), *(dict.fromkeys(NAMES, of) for of in maps)))
    evaluator = SegEvaluator(INFO, NAMES, ignore_label=255, detailed=True, device=CPU)
    counts = evaluator.add(labels, prediction, "x.png", of_labels=of_labels)
    sample = Sample(np.zeros((*labels.shape, 3), np.uint8), labels, f"{index}.png")
    return json.loads(json.dumps(image_record(index, sample, counts, NAMES)))


def pixels_of(case):
    """(label, predicted class, its probability, the label's, label at the seed, confidence) of the labelled pixels."""
    labels, probabilities, prediction = case
    height, width = labels.shape
    for y in range(height):
        for x in range(width):
            if labels[y, x] != 255:
                own, guess = int(labels[y, x]), int(prediction.labels["fused"][y, x])
                p = [float(v) for v in probabilities[y, :, x]]
                at_seed = int(labels[y, min(width - 1, x + 1)])
                yield own, guess, p[guess], p[own], at_seed, float(prediction.confidence[0, y, x])


def test_it_is_what_the_formulas_say():
    cases = [random_case(seed) for seed in range(3)]
    records = [record_of(index, case) for index, case in enumerate(cases)]
    thresholds = finish_records(records, K)

    everything = [pixel for case in cases for pixel in pixels_of(case)]
    by_class = []
    for k in range(K):
        own = [p for label, _, _, p, _, _ in everything if label == k]
        by_class.append(math.ceil(100 * sum(own) / len(own)) if own else None)
    stay = [math.floor(100 * f) for label, *_, at_seed, f in everything if at_seed == label]
    assert thresholds.by_class == tuple(by_class)
    assert thresholds.by_class[3] is None  # not in any label
    assert thresholds.seed == math.ceil(sum(stay) / len(stay))

    for case, record in zip(cases, records, strict=True):
        pixels, quality = list(pixels_of(case)), record["label_quality"]
        weights = [math.exp((1 - p) / 0.1) for _, _, _, p, _, _ in pixels]
        score = sum(p * w for (_, _, _, p, _, _), w in zip(pixels, weights, strict=True)) / sum(weights)
        assert quality["score"] == pytest.approx(score, abs=1e-4)
        sure = [
            (label, guess)
            for label, guess, p, *_ in pixels
            if guess != label and by_class[guess] is not None and math.floor(100 * p) >= by_class[guess]
        ]
        assert quality["disagree"] == len(sure) > 0
        assert [n for *_, n in quality["pairs"]] == sorted(map(sure.count, set(sure)), reverse=True)[:5]
        assert all(sure.count((a, b)) == n for a, b, n in quality["pairs"])
        leave = [f for label, *_, at_seed, f in pixels if at_seed not in (label, 255)]
        assert quality["seeds"] == sum(math.floor(100 * f) >= thresholds.seed for f in leave)


def test_a_label_that_was_moved_is_the_worst():
    size = (20, 40)
    truth = np.zeros(size, np.int16)
    truth[:, 20:] = 1
    probabilities = torch.full((size[0], K, size[1]), 0.02)
    probabilities[:, 0, :20] = probabilities[:, 1, 20:] = 0.94
    guess = probabilities.argmax(dim=1).byte()
    prediction = Prediction(dict.fromkeys(NAMES, guess), torch.zeros(2, *size), torch.ones(1, *size))
    moved = np.roll(truth, 6, axis=1)
    records = [record_of(i, (labels, probabilities, prediction), (10, 10)) for i, labels in enumerate((truth, moved))]
    finish_records(records, K)
    first, second = (record["label_quality"] for record in records)
    assert first["disagree"] == 0
    # 0 where 1 was moved to: 20 rows of 6 columns; 1 to 0 in the 6 columns that came round
    assert second["pairs"] == [[0, 1, 120], [1, 0, 120]]
    assert second["score"] < first["score"]


def test_records_of_earlier_versions_stay_as_they_are():
    records = [{"index": 0, "name": "a.png"}, record_of(1, random_case(1))]
    assert finish_records(records, K) is not None
    assert "label_quality" not in records[0]
    assert finish_records([{"index": 0, "name": "a.png"}], K) is None


def test_an_image_without_a_labelled_pixel_has_no_quality():
    labels, probabilities, prediction = random_case(0)
    record = record_of(0, (np.full_like(labels, 255), probabilities, prediction))
    assert "label_quality" not in record
