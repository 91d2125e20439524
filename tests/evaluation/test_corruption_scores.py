"""Means over corruptions, by plain loops."""

import random

import pytest

from ovenet.data.corruption_kinds import COMMON_KINDS
from ovenet.evaluation.corruptions import CorruptionScores, format_corruptions


def drawn(kinds, severities, names=("initial", "seed", "fused")):
    rng = random.Random(0)
    return {kind: {s: {name: rng.uniform(0.1, 0.8) for name in names} for s in severities} for kind in kinds}


def test_the_published_means():
    """mPC and rPC of Michaelis et al.: the mean over severities, then over the 15 kinds, and its ratio to clean."""
    scores = drawn([*COMMON_KINDS, "rain"], range(1, 6))
    content = CorruptionScores({"initial": 0.7, "seed": 0.6, "fused": 0.75}, scores, (1, 2, 3, 4, 5)).as_dict()
    total = 0.0
    for kind in COMMON_KINDS:
        own = 0.0
        for severity in range(1, 6):
            own += scores[kind][severity]["fused"]
        total += own / 5
    assert content["mPC"] == pytest.approx(total / 15)
    assert content["rPC"] == pytest.approx(total / 15 / 0.75)
    assert content["mean"]["mean_iou"]["fused"] != pytest.approx(total / 15)  # of 16 kinds


def test_one_kind_by_hand():
    scores = {"fog": {1: {"initial": 0.5, "fused": 0.6}, 3: {"initial": 0.2, "fused": 0.24}}}
    content = CorruptionScores({"initial": 0.7, "fused": 0.8}, scores, (1, 3)).as_dict()
    fog = content["by_kind"]["fog"]
    assert fog["mean_iou"] == {"initial": pytest.approx(0.35), "fused": pytest.approx(0.42)}
    assert fog["relative"] == pytest.approx(0.525)
    assert fog["degradation"] == pytest.approx(0.475)
    assert fog["gain"] == pytest.approx(0.07)
    assert content["by_group"] == {"weather": content["by_kind"]["fog"]}
    assert content["mPC"] is None
    assert content["rPC"] is None
    table = format_corruptions({**content, "trained_with": ["fog"]}).splitlines()
    assert table[2].split() == ["clean", "–", "–", "80.00", "–", "70.00", "+10.00"]
    assert table[4].split() == ["fog*", "60.00", "24.00", "42.00", "47.50", "35.00", "+7.00"]
    assert table[6].split() == ["mean", "of", "1", "60.00", "24.00", "42.00", "47.50", "35.00", "+7.00"]


def test_a_kind_that_lacks_a_severity_is_in_no_mean():
    scores = {"fog": {1: {"fused": 0.4}, 3: {"fused": 0.2}}, "rain": {1: {"fused": 0.9}}}
    content = CorruptionScores({"fused": 0.5}, scores, (1, 3)).as_dict()
    assert content["by_kind"]["rain"] is None
    assert content["mean"] == content["by_kind"]["fog"]
    assert content["mean"]["gain"] is None  # a baseline
    table = format_corruptions({**content, "trained_with": []})
    assert [line.split() for line in table.splitlines() if line.startswith("rain")] == [
        ["rain", "90.00", "–", "–", "–"]
    ]


def test_nothing_right_on_clean_images():
    content = CorruptionScores({"fused": 0.0}, {"fog": {1: {"fused": 0.0}}}, (1,)).as_dict()
    assert content["by_kind"]["fog"]["relative"] is None
    assert "–" in format_corruptions({**content, "trained_with": []})
