"""Joint transforms: image and label stay together, and the random numbers decide everything."""

import numpy as np
import pytest
import torch
from torch.utils.data._utils.pin_memory import pin_memory

from ovenet.data.augmentation import apply_changes
from ovenet.data.samplers import TrainSampler, evaluation_shard, spread
from ovenet.data.settings import CropSettings
from ovenet.data.transforms import (
    IMAGENET,
    TrainTransform,
    box_size,
    collate,
    normalize_images,
    resize_image,
    resize_labels,
    scaled_size,
)
from ovenet.structures import Sample


def sample_of(height: int, width: int) -> Sample:
    """Labels in blocks of 8 pixels; the red channel says the label, green the row, blue the column."""
    rows, columns = np.mgrid[:height, :width]
    labels = ((rows // 8 + columns // 8) % 7).astype(np.int16)
    image = np.stack((labels * 30 + 10, rows, columns), axis=-1).astype(np.uint8)
    return Sample(image, labels, "a.png")


def transform(*, crop_size=(24, 40), base_size=64, **options) -> TrainTransform:
    """A transform without augmentation but for the options: arguments of the transform, else settings."""
    own = {key: options.pop(key) for key in ("stretch", "flip_table") if key in options}
    settings = {"multi_scale": False, "flip": False, **options}
    return TrainTransform(CropSettings(image_size=crop_size[::-1], base_size=base_size, **settings), **own)


def seen(step: TrainTransform, source: Sample, seed: int) -> Sample:
    """A variant as the network sees it: with the changes that the device makes."""
    return apply_changes(step(source, np.random.default_rng(seed)))


def test_a_crop_is_a_window_of_the_image():
    source = sample_of(48, 64)
    corners = set()
    for seed in range(30):
        out = transform()(source, np.random.default_rng(seed))
        top, left = int(out.image[0, 0, 1]), int(out.image[0, 0, 2])
        corners.add((top, left))
        np.testing.assert_array_equal(out.image, source.image[top : top + 24, left : left + 40])
        np.testing.assert_array_equal(out.labels, source.labels[top : top + 24, left : left + 40])
    assert len(corners) > 25


def test_flipping_turns_image_and_label():
    source, flipped = sample_of(24, 40), 0
    for seed in range(40):
        out = seen(transform(flip=True, base_size=40), source, seed)
        if out.image[0, 0, 2] != 0:
            flipped += 1
            np.testing.assert_array_equal(out.image, source.image[:, ::-1])
            np.testing.assert_array_equal(out.labels, source.labels[:, ::-1])
    assert 8 < flipped < 32


def test_padding_is_ignored_and_nearly_zero_after_normalisation():
    out = transform(crop_size=(30, 50), base_size=40)(sample_of(24, 40), np.random.default_rng(0))
    assert (out.labels[24:] == 255).all()
    assert (out.labels[:, 40:] == 255).all()
    assert (out.image[24:] == IMAGENET.pad_color).all()
    normalized = normalize_images(torch.from_numpy(out.image.copy()).permute(2, 0, 1)[None])
    assert normalized[0, :, 24:].abs().max() < 0.01


def test_scales_are_half_and_up_in_tenths():
    """A square image has its scaled size in the padding: crop 64, scales of 10 pixels are 5 to 15 pixels."""
    sizes = set()
    for seed in range(200):
        step = transform(crop_size=(64, 64), base_size=10, multi_scale=True, scale_factor=10)
        out = step(sample_of(40, 40), np.random.default_rng(seed))
        sizes.add(int((out.labels[0] != 255).sum()))
    assert sizes == set(range(5, 16))


def test_scaling_keeps_image_and_label_together():
    out = transform(crop_size=(96, 128), base_size=128)(sample_of(48, 64), np.random.default_rng(0))
    center = np.s_[2::16, 2::16]  # well inside the blocks, which are 16 pixels now
    expected = np.round((out.image[center][..., 0].astype(float) - 10) / 30)
    np.testing.assert_array_equal(out.labels[center], expected)


def test_labels_are_resized_by_the_nearest_pixel_centre():
    labels = np.random.default_rng(0).integers(0, 9, (9, 13)).astype(np.int16)
    for height, width in ((5, 7), (18, 26), (14, 31)):
        resized = resize_labels(labels, (height, width))
        for i in range(height):
            for j in range(width):
                row, column = int((i + 0.5) * 9 / height), int((j + 0.5) * 13 / width)
                assert resized[i, j] == labels[row, column]


def test_images_are_resized_on_pixel_centres():
    ramp = np.repeat(np.arange(0, 200, 20, dtype=np.uint8)[None, :, None], 4, axis=0).repeat(3, axis=2)
    doubled = resize_image(ramp, (4, 20))[0, :, 0].astype(float)
    expected = np.clip((np.arange(20) + 0.5) / 2 - 0.5, 0, 9) * 20
    np.testing.assert_allclose(doubled, expected, atol=1)


def test_brightness_shifts_all_pixels_alike_and_stays_in_range():
    source, shifts = sample_of(24, 40), set()
    for seed in range(60):
        out = seen(transform(random_brightness=True, random_brightness_shift_value=10, base_size=40), source, seed)
        difference = out.image.astype(int) - source.image.astype(int)
        unclipped = (out.image > 0) & (out.image < 255)
        assert len(np.unique(difference[unclipped])) == 1
        shifts.add(int(difference[unclipped][0]))
    assert min(shifts) >= -10
    assert max(shifts) <= 10
    assert len(shifts) > 8


@pytest.mark.parametrize(
    ("size", "long_side", "expected"),
    [((1024, 2048), 1024, (512, 1024)), ((2048, 1024), 1024, (1024, 512)), ((3, 1000), 100, (1, 100))],
)
def test_scaled_size(size, long_side, expected):
    assert scaled_size(size, long_side) == expected


def test_normalisation_by_hand():
    out = normalize_images(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8))
    expected = [(1 - m) / s for m, s in zip(IMAGENET.mean, IMAGENET.std, strict=True)]
    np.testing.assert_allclose(out.flatten(), expected, rtol=1e-5)


def test_batches_are_stacked_channels_first():
    batch = collate([sample_of(8, 16), sample_of(8, 16)])
    assert batch.images.shape == (2, 3, 8, 16)
    assert batch.labels.dtype == torch.int16
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.images[1, 2, 3, 5] == 5
    assert batch.names == ("a.png", "a.png")


def test_batches_can_be_pinned_by_the_loader(monkeypatch):
    """torch pins what has a method of this name; the tensors themselves need CUDA for it."""
    batch, pinned = collate([sample_of(8, 16)]), []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor.clone())
    copy = pin_memory(batch)
    assert len(pinned) == 2
    assert copy is not batch
    assert torch.equal(copy.images, batch.images)
    assert copy.names == batch.names


@pytest.mark.gpu
def test_pinned_batches_keep_their_layout():
    batch = collate([sample_of(8, 16), sample_of(8, 16)]).pin_memory()
    assert batch.images.is_pinned()
    assert batch.labels.is_pinned()
    assert batch.images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("num_samples", "world_size"), [(10, 1), (10, 3), (3, 4)])
def test_every_sample_is_evaluated_once(num_samples, world_size):
    shards = [evaluation_shard(num_samples, rank=r, world_size=world_size) for r in range(world_size)]
    assert sorted(i for shard in shards for i in shard) == list(range(num_samples))


def test_training_shares_are_equal_disjoint_and_new_every_epoch():
    samplers = [TrainSampler(11, rank=r, world_size=3, seed=5) for r in range(3)]
    first = [list(s) for s in samplers]
    assert [len(share) for share in first] == [3, 3, 3] == [len(s) for s in samplers]
    assert len({key for share in first for key in share}) == 9
    samplers[0].epoch = 1
    assert [i for _, i in samplers[0]] != [i for _, i in first[0]]
    assert {e for e, _ in samplers[0]} == {1}
    again = TrainSampler(11, rank=0, world_size=3, seed=5)
    assert list(again) == first[0]
    assert [i for _, i in TrainSampler(4, rank=0, world_size=1, seed=0, shuffle=False)] == [0, 1, 2, 3]


def test_rare_class_crops_show_every_class_of_the_image_equally_often():
    """One pixel of class 5, 0.05 % of the image: every crop of the plain kind misses it 7 times in 8."""
    labels = np.zeros((64, 32), np.int16)
    labels[40, 9] = 5
    labels[:2] = 255
    source = Sample(np.zeros((64, 32, 3), np.uint8), labels, "a.png")

    def shares(rare_class_crops):
        step = transform(crop_size=(8, 16), base_size=64, rare_class_crops=rare_class_crops)
        crops = [step(source, np.random.default_rng(seed)).labels for seed in range(400)]
        assert all(crop.shape == (8, 16) for crop in crops)
        return np.mean([(crop == 5).any() for crop in crops])

    assert shares(0.0) < 0.15  # of 57 x 17 corners 8 x 10 show it: 8.3 %
    assert 0.47 < shares(1.0) < 0.63  # half of the crops are laid around it, and 8 % of the others show it
    assert 0.22 < shares(0.5) < 0.4


def test_rare_class_crops_change_nothing_when_they_are_off():
    source = sample_of(48, 64)
    for seed in range(5):
        plain = seen(transform(flip=True), source, seed)
        off = seen(transform(flip=True, rare_class_crops=0.0), source, seed)
        np.testing.assert_array_equal(plain.image, off.image)


def test_rare_class_crops_of_an_image_without_a_class():
    source = Sample(np.zeros((30, 50, 3), np.uint8), np.full((30, 50), 255, np.int16), "a.png")
    out = transform(rare_class_crops=1.0, base_size=50)(source, np.random.default_rng(0))
    assert out.labels.shape == (24, 40)


def test_left_and_right_change_places_in_flipped_samples():
    table = np.array([0, 2, 1, 3, 4, 5, 6])
    source, flipped = sample_of(24, 40), 0
    for seed in range(20):
        out = seen(transform(flip=True, base_size=40, flip_table=table), source, seed)
        if out.image[0, 0, 2] != 0:
            flipped += 1
            expected = source.labels[:, ::-1].copy()
            ones, twos = expected == 1, expected == 2
            expected[ones], expected[twos] = 2, 1
            np.testing.assert_array_equal(out.labels, expected)
        else:
            np.testing.assert_array_equal(out.labels, source.labels)
    assert 0 < flipped < 20


@pytest.mark.parametrize("ignore", [255, -1])
def test_flipping_leaves_ignored_pixels_alone(ignore):
    labels = np.full((24, 40), ignore, np.int16)
    source = Sample(np.zeros((24, 40, 3), np.uint8), labels, "a.png")
    step = transform(flip=True, base_size=40, flip_table=np.array([1, 0]), ignore_label=ignore)
    for seed in range(4):
        assert (seen(step, source, seed).labels == ignore).all()


def test_stretching_gives_up_the_proportions():
    out = transform(stretch=True)(sample_of(90, 30), np.random.default_rng(0))
    assert out.image.shape == (24, 40, 3)
    np.testing.assert_allclose(out.image[:, 0, 1], (np.arange(24) + 0.5) * 90 / 24 - 0.5, atol=1)
    np.testing.assert_allclose(out.image[0, :, 2], np.clip((np.arange(40) + 0.5) * 0.75 - 0.5, 0, 29), atol=1)


def test_any_scale_of_a_range_is_drawn():
    """A square image in a crop of 64: its side is between 5 and 20 pixels, of any length."""
    sides = []
    for seed in range(300):
        step = transform(crop_size=(64, 64), base_size=10, scale_range=(0.5, 2.0))
        sides.append(int((step(sample_of(40, 40), np.random.default_rng(seed)).labels[0] != 255).sum()))
    assert set(sides) == set(range(5, 21))
    assert abs(np.mean(sides) - 12.5) < 0.8


@pytest.mark.parametrize(
    ("size", "scale", "expected"),
    [
        ((512, 683), 1.0, (512, 683)),  # the short side limits
        ((300, 400), 1.0, (512, 683)),
        ((100, 1000), 1.0, (205, 2048)),  # the long side limits
        ((400, 300), 0.5, (341, 256)),  # portrait; 256 / 300 · 400 = 341.3
        ((1024, 2048), 1.0, (512, 1024)),
    ],
)
def test_images_fit_into_a_box(size, scale, expected):
    assert box_size(size, (2048, 512), scale) == expected


def test_crops_of_one_class_are_drawn_anew():
    """Class 1 covers the left quarter; elsewhere is class 0."""
    labels = np.zeros((40, 160), np.int16)
    labels[:, :40] = 1
    source = Sample(np.zeros((40, 160, 3), np.uint8), labels, "a.png")
    shares = {}
    for ratio in (1.0, 0.75):
        step = transform(crop_size=(40, 40), base_size=160, cat_max_ratio=ratio)
        crops = [step(source, np.random.default_rng(seed)).labels for seed in range(200)]
        shares[ratio] = np.mean([0.25 < (crop == 1).mean() < 0.75 for crop in crops])
    assert shares[1.0] < 0.25  # 19 of 121 places
    assert shares[0.75] > 0.75  # 1 - (102 / 121)^10 = 0.82 within ten tries


def test_ignored_pixels_are_no_class_of_a_crop():
    labels = np.full((24, 40), 255, np.int16)
    labels[:, :20] = 3
    source = Sample(np.zeros((24, 40, 3), np.uint8), labels, "a.png")
    out = transform(base_size=40, cat_max_ratio=0.75)(source, np.random.default_rng(0))
    np.testing.assert_array_equal(out.labels, labels)  # no crop is better; the last try is taken


def test_colours_change_and_labels_do_not():
    source = sample_of(24, 40)
    changed = 0
    for seed in range(40):
        out = seen(transform(base_size=40, photometric_distortion=True), source, seed)
        np.testing.assert_array_equal(out.labels, source.labels)
        again = seen(transform(base_size=40, photometric_distortion=True), source, seed)
        np.testing.assert_array_equal(out.image, again.image)
        changed += not np.array_equal(out.image, source.image)
    assert 30 < changed < 40  # one in sixteen keeps all, beside contrasts and hues of nothing


@pytest.mark.parametrize(("items", "chosen", "expected"), [(10, 3, [0, 4, 9]), (2, 5, [0, 1]), (5, 1, [0]), (4, 0, [])])
def test_pairs_are_spread_evenly(items, chosen, expected):
    assert spread(items, chosen) == expected
