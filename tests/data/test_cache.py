"""The cache of decoded images: the same samples, whatever happens to the sources and while it is built."""

import os
import re
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
from PIL import Image

from ovenet.data import cache as cache_module
from ovenet.data.cache import DecodedCache
from ovenet.data.catalog import CATALOG
from ovenet.data.dataset import AugmentedDataset, ListDataset
from ovenet.data.settings import CropSettings
from ovenet.data.transforms import TrainTransform

CAMVID = CATALOG["camvid"]


def load(root):
    return ListDataset(root, root / "list/camvid/train.lst", CAMVID, ignore_label=255)


def make(root):
    return DecodedCache(root / "cache", root / "camvid", CAMVID, 255)


def build(root):
    """Builds what is missing; the number of pairs that were."""
    dataset, cache = load(root), make(root)
    plan = cache.plan(dataset.pairs, num_threads=2)
    cache.remove_outdated([dataset.pairs[number] for number in plan.missing])
    assert cache.build(dataset.pairs, dataset.read_files, plan.missing, num_threads=8) == []
    return len(plan.missing)


def files(root):
    return sorted(path for path in (root / "cache").rglob("*") if path.is_file())


def test_cached_samples_are_the_same(tiny_data):
    plain, cached = load(tiny_data), load(tiny_data)
    assert build(tiny_data) == 6
    cached.cache = make(tiny_data)
    transform = TrainTransform(CropSettings(image_size=(48, 32), base_size=64, random_brightness=True))
    for index in range(6):
        ours, theirs = cached[index], plain[index]
        np.testing.assert_array_equal(ours.image, theirs.image)
        np.testing.assert_array_equal(ours.labels, theirs.labels)
        crops = [AugmentedDataset(d, transform, seed=3)[2, index] for d in (cached, plain)]
        np.testing.assert_array_equal(crops[0].image, crops[1].image)
        np.testing.assert_array_equal(crops[0].labels, crops[1].labels)
        assert crops[0].labels.dtype == crops[1].labels.dtype == np.int16


def test_a_crop_reads_only_its_own_rows(tiny_data):
    build(tiny_data)
    image = make(tiny_data).read("train/0.png")
    assert isinstance(image.base, np.memmap)
    assert not image.flags.owndata
    assert not image.flags.writeable


def test_the_size_is_told_before(tiny_data):
    cache, dataset = make(tiny_data), load(tiny_data)
    plan = cache.plan(dataset.pairs, num_threads=2)
    assert plan.num_bytes == 6 * 64 * 48 * 4
    build(tiny_data)
    overhead = sum(path.stat().st_size for path in files(tiny_data)) - plan.num_bytes
    assert 0 <= overhead <= 12 * 256
    assert cache.plan(dataset.pairs, num_threads=2) == cache_module.CachePlan((), 0)


def test_a_cache_that_was_interrupted_goes_on(tiny_data):
    dataset, cache = load(tiny_data), make(tiny_data)

    def interrupted(index):
        if index == 4:
            raise KeyboardInterrupt
        return dataset.read_files(index)

    with pytest.raises(KeyboardInterrupt):
        cache.build(dataset.pairs, interrupted, range(6), num_threads=1)
    num_done = len(files(tiny_data)) // 2
    assert num_done in (4, 5)  # the thread may have begun the last one
    assert build(tiny_data) == 6 - num_done
    assert len(files(tiny_data)) == 12
    files(tiny_data)[0].unlink()
    assert build(tiny_data) == 1


def test_a_source_that_changed_is_decoded_again(tiny_data):
    build(tiny_data)
    path = tiny_data / "camvid/train/2.png"
    pixels = 255 - np.asarray(Image.open(path))
    Image.fromarray(pixels).save(path)
    os.utime(path, ns=(1, 1))  # the time of change counts, later or earlier
    dataset = load(tiny_data)
    dataset.cache = make(tiny_data)
    np.testing.assert_array_equal(dataset[2].image, pixels)  # from the source, the entry being of another time
    assert build(tiny_data) == 1
    assert isinstance(dataset[2].image.base, np.memmap)
    np.testing.assert_array_equal(dataset[2].image, pixels)
    assert len(files(tiny_data)) == 12


def test_entries_that_vanish_or_are_damaged_do_no_harm(tiny_data):
    build(tiny_data)
    dataset = load(tiny_data)
    dataset.cache = make(tiny_data)
    expected = load(tiny_data)[0]
    dataset.cache.entry("train/0.png").write_bytes(b"\x93NUMPY")
    np.testing.assert_array_equal(dataset[0].image, expected.image)
    for path in files(tiny_data):
        path.unlink()
    np.testing.assert_array_equal(dataset[0].labels, expected.labels)


def test_a_broken_source_is_left_out_and_told(tiny_data):
    (tiny_data / "camvid/train/3.png").write_bytes(b"no image")
    dataset, cache = load(tiny_data), make(tiny_data)
    plan = cache.plan(dataset.pairs, num_threads=2)
    (problem,) = cache.build(dataset.pairs, dataset.read_files, plan.missing, num_threads=2)
    assert re.search(r"train/3\.png: .*image.*replace it", problem)
    dataset.cache = cache
    with pytest.raises(ValueError, match=r"train/3\.png: .*image.*replace it"):
        dataset[3]


def test_processes_may_build_at_the_same_time(tiny_data):
    with ProcessPoolExecutor(3) as pool:
        list(pool.map(build, [tiny_data] * 3))
    assert len(files(tiny_data)) == 12
    assert build(tiny_data) == 0


def test_too_little_space_is_told_before(tiny_data):
    with pytest.raises(ValueError, match=r"DATASET\.CACHE disk: .*1000000\.0 GB.*cache.*free.*DATASET\.CACHE_DIR"):
        make(tiny_data).require_space(10**15, "DATASET.CACHE disk")


def test_a_full_disk_leaves_no_part_behind(tiny_data, monkeypatch):
    def no_space(path, array, **_):
        path.write_bytes(b"beginning")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache_module.np, "save", no_space)
    dataset = load(tiny_data)
    with pytest.raises(OSError, match=r"write .*\.npy: No space left.*DATASET\.CACHE none"):
        make(tiny_data).build(dataset.pairs, dataset.read_files, [0], num_threads=1)
    assert files(tiny_data) == []


def test_other_facts_have_another_folder(tiny_data):
    assert make(tiny_data).folder != DecodedCache(tiny_data / "cache", tiny_data / "camvid", CAMVID, 254).folder


def test_a_pair_that_is_listed_twice_is_built_once_or_twice_but_whole(tiny_data):
    path = tiny_data / "list/camvid/train.lst"
    path.write_text(path.read_text().splitlines()[0].join(["", "\n"]) * 40)
    assert build(tiny_data) == 40
    dataset = load(tiny_data)
    expected = dataset[0]
    dataset.cache = make(tiny_data)
    np.testing.assert_array_equal(dataset[39].image, expected.image)
    assert len(files(tiny_data)) == 2


def test_an_empty_entry_is_decoded_again(tiny_data):
    """A full disk or a crash of the machine leaves a file of no bytes under the right name."""
    assert build(tiny_data) == 6
    path = files(tiny_data)[3]
    path.write_bytes(b"")
    assert build(tiny_data) == 1
    assert path.stat().st_size > 0
