"""The script docs/seed_reach.py against a search of every pixel."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ovenet.evaluation.metrics import scores_from_counts
from ovenet.sweep.results import read_result
from ovenet.sweep.statistics import VariantScores, compare

LIMITS = (0.2, 0.5)
REACHES = ((1, 0), (3, 2))  # pixels to the side and up, of 13 x 9 pixels


@pytest.fixture(scope="module")
def script():
    path = Path(__file__).parents[1] / "docs/seed_reach.py"
    spec = importlib.util.spec_from_file_location("seed_reach", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def drawn(seed):
    """Labels of three classes with a row of ignored ones, and a prediction that is mostly wrong."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, (9, 13))
    labels[2] = 255
    return labels, np.where(rng.random(labels.shape) < 0.2, labels, (labels + 1) % 3)


def has_right_pixel(labels, predicted, y, x, reach):
    side, up = reach
    around = np.s_[max(y - up, 0) : y + up + 1, max(x - side, 0) : x + side + 1]
    return ((labels[around] == labels[y, x]) & (predicted[around] == labels[y, x])).any()


def test_wrong_pixels_within_reach_of_right_ones(script):
    labels, predicted = drawn(0)
    expected = np.zeros((3, 4), dtype=int)
    for y, x in np.ndindex(*labels.shape):
        k = labels[y, x]
        if k == 255:
            continue
        expected[k, 0] += 1
        if predicted[y, x] == k:
            continue
        expected[k, 1] += 1
        for column, reach in enumerate(REACHES):
            expected[k, 2 + column] += has_right_pixel(labels, predicted, y, x, reach)
    found = script.wrong_and_within_reach(labels, predicted, 3, script.reachable(labels, predicted, 3, LIMITS))
    np.testing.assert_array_equal(found, expected)
    assert 0 < found[:, 2].sum() < found[:, 3].sum() < found[:, 1].sum()


def test_the_oracle_takes_the_best_pixel_within_reach(script):
    """IoU of two images from sets of pixels: a pixel gets its label if any pixel within reach has it rightly."""
    pictures = [drawn(0), drawn(1)]
    tables, right, either = [], np.zeros(3), np.zeros(3)
    for labels, predicted in pictures:
        oracle = predicted.copy()
        for y, x in np.ndindex(*labels.shape):
            if labels[y, x] != 255 and has_right_pixel(labels, predicted, y, x, REACHES[1]):
                oracle[y, x] = labels[y, x]
        valid = labels != 255
        for k in range(3):
            right[k] += (valid & (oracle == k) & (labels == k)).sum()
            either[k] += (valid & ((oracle == k) | (labels == k))).sum()
        mask = script.reachable(labels, predicted, 3, LIMITS)[1]
        tables.append(script.confusion(np.where(mask, labels, predicted), labels, 3))
    scores = scores_from_counts(torch.from_numpy(sum(tables)), "abc")
    np.testing.assert_allclose(scores.iou, right / either)


def test_the_figures_are_those_of_a_run_of_a_sweep(script, tmp_path):
    names, tables = ("a", "b", "c"), {"initial": [], "oracle, τ = 0.5": []}
    for seed in range(3):
        labels, predicted = drawn(seed)
        mask = script.reachable(labels, predicted, 3, LIMITS)[1]
        for by_image, values in zip(tables.values(), (predicted, np.where(mask, labels, predicted)), strict=True):
            by_image.append(script.confusion(values, labels, 3))
    scores = {name: scores_from_counts(torch.from_numpy(sum(one)), names) for name, one in tables.items()}
    assert f"{100 * (scores['oracle, τ = 0.5'].mean_iou - scores['initial'].mean_iou):+.2f}" in script.score_table(
        scores
    )
    content = {"run": "oracle seed", "seed": 0, "parameters": 5, "images": ["1", "2", "3"]}
    path = tmp_path / "oracle.json"
    path.write_text(json.dumps(content | script.as_result(tables, scores)))
    result = read_result(path)
    gain = compare(VariantScores((result,), "oracle, τ = 0.5"), VariantScores((result,), "initial"), num_resamples=100)
    assert gain.mean == pytest.approx(scores["oracle, τ = 0.5"].mean_iou - scores["initial"].mean_iou)
    np.testing.assert_array_equal(result.labelled, np.stack([table.sum(axis=1) for table in tables["initial"]]))
