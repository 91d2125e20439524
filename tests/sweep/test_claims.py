"""Claims on runs: of any number of processes one makes a run, whatever happens to them, to clocks and to the folder."""

import errno
import json
import os
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from ovenet.errors import UserError
from ovenet.sweep import claims as claims_module
from ovenet.sweep.claims import FAILED, FINISHED, RUNNING, STOPPED, Claims, GivenUpError
from ovenet.sweep.definition import Sweep, SweepRun
from ovenet.utils.logging import get_logger
from ovenet.utils.writing import create_file, patiently
from tests import forking

LEASE_S = 0.5


@pytest.fixture(autouse=True)
def _lines_of_the_log_are_seen(monkeypatch):
    monkeypatch.setattr(get_logger(), "propagate", True)


def make_run(number=0, name="a"):
    return SweepRun(name, 0, Path("a.yaml"), (), {}, f"{number:08x}" * 8)


def make_sweep(*runs, name="study"):
    return Sweep(name, runs or (make_run(),), "a", (), "best", Path())


def make_claims(folder, sweep=None, *, lease_s=LEASE_S, attempts=3, last_line="epoch 1/2"):
    """A process's claims; the folder has been tried."""
    claims = Claims(folder, sweep or make_sweep(), lease_s, attempts, lambda run: last_line)
    claims.enter(joins=True)
    return claims


def take_within(claims, run, seconds):
    """Looks again and again, as a worker does, for so long."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        claim = claims.take(run)
        if claim is not None:
            return claim
        time.sleep(claims.poll_s)
    return None


def content(folder, number=1):
    return json.loads((folder / f"claims/{make_run().short_key}.{number}.json").read_text())


def test_of_many_that_begin_at_once_each_run_is_ones(tmp_path):
    runs = [make_run(number) for number in range(25)]
    barrier, taken = threading.Barrier(8), []

    def work():
        claims = make_claims(tmp_path, make_sweep(*runs))
        barrier.wait()
        taken.extend(claim for run in runs if (claim := claims.take(run)) is not None)

    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(work) for _ in range(8)]:
            future.result()
    assert sorted(claim.run.key for claim in taken) == [run.key for run in runs]
    assert {claim.number for claim in taken} == {1}
    assert not list(tmp_path.rglob("*.unfinished*"))


def test_a_run_of_two_sweeps_is_made_once(tmp_path):
    one, two = make_claims(tmp_path), make_claims(tmp_path, make_sweep(make_run(name="b"), name="other"))
    assert one.take(make_run()) is not None
    assert two.take(make_run(name="b")) is None


def test_clocks_that_jump_do_nothing(tmp_path, monkeypatch):
    """Neither this machine's nor that of the files' server, which says when a file was touched."""
    owner, observer = make_claims(tmp_path), make_claims(tmp_path)
    monkeypatch.setattr(time, "time", lambda: 1e9 * (time.perf_counter_ns() % 7))
    touch = os.utime
    monkeypatch.setattr(os, "utime", lambda path: touch(path, ns=(0, time.perf_counter_ns() % 10**15 * 1000)))
    with owner.take(make_run()) as claim:
        assert take_within(observer, make_run(), 3 * LEASE_S) is None
    assert take_within(observer, make_run(), 3 * LEASE_S).content["moves"]
    assert claim.is_lost()


def test_an_owner_that_has_stalled_loses_and_writes_nothing(tmp_path):
    """A process of its own, which is stopped past its lease and goes on."""
    (tmp_path / "owner.py").write_text(
        "import sys; from pathlib import Path; from tests.sweep.test_claims import *\n"
        "with make_claims(Path(sys.argv[1])).take(make_run()) as claim:\n"
        "    print('claimed', flush=True)\n"
        "    claim.lost.wait(60)\n"
        "    claim.note(FINISHED)\n"
        "    print('lost' if claim.lost.is_set() else 'not lost', flush=True)\n"
    )
    owner = forking.Forked([tmp_path / "owner.py", tmp_path], env={**os.environ, "PYTHONPATH": str(forking.ROOT)})
    observer = make_claims(tmp_path)
    assert owner.stdout.readline() == "claimed\n"
    assert take_within(observer, make_run(), 2 * LEASE_S) is None
    owner.send_signal(signal.SIGSTOP)
    try:
        claim = take_within(observer, make_run(), 5 * LEASE_S)
        assert (claim.number, claim.content["moves"]) == (2, True)
    finally:
        owner.send_signal(signal.SIGCONT)
    with claim:
        out, err = owner.communicate(timeout=30)
    assert (owner.returncode, out) == (0, "lost\n"), err
    assert content(tmp_path)["state"] == RUNNING  # not what it wanted to write
    claim.note(FINISHED)
    assert content(tmp_path, 2)["state"] == FINISHED


def test_a_sweep_that_is_killed_again_and_again_is_not_given_up(tmp_path):
    """Each is started anew, as by somebody who wants the run."""
    for number in range(1, 6):
        claims = make_claims(tmp_path, lease_s=0.1)
        claims.forgive(make_run())
        claim = take_within(claims, make_run(), 2)  # it is not entered: the process is dead
        assert (claim.number, claim.content["failures"]) == (number, 0)
    workers = [make_claims(tmp_path, lease_s=0.1, attempts=2) for _ in range(2)]  # who forgive nothing
    assert take_within(workers[0], make_run(), 2).content["failures"] == 1
    with pytest.raises(GivenUpError):
        take_within(workers[1], make_run(), 2)


def test_failures_before_a_stop_are_forgiven_too(tmp_path):
    for state in (FAILED, FAILED, STOPPED):
        make_claims(tmp_path).take(make_run()).note(state, "no such list")
    claims = make_claims(tmp_path)
    claims.forgive(make_run())
    assert claims.take(make_run()).content["failures"] == 0


def test_a_folder_is_moved_before_anything_else_though_that_fails_at_first(tmp_path):
    make_claims(tmp_path, lease_s=0.1).take(make_run())
    second = take_within(make_claims(tmp_path, lease_s=0.1), make_run(), 2)
    second.note(FAILED, "the folder cannot be renamed")
    third = make_claims(tmp_path, attempts=9).take(make_run())
    assert third.content["moves"]
    third.content["moves"] = False
    third.note(FAILED, "no such list")
    assert not make_claims(tmp_path, attempts=9).take(make_run()).content["moves"]


def test_who_has_not_looked_does_not_take_over(tmp_path, monkeypatch):
    """After a stall of its own, or one of the folder, an observer begins to count again."""
    clock = SimpleNamespace(monotonic=lambda: clock.now, now=100.0)
    monkeypatch.setattr(claims_module, "time", clock)
    make_claims(tmp_path).take(make_run())  # and shows no sign of life
    observer = make_claims(tmp_path)
    for now in (100.0, 100.2, 1000.0, 1000.2, 1000.4):
        clock.now = now
        assert observer.take(make_run()) is None, now
    clock.now = 1000.6
    assert observer.take(make_run()) is not None


def test_failures_give_a_run_up_and_stops_do_not(tmp_path):
    claims, run = make_claims(tmp_path), make_run()
    for state in (FAILED, STOPPED, STOPPED, STOPPED, FAILED, FAILED):
        claims.take(run).note(state, "no such list")
    for observer in (claims, make_claims(tmp_path)):
        with pytest.raises(GivenUpError, match="no such list"):
            observer.take(run)
    assert claims.num_attempts(run) == 6
    claims.forgive(run)  # as a sweep that is started anew does
    for _ in range(2):
        claims.take(run).note(FAILED, "still not")
    assert claims.take(run) is not None


def test_owners_that_fall_silent_are_failures_with_the_last_line_of_the_log(tmp_path):
    claims, run = make_claims(tmp_path, attempts=2, last_line="epoch 3/9: loss 0.5"), make_run()
    for number in (1, 2):
        assert take_within(claims, run, 3 * LEASE_S).number == number
    with pytest.raises(GivenUpError, match=r"process \d+ on .* fell silent.*epoch 3/9: loss 0.5"):
        take_within(claims, run, 3 * LEASE_S)


def test_a_finished_run_whose_result_was_deleted_is_made_again(tmp_path):
    claims = make_claims(tmp_path)
    claims.take(make_run()).note(FINISHED)
    assert claims.take(make_run()) is None  # its result may only not be seen yet
    assert take_within(claims, make_run(), 3 * LEASE_S).number == 2
    claims.take(make_run())


def test_a_folder_that_goes_away_and_comes_back(tmp_path, caplog):
    """Workers wait, who owns a run keeps it, and nothing is created where the folder was."""
    folder, away = tmp_path / "results", tmp_path / "away"
    runs = make_run(), make_run(1)
    owner, observer = make_claims(folder, make_sweep(*runs)), make_claims(folder, make_sweep(*runs))
    stop = threading.Event()
    with owner.take(runs[0]) as claim, ThreadPoolExecutor(2) as pool:
        assert observer.take(runs[0]) is None
        folder.rename(away)
        waiting = pool.submit(patiently, lambda: observer.take(runs[1]), stop)
        noting = pool.submit(patiently, lambda: owner.take(runs[0]), stop)
        time.sleep(2 * LEASE_S)
        assert not waiting.done()
        assert not noting.done()
        assert not folder.exists()
        away.rename(folder)
        assert waiting.result(10).number == 1
        assert noting.result(10) is None
        assert take_within(observer, runs[0], 2 * LEASE_S) is None
        assert not claim.is_lost()
    said = [record.message for record in caplog.records]
    assert any("trying again in 1 s" in line for line in said)
    assert sum("no sign of life" in line for line in said) == 1


@pytest.fixture
def mounted(tmp_path):
    """A function that mounts a file system of its own at a folder."""
    folder = tmp_path / "mounted"
    folder.mkdir()

    def mount(options):
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True)
        if done.returncode:
            pytest.skip("mounting a file system needs root")
        return folder

    yield mount
    subprocess.run(["umount", "-l", folder], capture_output=True)


def test_a_full_disk(mounted, caplog):
    """Signs of life need no room; a claim or a result waits for some, and is then whole."""
    folder = mounted("size=256k")
    runs = make_run(), make_run(1)
    owner, observer = make_claims(folder, make_sweep(*runs)), make_claims(folder, make_sweep(*runs))
    stop = threading.Event()
    with owner.take(runs[0]), ThreadPoolExecutor(2) as pool:
        with pytest.raises(OSError, match="No space left") as full:
            (folder / "filler").write_bytes(bytes(10**6))
        assert full.value.errno == errno.ENOSPC
        assert take_within(observer, runs[0], 3 * LEASE_S) is None
        text = "x" * 50_000
        waiting = pool.submit(patiently, lambda: observer.take(runs[1]), stop)
        writing = pool.submit(patiently, lambda: create_file(folder / "result.json", text), stop)
        time.sleep(0.5)
        assert not waiting.done()
        assert not (folder / "result.json").exists()
        (folder / "filler").unlink()
        assert waiting.result(10).number == 1
        writing.result(10)
    assert (folder / "result.json").read_text() == text
    assert any("No space left" in record.message and "trying again" in record.message for record in caplog.records)


def test_patience_ends(tmp_path):
    stop = threading.Event()
    with pytest.raises(FileNotFoundError):
        patiently(lambda: (tmp_path / "no/file").read_text(), stop, patience_s=0)
    stop.set()
    with pytest.raises(FileNotFoundError):
        patiently(lambda: (tmp_path / "no/file").read_text(), stop)


def test_folders_that_claims_cannot_be_made_in(mounted, tmp_path, monkeypatch):
    folder = mounted("ro")
    with pytest.raises(UserError, match=r"mounted/results/claims.*hard links.*Read-only"):
        make_claims(folder / "results")
    monkeypatch.setattr(os, "link", lambda source, target: Path(target).write_text(""))  # as where links are copies
    with pytest.raises(UserError, match="results/claims: two processes can create the same file"):
        make_claims(tmp_path / "results")


def test_a_sweep_of_that_name_with_other_settings(tmp_path):
    one, other = make_sweep(make_run()), make_sweep(make_run(), make_run(1))
    with make_claims(tmp_path, one).take(make_run()):
        for joins, remedy in ((True, "without --worker"), (False, rf"process {os.getpid()} on .*end that one first")):
            with pytest.raises(UserError, match=rf"the sweep study was begun there with other settings.*{remedy}"):
                Claims(tmp_path, other, LEASE_S, 3, str).enter(joins=joins)
    Claims(tmp_path, other, LEASE_S, 3, str).enter(joins=False)  # nobody works at it any more
    with pytest.raises(UserError, match="begun there with other settings"):
        make_claims(tmp_path, one)


def test_a_damaged_claim_is_named(tmp_path):
    claims = make_claims(tmp_path)
    claims.take(make_run())
    path = tmp_path / f"claims/{make_run().short_key}.1.json"
    path.write_text("{")
    with pytest.raises(UserError, match=f"{path.name}: not a claim.*delete it"):
        claims.take(make_run())
