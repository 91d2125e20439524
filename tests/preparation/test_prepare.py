"""Preparing datasets, and the synthetic scenes."""

import numpy as np
import pytest
from PIL import Image

from ovenet.data.catalog import CATALOG
from ovenet.data.dataset import ListDataset
from ovenet.preparation.prepare import prepare_dataset
from ovenet.synthetic.scenes import draw_scene, write_dataset


@pytest.fixture
def camvid_source(tmp_path):
    source = tmp_path / "unpacked"
    for split, suffix in (("train", "jpg"), ("val", "png"), ("test", "jpg")):
        for kind, ending in (("", suffix), ("annot", "png")):
            (source / f"{split}{kind}").mkdir(parents=True)
            for name in ("b", "a"):
                Image.fromarray(np.zeros((4, 6), np.uint8)).save(source / f"{split}{kind}" / f"{name}.{ending}")
    return source


@pytest.mark.parametrize("copy", [False, True])
def test_camvid_is_brought_and_listed_and_twice_changes_nothing(tmp_path, camvid_source, copy):
    root = tmp_path / "data"
    counts = prepare_dataset("camvid", root, source=camvid_source, copy=copy).num_lines
    assert counts == {"train": 2, "val": 2, "test": 2, "trainval": 4}
    assert (root / "camvid").is_symlink() != copy
    assert (root / "list/camvid/val.lst").read_text() == "val/a.png\tvalannot/a.png\nval/b.png\tvalannot/b.png\n"
    assert (root / "list/camvid/train.lst").read_text().startswith("train/a.jpg\ttrainannot/a.png\n")
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*")}
    prepare_dataset("camvid", root, source=camvid_source, copy=copy)
    assert {p: p.stat().st_mtime_ns for p in root.rglob("*")} == before


def test_nothing_of_the_users_is_overwritten(tmp_path, camvid_source):
    root = tmp_path / "data"
    (root / "camvid").mkdir(parents=True)
    (root / "camvid/mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="exists and is not"):
        prepare_dataset("camvid", root, source=camvid_source)
    prepare_dataset("camvid", root, source=camvid_source, copy=True)
    assert (root / "camvid/mine.txt").read_text() == "mine"
    (root / "camvid/train/a.jpg").write_bytes(b"edited")
    with pytest.raises(ValueError, match=r"a\.jpg exists and differs"):
        prepare_dataset("camvid", root, source=camvid_source, copy=True)
    list_file = root / "list/camvid/train.lst"
    list_file.write_text("my own selection\n")
    (root / "camvid/train/a.jpg").unlink()
    prepare_dataset("camvid", root, source=camvid_source, copy=True)
    list_file.write_text("my second selection\n")
    prepare_dataset("camvid", root, source=camvid_source, copy=True)
    kept = {path.read_text() for path in list_file.parent.glob("train.lst.old*")}
    assert kept == {"my own selection\n", "my second selection\n"}


def test_a_copy_is_checked_before_it_begins(tmp_path, camvid_source):
    """One file of several is another already: nothing is copied."""
    (tmp_path / "data/camvid/valannot").mkdir(parents=True)
    (tmp_path / "data/camvid/valannot/b.png").write_bytes(b"mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=r"valannot/b\.png .*differs.*remove"):
        prepare_dataset("camvid", tmp_path / "data", source=camvid_source, copy=True)
    assert sorted(tmp_path.rglob("*")) == before


def test_what_changed_is_said(tmp_path):
    """Two images for training and one for validation, and one for a test that goes away."""
    folder = tmp_path / "own"
    for name in ("train/1", "train/2", "val/3", "test/4"):
        for kind in ("images", "labels"):
            (folder / kind / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / kind / f"{name}.png").write_bytes(b"x")
    (folder / "dataset.json").write_text('{"classes": [{"name": "a"}, {"name": "b"}]}')
    first = prepare_dataset("own", tmp_path)
    assert (first.num_lines, first.changes) == ({"train": 2, "val": 1, "test": 1, "trainval": 3}, {})
    (folder / "images/train/2.png").rename(folder / "images/train/5.png")
    (folder / "labels/train/2.png").rename(folder / "labels/train/5.png")
    for kind in ("images", "labels"):
        (folder / kind / "test/4.png").unlink()
    second = prepare_dataset("own", tmp_path)
    assert second.changes == {
        "train": "2 before: 1 added, 1 removed; kept as train.lst.old",
        "trainval": "3 before: 1 added, 1 removed; kept as trainval.lst.old",
    }
    assert second.lines[1] == f"{tmp_path / 'list/own/val.lst'}: 1 lines"
    assert [remark.partition(": ")[0] for remark in second.remarks] == [str(tmp_path / "list/own/test.lst")]


@pytest.mark.parametrize("num_images", [2, 3, 5])
def test_a_few_images_are_enough_for_both_sides(tmp_path, num_images):
    """Whatever their names are, by which they are chosen."""
    for trial in range(20):
        folder = tmp_path / f"own{trial}"
        for kind in ("images", "labels"):
            (folder / kind).mkdir(parents=True)
            for number in range(num_images):
                (folder / kind / f"{trial}-{number}.png").write_bytes(b"x")
        (folder / "dataset.json").write_text('{"classes": [{"name": "a"}, {"name": "b"}]}')
        counts = prepare_dataset(folder.name, tmp_path).num_lines
        assert counts["train"] > 0
        assert counts["val"] > 0
        assert counts["trainval"] == num_images


def test_what_is_missing_is_named(tmp_path, camvid_source):
    root = tmp_path / "data"
    with pytest.raises(ValueError, match=r"camvid: no such folder; .*CamVid"):
        prepare_dataset("camvid", root)
    with pytest.raises(ValueError, match=r"--source .*nowhere: .*folder"):
        prepare_dataset("camvid", root, source=tmp_path / "nowhere")
    (camvid_source / "valannot/b.png").unlink()
    with pytest.raises(ValueError, match=r"1 of 2 labels missing: .*valannot/b\.\*"):
        prepare_dataset("camvid", root, source=camvid_source)
    for path in (camvid_source / "train").iterdir():
        path.unlink()
    assert not root.exists()  # nothing is linked that cannot be listed
    with pytest.raises(ValueError, match=r"unpacked/train: no images"):
        prepare_dataset("camvid", root, source=camvid_source)


@pytest.mark.ci
def test_synthetic_scenes_have_the_cityscapes_layout(tmp_path):
    folder = tmp_path / "synthetic"
    counts = {"train": 3, "val": 1, "test": 1}
    paths = list(write_dataset(folder, counts, size=(64, 128), seed=3))  # one more than are drawn without processes
    assert len(paths) == 5
    assert prepare_dataset("synthetic", tmp_path).num_lines == {**counts, "trainval": 4}
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*.png")}
    assert list(write_dataset(folder, counts, size=(64, 128), seed=3)) == paths
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*.png")} == before
    few = {"train": 1, "val": 1, "test": 1}
    for path in write_dataset(tmp_path / "few", few, size=(64, 128), seed=3):
        assert path.read_bytes() == (folder / path.relative_to(tmp_path / "few")).read_bytes()

    def load(split):
        path = tmp_path / f"list/synthetic/{split}.lst"
        return ListDataset(tmp_path, path, CATALOG["synthetic"], ignore_label=255)

    sample = load("train")[0]
    assert sample.image.shape == (64, 128, 3)
    assert not load("test").has_labels


@pytest.fixture(scope="module")
def scenes():
    return [draw_scene((128, 256), np.random.default_rng(i)) for i in range(24)]


def test_scenes_are_a_function_of_the_random_numbers(scenes):
    image, ids = draw_scene((128, 256), np.random.default_rng(7))
    np.testing.assert_array_equal(image, scenes[7][0])
    np.testing.assert_array_equal(ids, scenes[7][1])
    assert (image != scenes[8][0]).mean() > 0.9


def test_scenes_show_every_class_and_void(scenes):
    table = CATALOG["synthetic"].train_id_table(255)
    present = {int(k) for _, ids in scenes for k in np.unique(table[ids])}
    assert present == {*range(19), 255}


def test_no_class_is_a_constant_colour(scenes):
    """A nearest-mean-colour classifier, fitted on these very scenes, must fail on a good part of the pixels."""
    table = CATALOG["synthetic"].train_id_table(255)
    pixels = np.concatenate([image.reshape(-1, 3)[::7] for image, _ in scenes]).astype(np.float32)
    labels = np.concatenate([table[ids].reshape(-1)[::7] for _, ids in scenes])
    pixels, labels = pixels[labels != 255], labels[labels != 255]
    means = np.stack([pixels[labels == k].mean(axis=0) for k in range(19)])
    assert min(pixels[labels == k].std(axis=0).mean() for k in range(19)) > 12
    nearest = ((pixels[:, None] - means) ** 2).sum(axis=2).argmin(axis=1)
    recall = [(nearest[labels == k] == k).mean() for k in range(19)]
    assert np.mean(recall) < 0.4
