"""ovenet calibrate, and what reads the file that it writes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.four_convolutions import write_checkpoint  # noqa: F401 - a fixture

import ovenet
from ovenet.builders.loading import load_model
from ovenet.errors import UserError
from ovenet.inference.temperature import digest, read_temperatures, temperature_path
from ovenet.predictor.sharing import pack
from ovenet.predictor.sources import MODELS

VAL = ("DATASET.TEST_SET", "list/camvid/val.lst")
FITTED = ("TEST.TEMPERATURE", "fitted")


@pytest.fixture
def weights(write_checkpoint, tmp_path):  # noqa: F811
    """The checkpoint of a tiny OVeNet."""
    (tmp_path / "run").mkdir()
    return write_checkpoint(tmp_path / "run/w.pth", dataset="camvid", num_classes=11)


def write_temperatures(weights, temperatures):
    content = {"sha256": digest(weights), "temperature": temperatures}
    temperature_path(weights).write_text(json.dumps(content))


def results_of(folder):
    return {path.parent.name: json.loads(path.read_text()) for path in folder.glob("test/*/results.json")}


@pytest.mark.ci
def test_temperatures_are_fitted_and_used(run_tool, weights, tiny_data):
    root = ("DATASET.ROOT", tiny_data, *VAL)
    done = run_tool("calibrate", weights, *root)
    assert done.code == 0, done.err
    content = json.loads(temperature_path(weights).read_text())
    fitted = content["temperature"]
    assert list(fitted) == ["initial", "seed", "fused"]
    assert (content["list"], content["num_images"]) == ("list/camvid/val.lst", 3)
    assert all(content["after"][name]["nll"] <= content["before"][name]["nll"] + 1e-4 for name in fitted)
    again = run_tool("calibrate", weights, *root)
    assert again.code == 2
    assert "--overwrite" in again.err

    for options in ((), FITTED):
        done = run_tool("test", weights, *root, *options)
        assert done.code == 0, done.err
    plain, scaled = (results_of(weights.parent)[f"val_w_s1{end}"] for end in ("", "_tfitted"))
    assert plain["results"] == scaled["results"]  # no label changes
    assert "fitted with other" not in done.err
    flipped = run_tool("test", weights, *root, *FITTED, "TEST.FLIP_TEST", "True", "TEST.DETAILS", "False")
    assert "fitted with other flip;" in flipped.err
    for name in fitted:
        numbers = {key: scores["details"]["class_calibration"][name]["nll"] for key, scores in
                   (("before", plain), ("after", scaled))}  # fmt: skip
        assert numbers == {key: content[key][name]["nll"] for key in numbers}


def test_a_packed_file_carries_temperatures(tmp_path):
    weights = Path(shutil.copy(MODELS / "camvid-lite0.safetensors", tmp_path / "w.safetensors"))
    write_temperatures(weights, {"initial": 2.0, "seed": 3.0, "fused": 2.5})
    packed, again = tmp_path / "packed.safetensors", tmp_path / "again.safetensors"
    pack(weights, packed)
    pack(packed, again)
    assert load_model(packed).temperatures == {}
    assert load_model(again, overrides=FITTED).temperatures == {"initial": 2.0, "seed": 3.0, "fused": 2.5}


@pytest.mark.slow
def test_two_processes_fit_the_same(run_tool, run_ranks, tiny_data, tmp_path):
    weights = Path(shutil.copy(MODELS / "camvid-lite0.safetensors", tmp_path / "w.safetensors"))
    arguments = ("calibrate", weights, "DATASET.ROOT", tiny_data, *VAL)
    assert run_tool(*arguments).code == 0
    content = json.loads(temperature_path(weights).read_text())
    for rank in run_ranks(2, f"tools/{arguments[0]}.py", *arguments[1:], "--overwrite"):
        assert rank.returncode == 0, rank.stderr
    assert {**json.loads(temperature_path(weights).read_text()), "date": ""} == {**content, "date": ""}


@pytest.mark.slow
def test_an_exported_file_carries_temperatures(run_tool, weights, tiny_data, tmp_path):
    pytest.importorskip("onnxruntime")
    write_temperatures(weights, {"initial": 2.0, "seed": 3.0, "fused": 2.5})
    file = tmp_path / "model.onnx"
    done = run_tool("export", weights, file, "--size", "48x64", "--set", "DATASET.ROOT", tiny_data, *VAL)
    assert done.code == 0, done.err
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3)).astype(np.uint8)
    raw, scaled = (
        ovenet.load(file, overrides=options, long_side=64)(image, scores=True, probability=True)
        for options in ((), FITTED)
    )
    assert np.array_equal(raw.mask, scaled.mask)
    powers = raw.scores.astype(np.float64) ** (1 / 2.5)
    np.testing.assert_allclose(scaled.scores, powers / powers.sum(axis=0), atol=1e-5)
    np.testing.assert_allclose(scaled.probability, scaled.scores.max(axis=0), atol=1e-6)
    by_torch = ovenet.load(weights, overrides=FITTED, long_side=64)(image, probability=True)
    np.testing.assert_allclose(by_torch.probability, scaled.probability, atol=1e-3)


def test_the_probability_of_the_predicted_class_is_a_result(run_tool, weights, tmp_path):
    photo = np.random.default_rng(0).integers(0, 256, (33, 47, 3)).astype(np.uint8)
    Image.fromarray(photo).save(tmp_path / "a.png")
    done = run_tool(
        "infer", weights, tmp_path / "a.png", "--output", tmp_path / "out", "--save", "ids", "probability",
        "--set", "TEST.TEMPERATURE", "0.5",
    )  # fmt: skip
    assert done.code == 0, done.err
    grey = np.asarray(Image.open(tmp_path / "out/probability/a.png"))
    expected = ovenet.load(weights, overrides=("TEST.TEMPERATURE", "0.5"))(photo, probability=True).probability
    np.testing.assert_array_equal(grey, np.rint(255 * expected))


def test_files_that_cannot_be_used_are_one_line(weights, run_tool, tiny_data):
    path = temperature_path(weights)
    assert read_temperatures(weights) == {}
    with pytest.raises(UserError, match=f"{path.name}: missing.*ovenet calibrate"):
        load_model(weights, overrides=FITTED)
    for content, expected in (
        ("{", "damaged"),
        ("[1]", "damaged"),
        ("{}", "damaged.*sha256"),
        ('{"sha256": "x", "temperature": {"fused": 0}}', "fused is 0; expected a finite number above 0"),
        ('{"sha256": "x", "temperature": {"fused": Infinity}}', "fused is inf"),
        ('{"sha256": "x", "temperature": {"middle": 1}}', "middle"),
        ('{"sha256": "x", "temperature": {"fused": 1.5}}', "other weights.*--overwrite"),
    ):
        path.write_text(content)
        with pytest.raises(UserError, match=expected):
            load_model(weights, overrides=FITTED)
    assert load_model(weights).temperatures == {}  # never unasked
    unlabelled = run_tool("calibrate", weights, "DATASET.ROOT", tiny_data, "DATASET.TEST_SET", "list/camvid/test.lst",
                          "--overwrite")  # fmt: skip
    assert unlabelled.code == 2
    assert "test.lst" in unlabelled.err.splitlines()[-1]
    for value in ("0", "-1", "inf", "warm"):
        done = run_tool("test", weights, "DATASET.ROOT", tiny_data, *VAL, "TEST.TEMPERATURE", value)
        assert done.code == 2
        assert "TEST.TEMPERATURE" in done.err


def test_a_fit_on_the_training_list_warns(weights, run_tool, tiny_data):
    done = run_tool("calibrate", weights, "DATASET.ROOT", tiny_data, "DATASET.TEST_SET", "list/camvid/train.lst",
                    "DATASET.TRAIN_SET", "list/camvid/train.lst", "TEST.NUM_SAMPLES", "1")  # fmt: skip
    assert done.code == 0, done.err
    assert "trained on this list" in done.err
