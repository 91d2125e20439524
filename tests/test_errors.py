"""Messages of errors."""

import pytest

from ovenet.errors import one_line


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (RuntimeError("first\n  second\tthird"), "first second third"),
        (RuntimeError("x" * 300), "x" * 200),
        (EOFError(), "EOFError"),
        (MemoryError(" \n"), "MemoryError"),
    ],
)
def test_an_error_is_one_line_of_text(error, text):
    assert one_line(error) == text
