"""A user's photos and masks as a dataset: what is found, named, refused; nothing is written before all is checked."""

import json
import math

import numpy as np
import pytest
from PIL import Image

from ovenet.data.catalog import find_dataset
from ovenet.errors import UserError
from ovenet.fitting.photos import read_photos
from ovenet.preparation.prepare import prepare_dataset


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture
def folders(tmp_path):
    """A function that writes photos and masks of 40x30 pixels: halves of 0 and 1, and 2 in every fourth."""

    def write(num=8, *, mask_name="{}.png", size=(30, 40), value=None):
        for index in range(num):
            mask = np.zeros((30, 40), np.uint8)
            mask[:, 20:] = 1
            if index % 4 == 0:
                mask[:6] = 2
            if value is not None:
                mask[:] = value
            save(tmp_path / f"photos/photo {index}.jpg", np.full((*size, 3), 10 * index, np.uint8))
            save(tmp_path / "masks" / mask_name.format(f"photo {index}"), mask)
        return tmp_path / "photos", tmp_path / "masks"

    return write


@pytest.mark.parametrize("mask_name", ["{}.png", "{}_mask.png"])
def test_pairs_become_a_dataset(folders, tmp_path, mask_name):
    found = read_photos(*folders(mask_name=mask_name), ("left", "right", "top"))
    assert [row["name"] for row in found.description["classes"]] == ["left", "right", "top"]
    assert (found.size, found.num_classes, len(found.pairs["train"]), len(found.pairs["val"])) == ((40, 30), 3, 6, 2)
    for pairs in found.pairs.values():  # the class of two photos is in both
        assert any(int(photo.stem.split()[1]) % 4 == 0 for photo, _ in pairs)
        assert all(mask.stem.startswith(photo.stem) for photo, mask in pairs)
    root = tmp_path / "data"
    found.write(root / "mine")
    lists = prepare_dataset("mine", root)
    assert (lists.num_lines["train"], lists.num_lines["val"], lists.remarks) == (6, 2, ())
    linked = sorted((root / "mine/images").rglob("*.jpg"))
    assert sorted(path.resolve().name for path in linked) == [f"photo {index}.jpg" for index in range(8)]
    described = json.loads((root / "mine/dataset.json").read_text())
    assert described["classes"][2] == {"name": "top", "id": 2}
    shares = [0.475, 0.475, 0.05]  # a fifth of a quarter of the pixels is on top
    raw = [1 / math.log(1.02 + share) for share in shares]
    assert described["class_weights"] == pytest.approx([3 * weight / sum(raw) for weight in raw], abs=1e-4)
    assert find_dataset("mine", root / "mine").class_weights == tuple(described["class_weights"])


def test_one_folder_with_both(folders):
    photos, _ = folders()
    assert len(read_photos(photos.parent, None, ()).pairs["train"]) == 6


def test_one_folder_without_masks(folders):
    photos, _ = folders()
    with pytest.raises(UserError, match=r"photos: .*folder of masks is not named"):
        read_photos(photos, None, ())


def test_files_in_order(folders, tmp_path):
    photos, masks = folders()
    files = [sorted(folder.iterdir()) for folder in (photos, masks)]
    found = read_photos(files[0], [str(mask) for mask in files[1]], ())
    assert {pair for pairs in found.pairs.values() for pair in pairs} == set(zip(*files, strict=True))
    with pytest.raises(UserError, match="8 photos and 7 masks"):
        read_photos(files[0], files[1][1:], ())


def test_the_users_own_split_stays(folders, tmp_path):
    photos, masks = folders()
    for folder in (photos, masks):
        for split, indices in (("train", range(5)), ("val", range(5, 8))):
            for index in indices:
                (file,) = folder.glob(f"photo {index}.*")
                (folder / split).mkdir(exist_ok=True)
                file.rename(folder / split / file.name)
    found = read_photos(photos, masks, ())
    assert {split: len(pairs) for split, pairs in found.pairs.items()} == {"train": 5, "val": 3}


def test_a_photo_without_a_mask_is_left_out_by_name(folders):
    photos, masks = folders()
    (masks / "photo 3.png").unlink()
    found = read_photos(photos, masks, ())
    assert sum(map(len, found.pairs.values())) == 7
    assert any("photo 3" in note for note in found.notes)


def emptied(folder):
    for file in folder.iterdir():
        file.unlink()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda photos, masks: emptied(masks), r"/masks: no masks in it"),
        (lambda photos, masks: emptied(photos), r"/photos: no photos in it"),
        (
            lambda photos, masks: [mask.rename(mask.with_name(f"m{i}.png")) for i, mask in enumerate(masks.iterdir())],
            r"photos and \S+/masks: no photo has a mask of its name \(8 photos, 8 masks\)",
        ),
        (
            lambda photos, masks: [photo.unlink() for photo in sorted(photos.iterdir())[2:]],
            r"2 photo\(s\) with a mask; .* at least 3",
        ),
        (
            lambda photos, masks: [save(mask, np.zeros((30, 40), np.uint8)) for mask in masks.iterdir()],
            r"/masks: the masks hold 1 value.*two classes|the masks hold 1 value.*two classes",
        ),
        (
            lambda photos, masks: save(masks / "photo 2.png", np.eye(60, dtype=np.uint8)),
            r"size differs: .*photo 2",
        ),
        (lambda photos, masks: (masks / "photo 1.png").write_bytes(b"\x89PNG cut"), r"photo 1\.png"),
    ],
    ids=["no masks", "no photos", "no pairs", "two photos", "one class", "another size", "a broken mask"],
)
def test_what_is_refused(folders, change, message):
    photos, masks = folders()
    change(photos, masks)
    with pytest.raises(UserError, match=message) as refused:
        read_photos(photos, masks, ())
    assert "\n" not in str(refused.value)
    assert "ovenet-fit-" not in str(refused.value)


def test_folders_that_are_missing(folders, tmp_path):
    photos, _ = folders()
    with pytest.raises(UserError, match="nowhere: no such folder"):
        read_photos(photos, tmp_path / "nowhere", ())


@pytest.mark.parametrize(("names", "message"), [(("a", "b"), "2 names.*have 3"), (("a", "b", "a"), "each once")])
def test_names_of_classes(folders, names, message):
    with pytest.raises(UserError, match=message):
        read_photos(*folders(), names)
