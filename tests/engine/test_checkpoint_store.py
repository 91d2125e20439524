"""The checkpoints of a run: which one is read, and that damage is always noticed."""

import os
import re

import pytest
import torch

from ovenet.engine.checkpoint import CheckpointStore, save_atomically
from ovenet.models.weight_files import read_checkpoint


def state(number):
    return {"iteration": number, "model": {"a": torch.full((50,), float(number))}}


def saved(tmp_path, count, num_kept=3):
    store = CheckpointStore(tmp_path, num_kept)
    for number in range(count):
        store.save(state(number))
    return store


def test_the_newest_are_kept(tmp_path):
    store = saved(tmp_path, 5)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint.1.pth", "checkpoint.2.pth", "checkpoint.pth"]
    loaded, path = store.load()
    assert (loaded["iteration"], path.name) == (4, "checkpoint.pth")
    assert [read_checkpoint(tmp_path / f"checkpoint.{i}.pth")["iteration"] for i in (1, 2)] == [3, 2]


def test_one_may_be_enough(tmp_path):
    assert saved(tmp_path, 3, num_kept=1).load()[0]["iteration"] == 2
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pth"]


@pytest.mark.parametrize("tenths", range(10))
def test_a_checkpoint_cut_off_anywhere_is_never_taken_for_whole(tmp_path, tenths, caplog):
    store = saved(tmp_path, 2)
    path = tmp_path / "checkpoint.pth"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * tenths // 10])
    with pytest.raises(ValueError, match=r"checkpoint\.pth: .*damaged"):
        read_checkpoint(path)
    loaded, used = store.load()
    assert (loaded["iteration"], used.name) == (0, "checkpoint.1.pth")
    (record,) = caplog.records
    assert "going on from" in record.getMessage()


@pytest.mark.parametrize("damage", [lambda whole: whole[:-500], lambda whole: b"", lambda whole: b"x" + whole[1:]])
def test_a_damaged_newest_one_does_not_replace_the_good_older_one(tmp_path, damage, caplog):
    saved(tmp_path, 2)
    path = tmp_path / "checkpoint.pth"
    path.write_bytes(damage(path.read_bytes()))
    store = CheckpointStore(tmp_path, 3)  # of the next start
    store.save(state(7))
    assert re.search(r"checkpoint\.pth .*damaged.*replaced", caplog.text)
    assert [read_checkpoint(tmp_path / name)["iteration"] for name in ("checkpoint.pth", "checkpoint.1.pth")] == [7, 0]
    path.write_bytes(damage(path.read_bytes()))  # behind the back of the store that wrote it

    def kill():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_atomically(state(8), path, before_replacing=lambda: (store._shift(), kill()))
    assert store.load()[0]["iteration"] == 0


def test_a_single_changed_byte_is_noticed_wherever_it_is(tmp_path):
    saved(tmp_path, 1)
    path = tmp_path / "checkpoint.pth"
    whole = path.read_bytes()
    for position in range(0, len(whole) - 71, 97):
        damaged = bytearray(whole)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged"):
            read_checkpoint(path)
    path.write_bytes(whole)
    assert read_checkpoint(path)["iteration"] == 0


def test_others_read_our_files_and_we_read_theirs(tmp_path):
    save_atomically(state(7), tmp_path / "ours.pth")
    assert torch.load(tmp_path / "ours.pth", weights_only=True)["iteration"] == 7
    torch.save(state(8), tmp_path / "theirs.pth")
    assert read_checkpoint(tmp_path / "theirs.pth")["iteration"] == 8


def test_all_damaged_or_none(tmp_path):
    store = saved(tmp_path, 2)
    for path in tmp_path.iterdir():
        path.write_bytes(b"half of one")
    with pytest.raises(ValueError, match=r"checkpoint\.pth: .*checkpoint\.1\.pth: .*remove"):
        store.load()
    for path in tmp_path.iterdir():
        path.unlink()
    assert not store.exists()
    with pytest.raises(ValueError, match="there is no checkpoint"):
        store.load()


@pytest.mark.parametrize("fails_at", ["replace", "link"])
def test_an_end_while_saving_leaves_a_whole_newest_one(tmp_path, monkeypatch, fails_at):
    store = saved(tmp_path, 3)

    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, fails_at, die)
    with pytest.raises(KeyboardInterrupt):
        store.save(state(3))
    monkeypatch.undo()
    loaded, path = store.load()
    assert (loaded["iteration"], path.name) == (2, "checkpoint.pth")
    store.save(state(4))
    assert store.load()[0]["iteration"] == 4


def test_file_systems_without_links(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    assert saved(tmp_path, 3).load()[0]["iteration"] == 2
    assert read_checkpoint(tmp_path / "checkpoint.1.pth")["iteration"] == 1
