"""Every process reaches every barrier, whatever its own machine has in its cache."""

import pytest

from ovenet.builders import caching
from ovenet.builders.caching import attach_cache
from ovenet.builders.data import list_dataset


def barriers_of(cfg, monkeypatch):
    """How often a process waits for the others while it attaches its cache."""
    reached = []
    monkeypatch.setattr(caching.distributed, "barrier", lambda: reached.append(1))
    dataset = list_dataset(cfg, cfg.DATASET.TRAIN_SET)
    reached.clear()
    attach_cache(cfg, dataset)
    return len(reached)


def test_machines_with_and_without_entries_wait_equally_often(tiny_cfg, tiny_data, monkeypatch):
    cfg = tiny_cfg("DATASET.ROOT", tiny_data, "DATASET.CACHE", "disk")
    empty, full = barriers_of(cfg, monkeypatch), barriers_of(cfg, monkeypatch)
    assert empty == full > 0


@pytest.mark.parametrize("kind", ["disk", "none"])
def test_only_what_is_asked_for_is_attached(tiny_cfg, tiny_data, kind):
    cfg = tiny_cfg("DATASET.ROOT", tiny_data, "DATASET.CACHE", kind)
    dataset = list_dataset(cfg, cfg.DATASET.TRAIN_SET)
    attach_cache(cfg, dataset)
    assert (dataset.cache is not None) == (kind == "disk")
    assert (tiny_data / "cache").exists() == (kind == "disk")
