"""What is listed of a dataset's tree, and what is said when something is amiss."""

import numpy as np
import pytest
from tests.published_trees import TREES, plant, put

from ovenet.data.catalog import CATALOG
from ovenet.data.dataset import ListDataset
from ovenet.data.files import format_line
from ovenet.data.info import Layout
from ovenet.data.layouts import collect_pairs
from ovenet.data.prepare import prepare_dataset
from ovenet.errors import UserError


def test_every_dataset_of_the_catalog_has_a_miniature_tree():
    """Which `tests/tools/test_prepare_trees.py` prepares."""
    assert {case.split(",")[0] for case in TREES} == set(CATALOG)


def test_acdc_has_lists_of_each_condition(tmp_path):
    plant(tmp_path / "acdc", TREES["acdc"], 7)
    prepare_dataset("acdc", tmp_path)
    names = {p.stem for p in (tmp_path / "list/acdc").iterdir()}
    conditions = {f"{s}_{c}" for s in ("train", "val", "test") for c in ("fog", "night", "rain", "snow")}
    assert names == {"train", "val", "test", "trainval"} | conditions
    assert (tmp_path / "list/acdc/test_rain.lst").read_text() == (
        "rgb_anon/rain/test/GOPR1/GOPR1_frame_000002_rgb_anon.png\n"
    )


@pytest.fixture
def cityscapes(tmp_path):
    """A root with the miniature Cityscapes, and the folder."""
    plant(tmp_path / "cityscapes", TREES["cityscapes"], 7)
    return tmp_path / "cityscapes"


def message_of(root, name="cityscapes", **options):
    with pytest.raises(ValueError) as error:  # noqa: PT011  the callers look at the message
        prepare_dataset(name, root, **options)
    return str(error.value)


def test_a_missing_part_is_named(tmp_path, cityscapes):
    (cityscapes / "gtFine/train").rename(tmp_path / "elsewhere")
    message = message_of(tmp_path)
    assert "gtFine/train missing" in message
    assert "gtFine_trainvaltest.zip" in message


def test_a_half_unpacked_archive_is_named_file_by_file(tmp_path, cityscapes):
    (cityscapes / "gtFine/train/bremen/bremen_000001_000019_gtFine_labelIds.png").unlink()
    message = message_of(tmp_path)
    assert message.startswith("1 of 2 labels missing")
    assert "gtFine/train/bremen/bremen_000001_000019_gtFine_labelIds" in message
    put(cityscapes / "gtFine/train/bremen/bremen_000001_000019_gtFine_labelIds.png", np.zeros((2, 2), np.uint8))
    (cityscapes / "leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png").unlink()
    message = message_of(tmp_path)
    assert message.startswith("1 of 2 images missing")
    assert "leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit" in message


def test_fewer_images_than_published_are_remarked(tmp_path, cityscapes):
    remark = prepare_dataset("cityscapes", tmp_path).remarks[0]
    assert remark.startswith("train: 2 of the 2975 published images; check that all of leftImg8bit_trainvaltest.zip ")


def test_the_test_split_is_optional(tmp_path, cityscapes):
    (cityscapes / "leftImg8bit/test").rename(tmp_path / "elsewhere")
    preparation = prepare_dataset("cityscapes", tmp_path)
    assert set(preparation.num_lines) == {"train", "val", "trainval"}
    assert any("no test.lst" in remark for remark in preparation.remarks)


@pytest.mark.parametrize(
    ("wrong", "word"),
    [("down", "below"), ("down/one", "below"), ("down/one/cs/gtFine", "above"), ("down/one/cs/gtFine/train", "above")],
)
def test_a_root_one_or_two_levels_too_high_or_low(tmp_path, cityscapes, wrong, word):
    (tmp_path / "down/one").mkdir(parents=True)
    right = cityscapes.rename(tmp_path / "down/one/cs")
    root = tmp_path / "data"
    message = message_of(root, source=tmp_path / wrong)
    assert f"does not begin here but {word}" in message
    assert message.endswith(f"move its content here, or name it: --source {right}")
    assert not root.exists()  # nothing was linked
    root.mkdir()
    (root / "cityscapes").symlink_to(tmp_path / wrong)
    assert message_of(root).endswith(f"--source {right}")
    (root / "cityscapes").unlink()
    assert prepare_dataset("cityscapes", root, source=right).num_lines["train"] == 2


def test_names_with_spaces_links_and_upper_case_suffixes(tmp_path):
    folder = tmp_path / "camvid"
    for split in ("train", "val", "test"):
        put(tmp_path / "store/a b.png", np.full((4, 6, 3), 9, np.uint8))
        (folder / split).mkdir(parents=True)
        (folder / split / "a b.PNG").symlink_to(tmp_path / "store/a b.png")
        put(folder / f"{split}annot/a b.Png", np.full((4, 6), 3, np.uint8))
        (folder / split / "._a b.PNG").write_text("what another system leaves behind")
    prepare_dataset("camvid", tmp_path)
    sample = ListDataset(tmp_path, tmp_path / "list/camvid/val.lst", CATALOG["camvid"], ignore_label=255)[0]
    assert sample.name == "val/a b.PNG"
    assert (sample.labels == 3).all()
    (folder / "val/a b.PNG").unlink()
    (folder / "val/a b.PNG").symlink_to(tmp_path / "gone.png")
    assert "gone.png, which does not exist" in message_of(tmp_path, "camvid")


def test_an_unlabelled_name_with_spaces_survives_the_list(tmp_path, cityscapes):
    image = cityscapes / "leftImg8bit/test/berlin"
    image.rename(cityscapes / "leftImg8bit/test/bad homburg")
    prepare_dataset("cityscapes", tmp_path)
    dataset = ListDataset(tmp_path, tmp_path / "list/cityscapes/test.lst", CATALOG["cityscapes"], ignore_label=255)
    assert dataset.pairs == [("leftImg8bit/test/bad homburg/berlin_000000_000019_leftImg8bit.png", None)]


def test_empty_and_doubled_files_are_named(tmp_path, cityscapes):
    label = cityscapes / "gtFine/val/munster/munster_000000_000019_gtFine_labelIds.png"
    whole = label.read_bytes()
    label.write_bytes(b"")
    assert "munster_000000_000019_gtFine_labelIds.png: the file is empty" in message_of(tmp_path)
    label.write_bytes(whole)
    label.with_suffix(".bmp").write_bytes(whole)
    assert "two files for one name" in message_of(tmp_path)


def test_a_missing_condition_is_named(tmp_path):
    plant(tmp_path / "acdc", TREES["acdc"], 7)
    (tmp_path / "acdc/rgb_anon/rain").rename(tmp_path / "elsewhere")
    assert "acdc/rgb_anon/rain/train: no images" in message_of(tmp_path, "acdc")


def test_only_missing_lists_are_written_on_first_use(tmp_path, cityscapes):
    prepare_dataset("cityscapes", tmp_path)
    lists = tmp_path / "list/cityscapes"
    (lists / "val.lst").write_text("my own choice\n")
    (lists / "train.lst").unlink()
    prepare_dataset("cityscapes", tmp_path, only_missing=True)
    assert (lists / "val.lst").read_text() == "my own choice\n"
    assert len((lists / "train.lst").read_text().splitlines()) == 2
    assert not list(lists.glob("*.old*"))


def test_the_name_of_public_config_files_leads_to_the_same_folder(tmp_path):
    plant(tmp_path / "unpacked", TREES["pascal_context"], 1)
    prepare_dataset("pascal_ctx", tmp_path / "data", source=tmp_path / "unpacked")
    assert (tmp_path / "data/pascal_context").is_symlink()
    assert (tmp_path / "data/list/pascal_context/train.lst").exists()


@pytest.mark.parametrize("pattern", ["*", "**"])
def test_a_name_with_a_line_break_is_named(tmp_path, pattern):
    """It used to be left out without a word."""
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
        for name in ("a.png", "b\nc.png"):
            (tmp_path / kind / name).write_bytes(b"x")
    pairs = collect_pairs(tmp_path, Layout(f"images/{pattern}", f"labels/{pattern}"), ())
    assert len(pairs) == 2
    with pytest.raises(UserError, match="line breaks cannot be listed"):
        [format_line(*pair) for pair in pairs]


def test_lists_of_names_are_read_as_other_lists(tmp_path):
    layout = Layout("images/*", "labels/*", names="names.txt")
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "a\x85b.png").write_bytes(b"x")
    (tmp_path / "names.txt").write_text("a\x85b 1\n", encoding="utf-8")
    assert collect_pairs(tmp_path, layout, ()) == [("images/a\x85b.png", "labels/a\x85b.png")]
    (tmp_path / "names.txt").write_bytes("é\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"names\.txt: not in UTF-8"):
        collect_pairs(tmp_path, layout, ())
