"""Powers and sample sizes against published ones, and scipy where it is installed."""

import pytest

from ovenet.evaluation.sample_size import power_of_test, runs_needed, smallest_difference, spread_interval


@pytest.mark.parametrize(
    ("effect", "two_samples", "pairs"), [(0.2, 394, 199), (0.5, 64, 34), (0.8, 26, 15), (1.0, 17, 10)]
)
def test_sample_sizes_are_those_of_another_program(effect, two_samples, pairs):
    """R's power.t.test says 393.41, 63.77, 25.52 and 16.71; of pairs 198.15, 33.37, 14.30 and 9.94."""
    assert runs_needed(1.0, effect, paired=False) == two_samples
    assert runs_needed(2.0, 2 * effect, paired=True) == pairs


def test_limits():
    assert runs_needed(1e-6, 1.0, paired=False) == 2
    assert runs_needed(1.0, 0.05, paired=True) is None  # 3142 pairs


def test_the_smallest_difference_has_the_wanted_power():
    """17 on each side tell a difference of one standard deviation; 16 do not."""
    assert 0.98 < smallest_difference((2 / 17) ** 0.5, 32) <= 1 < smallest_difference((2 / 16) ** 0.5, 30)
    assert power_of_test(smallest_difference(3.0, 2) / 3.0, 2) == pytest.approx(0.8)


@pytest.mark.parametrize(("freedom", "low", "high"), [(1, 0.4461, 31.9102), (2, 0.5207, 6.2847), (9, 0.6878, 1.8256)])
def test_the_interval_of_a_spread_is_that_of_printed_tables(freedom, low, high):
    """Roots of freedom over chi-square quantiles: 5.0239 and 0.000982, 7.3778 and 0.0506, 19.0228 and 2.7004."""
    assert spread_interval(2.0, freedom) == pytest.approx((2 * low, 2 * high), rel=2e-4)


@pytest.mark.parametrize("freedom", [1, 2, 5, 60])
def test_powers_are_those_of_scipy(freedom):
    stats = pytest.importorskip("scipy.stats")
    limit = stats.t.ppf(0.975, freedom)
    for shift in (0.0, 0.5, 2.0, 5.0):
        expected = stats.nct.sf(limit, freedom, shift) + stats.nct.cdf(-limit, freedom, shift)
        assert power_of_test(shift, freedom) == pytest.approx(expected, abs=1e-5)
