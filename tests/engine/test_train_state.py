"""Progress of a run: epochs and iterations of its phases, and what a checkpoint holds of it."""

import pytest
import torch
from torch.utils.data import DataLoader

from ovenet.data.samplers import TrainSampler
from ovenet.engine.checkpoint import BEST, BEST_EMA
from ovenet.engine.phases import Phase, Timeline
from ovenet.engine.train_state import TrainState
from ovenet.utils import distributed


def loader_of(num_samples, batch_size):
    return DataLoader(list(range(num_samples)), batch_size=batch_size, drop_last=True)


def state_of(batch_size=2, *, num_iterations=0):
    """Epochs 1 and 2 of 9 samples and epoch 3 of 5 samples, two micro-batches an iteration; or a number of iterations.

    In batches of 2 an epoch of 9 samples has 4 micro-batches, 2 iterations; one of 5 samples has 2, 1 iteration.
    """
    phases = [Phase(loader_of(9, batch_size), None, 3, num_iterations)]
    if not num_iterations:
        phases.append(Phase(loader_of(5, batch_size), None, 4))
    return TrainState(Timeline(tuple(phases), begin_epoch=1, accumulate=2), epoch=1)


def walk(state, iterations, eval_interval=1):
    for _ in range(iterations):
        state.begin_iteration()
        if state.is_epoch_trained:
            state.finish_epoch(eval_interval)


def test_phases_follow_one_another():
    state = state_of()
    assert state.timeline.lengths == [4, 1]
    assert [state.timeline.iterations_before(epoch) for epoch in (1, 2, 3, 4)] == [0, 2, 4, 5]
    seen = []
    while not state.is_trained:
        seen.append((state.epoch, state.iterations_in_epoch, state.epoch_length, state.num_later, state.samples_done))
        walk(state, 1)
    assert seen == [(1, 0, 2, 3, 0), (1, 1, 2, 3, 4), (2, 0, 2, 1, 0), (2, 1, 2, 1, 4), (3, 0, 1, 0, 0)]
    assert (state.iteration, state.schedule_iteration, state.end_epoch) == (5, 5, 4)


def test_a_length_in_iterations_cuts_the_last_epoch_short():
    state = state_of(num_iterations=3)
    assert state.end_epoch == 3
    walk(state, 2)
    assert (state.epoch, state.epoch_length, state.is_trained) == (2, 1, False)
    walk(state, 1)
    assert (state.epoch, state.is_trained, state.is_validation_due) == (3, True, True)


def test_validations_are_due_after_every_nth_epoch_and_the_last():
    state, due = state_of(), []
    for iterations in (2, 2, 1):
        walk(state, iterations, eval_interval=2)
        due.append(state.is_validation_due)
    assert due == [False, True, True]


@pytest.mark.parametrize(
    ("batch_size", "num_iterations", "steps", "position"),
    [(2, 0, 1, 3), (1, 0, 2, 6), (4, 0, 1, 2), (2, 6, 1, 3), (1, 12, 2, 6)],
)
def test_a_checkpoint_holds_for_any_batch_size(batch_size, num_iterations, steps, position):
    """Saved after 3 iterations of 4 samples, one of them in epoch 2: 4 samples of it are done.

    In batches of 1 an epoch has 4 iterations of 2 samples; in batches of 4 it has 1, which cannot be begun again. Of 6
    iterations half are done, as of 12.
    """
    saved = state_of(num_iterations=num_iterations and 6)
    walk(saved, 3)
    state = state_of(batch_size, num_iterations=num_iterations)
    state.load_state_dict(saved.state_dict())
    assert (state.epoch, state.iteration) == (2, 3)
    assert (state.iterations_in_epoch, state.schedule_iteration) == (steps, position)


def test_no_change_of_processes_leaves_out_a_sample_or_takes_one_again(monkeypatch):
    """43 samples by 4 processes, then 3, 2, 5, 4 and 1: what is left of an epoch is taken from its first sample on."""
    order = [index for _, index in TrainSampler(43, rank=0, world_size=1, seed=3)]
    taken, saved = [], None
    for size, steps in ((4, 2), (3, 3), (2, 4), (5, 1), (4, 2), (1, None)):
        monkeypatch.setattr(distributed, "world_size", lambda size=size: size)
        phase = Phase(DataLoader(list(range(43)), 1, sampler=range(43 // size)), None, 2)
        state = TrainState(Timeline((phase,), begin_epoch=0, accumulate=1))
        if saved is not None:
            state.load_state_dict(saved)
        samplers = [TrainSampler(43, rank=rank, world_size=size, seed=3) for rank in range(size)]
        for sampler in samplers:
            sampler.start = state.samples_done
        shares = list(zip(*samplers, strict=True))
        assert state.samples_done == len(taken)
        assert state.epoch_length - state.iterations_in_epoch == len(shares) == (43 - len(taken)) // size
        assert state.num_left == len(shares) + 43 // size  # and the whole second epoch
        for share in shares[:steps]:
            state.begin_iteration()
            taken += [index for _, index in share]
        saved = state.state_dict()
    assert taken == order
    state.finish_epoch(1)
    assert (state.samples_done, state.epoch_length) == (0, 43)


def test_checkpoints_of_version_1_are_read():
    """It saved neither the share of the schedule nor whether a validation is due."""
    saved = state_of()
    walk(saved, 3)
    content = {k: v for k, v in saved.state_dict().items() if k not in ("progress", "is_validation_due")}
    state = state_of()
    state.load_state_dict(content)
    assert (state.epoch, state.schedule_iteration, state.is_validation_due) == (2, 3, False)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("epoch", None), ("iteration", -1), ("samples_done", 1.5), ("world_size", "2"), ("num_skipped", True),
        ("progress", "half"), ("best", {BEST: 0.5}), ("best", {BEST: "x", BEST_EMA: 0.5}), ("best", torch.ones(2)),
    ],
)  # fmt: skip
def test_a_damaged_entry_is_named_and_nothing_is_taken_over(key, value):
    saved = state_of()
    walk(saved, 3)
    state = state_of()
    before = state.state_dict()
    with pytest.raises(TypeError, match=f"^{key} is "):
        state.load_state_dict(saved.state_dict() | {key: value})
    assert state.state_dict() == before
