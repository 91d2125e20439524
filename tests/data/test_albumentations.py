"""Pipelines of Albumentations, or of what is called as one."""

import numpy as np
import pytest
import torch

from ovenet import SegmentationDataset, UserError
from ovenet.data.albumentations import AlbumentationsTransform
from ovenet.structures import Sample

SIZE = (40, 60)


class Pipeline:
    """As `albumentations.Compose` is called; shifts by a drawn number of columns."""

    def __init__(self, change=lambda out: out):
        self.rng, self.change = np.random.default_rng(), change

    def set_random_seed(self, seed):
        self.rng = np.random.default_rng(seed)

    def __call__(self, *, image, mask):
        shift = int(self.rng.integers(1, 50))
        return self.change({"image": np.roll(image, shift, axis=1), "mask": np.roll(mask, shift, axis=1)})


@pytest.fixture
def sample():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, SIZE).astype(np.int16)
    return Sample(np.repeat(labels[..., None] * 50, 3, axis=2).astype(np.uint8), labels, "one")


def test_image_and_mask_are_changed_together_and_seeded(sample):
    transform = AlbumentationsTransform(Pipeline())
    one, same, other = (transform(sample, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.image[..., 0], one.labels * 50)
    np.testing.assert_array_equal(one.labels, same.labels)
    assert (one.labels != other.labels).any()
    assert (one.labels.dtype, one.name) == (np.int16, "one")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda out: {**out, "image": out["image"] / 255}, "image of float64; .*Normalize"),
        (lambda out: {**out, "image": torch.zeros(3, 4, 5)}, "image of torch.float32; .*ToTensorV2"),
        (lambda out: {**out, "mask": out["mask"][:7]}, r"mask of \(7, 60\)"),
    ],
)
def test_what_the_dataset_does_itself_is_refused(sample, change, message):
    with pytest.raises(UserError, match=message):
        AlbumentationsTransform(Pipeline(change))(sample, np.random.default_rng(0))


def test_the_package_itself(sample):
    A = pytest.importorskip("albumentations", reason="albumentations is not installed")
    pipeline = A.Compose([A.HorizontalFlip(), A.VerticalFlip(), A.Transpose(), A.RandomCrop(20, 30)])
    dataset = SegmentationDataset([sample.image], [sample.labels], classes=5, transform=pipeline, seed=0)
    crops = []
    for epoch in (0, 1, 2, 0):
        dataset.set_epoch(epoch)
        image, labels = dataset[0]
        assert image.shape == (3, 20, 30)
        grey = ((image[0] * 0.229 + 0.485) * 255).round()
        assert torch.equal(grey, labels * 50.0)
        crops.append(labels)
    assert torch.equal(crops[0], crops[3])
    assert not torch.equal(crops[0], crops[1])
