"""ovenet export, and what is done with its files."""

import json

import numpy as np
import pytest
from PIL import Image
from tests.four_convolutions import write_checkpoint  # noqa: F401 - a fixture
from tests.traced import traced_once

from ovenet.commands import latency
from ovenet.errors import UserError
from ovenet.predictor.sources import MODELS


@pytest.fixture(scope="module", autouse=True)
def _traced_once():
    with traced_once():
        yield


@pytest.fixture
def tiny(write_checkpoint, tmp_path):  # noqa: F811
    """The checkpoint of a tiny OVeNet."""
    (tmp_path / "weights").mkdir()
    return write_checkpoint(tmp_path / "weights/w.pth", dataset="camvid", num_classes=11)


@pytest.fixture
def photo(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    small = np.random.default_rng(0).integers(0, 256, (6, 8, 3)).astype(np.uint8)
    Image.fromarray(small).resize((128, 96), Image.Resampling.BICUBIC).save(folder / "a.png")
    return folder


def test_export_infer_and_test(run_tool, tiny_data, photo, tmp_path, monkeypatch, capsys):
    file = tmp_path / "model.onnx"
    lists = ("--set", "DATASET.ROOT", tiny_data, "DATASET.TEST_SET", "list/camvid/val.lst")
    done = run_tool("export", "camvid-lite0", file, "--size", "64x96", *lists)
    assert done.code == 0, done.err
    assert "compared:    3 images" in done.out
    assert "mIoU" in done.out
    masks = {}
    for weights in ("camvid-lite0", file):
        out = tmp_path / f"out-{weights != file}"
        inferred = run_tool("infer", weights, photo, "--output", out, "--long-side", "96")
        assert inferred.code == 0, inferred.err
        masks[weights] = np.asarray(Image.open(out / "ids/a.png"))
    assert (masks["camvid-lite0"] != masks[file]).mean() < 0.02  # 72x96 is run in two windows of 64x96 rows
    root = ("DATASET.ROOT", tiny_data, "DATASET.TEST_SET", "list/camvid/val.lst")
    tested = run_tool("test", file, *root)
    assert tested.code == 0, tested.err
    (results,) = tmp_path.glob("test/*/results.json")
    assert set(json.loads(results.read_text())["results"]) == {"initial", "seed", "fused"}
    monkeypatch.setattr("sys.argv", ["latency", *f"{file} --size 64x96 --runs 2 --ways onnxruntime torch".split()])
    latency.main()
    (row,) = [line for line in capsys.readouterr().out.splitlines() if "onnxruntime" in line]
    assert "3,159,566" in row  # parameters of the network that it was made from
    monkeypatch.setattr("sys.argv", ["latency", *f"{file} --size 64x128".split()])
    with pytest.raises(UserError, match="--size 64x96"):
        latency.main()


def test_a_model_that_comes_along_is_tested_by_its_name(run_tool, tiny_data, tmp_path):
    """Its results go to OUTPUT_DIR, not beside the weights, which may lie where nobody may write."""
    before = sorted(MODELS.iterdir())
    done = run_tool(
        "test", "camvid-lite0", "DATASET.ROOT", tiny_data, "DATASET.TEST_SET", "list/camvid/val.lst",
        "OUTPUT_DIR", tmp_path / "out", "TEST.DETAILS", "False",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert (tmp_path / "out/camvid-lite0/test/val_camvid-lite0_s1/results.json").exists()
    assert sorted(MODELS.iterdir()) == before


@pytest.mark.ci
def test_the_same_scores_in_each_runtime(run_tool, tiny_data, tiny):
    scores = []
    for runtime in ("torch", "onnxruntime", "openvino"):
        done = run_tool(
            "test", tiny, "DATASET.ROOT", tiny_data, "DATASET.TEST_SET", "list/camvid/val.lst",
            "TEST.REPORT", runtime == "openvino", "--runtime", runtime,
        )  # fmt: skip
        assert done.code == 0, done.err
    for results in sorted(tiny.parent.glob("test/*/results.json")):
        scores.append(json.loads(results.read_text())["results"]["fused"]["pixel_accuracy"])
    assert len(scores) == 3
    assert len(list(tiny.parent.glob("test/*/report.html"))) == 1
    assert np.ptp(scores) < 1e-3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--size", "64"), "expected height x width"),
        (("--size", "64x96", "--opset", "3"), "opset 3"),
        (("--format", "openvino"), "ends in .xml"),
        (("--size", "dynamic", "--int8"), "int8 needs"),
        (("--size", "64x96", "--tensors", "offset"), "fused is missing"),
        (("--size", "64x96", "--images", "nowhere.png"), "does not exist"),
        (("--size", "64x96"), "name images: --images"),
        (("--size", "64x96", "--num-images", "0"), "at least 1"),
    ],
)
def test_bad_input_leaves_no_file(run_tool, photo, tiny, tmp_path, arguments, message):
    file = tmp_path / "model.onnx"
    images = () if "name images: --images" in message or "--images" in arguments else ("--images", photo)
    done = run_tool("export", tiny, file, *arguments, *images, "--set", "DATASET.ROOT", tmp_path / "none")
    assert done.code == 2, done.out
    assert message in done.err
    assert len(done.err.strip().splitlines()) == 1 or done.err.startswith("usage")
    assert {p.name for p in tmp_path.iterdir()} <= {"photos", "weights"}


def test_an_export_replaces_nothing_unasked(run_tool, photo, tmp_path):
    (tmp_path / "model.bin").write_text("mine")
    done = run_tool("export", "camvid-lite0", tmp_path / "model.xml", "--format", "openvino", "--images", photo)
    assert done.code == 2
    assert "model.bin exists" in done.err
    assert (tmp_path / "model.bin").read_text() == "mine"
