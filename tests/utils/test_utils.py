"""Devices, random streams, and the messages of the command line."""

import random

import numpy as np
import pytest
import torch

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
        assert distributed.all_sum(value) is value
        distributed.barrier()


def test_more_processes_than_cards_are_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match="local process 2 has no CUDA device, 2 are visible"):
        distributed.choose_device("auto")
    assert distributed.choose_device("cpu").type == "cpu"


def fail(error: BaseException):
    def main() -> None:
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ValueError("a.png: gone"), 2, "error: a.png: gone"),
        (ValueError("Caught ValueError in worker 0.\nTraceback:\nValueError: a.png: gone\n"), 2, "error: a.png: gone"),
        (OSError(28, "No space left on device"), 2, "error: [Errno 28] No space left on device"),
        (ValueError(), 2, "error: ValueError"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)  # fmt: skip
def test_what_a_user_can_mend_is_one_line(capsys, error, code, line):
    with pytest.raises(SystemExit) as end:
        run_main(fail(error))
    assert end.value.code == code
    assert capsys.readouterr().err == line + "\n"


def test_other_errors_and_debugging_show_everything(monkeypatch):
    with pytest.raises(RuntimeError):
        run_main(fail(RuntimeError("a bug")))
    monkeypatch.setenv("OVENET_DEBUG", "1")
    with pytest.raises(ValueError, match="gone"):
        run_main(fail(ValueError("gone")))


def test_memory_that_runs_out_is_one_line_with_the_way_out(capsys):
    """The real allocator's refusal of a petabyte."""
    with pytest.raises(SystemExit) as end:
        run_main(lambda: torch.empty(1 << 50, dtype=torch.uint8))
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: out of memory (")
    assert "double TRAIN.ACCUMULATE" in line
    assert "tools/plan.py" in line


def test_other_runtime_errors_are_bugs_and_show_where(capsys):
    def fail():
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        run_main(fail)
