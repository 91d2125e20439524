"""How many seeds a difference takes: which spread counts, and what is said of it."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import yaml

from ovenet.evaluation.curves import Curve
from ovenet.evaluation.sample_size import runs_needed, smallest_difference, spread_interval
from ovenet.evaluation.seeds_needed import format_seeds_needed, seed_spreads


def group(*last, seeds=None):
    seeds = range(len(last)) if seeds is None else seeds
    return [Curve(f"r{s}", np.array([1, 2]), np.array([0.0, v]), "", s) for s, v in zip(seeds, last, strict=True)]


def test_runs_of_the_same_seeds_are_paired():
    """Differences 1, 2 and 3: their standard deviation is 1, whatever that of the runs."""
    (one,) = seed_spreads({"a": group(60.0, 70.0, 80.0), "b": group(61.0, 72.0, 83.0, 5.0)})
    assert (one.title, one.paired, one.num_seeds, one.freedom) == ("b and a", True, (3, 3), 2)
    assert one.spread == pytest.approx(1)
    assert one.smallest_difference == pytest.approx(smallest_difference(3**-0.5, 2))


def test_runs_of_other_seeds_share_one_spread():
    """Squares 2 of 1, 3 (one degree of freedom) and 14 of 1, 3, 8 less the mean 4, that is 9 + 1 + 16 = 26 (two)."""
    (one,) = seed_spreads({"a": group(1.0, 3.0), "b": group(1.0, 3.0, 8.0, seeds=[4, 5, 6])})
    assert (one.paired, one.num_seeds, one.freedom) == (False, (2, 3), 3)
    assert one.spread == pytest.approx(((2 + 26) / 3) ** 0.5)
    assert one.smallest_difference == pytest.approx(smallest_difference(one.spread * (1 / 2 + 1 / 3) ** 0.5, 3))
    (alone,) = seed_spreads({"b": group(1.0, 3.0, 8.0)})
    assert (alone.paired, alone.num_seeds, alone.freedom) == (False, (3, 3), 2)
    assert alone.spread == pytest.approx(13**0.5)


def test_the_text_has_the_numbers_and_their_range():
    text = format_seeds_needed({"a": group(60.0, 70.0, 80.0), "b": group(61.0, 72.0, 83.0)}, "val/mean_iou_fused", 0.5)
    low, high = spread_interval(1.0, 2)
    least, needed, most = (runs_needed(s, 0.5, paired=True) or "over 1000" for s in (low, 1.0, high))
    row = text.splitlines()[2]
    assert f"1.00 ({low:.2f} to {high:.2f})" in row
    assert f"{needed} ({least} to {most})" in row
    assert row.endswith(f"{smallest_difference(3**-0.5, 2):.2f}")
    assert text.splitlines()[-1].startswith("rough")
    many = format_seeds_needed({"a": group(*range(60, 70))}, "val/mean_iou_fused", 0.5)
    assert "rough" not in many


def test_one_seed_knows_no_spread():
    assert "not known" in format_seeds_needed({"a": group(60.0), "b": group(61.0)}, "val/loss", 0.1)
    assert "not known" in format_seeds_needed({"a": group(60.0, 60.0)}, "val/loss", 0.1)  # equal runs
    text = format_seeds_needed({"a": group(60.0, 61.0, 62.0, seeds=[0, 0, 1])}, "val/loss", 0.1)
    assert "2 and 2" in text
    assert text.splitlines()[-1].endswith(": a")  # the second run of seed 0 is left out


def test_runs_of_different_lengths_are_told():
    longer = replace(group(61.0)[0], iterations=np.array([1, 3]), seed=1)
    text = format_seeds_needed({"a": [*group(60.0), longer]}, "val/loss", 0.1)
    assert "different iterations" in text.splitlines()[-1]


@pytest.fixture
def compare(tmp_path, capsys, monkeypatch):
    """Runs the command with two seeds of one experiment; returns its code, output and errors."""
    for seed, value in enumerate((0.60, 0.61)):
        run = tmp_path / f"net-seed{seed}"
        run.mkdir()
        (run / "log.jsonl").write_text(f'{{"kind": "val", "iteration": 1, "mean_iou_fused": {value}, "loss": 1}}\n')
        (run / "config.yaml").write_text(yaml.safe_dump({"SEED": seed, "TRAIN": {"LR": 0.1}}))

    def call(*arguments):
        import compare

        runs = [str(tmp_path / f"net-seed{seed}") for seed in (0, 1)]
        monkeypatch.setattr(sys, "argv", ["compare", *runs, *arguments])
        try:
            code = compare.main()
        except SystemExit as error:
            code = error.code
        return code or 0, *capsys.readouterr()

    return call


def test_the_command_tells_it_for_miou_unasked(compare):
    code, out, _ = compare()
    assert code == 0
    needed = runs_needed(0.5**0.5, 0.5, paired=False)  # 60 and 61 %
    assert "difference of 0.5 from chance" in out
    assert "0.71 (" in out
    assert f"  {needed} (" in out
    assert "difference" not in compare("--metric", "val/loss")[1]
    assert "difference of 2 " in compare("--seeds", "--difference", "2")[1]


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "half"])
def test_a_difference_is_a_number_above_zero(compare, value):
    code, _, err = compare("--difference", value)
    assert code == 2
    assert f"argument --difference: {value}: expected a number above 0" in err.splitlines()[-1]
