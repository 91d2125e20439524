"""Drawn scenes on disk, for tests that only read them."""

from ovenet.synthetic.scenes import _write_scene


def write_dataset(folder, counts, *, size, seed=0):
    """`ovenet.synthetic.scenes.write_dataset` within this process: those that it starts import torch for seconds."""
    for split, count in counts.items():
        for number in range(count):
            _write_scene((folder, split, number, size, seed))
