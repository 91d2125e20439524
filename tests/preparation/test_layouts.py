"""What is listed of a dataset's tree, and what is said when something is amiss."""

import os
import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
from tests.published_trees import TREES, plant, put

from ovenet.data.catalog import CATALOG
from ovenet.data.dataset import ListDataset
from ovenet.data.files import format_line
from ovenet.data.info import Layout
from ovenet.errors import UserError
from ovenet.preparation.layouts import collect_pairs, told
from ovenet.preparation.prepare import prepare_dataset


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
    assert re.search(rf"cityscapes .* {word};", message)
    assert message.endswith(f": --source {right}")
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
    with pytest.raises(UserError, match=r"\\nc\.png'.*breaks.*rename"):
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


def own(tmp_path, *names, content=b"x"):
    """Files in a folder of a user's own."""
    for name in names:
        path = tmp_path / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path


OWN = Layout("images/**", "labels/**")


def test_what_does_not_pair_is_left_out_of_an_own_dataset(tmp_path):
    folder = own(tmp_path, *(f"{kind}/{n}.png" for kind in ("images", "labels") for n in range(9)))
    for name in (0, 2, 4, 6, 8):
        (folder / f"labels/{name}.png").unlink()
    own(tmp_path, "labels/4.psd", "labels/other.png", "labels/0.PNG/inside.txt")
    left_out = {}
    pairs = collect_pairs(folder, OWN, (), left_out)
    assert [image for image, _ in pairs] == [f"images/{n}.png" for n in (1, 3, 5, 7)]
    assert told(left_out) == [
        "left out, images without a label (5): images/0.png, images/2.png, "
        "images/4.png (labels/4.psd is no picture that is read) and 2 more",
        "left out, labels without an image (1): labels/other.png",
    ]
    with pytest.raises(UserError, match="5 of 10 labels"):
        collect_pairs(folder, OWN, ())  # of a published dataset


@pytest.mark.parametrize(
    ("file", "partner", "reason"),
    [
        (b"images/a\xff.png", b"labels/a\xff.png", "file names that are not UTF-8"),
        (b"images/a\nb.png", b"labels/a\nb.png", "file names with tabs or line breaks"),
        (b"images/a.jpe", b"images/a.png", "several files for one name"),
    ],
)
def test_names_that_cannot_be_listed(tmp_path, file, partner, reason):
    folder = own(tmp_path, "images/good.jfif", "labels/good.png", file, partner)
    left_out = {}
    assert collect_pairs(folder, OWN, (), left_out) == [("images/good.jfif", "labels/good.png")]
    assert list(left_out) == [reason]
    with pytest.raises(UserError, match=r"two files|: .*listed; rename"):  # of a published dataset
        [format_line(*pair) for pair in collect_pairs(folder, OWN, ())]


def test_links_and_empty_files(tmp_path):
    """A folder that leads back into itself ends; a link to itself, to nothing, and a pipe are named."""
    folder = own(tmp_path, *(f"{kind}/{n}.png" for kind in ("images", "labels") for n in "abcde"))
    own(tmp_path, "labels/b.png", content=b"")
    for name, target in (("c", "c.png"), ("d", "nothing.png")):
        (folder / f"labels/{name}.png").unlink()
        (folder / f"labels/{name}.png").symlink_to(target)
    (folder / "labels/e.png").unlink()
    os.mkfifo(folder / "labels/e.png")
    (folder / "images/again").symlink_to(folder / "images", target_is_directory=True)
    left_out = {}
    assert collect_pairs(folder, OWN, (), left_out) == [("images/a.png", "labels/a.png")]
    assert left_out == {
        "empty files": ["labels/b.png"],
        "links to what does not exist": ["labels/c.png", "labels/d.png"],
        "no regular files": ["labels/e.png"],
    }


def test_nothing_left_is_an_error_that_says_why(tmp_path):
    folder = own(tmp_path, "images/Cat.png", "labels/cat.png")
    with pytest.raises(UserError, match=r"images/\*\*; .*Cat\.png \(.*labels/cat\.png"):
        collect_pairs(folder, OWN, (), {})


def test_a_file_that_fits_both_patterns_is_what_the_longer_one_says(tmp_path):
    own(tmp_path, "one/a.jpg", "one/a_mask.png", "one/b_image.jpg", "one/b.png")
    assert collect_pairs(tmp_path, Layout("one/*", "one/*_mask"), (), {}) == [("one/a.jpg", "one/a_mask.png")]
    assert collect_pairs(tmp_path, Layout("one/*_image", "one/*"), (), {}) == [("one/b_image.jpg", "one/b.png")]


def test_a_folder_that_may_not_be_read_is_one_line():
    """As a user without rights; the folders of pytest are its user's alone."""
    with tempfile.TemporaryDirectory() as name:
        folder, is_root = Path(name), os.geteuid() == 0
        own(folder, "images/a.png", "labels/a.png", "images/closed/b.png")
        folder.chmod(0o755)
        (folder / "images/closed").chmod(0)
        if is_root:
            os.seteuid(65534)
        try:
            with pytest.raises(UserError, match=r"images/closed: .*\(Permission denied\)"):
                collect_pairs(folder, OWN, (), {})
        finally:
            if is_root:
                os.seteuid(0)
            (folder / "images/closed").chmod(0o755)
