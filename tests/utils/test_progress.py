"""Progress without a terminal: lines."""

import time

import pytest

import ovenet.commands.prepare_data
from ovenet.utils import progress
from ovenet.utils.logging import configure_logging
from ovenet.utils.progress import track


def test_tracking_passes_everything_on(capsys):
    configure_logging()
    assert list(track([3, 1, 2], "list", 3, print_freq=2)) == [3, 1, 2]
    shown = capsys.readouterr().err
    assert "list: 2/3" in shown
    assert "list: 3/3" in shown
    assert list(track([3], "list", 1, print_freq=1, enabled=False)) == [3]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("total", [3, None])
def test_a_line_a_minute_where_there_is_no_terminal(monkeypatch, total):
    monkeypatch.setattr(progress, "SILENCE_S", 0.05)
    lines = []
    for second in track([0.0, 0.1, 0.0], "photos", total, tell=lines.append):
        time.sleep(second)
    (line,) = lines
    assert line.startswith("photos: 2/3, " if total else "photos: 2, ")
    assert ("ETA" in line) == (total is not None)


def test_preparing_data_is_not_silent_for_long(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(progress, "SILENCE_S", 0.0)
    command = ["prepare", "synthetic", "--train", "2", "--val", "1", "--test", "1", "--size", "64", "64", "--root"]
    monkeypatch.setattr("sys.argv", [*command, str(tmp_path)])
    ovenet.commands.prepare_data.main()
    shown = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in shown if line.startswith("scenes")][:2] == ["scenes: 1/4", "scenes: 2/4"]
