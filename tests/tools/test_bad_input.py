"""Bad input: one line on stderr, exit code 2, no traceback, no damage."""

import errno
import os
import shutil

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tests.conftest import tiny_settings

from ovenet.engine import checkpoint


@pytest.fixture
def tiny(tiny_data, tmp_path, write_config):
    """A function that writes the config, changed by a function, and returns ``--cfg FILE``."""

    def make(change=lambda settings: None):
        settings = tiny_settings()
        settings["DATASET"]["ROOT"] = str(tiny_data)
        settings["OUTPUT_DIR"] = str(tmp_path / "output")
        change(settings)
        return ("--cfg", write_config(settings, "tiny.yaml"))

    return make


def assert_one_line(result, *parts):
    assert result.code == 2
    assert "Traceback" not in result.err
    errors = [line for line in result.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, result.err
    assert result.err.splitlines()[-1] == errors[0]
    for part in parts:
        assert part in errors[0]


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_files_of_the_training_data(run_tool, tiny, tiny_data, workers):
    arguments = (*tiny(), "WORKERS", workers)
    image, label = tiny_data / "camvid/train/3.png", tiny_data / "camvid/trainannot/3.png"
    whole = {path: path.read_bytes() for path in (image, label)}

    def attempt(*parts):
        assert_one_line(run_tool("train", *arguments, "TRAIN.RESUME", True), *parts)
        for path, content in whole.items():
            if path.is_dir():
                path.rmdir()
            path.write_bytes(content)

    image.unlink()
    attempt("train/3.png", "does not exist")
    image.write_bytes(whole[image][:200])
    attempt("train/3.png", "cannot be read")
    if workers:  # one round trip through a worker process is enough
        return
    label.unlink()
    label.mkdir()
    attempt("trainannot/3.png", "is a directory")
    ids = np.zeros((48, 64), np.uint8)
    for value, cause in ((255, "ignore value of other tools"), (33, "check that the list names the label files")):
        ids[4, 4] = value
        Image.fromarray(ids).save(label)
        attempt("trainannot/3.png", f"{value} found", cause)
    Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(label)
    attempt("trainannot/3.png", "colour image")
    Image.fromarray(np.zeros((40, 64), np.uint8)).save(label)
    attempt("trainannot/3.png", "64x40", "64x48")


def test_bad_lists(run_tool, tiny, tiny_data):
    (tiny_data / "list/camvid/train.lst").write_text("")
    assert_one_line(run_tool("train", *tiny()), "train.lst", "the list is empty")
    arguments = (*tiny(), "DATASET.TRAIN_SET", "list/mine/train.lst")
    assert_one_line(run_tool("train", *arguments), "list/mine/train.lst", "no such list file")
    shutil.copy(tiny_data / "list/camvid/test.lst", tiny_data / "list/camvid/train.lst")
    assert_one_line(run_tool("train", *tiny()), "train.lst", "no label")
    (tiny_data / "list/camvid/train.lst").write_text("train/0.png trainannot/0.png\n")
    assert_one_line(run_tool("train", *tiny()), "1 samples, fewer than one batch", "TRAIN.BATCH_SIZE_PER_GPU")


def test_validation_needs_labels(run_tool, tiny):
    arguments = (*tiny(), "DATASET.TEST_SET", "list/camvid/test.lst")
    assert_one_line(run_tool("train", *arguments), "test.lst", "DATASET.TEST_SET")


def test_configs_that_do_not_fit(run_tool, tiny, tmp_path):
    assert_one_line(run_tool("train", *tiny(), "DATASET.NUM_CLASSES", 19), "DATASET.NUM_CLASSES is 19", "11 classes")
    assert_one_line(run_tool("train", *tiny(), "DATASET.DATASET", "camvd"), "DATASET.DATASET", "camvid")
    assert_one_line(run_tool("train", *tiny(), "TRAIN.LRR", 1), "unknown key TRAIN.LRR", "TRAIN.LR")
    assert_one_line(run_tool("train", "--cfg", tmp_path / "none.yaml"), "none.yaml", "cannot read")
    assert_one_line(run_tool("train", "--cfg", tmp_path), "Is a directory")
    (tmp_path / "occupied").write_text("")
    assert_one_line(run_tool("train", *tiny(), "OUTPUT_DIR", tmp_path / "occupied"), "occupied")
    if not torch.cuda.is_available():
        assert_one_line(run_tool("train", *tiny(), "DEVICE", "cuda"), "no CUDA device", "DEVICE cpu")


def test_checkpoints_that_cannot_be_used(run_tool, tiny, tmp_path):
    foreign, damaged = tmp_path / "foreign.pth", tmp_path / "damaged.pth"
    torch.save({"encoder.weight": torch.ones(3)}, foreign)
    damaged.write_bytes(foreign.read_bytes()[:100])
    for tool, key in (("train", "MODEL.PRETRAINED"), ("test", "TEST.MODEL_FILE")):
        assert_one_line(run_tool(tool, *tiny(), key, foreign), "foreign.pth", "only 0 of the", "MODEL.ALLOW_PARTIAL")
        assert_one_line(run_tool(tool, *tiny(), key, damaged), "damaged.pth", "not a checkpoint, or a damaged one")
        assert_one_line(run_tool(tool, *tiny(), key, tmp_path), "a directory; expected a checkpoint file")
        assert_one_line(run_tool(tool, *tiny(), key, tmp_path / "no.pth"), "no.pth", "there is no such checkpoint")
    assert_one_line(run_tool("test", *tiny()), "TEST.MODEL_FILE is not set", "train first")


def test_a_damaged_checkpoint_is_not_resumed_and_not_overwritten(run_tool, tiny, tmp_path):
    run_dir = tmp_path / "output/camvid/tiny"
    run_dir.mkdir(parents=True)
    (run_dir / "checkpoint.pth").write_bytes(b"half of one")
    assert_one_line(run_tool("train", *tiny(), "TRAIN.RESUME", True), "checkpoint.pth", "damaged")
    assert (run_dir / "checkpoint.pth").read_bytes() == b"half of one"


def test_a_disk_that_fills_up_while_saving(run_tool, tiny, tmp_path, monkeypatch):
    assert run_tool("train", *tiny(), "TRAIN.END_EPOCH", 1).code == 0
    run_dir = tmp_path / "output/camvid/tiny"
    before = {p.name: p.read_bytes() for p in run_dir.glob("*.pth")}

    def no_room(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint.os, "fsync", no_room)
    result = run_tool("train", *tiny(), "TRAIN.RESUME", True)
    assert_one_line(result, "cannot save", "No space left on device", "untouched")
    assert {p.name: p.read_bytes() for p in run_dir.glob("*.pth")} == before


def test_preparing_data_that_is_not_there(run_tool, tmp_path):
    root = ("--root", tmp_path / "d")
    assert_one_line(run_tool("prepare_data", "camvid", *root), "camvid", "--source")
    assert_one_line(run_tool("prepare_data", "camvid", *root, "--source", tmp_path / "x"), "no such folder")
    assert_one_line(run_tool("prepare_data", "synthetic", *root, "--train", 0), "--train is 0; expected at least 1")
    assert_one_line(run_tool("prepare_data", "synthetic", *root, "--size", 8, 8), "--size is 8; expected at least 64")


def test_the_settings_of_the_tests_are_a_config(tmp_path):
    """The helper above must write what a user could write."""
    assert yaml.safe_load(yaml.safe_dump(tiny_settings())) == tiny_settings()
