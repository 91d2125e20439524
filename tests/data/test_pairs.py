"""A dataset from folders, lists and arrays, without a configuration."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

import ovenet
from ovenet import Normalization, SegmentationDataset, UserError

SIZE = (63, 95)


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*SIZE, 3)).astype(np.uint8) for _ in range(3)]
    masks = [rng.integers(0, 3, SIZE).astype(np.uint8) for _ in range(3)]
    masks[0][:5] = 255
    return images, masks


@pytest.fixture
def folders(arrays, tmp_path):
    for index, (image, mask) in enumerate(zip(*arrays, strict=True)):
        for name, pixels in ((f"photos/sub/{index}.png", image), (f"masks/sub/{index}_mask.png", mask)):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / name)
    return tmp_path / "photos", tmp_path / "masks"


def slow_item(image, mask, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)):
    pixels = np.stack([(image[..., c] / 255 - mean[c]) / std[c] for c in range(image.shape[2])])
    return torch.from_numpy(pixels).float(), torch.from_numpy(mask.astype(np.int64))


def test_items_are_normalised_pixels_and_class_ids(arrays, folders):
    images, masks = arrays
    files = [sorted(folder.rglob("*.png")) for folder in folders]
    for sources in (arrays, folders, tuple(map(str, folders)), files):
        dataset = SegmentationDataset(*sources, classes=["a", "b", "c"])
        assert len(dataset) == 3
        for (image, labels), *raw in zip(dataset, images, masks, strict=False):
            expected, ids = slow_item(*raw)
            torch.testing.assert_close(image, expected, atol=1e-5, rtol=1e-5)
            assert torch.equal(labels, ids)
    batch, labels = next(iter(DataLoader(dataset, batch_size=2)))
    assert (batch.shape, batch.dtype, labels.dtype) == ((2, 3, *SIZE), torch.float32, torch.int64)
    alone = SegmentationDataset(folders[0], classes=3)
    assert torch.equal(alone[1], dataset[1][0])


def test_ids_and_colours_of_the_masks(arrays):
    image, mask = arrays[0][0], np.where(arrays[1][0] == 255, 255, arrays[1][0] * 10)
    by_id = SegmentationDataset([image], [mask], classes={"a": 0, "b": 10, "c": 20}, ignore_label=-100)
    expected = np.where(mask == 255, -100, mask.astype(int) // 10)
    assert torch.equal(by_id[0][1], torch.from_numpy(expected.astype(np.int64)))
    assert by_id.info.class_names == ("a", "b", "c")
    colors = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255)], np.uint8)
    ids = arrays[1][1]
    names = dict(zip("abc", map(tuple, colors.tolist()), strict=True))
    by_color = SegmentationDataset([image], [colors[ids]], classes=names)
    assert torch.equal(by_color[0][1], torch.from_numpy(ids.astype(np.int64)))
    assert SegmentationDataset([image], classes=2).info.class_names == ("class 0", "class 1")


def test_other_channels_than_three():
    """Flip, scale and padding of six channels; the padding is the mean, 0 when normalised to within rounding."""
    image = np.random.default_rng(0).integers(0, 256, (*SIZE, 6)).astype(np.uint8)
    mean, std = tuple(0.1 * k for k in range(1, 7)), (0.5,) * 6
    normalization = Normalization(mean, std)
    mask = np.zeros(SIZE, np.uint8)
    plain = SegmentationDataset([image], [mask], classes=2, normalization=normalization)
    torch.testing.assert_close(plain[0][0], slow_item(image, mask, mean, std)[0], atol=1e-5, rtol=1e-5)
    cropped = SegmentationDataset(
        [image], [mask], classes=2, normalization=normalization, transform=ovenet.train_transform((96, 128)), seed=3
    )
    for epoch in range(4):
        cropped.set_epoch(epoch)
        crop, labels = cropped[0]
        assert crop.shape == (6, 96, 128)
        assert crop[:, labels == 255].abs().max() <= 1 / 255 / 0.5 if (labels == 255).any() else epoch
    (one,) = SegmentationDataset([image[..., 0]], classes=2, normalization=Normalization((0.5,), (0.5,)))
    assert one.shape == (1, *SIZE)
    with pytest.raises(UserError, match=r"image 0: \(63, 95, 6\) uint8; expected \(H, W, 3\)"):
        SegmentationDataset([image], classes=2)[0]
    colors = ovenet.train_transform((32, 32), colors=True)
    with pytest.raises(UserError, match=r"colors=True .* 6 channels"):
        SegmentationDataset([image], [mask], classes=2, normalization=normalization, transform=colors)[0]


def test_the_augmentation_of_a_sample_is_determined_by_seed_epoch_and_index(arrays):
    def crops(epoch, seed=0):
        dataset = SegmentationDataset(
            *arrays, classes=3, transform=ovenet.train_transform((32, 48), colors=True), seed=seed
        )
        dataset.set_epoch(epoch)
        return [dataset[index][0] for index in (2, 0)]

    assert all(torch.equal(a, b) for a, b in zip(crops(1), crops(1), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(crops(1), crops(2), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(crops(1), crops(1, seed=1), strict=True))
    drawn = SegmentationDataset(*arrays, classes=3, transform=ovenet.train_transform((32, 48)))
    torch.manual_seed(5)
    first, second = drawn[0][0], drawn[0][0]
    torch.manual_seed(5)
    assert torch.equal(drawn[0][0], first)
    assert not torch.equal(first, second)


def test_image_and_mask_are_transformed_together():
    """Where the image is bright, the class is 1, whatever crop, scale and flip."""
    mask = (np.indices(SIZE).sum(axis=0) // 16 % 2).astype(np.uint8)
    image = np.repeat(mask[..., None] * 255, 3, axis=2)
    plain = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    transform = ovenet.train_transform((64, 64), scales=(1.0, 1.0))
    dataset = SegmentationDataset([image], [mask], classes=2, transform=transform, normalization=Normalization(**plain))
    for _ in range(5):
        pixels, labels = dataset[0]
        assert torch.equal(pixels[0][labels != 255], labels[labels != 255].float())


def test_a_fixed_size_for_validation(arrays):
    dataset = SegmentationDataset(*arrays, classes=3, transform=ovenet.eval_transform((64, 64)))
    image, labels = dataset[0]
    assert image.shape == (3, 64, 64)
    assert (labels[42:] == 255).all()  # 63 x 95 becomes 42 x 64
    assert set(labels[:42].unique().tolist()) == {0, 1, 2, 255}


def test_any_function_is_a_transform(arrays):
    def shade(sample, rng):
        return ovenet.structures.Sample(sample.image[:10], sample.labels[:10] * 0, sample.name)

    image, labels = SegmentationDataset(*arrays, classes=3, transform=shade)[0]
    assert image.shape == (3, 10, 95)
    assert labels.sum() == 0


def test_slips_are_one_line(arrays, folders, tmp_path, caplog):
    photos, masks = folders
    (tmp_path / "empty").mkdir()
    for sources, message in (
        ((photos, tmp_path / "empty"), "empty: a folder without images"),
        ((photos, tmp_path / "none"), "none: there is no such folder"),
        ((photos, photos), "images and masks in one folder"),
        ((photos, [1]), "one is a folder, the other a list"),
        ((arrays[0], arrays[1][:2]), "3 images and 2 masks"),
        (([], []), "an empty list"),
    ):
        with pytest.raises(UserError, match=message):
            SegmentationDataset(*sources, classes=3)
    (masks / "sub/7_mask.png").write_bytes((masks / "sub/1_mask.png").read_bytes())
    assert len(SegmentationDataset(photos, masks, classes=3)) == 3
    assert "1 masks have no image" in caplog.text
    (masks / "sub/1_mask.png").unlink()
    with pytest.raises(UserError, match=r"1 of 3 images in .*photos have no mask in .*masks \(not: sub/1\)"):
        SegmentationDataset(photos, masks, classes=3)


def test_wrong_masks_are_named(arrays, folders):
    images, masks = arrays
    for mask, message in (
        (masks[0] + 3, r"mask 0: label value 3 is no class"),
        (masks[0][:9], r"mask 0: the mask is 95x9 pixels, its image image 0 95x63"),
        (masks[0].astype(np.float32), r"mask 0: \(63, 95\) float32; expected integers"),
    ):
        with pytest.raises(UserError, match=message):
            SegmentationDataset(images[:1], [mask], classes=3)[0]
    (folders[1] / "sub/0_mask.png").write_text("no mask")
    with pytest.raises(UserError, match=r"0_mask\.png: .*a text file"):
        SegmentationDataset(*folders, classes=3)[0]


@pytest.mark.parametrize("classes", ["wall", 0, ["a", "a"], {"a": 300}, [], None])
def test_what_are_no_classes(arrays, classes):
    with pytest.raises(UserError, match="classes"):
        SegmentationDataset(*arrays, classes=classes)


def test_crops_and_scales_are_checked():
    for options in ({"crop": (0, 4)}, {"crop": (4, 4), "scales": (2, 1)}, {"crop": (4, 4), "long_side": 0}):
        with pytest.raises(UserError, match="crop is"):
            ovenet.train_transform(**options)
