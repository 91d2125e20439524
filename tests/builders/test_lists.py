"""Lists by name: written when they are missing, found by their published names, and what is said when there is none."""

import pytest
import yaml
from tests.published_trees import TREES, plant

from ovenet import builders, load_config
from ovenet.builders.data import list_dataset, validation_dataset
from ovenet.config import load_config_text
from ovenet.errors import UserError


@pytest.fixture
def find(tmp_path):
    """Opens a list of a dataset below ``tmp_path``."""

    def find(experiment, list_file, *overrides):
        return list_dataset(load_config(experiment, ["DATASET.ROOT", str(tmp_path), *overrides]), list_file)

    return find


def message_of(find, *arguments):
    with pytest.raises(UserError) as error:
        find(*arguments)
    return str(error.value)


@pytest.mark.parametrize(
    ("experiment", "published", "own"),
    [
        ("lip/hrnet_w48_ocr", "list/lip/trainList.txt", "train"),
        ("lip/hrnet_w48_ocr", "list/lip/valList.txt", "val"),
        ("lip/hrnet_w48_ocr", "list/lip/testvalList.txt", "val"),
        ("ade20k/hrnet_w48_ocr", "list/ade20k/testval.lst", "val"),
        ("cocostuff/hrnet_w48_ocr", "list/cocostuff/testval.lst", "val"),
        ("pascal_context/hrnet_w48_ocr_59", "testval", "val"),
        ("pascal_context/hrnet_w48_ocr_59", "train", "train"),
    ],
)
def test_lists_are_found_by_their_published_names(tmp_path, find, experiment, published, own):
    name = experiment.split("/")[0]
    plant(tmp_path / name, TREES[name], 1)
    assert find(experiment, published).list_path == tmp_path / f"list/{name}/{own}.lst"
    if published.startswith("list"):
        image, label = find(experiment, published).pairs[0]
        (tmp_path / published).write_text(f"{image} {label}\n")
        assert find(experiment, published).list_path == tmp_path / published  # a file of the user's own comes first


@pytest.mark.parametrize("line", ["val_images/1.jpg val_segmentations/1.png", "a.jpg a.png reversed/a.png"])
def test_published_lists_that_are_written_for_another_place_are_not_read(tmp_path, find, line):
    """Those of HRNet for LIP begin inside of its folders, and may have a third column."""
    plant(tmp_path / "lip", TREES["lip"], 1)
    published = tmp_path / "list/lip/valList.txt"
    published.parent.mkdir(parents=True)
    published.write_text(f"{line}\n")
    assert find("lip/hrnet_w48_ocr", "list/lip/valList.txt").list_path == tmp_path / "list/lip/val.lst"
    assert published.read_text() == f"{line}\n"


@pytest.mark.parametrize("list_file", ["val", "list/pascal_ctx/val.lst"])
def test_a_folder_under_its_public_name_is_prepared_on_first_use(tmp_path, find, list_file):
    plant(tmp_path / "pascal_ctx", TREES["pascal_context"], 1)
    dataset = find("pascal_context/hrnet_w48_ocr_59", list_file, "DATASET.DATASET", "pascal_ctx")
    assert dataset.list_path == tmp_path / "list/pascal_context/val.lst"
    assert dataset[0].labels.max() == 0


def test_a_split_that_is_not_there_leads_to_its_images(tmp_path, find):
    """The message used to send back to the command that had just written the other lists."""
    plant(tmp_path / "ade20k", TREES["ade20k, official"], 1)
    message = message_of(find, "ade20k/hrnet_w48_ocr", "test")
    assert message.startswith(
        f"{tmp_path}/list/ade20k/test.lst: there is no such list file; ade20k has train, trainval,"
    )
    assert "release_test/testing/*" in message
    assert "prepare_data" not in message
    plant(tmp_path / "ade20k", TREES["ade20k, with the test archive beside"], 1)
    assert len(find("ade20k/hrnet_w48_ocr", "test")) == 1


def test_a_list_of_another_name_leads_to_those_that_are_there(tmp_path, find):
    plant(tmp_path / "camvid", TREES["camvid"], 1)
    message = message_of(find, "camvid/hrnet_w18_small_v2", "list/camvid/validation.lst")
    assert message.endswith("camvid has test, train, trainval, val; set DATASET.TRAIN_SET or DATASET.TEST_SET to one")
    message = message_of(find, "camvid/hrnet_w18_small_v2", "lists/mine.lst")
    assert "prepare_data" not in message


def test_a_folder_that_is_not_there_leads_to_the_command_for_this_root(tmp_path, find):
    message = message_of(find, "camvid/hrnet_w18_small_v2", "list/camvid/val.lst")
    assert f"no folder {tmp_path}/camvid" in message
    assert message.endswith(f"`python tools/prepare_data.py camvid --root {tmp_path}`")


PUBLISHED = {"MODEL": {"NAME": "seg_hrnet"}}
BASE = {"_BASE_": "lip/hrnet_w48_ocr"}


@pytest.mark.parametrize(
    ("content", "overrides", "validated", "tested"),
    [
        (PUBLISHED | {"TEST": {"NUM_SAMPLES": 3}}, [], 3, 7),  # the public code's test takes the whole list
        (PUBLISHED | {"TEST": {"NUM_SAMPLES": 0}}, [], 7, 7),
        (PUBLISHED | {"TEST": {"NUM_SAMPLES": 3}}, ["TEST.NUM_SAMPLES", "2"], 2, 2),
        (PUBLISHED | {"TEST": {"NUM_SAMPLES": 3}}, ["TEST.NUM_SAMPLES", "5"], 3, 5),
        (PUBLISHED | {"TEST": {"NUM_SAMPLES": 3}}, ["TRAIN.EVAL_NUM_SAMPLES", "0"], 7, 7),
        (BASE | {"TEST": {"NUM_SAMPLES": 3}}, [], 3, 3),
        (BASE | {"TRAIN": {"EVAL_NUM_SAMPLES": 3}}, [], 3, 7),
        (BASE, ["TEST.NUM_SAMPLES", "2"], 2, 2),
        (BASE, ["TRAIN.EVAL_NUM_SAMPLES", "9"], 7, 7),
    ],
)
def test_lists_of_validations_and_tests(tmp_path, caplog, content, overrides, validated, tested):
    plant(tmp_path / "lip", TREES["lip"], 1)
    data = {"DATASET": "lip", "NUM_CLASSES": 20, "TEST_SET": "list/lip/val.lst", "ROOT": str(tmp_path)}
    path = tmp_path / "experiment.yaml"
    path.write_text(yaml.safe_dump(content | {"DATASET": data}))
    cfg = load_config(path, overrides)
    listed = list_dataset(cfg, cfg.DATASET.TEST_SET).list_path
    listed.write_text(listed.read_text() * 7)
    assert (len(validation_dataset(cfg)), len(builders.test_dataset(cfg))) == (validated, tested)
    told = [record.message for record in caplog.records if "NUM_SAMPLES" in record.message]
    assert told == (
        [f"{path}: TEST.NUM_SAMPLES 3 shortens validation in training, as in its code; tests take the whole list"]
        if content.get("TEST") == {"NUM_SAMPLES": 3} and "MODEL" in content
        else []
    )
    again = load_config_text(cfg.dump(), "dump")
    assert (len(validation_dataset(again)), len(builders.test_dataset(again))) == (validated, tested)
