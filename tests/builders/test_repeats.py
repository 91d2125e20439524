"""Several passes over a short list in an epoch."""

from collections import Counter

import numpy as np

from ovenet.builders import build_train_loader


def test_an_epoch_has_each_sample_so_many_times(tiny_cfg, tiny_data):
    options = ("DATASET.ROOT", tiny_data, "TRAIN.BATCH_SIZE_PER_GPU", 4)
    once, _ = build_train_loader(tiny_cfg(*options))
    often, sampler = build_train_loader(tiny_cfg(*options, "TRAIN.REPEATS", 10))
    assert (len(once), len(often)) == (6 // 4, 60 // 4)
    names = Counter(often.dataset[key].name for key in sampler)
    assert len(names) == 6
    assert set(names.values()) == {10}


def test_each_time_is_another_crop(tiny_cfg, tiny_data):
    loader, _ = build_train_loader(tiny_cfg("DATASET.ROOT", tiny_data, "TRAIN.REPEATS", 3))
    crops = [loader.dataset[0, index] for index in (1, 7, 13)]
    assert len({crop.name for crop in crops}) == 1
    assert all(not np.array_equal(crops[0].image, other.image) for other in crops[1:])
    plain, _ = build_train_loader(tiny_cfg("DATASET.ROOT", tiny_data))
    assert np.array_equal(plain.dataset[0, 1].image, crops[0].image)
