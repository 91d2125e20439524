"""Changes of whole batches on the device, against OpenCV one sample at a time."""

import cv2
import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from ovenet.data import transforms
from ovenet.data.augmentation import _to_hsv, apply_changes, augment, augment_and_normalize
from ovenet.data.settings import CropSettings
from ovenet.data.transforms import IMAGENET, TrainTransform, collate, normalize_images
from ovenet.structures import Batch, Normalization, Sample

NEUTRAL = [0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0]


def by_opencv(image, labels, changes):
    """The changes of one sample, in numbers of 64 bits and OpenCV's 8-bit colours."""
    flip, shift, *colors = changes.tolist()
    if flip:
        image, labels = image[:, ::-1], labels[:, ::-1]
    image = np.clip(image.astype(int) + int(shift), 0, 255).astype(np.uint8)
    if colors:
        brightness, contrast_first, saturation, hue, contrast_last = colors
        image = np.clip(image + brightness, 0, 255).astype(np.uint8)
        image = np.clip(image * contrast_first, 0, 255).astype(np.uint8)
        if saturation != 1 or hue:
            hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV).astype(float)
            hsv[..., 0] = (hsv[..., 0] + hue) % 180
            hsv[..., 1] = np.clip(hsv[..., 1] * saturation, 0, 255)
            image = cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB)
        image = np.clip(image * contrast_last, 0, 255).astype(np.uint8)
    return image, labels


def random_samples(count, size=(13, 21), **options):
    """Crops of noise with changes as they are drawn."""
    colors = {"random_brightness": True, "random_brightness_shift_value": 40, "photometric_distortion": True}
    step = TrainTransform(CropSettings(size[::-1], max(size), multi_scale=False, **{**colors, **options}))
    samples = []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        image = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
        samples.append(step(Sample(image, rng.integers(-1, 19, size).astype(np.int16), f"{seed}.png"), rng))
    return samples


def tensors_of(batch):
    return batch.images, batch.labels, batch.changes


def test_flips_and_shifts_are_exact():
    samples = random_samples(40, photometric_distortion=False)
    batch = collate(samples)
    assert batch.changes.shape == (40, 2)
    assert {0.0, 1.0} == set(batch.changes[:, 0].tolist())
    assert len(set(batch.changes[:, 1].tolist())) > 10
    images, labels = augment(batch.images, batch.labels, batch.changes)
    for number, sample in enumerate(samples):
        image, label = by_opencv(sample.image, sample.labels, sample.changes)
        np.testing.assert_array_equal(images[number].permute(1, 2, 0), image)
        np.testing.assert_array_equal(labels[number], label)
    assert labels.dtype == torch.int16
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_colours_are_those_of_opencv():
    """Hue and saturation are the same integers; on the way back OpenCV rounds or cuts off, as its machine has it."""
    samples = random_samples(60)
    batch = collate(samples)
    images, labels = augment(batch.images, batch.labels, batch.changes)
    num_other = 0
    for number, sample in enumerate(samples):
        image, label = by_opencv(sample.image, sample.labels, sample.changes)
        difference = np.abs(images[number].permute(1, 2, 0).numpy() - image)
        assert difference.max() <= (1 if sample.changes[6] == 1 else 2)  # the contrast comes after the rounding
        num_other += (difference > 0).sum()
        np.testing.assert_array_equal(labels[number], label)
    assert num_other < 0.4 * images.numel()
    changed = batch.changes != torch.tensor(NEUTRAL)
    assert changed.any(dim=0).all()  # each kind of change was among them
    assert not changed.all(dim=0).any()


def test_hues_and_saturations_of_all_grey_levels():
    """Every 5th level of each channel, and the extremes: 140,608 colours."""
    levels = np.unique([*range(0, 256, 5), 1, 254])
    colors = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(len(levels), -1, 3).astype(np.uint8)
    hues, saturations, values = _to_hsv(torch.from_numpy(colors).float().permute(2, 0, 1)[:, None])
    hsv = torch.cat((hues % 180, saturations, values)).permute(1, 2, 0)
    np.testing.assert_array_equal(hsv, cv2.cvtColor(colors, cv2.COLOR_RGB2HSV))


@pytest.mark.parametrize(
    ("changes", "before", "after", "tolerance"),
    [
        ({1: 7}, (100, 50, 252), (107, 57, 255), 0),
        ({2: 20.5}, (100, 50, 250), (120, 70, 255), 0),
        ({3: 0.5}, (100, 51, 250), (50, 25, 125), 0),
        ({6: 0.5}, (100, 51, 250), (50, 25, 125), 0),
        ({4: 0.5}, (100, 50, 200), (150, 125, 200), 2),  # towards the largest channel, by half
        ({5: 15}, (200, 0, 0), (200, 100, 0), 0),  # 30 degrees from red to yellow
        ({5: -15}, (200, 0, 0), (200, 0, 100), 0),
        ({}, (13, 57, 91), (13, 57, 91), 0),
    ],
)
def test_each_change_by_hand(changes, before, after, tolerance):
    row = [changes.get(column, value) for column, value in enumerate(NEUTRAL)]
    image = torch.tensor(before, dtype=torch.uint8).view(1, 3, 1, 1)
    out, _ = augment(image, torch.zeros(1, 1, 1, dtype=torch.int16), torch.tensor([row]))
    np.testing.assert_allclose(out.flatten(), after, atol=tolerance)


def test_contrast_is_drawn_before_or_after_the_colours():
    drawn = np.stack([sample.changes for sample in random_samples(200)])
    first, last = drawn[:, 3] != 1, drawn[:, 6] != 1
    assert not (first & last).any()
    assert 0.15 < first.mean() < 0.35
    assert 0.15 < last.mean() < 0.35
    assert (np.abs(drawn[:, 2]) <= transforms.MAX_BRIGHTNESS).all()
    assert ((drawn[:, [3, 4, 6]] >= 0.5) & (drawn[:, [3, 4, 6]] <= 1.5)).all()
    assert set(drawn[:, 5]) <= set(range(-18, 18))


@pytest.mark.parametrize("order", ["RGB", "BGR"])
@pytest.mark.parametrize("channels_last", [True, False])
def test_what_the_network_gets(order, channels_last):
    normalization = Normalization((0.4, 0.5, 0.6), (0.1, 0.2, 0.3), order)
    batch = collate(random_samples(6, photometric_distortion=False))
    if not channels_last:
        batch = Batch(batch.images.contiguous(), batch.labels, batch.names, changes=batch.changes)
    before = batch.images.clone()
    images, labels = augment_and_normalize(batch, normalization)
    for number, sample in enumerate(random_samples(6, photometric_distortion=False)):
        image, label = by_opencv(sample.image, sample.labels, sample.changes)
        image = (image if order == "RGB" else image[..., ::-1]) / 255
        expected = (image - np.array(normalization.mean)) / np.array(normalization.std)
        np.testing.assert_allclose(images[number].permute(1, 2, 0), expected, atol=1e-5)
        np.testing.assert_array_equal(labels[number], label)
    assert torch.equal(batch.images, before)  # a batch may be kept, and replayed


def test_batches_without_changes_are_only_normalised():
    images = torch.randint(0, 256, (2, 3, 5, 7), dtype=torch.uint8)
    labels = torch.zeros(2, 5, 7, dtype=torch.int16)
    out, same = augment_and_normalize(Batch(images, labels, ("a", "b")), IMAGENET)
    assert torch.equal(out, normalize_images(images))
    assert same is labels


def test_a_sample_is_shown_as_the_network_sees_it():
    for sample in random_samples(4):
        image, labels = by_opencv(sample.image, sample.labels, sample.changes)
        shown = apply_changes(sample)
        assert np.abs(shown.image.astype(int) - image).max() <= 2
        np.testing.assert_array_equal(shown.labels, labels)
        assert shown.changes is None
        assert apply_changes(shown) is shown


class Seen(TorchDispatchMode):
    """Names of the operations that compute, and the devices of what they read."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        devices = {str(x.device) for x in args if isinstance(x, torch.Tensor)}
        if not operation.is_view and operation.namespace == "aten":
            self.calls.append((str(operation), devices))
        return operation(*args, **(kwargs or {}))


@pytest.mark.skipif(torch.__version__ < "2.9", reason="tensors that say they were on a card look for it")
@pytest.mark.parametrize("photometric", [False, True])
def test_the_device_waits_for_nothing_and_nothing_is_copied(photometric):
    """On a CUDA device that is not there: operations whose shapes hang on values raise, copies are seen."""
    batch = collate(random_samples(2, photometric_distortion=photometric))
    try:
        with FakeTensorMode() as mode:
            images, labels, changes = (mode.from_tensor(x).to("cuda:0") for x in tensors_of(batch))
            fake = Batch(images, labels, batch.names, changes=changes)
            augment_and_normalize(fake, IMAGENET)  # makes the constants
            with Seen() as seen:
                images, labels = augment_and_normalize(fake, IMAGENET)
        assert images.device == labels.device == torch.device("cuda:0")
        assert images.shape == batch.images.shape
        assert all(devices <= {"cuda:0"} for _, devices in seen.calls)
        assert not [name for name, _ in seen.calls if "scalar_dense" in name or "nonzero" in name]
        assert len(seen.calls) <= (110 if photometric else 22)
    finally:
        transforms._mean_and_std.cache_clear()  # the fake ones


@pytest.mark.gpu
@pytest.mark.parametrize("photometric", [False, True])
def test_a_card_makes_of_a_batch_what_the_cpu_does(photometric):
    """Also from a CUDA graph, whose inputs are replaced."""
    first, second = (collate(random_samples(16, photometric_distortion=photometric)[half::2]) for half in (0, 1))
    images, labels, changes = (x.cuda() for x in tensors_of(first))
    static = Batch(images, labels, first.names, changes=changes)
    augment_and_normalize(static, IMAGENET)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        images, labels = augment_and_normalize(static, IMAGENET)
    for old, new in zip(tensors_of(static), tensors_of(second), strict=True):
        old.copy_(new)
    graph.replay()
    expected_images, expected_labels = augment_and_normalize(second, IMAGENET)
    torch.testing.assert_close(images.cpu(), expected_images, rtol=0, atol=1.01 / 255 / 0.224 if photometric else 1e-5)
    assert torch.equal(labels.cpu(), expected_labels)
