"""Which evaluation a folder stands for, and what it is called."""

import re

import pytest

from ovenet.report.runs import distinct_names, find_evaluation


def test_a_run_stands_for_its_newest_test(evaluation):
    assert find_evaluation(evaluation.parents[1]) == evaluation
    with pytest.raises(ValueError, match=rf"{re.escape(str(evaluation.parent))}: .*results\.json.*tools/test\.py"):
        find_evaluation(evaluation.parent)


def test_names_tell_runs_apart(tmp_path):
    names = distinct_names([tmp_path / "a/test/x", tmp_path / "b/test/x"])
    assert names == ["a", "b"]
    assert distinct_names([tmp_path / "a/test/x", tmp_path / "a/test/y"]) == ["a/x", "a/y"]
    assert distinct_names([tmp_path / "a/test/x", tmp_path / "a/test/x"]) == ["a/x (1)", "a/x (2)"]
