"""Where a user's own folder keeps images and masks, told from the names in it."""

import json
from itertools import product

import pytest

from ovenet.errors import UserError
from ovenet.preparation.prepare import prepare_dataset
from ovenet.preparation.recognition import recognize_layouts

NAMES = ("a1", "b 2", "c.rf.3")


@pytest.fixture
def folder(tmp_path):
    """A function that makes files, ``#`` standing for each of three names; returns the dataset's folder."""

    def make(*patterns):
        root = tmp_path / "data/own"
        for pattern, name in product(patterns, NAMES):
            path = root / pattern.replace("#", name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x")
        return root

    return make


SPLIT = {"train": "train", "val": "valid", "test": "test"}
# Files, and what is recognised: images, labels, names of splits.
TREES = {
    "photos and masks": (["photos/#.jpg", "masks/#.png"], "photos/**", "masks/**", {}),
    "beside each other": (["#.jpg", "#_mask.png"], "**", "**_mask", {}),
    "upper case": (["IMAGES/#.JPG", "Ground Truth/#_GT.PNG"], "IMAGES/**", "Ground Truth/**_GT", {}),
    "masks below the images": (["#.jpg", "masks/#.png"], "*", "masks/**", {}),
    "CVAT, VOC": (
        ["JPEGImages/#.jpg", "SegmentationClass/#.png", "SegmentationObject/#.png"],
        "JPEGImages/**", "SegmentationClass/**", {},
    ),
    "Supervisely": (
        ["ds/img/#.jpg", "ds/masks_machine/#.png", "ds/masks_human/#.png"], "ds/img/**", "ds/masks_machine/**", {},
    ),
    "Roboflow": (
        [f"{split}/#{mask}" for split in SPLIT.values() for mask in (".jpg", "_mask.png")],
        "{split}/**", "{split}/**_mask", SPLIT,
    ),
    "Kaggle, Carvana": (
        ["train/#.jpg", "train_masks/#_mask.gif"], "{split}/*", "{split}_masks/**_mask", {"all": "train"},
    ),
    "Kaggle, DeepGlobe": (
        ["train/#_sat.jpg", "train/#_mask.png"], "{split}/**_sat", "{split}/**_mask", {"all": "train"},
    ),
    "mmsegmentation": (
        [f"{kind}_dir/{split}/#.png" for kind in ("img", "ann") for split in ("train", "val")],
        "img_dir/{split}/**", "ann_dir/{split}/**", {"train": "train", "val": "val"},
    ),
    "split above": (
        [f"set/{split}/{kind}/#.png" for kind in ("x", "y") for split in ("Training", "Validation")],
        "set/{split}/x/**", "set/{split}/y/**", {"train": "Training", "val": "Validation"},
    ),
    "split in the name": (
        [f"{kind}_{split}/#.png" for kind in ("images", "labels") for split in ("train", "val")],
        "images_{split}/**", "labels_{split}/**", {"train": "train", "val": "val"},
    ),
    "a folder for each video": (
        [f"video{number}/{kind}/#.png" for number in (1, 2) for kind in ("rgb", "gt")], "*/rgb/**", "*/gt/**", {},
    ),
    "sub-folders": (
        [f"{kind}/{name}#.png" for kind in ("images", "labels") for name in ("", "x/", "y/z/")],
        "images/**", "labels/**", {},
    ),
    "suffix of the image kept": (["imgs/#.jpg", "labelmap/#.jpg.png"], "imgs/**", "labelmap/**.jpg", {}),
    "words before the name": (["images/img_#.png", "masks/mask-#.png"], "images/img_*", "masks/mask-*", {}),
}  # fmt: skip


@pytest.mark.parametrize("tree", TREES)
def test_usual_folders(folder, tree):
    patterns, images, labels, splits = TREES[tree]
    layouts = recognize_layouts(folder(*patterns)).layouts
    assert (layouts["images"], layouts["labels"]) == (images, labels)
    assert layouts.get("split_names", {}) == splits


@pytest.mark.parametrize("tree", TREES)
def test_what_is_recognized_pairs_every_image_with_its_mask(folder, tree):
    """The name that `#` stands for is the same, and nothing is left out."""
    root = folder(*TREES[tree][0])
    (root / "dataset.json").write_text(
        json.dumps(
            {"classes": [{"name": "a"}, {"name": "b"}], "layouts": recognize_layouts(root).layouts, "val_share": 0.5}
        )
    )
    assert not prepare_dataset("own", root.parent).remarks
    files = [root.parent / f"list/own/{split}.lst" for split in ("trainval", "test")]
    pairs = [line.split("\t") for path in files if path.exists() for line in path.read_text().splitlines()]
    for image, label in pairs:
        assert image != label
        assert [name for name in NAMES if name in image] == [name for name in NAMES if name in label]
    num_unused = sum(len(list((root / name).iterdir())) for name in recognize_layouts(root).unused)
    assert 2 * len(pairs) == sum(path.is_file() for path in root.rglob("*.*")) - num_unused - len(["dataset.json"])


@pytest.mark.parametrize(
    "images", ["images", "imgs", "Img", "photos", "pictures", "JPEGImages", "input", "inputs", "x", "leftovers"]
)
@pytest.mark.parametrize(
    "labels",
    [
        "labels",
        "label",
        "masks",
        "mask",
        "annotations",
        "SegmentationClass",
        "gt",
        "ground_truth",
        "targets",
        "labelmap",
    ],
)
def test_words_of_folders(folder, images, labels):
    root = folder(f"{images}/#.jpg", f"{labels}/#.png")
    if images == "leftovers":
        with pytest.raises(UserError, match=rf"images and masks .*{images} \(\d+\)"):
            recognize_layouts(root)
    else:
        assert recognize_layouts(root).layouts == {"images": f"{images}/**", "labels": f"{labels}/**"}


@pytest.mark.parametrize("mask", ["_mask", "-mask", "_label", "_labels", "_seg", "_gt", "_segmentation", ".mask"])
@pytest.mark.parametrize("image", ["", "_image", "_img", "_rgb"])
@pytest.mark.parametrize("places", [("", ""), ("images/", "labels/")])
def test_words_of_files(folder, mask, image, places):
    root = folder(f"{places[0]}#{image}.jpg", f"{places[1]}#{mask}.png")
    assert recognize_layouts(root).layouts == {"images": f"{places[0]}**{image}", "labels": f"{places[1]}**{mask}"}


def test_splits_without_masks_or_validation(folder):
    root = folder("train/images/#.jpg", "train/masks/#.png", "test/images/#.jpg", "demo/#.jpg")
    found = recognize_layouts(root)
    assert found.layouts == {
        "images": "{split}/images/**",
        "labels": "{split}/masks/**",
        "split_names": {"all": "train", "test": "test"},
        "test": {"labels": None},
    }
    assert "train (train and val), test (test, without masks); not used: images in demo" in str(found)


def test_lists_of_voc_and_cvat_tell_the_splits(folder):
    root = folder("VOC/JPEGImages/#.jpg", "VOC/SegmentationClass/#.png")
    lists = root / "VOC/ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "default.txt").write_text("a1\n")
    assert "names" not in recognize_layouts(root).layouts
    for split in ("train", "val"):
        (lists / f"{split}.txt").write_text("a1\n")
    assert recognize_layouts(root).layouts["names"] == "VOC/ImageSets/Segmentation/{split}.txt"


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["photos/#.jpg", "masks/#.png", "labels/#.png"], r"photos/\*\* with labels/\*\*, or photos/\*\* with masks/"),
        (["photos/#.jpg", "masks/#.png", "masks/#_mask.png"], "photos/a1 with masks/a1, or photos/a1 with masks/a1_"),
        (["photos/#.jpg", "images/#.jpg", "masks/#.png"], r"images/\*\* with masks/\*\*, or photos/\*\* with masks"),
        (["#.jpg", "#_mask.png", "#_label.png"], "a1 with a1_(mask|label), or a1 with a1_(mask|label)"),
        (["images/#.jpg", "labels/#.png", "images/train/#.jpg", "labels/train/#.png"], r"or images/{split}/\*\* with"),
        ([f"{split}/{kind}/#.png" for split in ("train", "training") for kind in ("x", "y")], "are both train"),
        (["val/images/#.jpg", "val/masks/#.png"], "own: .* val .*train"),
        (["photos/#.jpg"], r"own: .* photos \(3\); expected"),
        (["#.jpg", "#.png"], r"a\d+\.(jpg|png) and a\d+\.(jpg|png) .*a_mask\.png"),
        (["images/#.jpg", "images/#.json"], "--from labelme or --from coco"),
        (["notes/#.txt"], "own: no images"),
    ],
)  # fmt: skip
def test_what_is_not_clear_is_refused_in_one_line(folder, patterns, message):
    with pytest.raises(UserError, match=message) as error:
        recognize_layouts(folder(*patterns))
    assert "\n" not in str(error.value)


def test_files_of_systems_are_no_images(folder):
    """What macOS, Windows and hidden folders leave behind; a link that leads back into the folder."""
    root = folder(
        "photos/#.jpg", "masks/#.png", "photos/._#.jpg", "masks/Thumbs.db", "photos/desktop.ini", ".cache/#.png",
        "__MACOSX/photos/._#.jpg", "photos/.DS_Store",
    )  # fmt: skip
    (root / "photos/again").symlink_to(root, target_is_directory=True)
    (root / "masks/self.png").symlink_to("self.png")
    found = recognize_layouts(root)
    assert (found.layouts, found.unused) == ({"images": "photos/**", "labels": "masks/**"}, ())
