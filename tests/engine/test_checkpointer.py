"""Checkpoints in the background: what is saved, who waits, and where an error comes to light."""

import errno
import os
import threading

import pytest
import torch
from tests.engine.test_trainer import make_trainer

from ovenet.engine import checkpoint
from ovenet.engine.checkpoint import CHECKPOINT
from ovenet.models.weight_files import read_checkpoint

WAIT_S = 20


@pytest.fixture
def trainer(small_cfg, tmp_path):
    return make_trainer(small_cfg("TRAIN.LR", 0.05, "TRAIN.EMA", 0.9), tmp_path / "run")


@pytest.fixture
def slow_disk(trainer):
    """An event: before it, no checkpoint gets ready."""
    is_ready, save = threading.Event(), trainer.checkpoints.store.save
    trainer.checkpoints.store.save = lambda state, **options: is_ready.wait(WAIT_S) and save(state, **options)
    return is_ready


def train_step(trainer):
    trainer.state.begin_iteration()
    assert trainer.step([next(iter(trainer.phase.loader))]).loss is not None


def test_training_goes_on_while_the_state_of_before_is_written(trainer, slow_disk, tmp_path):
    train_step(trainer)
    expected = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    averaged = {name: value.clone() for name, value in trainer.step.ema.state_dict().items()}
    trainer.checkpoints.save()
    train_step(trainer)
    assert not (tmp_path / "run" / CHECKPOINT).exists()
    slow_disk.set()
    trainer.checkpoints.wait()
    saved = read_checkpoint(tmp_path / "run" / CHECKPOINT)
    assert saved["iteration"] == 1
    assert all(torch.equal(value, saved["model"][name]) for name, value in expected.items())
    assert all(torch.equal(value, saved["ema"][name]) for name, value in averaged.items())
    changed = trainer.model.state_dict()
    assert not all(torch.equal(value, changed[name]) for name, value in expected.items())


def test_counters_are_settled_after_the_copy_has_begun_and_an_error_there_leaves_no_checkpoint(trainer, tmp_path):
    def settle():
        trainer.state.num_skipped = 5
        with torch.no_grad():
            next(trainer.model.parameters()).zero_()

    expected = next(trainer.model.parameters()).clone()
    trainer.checkpoints.save(settle=settle)
    trainer.checkpoints.wait()
    saved = read_checkpoint(tmp_path / "run" / CHECKPOINT)
    assert saved["num_skipped"] == 5
    assert torch.equal(next(iter(saved["model"].values())), expected)

    def too_many():
        raise MemoryError

    train_step(trainer)
    with pytest.raises(MemoryError):
        trainer.checkpoints.save(settle=too_many)
    trainer.checkpoints.wait()
    assert read_checkpoint(tmp_path / "run" / CHECKPOINT)["iteration"] == 0


def test_one_is_written_at_a_time_in_order(trainer, slow_disk, tmp_path):
    train_step(trainer)
    trainer.checkpoints.save()
    train_step(trainer)
    threading.Timer(0.2, slow_disk.set).start()
    trainer.checkpoints.save()
    assert read_checkpoint(tmp_path / "run" / CHECKPOINT)["iteration"] == 1  # it has waited for the first
    trainer.checkpoints.wait()
    names = CHECKPOINT, "checkpoint.1.pth"
    assert [read_checkpoint(tmp_path / "run" / name)["iteration"] for name in names] == [2, 1]


def test_an_interruption_of_the_wait_does_not_forget_what_is_written(trainer, slow_disk, tmp_path, monkeypatch):
    trainer.checkpoints.save()

    def interrupted():
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trainer.checkpoints._writing, "result", interrupted)
        with pytest.raises(KeyboardInterrupt):
            trainer.checkpoints.wait()
    threading.Timer(0.2, slow_disk.set).start()
    trainer.checkpoints.wait()
    assert read_checkpoint(tmp_path / "run" / CHECKPOINT)["iteration"] == 0


@pytest.fixture
def full_disk(monkeypatch):
    """A function after which the disk is full."""

    def no_room(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return lambda: monkeypatch.setattr(checkpoint.os, "fsync", no_room)


def test_an_error_comes_to_light_at_the_next_checkpoint(trainer, full_disk, tmp_path):
    trainer.checkpoints.save()
    trainer.checkpoints.wait()
    before = (tmp_path / "run" / CHECKPOINT).read_bytes()
    full_disk()
    train_step(trainer)
    trainer.checkpoints.save()
    train_step(trainer)
    with pytest.raises(OSError, match=r"cannot save .*checkpoint\.pth: No space left.*untouched"):
        trainer.checkpoints.save()
    assert (tmp_path / "run" / CHECKPOINT).read_bytes() == before
    assert [path.name for path in (tmp_path / "run").glob("*.pth*")] == [CHECKPOINT]


def save_and_fail(trainer):
    with trainer.checkpoints:
        trainer.checkpoints.save()
        raise MemoryError


def test_the_last_one_is_waited_for_after_an_error_too_whose_message_comes_first(
    trainer, slow_disk, full_disk, tmp_path, caplog
):
    threading.Timer(0.2, slow_disk.set).start()
    with pytest.raises(MemoryError):
        save_and_fail(trainer)
    assert read_checkpoint(tmp_path / "run" / CHECKPOINT)["iteration"] == 0
    full_disk()
    with pytest.raises(MemoryError):
        save_and_fail(trainer)
    assert "No space left" in caplog.text
    with pytest.raises(OSError, match="No space left"), trainer.checkpoints:
        trainer.checkpoints.save()
