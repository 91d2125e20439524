"""What a process does with runs that are not its own to make; tests/tools/test_sweep.py makes some."""

import threading
from types import SimpleNamespace

import pytest

from ovenet.sweep import execution
from ovenet.sweep.claims import FAILED, Claims
from ovenet.sweep.definition import Sweep, SweepRun, training_folder, weights_path
from ovenet.sweep.execution import run_missing
from tests.conftest import tiny_settings


@pytest.fixture
def runs(write_config):
    """A run, and one that starts from its weights."""
    path = write_config(tiny_settings(), "tiny.yaml")
    base = SweepRun("base", 0, path, (), {}, "0" * 64)
    return base, SweepRun("on", 0, path, (), {}, "1" * 64, start=base)


@pytest.fixture
def sweep(runs, tmp_path):
    return Sweep("study", runs, "base", (), "best", tmp_path / "out")


@pytest.fixture
def claims(sweep, tmp_path):
    """A function that gives a process's claims."""

    def make():
        claims = Claims(tmp_path / "results", sweep, 5.0, 3, lambda run: execution.last_line(run, sweep))
        claims.enter(joins=True)
        return claims

    return make


def test_a_worker_that_does_not_wait_leaves_the_runs_of_others(runs, sweep, claims, tmp_path):
    with claims().take(runs[0]):
        assert run_missing(sweep, runs, tmp_path / "results", jobs=2, claims=claims(), waits=False) == []
    assert not (tmp_path / "out").exists()


def test_a_place_waits_for_the_runs_of_its_own_process(runs, sweep, claims, tmp_path):
    board = execution._Board(sweep, runs, tmp_path / "results", claims())
    assert board.take().run == runs[0]
    place = threading.Thread(target=execution._serve, args=(board, SimpleNamespace(close=lambda: None), False))
    place.start()
    place.join(0.3)
    assert place.is_alive()
    board.active.clear()
    place.join(10)
    assert not place.is_alive()


def test_waiting_for_others_is_told_once(runs, sweep, claims, tmp_path, caplog):
    caplog.set_level("INFO", "ovenet")
    others, board = (execution._Board(sweep, runs, tmp_path / "results", claims()) for _ in range(2))
    assert others.take().run == runs[0]
    assert others.take() is None
    others.tell_of_others()  # the second run waits for the first, which is its own
    assert "waiting" not in caplog.text
    assert board.take() is None
    board.tell_of_others()
    board.tell_of_others()
    assert caplog.text.count("waiting for 1 run(s)") == 1


def test_what_starts_from_a_run_that_is_given_up_is_given_up(runs, sweep, claims, tmp_path):
    for _ in range(3):
        claims().take(runs[0]).note(FAILED, "no such list")
    failures = run_missing(sweep, runs, tmp_path / "results", jobs=1, claims=claims())
    assert failures == ["base, seed 0: no such list", "on, seed 0: it starts from base, seed 0, which has failed"]


def test_who_takes_a_run_over_has_its_folder_to_itself(runs, sweep, claims, tmp_path):
    """What the last owner still writes goes where nobody reads, and its lock is not in the way."""
    base, board = runs[0], execution._Board(sweep, runs, tmp_path / "results", claims())
    for number in (1, 2, 3):
        claim = board.claims._create(base, number, "running", 0, moves=number > 1)
        attempt = execution._Execution(board, claim, worker=None)
        if claim.content["moves"]:
            attempt._move_folder()
        folder = training_folder(base, sweep)
        assert (folder.parents[1].suffix == f".{number}") == (number > 1)
        folder.mkdir(parents=True, exist_ok=True)
        assert not (folder / ".lock").exists()
        assert not (folder / ".checkpoint.pth.tmp").exists()
        (folder / ".lock").touch()
        (folder / ".checkpoint.pth.tmp").touch()
        (folder / f"of_{number}").touch()
        (tmp_path / f"out/sweeps/study/{base.file_name}/camvid/tiny").mkdir(parents=True, exist_ok=True)  # by the first
    assert sorted(path.name for path in folder.glob("of_*")) == ["of_1", "of_2", "of_3"]
    assert weights_path(base, sweep).parent == folder
