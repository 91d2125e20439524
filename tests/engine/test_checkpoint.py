"""Checkpoints are written whole or not at all."""

import errno
import os

import pytest
import torch

from ovenet.engine import checkpoint
from ovenet.engine.checkpoint import save_atomically
from ovenet.models.weight_files import read_checkpoint


def test_saving_replaces_the_file_whole(tmp_path):
    path = tmp_path / "a.pth"
    save_atomically({"a": torch.ones(3)}, path)
    save_atomically({"a": torch.zeros(3)}, path)
    assert read_checkpoint(path)["a"].tolist() == [0, 0, 0]
    assert [p.name for p in tmp_path.iterdir()] == ["a.pth"]


class FullDisk:
    """A file that takes some bytes and then has no room left."""

    def __init__(self, file, room: int):
        self.file, self.room = file, room

    def write(self, data):
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.file.write(data)

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *args):
        self.file.close()


@pytest.mark.parametrize("room", [0, 500, 3000])
def test_a_full_disk_leaves_the_old_file_whole(tmp_path, monkeypatch, room):
    path = tmp_path / "a.pth"
    save_atomically({"a": torch.ones(2000)}, path)
    monkeypatch.setattr(checkpoint, "open", lambda *a, **k: FullDisk(open(*a, **k), room), raising=False)  # noqa: SIM115
    with pytest.raises(OSError, match=r"a\.pth: No space left.*untouched"):
        save_atomically({"a": torch.zeros(2000)}, path)
    assert read_checkpoint(path)["a"].sum() == 2000
    assert [p.name for p in tmp_path.iterdir()] == ["a.pth"]
