"""Devices, random streams, and the messages of the command line."""

import os
import random
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tests import forking

from ovenet.errors import UserError
from ovenet.utils import distributed
from ovenet.utils.cli import run_main
from ovenet.utils.seeding import sample_rng, seed_everything


def draw() -> tuple:
    return random.random(), np.random.rand(), torch.rand(1).item()


def test_one_seed_repeats_every_generator_and_ranks_differ():
    seed_everything(3)
    first = draw()
    seed_everything(3)
    assert draw() == first
    seed_everything(3, rank=1)
    assert all(a != b for a, b in zip(draw(), first, strict=True))


def test_samples_have_streams_of_their_own():
    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    assert len({sample_rng(*key).random() for key in keys}) == 4
    assert sample_rng(0, 1, 2).random() == sample_rng(0, 1, 2).random()


def test_a_single_process_is_its_own_group():
    value = torch.ones(2)
    with distributed.process_group(torch.device("cpu")):
        assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
        assert distributed.all_reduce_sum(value) is value
        distributed.barrier()


def fail(error: BaseException):
    def main() -> None:
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("a.png: gone"), 2, "error: a.png: gone"),
        (UserError("Caught UserError in worker 0.\novenet.errors.UserError: a.png: gone\n"), 2, "error: a.png: gone"),
        (OSError(28, "No space left on device"), 2, "error: [Errno 28] No space left on device"),
        (UserError(), 2, "error: UserError"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)  # fmt: skip
def test_what_a_user_can_mend_is_one_line(capsys, error, code, line):
    with pytest.raises(SystemExit) as end:
        run_main(fail(error))
    assert end.value.code == code
    assert capsys.readouterr().err == line + "\n"


def test_debugging_shows_everything(monkeypatch):
    monkeypatch.setenv("OVENET_DEBUG", "1")
    with pytest.raises(UserError, match="gone"):
        run_main(fail(UserError("gone")))


def test_memory_that_runs_out_is_one_line_with_the_way_out(capsys):
    """The real allocator's refusal of a petabyte."""
    with pytest.raises(SystemExit) as end:
        run_main(lambda: torch.empty(1 << 50, dtype=torch.uint8))
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: out of memory (")
    assert "double TRAIN.ACCUMULATE" in line
    assert "tools/plan.py" in line


def test_a_fault_of_the_program_is_not_told_as_the_users(capsys, monkeypatch):
    """A ValueError of torch or numpy keeps its traceback, and ends with another code than bad input does."""
    monkeypatch.setattr(sys, "argv", ["tools/train.py", "--cfg", "my file.yaml"])

    def broken():
        return int("seven")

    with pytest.raises(SystemExit) as end:
        run_main(broken)
    printed = capsys.readouterr().err
    assert end.value.code == 1
    assert "Traceback (most recent call last)" in printed
    last = printed.splitlines()[-1]
    assert "a fault of the program, not of your input" in last
    assert "tools/train.py --cfg 'my file.yaml'" in last
    assert f"ValueError in {__file__}:" in last


def test_what_the_user_can_mend_is_one_line(capsys):
    def refuse():
        raise UserError("a.yaml: no such key")

    with pytest.raises(SystemExit) as end:
        run_main(refuse)
    assert (end.value.code, capsys.readouterr().err) == (2, "error: a.yaml: no such key\n")


def test_no_value_error_is_raised_for_users():
    """Only `UserError` becomes one line; a plain ValueError would be told as a fault of the program."""
    root = Path(__file__).parents[2]
    for path in [*(root / "lib").rglob("*.py"), *(root / "tools").rglob("*.py")]:
        assert "raise ValueError" not in path.read_text(encoding="utf-8"), path


@pytest.mark.parametrize("lines", [1, 20000])
def test_a_reader_that_has_enough_is_no_error(tmp_path, lines):
    """As in ``ovenet config … | head -1``; one line stays in the buffer until the end, many do not."""
    script = tmp_path / "print.py"
    script.write_text(
        f"from ovenet.utils.cli import run_main; run_main(lambda: print(*['a line'] * {lines}, sep=chr(10)))"
    )
    reader, writer = os.pipe()
    os.close(reader)  # before a line is written, so that none can be
    with os.fdopen(writer, "wb") as pipe:
        done = forking.run([script], stdout=pipe)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_pipe_of_another_kind_that_breaks_is_one(capsys):
    with pytest.raises(SystemExit) as end:
        run_main(fail(BrokenPipeError(32, "Broken pipe")))
    assert (end.value.code, capsys.readouterr().err) == (2, "error: [Errno 32] Broken pipe\n")


@pytest.mark.parametrize("cut", ["ConnectionResetError(104, 'Connection reset by peer')", "EOFError()"])
def test_a_killed_loading_process_is_named_although_its_connection_breaks_first(tmp_path, cut):
    """The pipe of a process breaks while it dies; that it is dead is known a moment later."""
    script = tmp_path / "load.py"
    script.write_text(f"""
import os, signal, threading
from torch.utils.data import DataLoader
from ovenet.utils.cli import run_main

def main():
    loader = iter(DataLoader(range(1000), num_workers=1))
    next(loader)
    pid = loader._workers[0].pid
    print(pid, flush=True)
    threading.Timer(0.1, os.kill, (pid, signal.SIGKILL)).start()
    raise {cut}

run_main(main)
""")
    done = forking.run([script])
    assert done.returncode == 2, done.stderr
    assert re.search(rf"^error: .*killed.*\b{done.stdout.strip()}\b.*WORKERS", done.stderr), done.stderr
