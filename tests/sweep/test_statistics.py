"""Differences and intervals against slow, plain ones."""

import numpy as np
import pytest

from ovenet.errors import UserError
from ovenet.sweep.results import RunResult
from ovenet.sweep.statistics import Difference, VariantScores, compare, spread, student_quantile

NUM_IMAGES, CLASSES = 40, ("a", "b", "c")


def run(name: str, seed: int, quality: float, images: int = NUM_IMAGES) -> RunResult:
    """A run whose pixels are right with the given probability."""
    rng = np.random.default_rng(1000 * seed + int(100 * quality))
    tables = np.zeros((images, 3, 3), int)
    for table in tables:
        for k in range(3):
            right = rng.binomial(50, quality)
            table[k, k], table[k, (k + 1) % 3] = right, 50 - right
    total = tables.sum(axis=0)
    return RunResult(
        name=name,
        seed=seed,
        class_names=CLASSES,
        images=tuple(f"{i}.png" for i in range(images)),
        labelled=tables.sum(axis=2),
        right={"fused": np.diagonal(tables, axis1=1, axis2=2)},
        predicted={"fused": tables.sum(axis=1)},
        scores={"fused": {"mean_iou": float(np.mean(iou(total))), "iou": dict(zip(CLASSES, iou(total), strict=True))}},
        parameters=1,
        images_per_second=1.0,
    )


def iou(table):
    return [table[k, k] / (table[k].sum() + table[:, k].sum() - table[k, k]) for k in range(3)]


def test_differences_are_paired_by_seed():
    one = VariantScores(tuple(run("one", seed, 0.8) for seed in (0, 1, 3)))
    other = VariantScores(tuple(run("other", seed, 0.7) for seed in (1, 2, 3)))
    difference = compare(one, other, num_resamples=200)
    expected = [
        a.scores["fused"]["mean_iou"] - b.scores["fused"]["mean_iou"]
        for a, b in ((one.runs[1], other.runs[0]), (one.runs[2], other.runs[2]))
    ]
    assert difference.seeds == (1, 3)
    np.testing.assert_allclose(difference.by_seed, expected)
    assert difference.mean == pytest.approx(np.mean(expected))
    assert compare(one, VariantScores((run("other", 9, 0.7),))) is None


def test_the_interval_is_that_of_resampled_images():
    one, other = (VariantScores(tuple(run("r", seed, q) for seed in (0, 1))) for q in (0.8, 0.78))
    low, high = compare(one, other, num_resamples=4000).interval
    rng, means = np.random.default_rng(5), []
    for _ in range(1500):  # image by image, with other draws
        drawn = rng.integers(0, NUM_IMAGES, NUM_IMAGES)
        values = []
        for prediction in (one, other):
            for r in prediction.runs:
                counts = r.right["fused"], r.predicted["fused"], r.labelled
                right, predicted, labelled = (x[drawn].sum(axis=0) for x in counts)
                values.append(np.mean(right / (labelled + predicted - right)))
        means.append(np.mean(values[:2]) - np.mean(values[2:]))
    expected = np.quantile(means, [0.025, 0.975])
    np.testing.assert_allclose((low, high), expected, atol=0.1 * (expected[1] - expected[0]))
    mean = compare(one, other, num_resamples=10).mean
    assert low < mean < high


@pytest.mark.parametrize(("freedom", "expected"), [(1, 12.7062), (2, 4.3027), (4, 2.7764), (10, 2.2281), (120, 1.9799)])
def test_quantiles_of_student_are_those_of_printed_tables(freedom, expected):
    assert student_quantile(freedom) == pytest.approx(expected, abs=6e-5)


def test_the_interval_over_seeds():
    """Three differences of mean 2 and deviation 1: 2 ± 4.3027 / √3, in points."""
    difference = Difference((0, 1, 2), np.array([0.01, 0.03, 0.02]), (0, 0), np.zeros((3, 2)))
    assert difference.interval_over_seeds == pytest.approx((-0.004841, 0.044841), abs=1e-5)
    alone = Difference((0,), np.array([0.01]), (0, 0), np.zeros((1, 2)))
    assert np.isnan(alone.interval_over_seeds).all()


def test_a_prediction_is_as_good_as_itself():
    one = VariantScores((run("one", 0, 0.8),))
    difference = compare(one, one, num_resamples=50)
    assert (difference.mean, difference.interval) == (0, (0, 0))
    assert not difference.class_iou.any()


def test_other_images_are_refused():
    with pytest.raises(UserError, match=r"b and a .*different images"):
        compare(VariantScores((run("a", 0, 0.8),)), VariantScores((run("b", 0, 0.8, images=3),)))


def test_spread():
    assert spread(np.array([1.0, 3.0])) == pytest.approx(2**0.5)
    assert np.isnan(spread(np.array([1.0])))
