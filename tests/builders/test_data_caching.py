"""Every process reaches every barrier, whatever its own machine has in its cache."""

import os

import pytest
from tests import forking

from ovenet.builders.data import list_dataset
from ovenet.data import shared_cache
from ovenet.data.shared_cache import attach_cache


def barriers_of(cfg, monkeypatch):
    """How often a process waits for the others while it attaches its cache."""
    reached = []
    monkeypatch.setattr(shared_cache.distributed, "barrier", lambda: reached.append(1))
    dataset = list_dataset(cfg, cfg.DATASET.TRAIN_SET)
    reached.clear()
    attach_cache(dataset, cfg.DATASET.CACHE, num_threads=1)
    return len(reached)


def test_machines_with_and_without_entries_wait_equally_often(tiny_cfg, tiny_data, monkeypatch):
    cfg = tiny_cfg("DATASET.ROOT", tiny_data, "DATASET.CACHE", "disk")
    empty, full = barriers_of(cfg, monkeypatch), barriers_of(cfg, monkeypatch)
    assert empty == full > 0


@pytest.mark.parametrize("kind", ["disk", "none"])
def test_only_what_is_asked_for_is_attached(tiny_cfg, tiny_data, kind):
    cfg = tiny_cfg("DATASET.ROOT", tiny_data, "DATASET.CACHE", kind)
    dataset = list_dataset(cfg, cfg.DATASET.TRAIN_SET)
    attach_cache(dataset, cfg.DATASET.CACHE, num_threads=1)
    assert (dataset.cache is not None) == (kind == "disk")
    assert (tiny_data / "cache").exists() == (kind == "disk")


def test_a_cache_in_memory_stays_until_its_last_run_ends(tmp_path):
    """In processes of their own, as two runs on the same data are."""
    folder = tmp_path / "camvid-0123"
    script = tmp_path / "use.py"
    script.write_text(
        "import sys; from pathlib import Path; from ovenet.data.shared_cache import _remove_if_unused, _use\n"
        f"folder = Path({str(folder)!r}); users = _use(folder); folder.mkdir(exist_ok=True)\n"
        "print('there', flush=True)\n"
        "sys.stdin.readline(); _remove_if_unused(folder, users)"
    )

    def start():
        """A process, and the pipe whose end it waits for."""
        read, write = os.pipe()
        with os.fdopen(read) as stdin:
            return forking.Forked([script], stdin=stdin), write

    processes = [start(), start()]
    for process, _ in processes:
        assert process.stdout.readline() == "there\n"
    for (process, write), is_there in zip(processes, (True, False), strict=True):
        os.close(write)
        process.communicate(timeout=60)
        assert process.returncode == 0
        assert folder.is_dir() == is_there
