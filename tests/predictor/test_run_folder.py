"""Where the results of a test are looked for."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from ovenet.config import load_config
from ovenet.predictor import run_folder

WEIGHTS = Path("best.pth")


@pytest.fixture
def place(tmp_path):
    """A run's folder, its weights and its list."""
    (tmp_path / "best.pth").write_bytes(b"weights")
    (tmp_path / "val.lst").write_text("a.png b.png\n")
    return tmp_path


def folder_of(place, *overrides, saved=None):
    """Where a test goes beside results that were saved with these settings."""
    cfg = load_config("synthetic/demo", [str(value) for value in overrides])
    settings = run_folder.evaluation_settings(cfg, place / "best.pth", place / "val.lst")
    if saved is not None:
        folder = place / "test/val_best_s1"
        folder.mkdir(parents=True)
        (folder / "results.json").write_text(json.dumps({"evaluation_settings": saved(settings)}))
    return run_folder.test_folder(cfg, place, WEIGHTS, settings).name


def without(key):
    return lambda settings: {name: value for name, value in settings.items() if name != key}


def changed(key, value):
    return lambda settings: {**settings, key: value}


@pytest.mark.parametrize("key", ["TEST.PROTOCOL", "TEST.SCORE", "MODEL.ALIGN_CORNERS", "TEST.STRIDE"])
def test_a_setting_that_old_results_lack_counts_as_its_default(place, key):
    assert folder_of(place, saved=without(key)) == "val_best_s1"


@pytest.mark.parametrize(
    ("overrides", "saved"),
    [
        (("TEST.SCORE", "exp"), without("TEST.SCORE")),  # softmax by default
        ((), changed("TEST.SCORE", "exp")),
        ((), changed("weights (SHA-256)", "0")),
        ((), without("weights (SHA-256)")),
        ((), changed("MODEL.HEAD.DROPOUT", 0.1)),  # an argument of a part
        ((), changed("TEST.FORGOTTEN", 1)),  # nobody knows what it did
    ],
)
def test_other_settings_go_elsewhere(place, overrides, saved):
    assert folder_of(place, *overrides, saved=saved) == "val_best_s1_2"


@pytest.mark.parametrize("key", ["MODEL.BN_MOMENTUM", "TEST.REPORT", "TEST.BATCH_SIZE_PER_GPU"])
def test_what_changes_no_score_is_no_setting_of_a_test(place, key):
    overrides = {"MODEL.BN_MOMENTUM": 0.1, "TEST.REPORT": True, "TEST.BATCH_SIZE_PER_GPU": 3}
    assert folder_of(place, key, overrides[key], saved=changed(key, "something else")) == "val_best_s1"


def test_results_with_a_key_by_its_former_name(place):
    def saved(settings):
        return {**without("TEST.FUSE_CONV_BN")(settings), "TEST.FOLD_BATCHNORM": settings["TEST.FUSE_CONV_BN"]}

    assert folder_of(place, saved=saved) == "val_best_s1"


@pytest.mark.parametrize(("protocol", "name"), [("default", "s1"), ("ovenet", "s1_ovenet"), ("hrnet", "s1_hrnet")])
def test_the_name_tells_the_protocol(place, protocol, name):
    assert folder_of(place, "TEST.PROTOCOL", protocol) == f"val_best_{name}"


def test_the_name_tells_scales_and_flips_too(place):
    flipped = ("TEST.SCALE_LIST", "0.5,1", "TEST.FLIP_TEST", True, "TEST.PROTOCOL", "hrnet")
    assert folder_of(place, *flipped) == "val_best_s0.5-1_flip_hrnet"


def test_the_newest_test_of_the_same_weights_is_found(tmp_path):
    """Tests of other weights, without details, or that cannot be read are passed over."""
    weights = tmp_path / "best.pth"
    weights.write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    contents = {
        "old": {run_folder.SETTINGS: {"weights (SHA-256)": digest}, "details": {}},
        "same": {run_folder.SETTINGS: {"weights (SHA-256)": digest}, "details": {}},
        "quick": {run_folder.SETTINGS: {"weights (SHA-256)": digest}},
        "other": {run_folder.SETTINGS: {"weights (SHA-256)": "0" * 64}, "details": {}},
        "rain": {run_folder.SETTINGS: {"weights (SHA-256)": digest, "TEST.CORRUPTION": "rain"}, "details": {}},
        "list": [],
    }
    for age, (name, content) in enumerate(contents.items()):
        (tmp_path / "test" / name).mkdir(parents=True)
        path = tmp_path / "test" / name / "results.json"
        path.write_text(json.dumps(content))
        os.utime(path, (1000 + age, 1000 + age))
    path.write_text("{")
    assert run_folder.find_test(weights, [tmp_path / "nowhere", tmp_path]) == tmp_path / "test" / "same"
    weights.write_bytes(b"others")
    assert run_folder.find_test(weights, [tmp_path]) is None
