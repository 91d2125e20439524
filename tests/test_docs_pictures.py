"""The scripts that draw the pictures of the documentation."""

from pathlib import Path

import pytest

from tests import forking

DOCS = Path(__file__).resolve().parents[1] / "docs"


@pytest.mark.parametrize(
    "command",
    [("plot_gains.py",), ("plot_changes.py", "camvid-lite0"), ("plot_method.py",), ("plot_arena.py", "arena.yaml")],
)
@pytest.mark.ci
def test_a_picture_is_not_replaced_unasked(tmp_path, command):
    script, *arguments = command
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"mine")
    done = forking.run([DOCS / script, *arguments, "--output", picture])
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
    assert str(picture) in done.stderr
    assert picture.read_bytes() == b"mine"
