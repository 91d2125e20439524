"""Values as the types of signatures and settings."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pytest

from ovenet.conversion import convert, described


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (3, int, 3),
        (3, float, 3.0),
        (True, bool, True),
        ("a", str, "a"),
        (None, int | None, None),
        (3, float | None, 3.0),
        ("x", int | Literal["x"], "x"),
        ([1, 2], tuple[int, int], (1, 2)),
        ([1, 2.5], tuple[float, ...], (1.0, 2.5)),
        ((1, 2), Sequence[int], (1, 2)),
        ([], tuple[int, ...], ()),
        ([[1], []], Sequence[Sequence[int]], ((1,), ())),
        ([{"NAME": "x"}], tuple[dict[str, Any], ...], ({"NAME": "x"},)),
        ({"a": 1}, Mapping[str, Any], {"a": 1}),
        ("anything", Any, "anything"),
    ],
)
def test_values_that_fit(value, hint, expected):
    converted = convert(value, hint)
    assert converted == expected
    assert type(converted) is type(expected)


@pytest.mark.parametrize(
    ("value", "hint", "words"),
    [
        (10**400, float, "a number"),  # larger than any float
        (1.0, int, "an integer"),
        (True, int, "an integer"),
        (False, float, "a number"),
        (math.nan, float, "a number"),
        ("1", float, "a number"),
        (1, bool, "True or False"),
        (1, str, "a string"),
        (None, str, "a string"),
        ("x", int | None, "an integer or nothing"),
        (2, Literal[1, 3], "one of 1, 3"),
        ([1], tuple[int, int], "a list of integers"),
        ([1, "x"], tuple[float, ...], "a list of numbers"),
        ("ab", Sequence[str], "a list of strings"),
        ([1], Sequence[Sequence[int]], "a list of lists of integers"),
        ([1], tuple[dict[str, Any], ...], "a list of tables, {NAME: …}"),
        (1, Mapping[str, Any], "a table of settings"),
    ],
)
def test_values_that_do_not_fit(value, hint, words):
    with pytest.raises(TypeError):
        convert(value, hint)
    assert described(hint) == words
