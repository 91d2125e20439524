"""How many seeds a difference between runs takes, from the spread over the seeds that there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ovenet.evaluation.curves import Curve, is_percent
from ovenet.evaluation.sample_size import LEVEL, MAX_RUNS, POWER, runs_needed, smallest_difference, spread_interval

_FEW_SEEDS = 3


@dataclass(frozen=True)
class SeedSpread:
    """The spread over seeds of the last values of two groups of runs.

    Attributes:
        title: of the two groups.
        num_seeds: number of seeds of each side; the number of pairs, twice, if the runs are paired.
        paired: whether both groups have the same seeds, so that the spread is that of the differences.
        spread: standard deviation; NaN if no group has two seeds.
        freedom: its degrees of freedom.
    """

    title: str
    num_seeds: tuple[int, int]
    paired: bool
    spread: float
    freedom: int

    @property
    def is_known(self) -> bool:
        """Whether the spread is that of at least two different values."""
        return bool(np.isfinite(self.spread) and self.spread > 0)

    @property
    def smallest_difference(self) -> float:
        """The difference that these seeds tell from chance."""
        one, other = self.num_seeds
        if self.paired:
            return smallest_difference(self.spread / one**0.5, one - 1)
        return smallest_difference(self.spread * (1 / one + 1 / other) ** 0.5, one + other - 2)


def seed_spreads(groups: Mapping[str, Sequence[Curve]]) -> list[SeedSpread]:
    """The first group beside each other one, or beside another of as many seeds if there is no other.

    Args:
        groups: runs that differ only in the seed, by name; of runs of one seed the first counts.
    """
    by_name = {name: _by_seed(curves) for name, curves in groups.items()}
    (first, values), *others = by_name.items()
    if not others:
        pooled = _pooled([list(values.values())])
        return [SeedSpread(f"{first} and one more", (len(values), len(values)), False, *pooled)]
    return [_of_two(f"{name} and {first}", values, own) for name, own in others]


def _by_seed(curves: Sequence[Curve]) -> dict[int, float]:
    """The last value of each seed; a run without one counts as a seed of its own."""
    last: dict[int, float] = {}
    for place, curve in enumerate(curves):
        last.setdefault(-1 - place if curve.seed is None else curve.seed, float(curve.values[-1]))
    return last


def _of_two(title: str, one: Mapping[int, float], other: Mapping[int, float]) -> SeedSpread:
    common = [seed for seed in one if seed in other and seed >= 0]
    if len(common) > 1:
        spread = float(np.std([one[seed] - other[seed] for seed in common], ddof=1))
        return SeedSpread(title, (len(common), len(common)), True, spread, len(common) - 1)
    pooled = _pooled([list(values.values()) for values in (one, other)])
    return SeedSpread(title, (len(one), len(other)), False, *pooled)


def _pooled(groups: Sequence[Sequence[float]]) -> tuple[float, int]:
    """The standard deviation that all groups share, and its degrees of freedom; NaN of single values."""
    freedom = sum(len(values) - 1 for values in groups)
    squares = sum(float(np.var(values)) * len(values) for values in groups)
    return (squares / freedom) ** 0.5 if freedom else float("nan"), freedom


def format_seeds_needed(groups: Mapping[str, Sequence[Curve]], metric: str, difference: float) -> str:
    """A line for each comparison: the spread, the seeds that a difference takes, and the difference that shows now.

    Args:
        groups: see `seed_spreads`.
        metric: what the curves show.
        difference: between two means, in the unit of the curves; above 0.
    """
    digits = 2 if is_percent(metric) else 4
    spreads = seed_spreads(groups)
    if not any(one.is_known for one in spreads):
        return (
            f"seeds to tell a difference of {difference:g} from chance: not known, since no two of these runs differ "
            "by SEED alone, or their last values are equal"
        )
    title = (
        f"seeds per side to tell a difference of {difference:g} from chance (t test of the last values, two-sided "
        f"{100 * (1 - LEVEL):.0f} %, power {100 * POWER:.0f} %)"
    )
    rows = [("", "test", "spread (interval)", "seeds (interval)", "tells now")]
    rows += [(one.title, *_cells(one, difference, digits)) for one in spreads]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [title]
    lines += ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if any(one.is_known and one.freedom < _FEW_SEEDS for one in spreads):
        lines.append(
            "rough: so few seeds say little about their spread; to be sure, take the upper end of the interval"
        )
    if len({curve.iterations[-1] for curves in groups.values() for curve in curves}) > 1:
        lines.append("these runs end at different iterations: their last values are not of the same training")
    repeated = [name for name, curves in groups.items() if len(_by_seed(curves)) < len(curves)]
    if repeated:
        lines.append(f"of several runs of one seed the first counts: {', '.join(repeated)}")
    return "\n".join(lines)


def _cells(one: SeedSpread, difference: float, digits: int) -> tuple[str, str, str, str]:
    seeds = f"{one.num_seeds[0]} pairs" if one.paired else "{} and {}".format(*one.num_seeds)
    test = f"{'paired' if one.paired else 'two-sample'}, {seeds}"
    if not one.is_known:
        return test, "not known", "", ""
    low, high = spread_interval(one.spread, one.freedom)
    spread = f"{one.spread:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"
    least, number, most = (_needed(value, difference, one.paired) for value in (low, one.spread, high))
    return test, spread, f"{number} ({least} to {most})", f"{one.smallest_difference:.{digits}f}"


def _needed(spread: float, difference: float, paired: bool) -> str:
    number = runs_needed(spread, difference, paired=paired)
    return f"over {MAX_RUNS}" if number is None else str(number)
