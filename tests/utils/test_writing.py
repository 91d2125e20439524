"""Files are written whole or not at all."""

import pytest

from ovenet.utils.writing import write_file, write_text


def test_a_name_as_long_as_names_may_be(tmp_path):
    path = tmp_path / ("x" * 251 + ".png")
    write_text(path, "content")
    assert path.read_text() == "content"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyError("a bug")])
def test_what_fails_leaves_what_was_there(tmp_path, error):
    path = tmp_path / "a.png"
    path.write_text("before")

    def write(unfinished):
        assert unfinished.suffix == ".png"
        unfinished.write_text("half")
        raise error

    with pytest.raises(type(error), match=r"write .*a\.png: No space left" if error.args[0] == 28 else "a bug"):
        write_file(path, write)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]
