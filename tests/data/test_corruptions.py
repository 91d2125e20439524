"""Corruptions: published parameters, random numbers of each image's own, odd sizes and bad input."""

import hashlib
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from ovenet.data import corruptions
from ovenet.data.corruption_kinds import COMMON_KINDS, GROUPS, KINDS, OWN_KINDS, kinds_of
from ovenet.data.corruptions import Corruption, corrupt, corruption_seed
from ovenet.data.dataset import AugmentedDataset, ListDataset
from ovenet.data.settings import CropSettings
from ovenet.data.transforms import TrainTransform
from ovenet.errors import UserError
from ovenet.structures import Sample
from ovenet.utils.cli import command_environment

try:
    version(corruptions.LIBRARY)
    has_library = True
except PackageNotFoundError:
    has_library = False
needs_library = pytest.mark.skipif(not has_library, reason=f"{corruptions.LIBRARY} is not installed")
RUNNABLE = KINDS if has_library else OWN_KINDS
DIGESTS = """
import hashlib, sys
import numpy as np
from ovenet.data.corruptions import Corruption
image = np.load(sys.argv[1])
for kind in reversed(sys.argv[2:]):
    print(kind, hashlib.sha256(Corruption(kind, 3)(image, "val/1.png").tobytes()).hexdigest())
"""


def picture(height=63, width=95):
    """Smooth colours with some noise."""
    y, x = np.mgrid[:height, :width]
    base = np.stack([x * 2 % 256, y * 3 % 256, (x + y) % 256], axis=-1)
    return (base + np.random.default_rng(0).integers(0, 8, base.shape)).clip(0, 255).astype(np.uint8)


def digest(kind):
    pixels = Corruption(kind, 3)(picture(), "val/1.png")
    return hashlib.sha256(pixels.tobytes()).hexdigest()


def test_the_common_ones_are_the_published_fifteen():
    assert len(COMMON_KINDS) == len(set(COMMON_KINDS)) == 15
    assert kinds_of(["rain", "noise"], "") == ("gaussian_noise", "shot_noise", "impulse_noise", "rain")
    assert kinds_of(["all"], "") == KINDS == tuple(kind for kinds in GROUPS.values() for kind in kinds)


def test_any_process_and_order_gives_the_same_pixels(tmp_path):
    """Two threads here in one order, another process in the other."""
    with ThreadPoolExecutor(2) as pool:
        here = dict(zip(RUNNABLE, pool.map(digest, RUNNABLE), strict=True))
    np.save(tmp_path / "image.npy", picture())
    kinds = [kind for kind in RUNNABLE if kind != "glass_blur"]  # compiled for seconds, with a generator of its own
    command = [sys.executable, "-c", DIGESTS, tmp_path / "image.npy", *kinds]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, env=command_environment()).stdout
    assert dict(line.split() for line in printed.splitlines()) == {kind: here[kind] for kind in kinds}
    assert len(set(here.values())) == len(RUNNABLE)


@pytest.mark.parametrize("kind", RUNNABLE)
def test_every_kind_at_odd_sizes(kind, capfd):
    np.random.seed(5)
    random.seed(5)
    before = np.random.get_state()[1].copy(), random.getstate()
    image = picture()
    kept = image.copy()
    changes = []
    for severity in (1, 5):
        pixels = Corruption(kind, severity)(image, "val/1.png")
        assert (pixels.shape, pixels.dtype) == (image.shape, np.uint8)
        assert np.array_equal(Corruption(kind, severity)(image, "val/1.png"), pixels)
        changes.append(np.abs(pixels.astype(int) - image).mean())
    assert changes[1] > changes[0] > 0
    assert np.array_equal(image, kept)
    assert np.array_equal(before[0], np.random.get_state()[1])
    assert before[1] == random.getstate()
    assert capfd.readouterr().out == ""
    if kind not in ("defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression"):
        assert not np.array_equal(Corruption(kind, 5)(image, "val/2.png"), pixels)


def test_the_seed_is_that_of_path_kind_and_severity():
    """The first four bytes of SHA-256, as sha256sum prints them: printf 'val/1.png\\0fog\\0003' | sha256sum."""
    text = subprocess.run(["sha256sum"], input=b"val/1.png\x00fog\x003", capture_output=True, check=True).stdout
    assert corruption_seed("val/1.png", "fog", 3) == int(text[:8], 16)


@needs_library
@pytest.mark.parametrize(("severity", "factor", "quality"), [(1, 0.4, 25), (3, 0.2, 15), (5, 0.05, 7)])
def test_contrast_and_jpeg_have_the_published_parameters(severity, factor, quality):
    image = picture(40, 50)
    expected = np.empty(image.shape)
    for channel in range(3):
        mean = sum(float(v) for v in image[..., channel].ravel()) / (40 * 50)
        for y in range(40):
            for x in range(50):
                expected[y, x, channel] = min(max((image[y, x, channel] - mean) * factor + mean, 0), 255)
    assert np.abs(corrupt(image, "contrast", severity, 0) - expected).max() <= 1  # the library rounds down
    file = BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    assert np.array_equal(corrupt(image, "jpeg_compression", severity, 0), np.array(Image.open(file)))


@needs_library
@pytest.mark.parametrize(("severity", "deviation"), [(1, 0.08), (2, 0.12)])
def test_gaussian_noise_has_the_published_deviation(severity, deviation):
    noisy = corrupt(np.full((200, 200, 3), 128, np.uint8), "gaussian_noise", severity, 1) / 255
    assert noisy.std() == pytest.approx(deviation, rel=0.02)  # 120,000 draws: 0.2 %
    assert noisy.mean() == pytest.approx(127.5 / 255, abs=0.002)  # rounded down


@pytest.mark.parametrize(("severity", "veil"), [(1, 0.10), (3, 0.26), (5, 0.42)])
def test_rain_is_a_veil_with_streaks_before_it(severity, veil):
    image = np.full((401, 301, 3), 60, np.uint8)
    pixels = corrupt(image, "rain", severity, 3)
    behind = round(60 * (1 - veil) + 150 * veil)
    levels, counts = np.unique(pixels, return_counts=True)
    assert levels[counts.argmax()] == behind == levels.min()
    streaks = 1 - counts.max() / pixels.size
    assert 0.02 < streaks < 0.85
    assert levels.max() <= 220
    assert np.array_equal(pixels[..., 0], pixels[..., 2])  # grey


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_darkness_halves_the_light_with_each_severity(severity):
    """Level 200 is (200 / 255)^2.2 of 4000 photoelectrons; they and the sensor's noise of 4 give the deviation."""
    electrons = 4000 * (200 / 255) ** 2.2 / 2**severity
    pixels = corrupt(np.full((200, 200, 3), 200, np.uint8), "darkness", severity, 0)
    counted = 4000 * (pixels / 255.0) ** 2.2
    assert counted.mean() == pytest.approx(electrons, rel=0.02)
    assert counted.std() == pytest.approx((electrons + 16) ** 0.5, rel=0.1)


def test_a_dataset_corrupts_what_it_reads(tiny_data):
    from ovenet.data.catalog import find_dataset

    info = find_dataset("camvid", tiny_data / "camvid")
    dataset = ListDataset(tiny_data, tiny_data / "list/camvid/val.lst", info, ignore_label=255)
    clean = dataset[0]
    dataset.corruption = Corruption("darkness", 2)
    sample = dataset[0]
    expected = corrupt(clean.image, "darkness", 2, corruption_seed(clean.name, "darkness", 2))
    assert np.array_equal(sample.image, expected)
    assert np.array_equal(sample.labels, clean.labels)


def crops(probability, kinds=OWN_KINDS, **settings):
    settings = {"image_size": (64, 48), "base_size": 95, "random_brightness": True, **settings}
    step = TrainTransform(CropSettings(corruption_probability=probability, corruptions=tuple(kinds), **settings))
    sample = Sample(picture(), np.zeros((63, 95), np.int16), "a.png")
    return [step(sample, np.random.default_rng([7, 0, index])) for index in range(24)]


def test_other_augmentations_stay_as_they_are():
    plain, corrupted, half = crops(0.0), crops(1.0), crops(0.5)
    for one, other in zip(plain, corrupted, strict=True):
        assert np.array_equal(one.changes, other.changes)
        assert np.array_equal(one.labels, other.labels)
        assert not np.array_equal(one.image, other.image)
    changed = [not np.array_equal(one.image, other.image) for one, other in zip(plain, half, strict=True)]
    assert 4 < sum(changed) < 20
    for one, other in zip(half, crops(0.5), strict=True):  # a repeated or resumed run
        assert np.array_equal(one.image, other.image)


def test_a_crop_is_one_of_the_kinds_at_one_of_the_severities():
    """With one kind, the numbers that are drawn last say which severity and seed."""
    (plain, *_), (corrupted, *_) = crops(0.0, multi_scale=False), crops(1.0, ["darkness"], multi_scale=False)
    found = []
    for severity in range(1, 6):
        dark = corrupt(np.full_like(plain.image, 128), "darkness", severity, 0)
        found.append(abs(dark.mean() / 128 - corrupted.image.mean() / plain.image.mean()))
    assert min(found) < 0.06
    assert isinstance(corrupted.image, np.ndarray)


def test_bad_input_is_one_line(monkeypatch):
    image = picture()
    for arguments, expected in (
        ((image, "fogg", 1, 0), ("'fogg'", "fog")),
        ((image, "rain", 6, 0), ("rain", "6", "1 to 5")),
        ((picture(20, 95), "rain", 1, 0), ("rain", "95x20", "32")),
        ((picture(63, 40), "motion_blur", 1, 0), ("motion_blur", "40x63", "41")),
    ):
        with pytest.raises(UserError) as raised:
            corrupt(*arguments)
        assert all(word in str(raised.value) for word in expected), raised.value
        assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match=r"val/1\.png.*95x20"):
        Corruption("rain", 1)(picture(20, 95), "val/1.png")
    with pytest.raises(UserError, match=r"--corruptions.*'jpg_compression'.*jpeg_compression"):
        kinds_of(["jpg_compression"], "--corruptions")

    monkeypatch.setattr(corruptions, "LIBRARY", "a-package-that-nobody-has")
    corruptions._library.cache_clear()
    with pytest.raises(UserError, match=r"a-package-that-nobody-has.*pip install"):
        corrupt(image, "fog", 1, 0)
    corruptions._library.cache_clear()


def test_the_dataset_of_a_training_is_untouched(tiny_data):
    """Corrupted crops, never the files' own pixels that other crops share."""
    from ovenet.data.catalog import find_dataset

    info = find_dataset("camvid", tiny_data / "camvid")
    dataset = ListDataset(tiny_data, tiny_data / "list/camvid/train.lst", info, ignore_label=255)
    settings = CropSettings((48, 48), 64, corruption_probability=1.0, corruptions=("rain",))
    first = AugmentedDataset(dataset, TrainTransform(settings), seed=0)[0, 0]
    again = AugmentedDataset(dataset, TrainTransform(settings), seed=0)[0, 0]
    assert np.array_equal(first.image, again.image)
