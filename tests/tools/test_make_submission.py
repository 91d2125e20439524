"""tools/make_submission.py, from weights to a zip that the official evaluation reads."""

import re
import shutil
import zipfile

import pytest
import torch
from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as official
from tests.conftest import tiny_settings
from tests.drawn_scenes import write_dataset

from ovenet.builders import build_model
from ovenet.config import load_config
from ovenet.preparation.prepare import prepare_dataset


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Scenes, of which every test gets a copy."""
    folder = tmp_path_factory.mktemp("scenes")
    write_dataset(folder, {"train": 1, "val": 3, "test": 2}, size=(64, 128), seed=0)
    return folder


@pytest.fixture
def scenes(tmp_path, write_config, drawn):
    """Drawn scenes in the Cityscapes folder, the config of a tiny OVeNet on them, and weights for it."""
    root = tmp_path / "data"
    shutil.copytree(drawn, root / "cityscapes")
    prepare_dataset("cityscapes", root)
    settings = tiny_settings()
    settings["DATASET"] = {"DATASET": "cityscapes", "ROOT": str(root), "NUM_CLASSES": 19}
    settings["TEST"] = {"IMAGE_SIZE": [128, 64], "BASE_SIZE": 128}
    settings["OUTPUT_DIR"] = str(tmp_path / "output")
    path = write_config(settings, "tiny.yaml")
    torch.manual_seed(0)
    torch.save(build_model(load_config(path)).state_dict(), tmp_path / "weights.pth")
    return ("--cfg", path, "TEST.MODEL_FILE", tmp_path / "weights.pth"), root


def test_a_dry_run_scores_what_is_in_the_zip(run_tool, scenes, tmp_path, monkeypatch):
    arguments, root = scenes
    result = run_tool("make_submission", "--dry-run", *arguments)
    assert result.code == 0, result.err
    zip_file = tmp_path / "output/cityscapes/tiny/submission/val_weights_s1.zip"
    assert re.search(rf"{re.escape(str(zip_file))}: 3 files, .*valid.*cityscapes", result.out)
    assert [p.name for p in zip_file.parent.iterdir()] == [zip_file.name]  # nothing is left lying about
    tested = run_tool("test", *arguments)
    fused = [line.split()[-1] for line in tested.out.splitlines() if line.startswith(("road", "mIoU  ", "pixel"))]
    dry = [line.split()[-1] for line in result.out.splitlines() if line.startswith(("road", "mIoU  ", "pixel"))]
    assert dry == fused
    with zipfile.ZipFile(zip_file) as archive:
        archive.extractall(tmp_path / "unpacked")
    predictions = sorted((tmp_path / "unpacked").iterdir())
    labels = sorted((root / "cityscapes/gtFine/val").glob("*/*_labelIds.png"))
    for name, value in {"evalInstLevelScore": False, "JSONOutput": False, "quiet": True}.items():
        monkeypatch.setattr(official.args, name, value)
    theirs = official.evaluateImgLists([str(p) for p in predictions], [str(p) for p in labels], official.args)
    assert f"{100 * theirs['classScores']['road']:.2f}" == dry[0]


def test_a_folder_of_the_users_is_left_alone(run_tool, scenes, tmp_path):
    arguments, _ = scenes
    mine = tmp_path / "out.zip.files"
    mine.mkdir()
    (mine / "thesis.txt").write_text("mine")
    assert run_tool("make_submission", "--dry-run", "--output", tmp_path / "out.zip", *arguments).code == 0
    assert (mine / "thesis.txt").read_text() == "mine"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".out.zip")]


def test_an_incomplete_test_split_is_refused_before_predicting(run_tool, scenes):
    arguments, _ = scenes
    result = run_tool("make_submission", *arguments)
    assert result.code == 2
    assert re.search(r"test\.lst: 2 images.*cityscapes.*1525", result.err)


def test_the_test_split_is_packed_and_an_existing_zip_is_kept(run_tool, scenes, tmp_path, monkeypatch):
    """As on the server's 1525 images, with the two that are here expected instead."""
    from dataclasses import replace

    from ovenet.data import catalog

    info = catalog.CATALOG["cityscapes"]
    monkeypatch.setitem(catalog.CATALOG, "cityscapes", replace(info, submission=replace(info.submission, num_files=2)))
    arguments, _ = scenes
    output = ("--output", tmp_path / "out.zip")
    result = run_tool("make_submission", *output, *arguments)
    assert result.code == 0, result.err
    assert "2 files, complete and valid" in result.out
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        assert all(name.endswith("_leftImg8bit.png") and "/" not in name for name in archive.namelist())
    before = (tmp_path / "out.zip").read_bytes()
    again = run_tool("make_submission", *output, *arguments)
    assert again.code == 2
    assert re.search(r"out\.zip exists.*--output", again.err)
    assert (tmp_path / "out.zip").read_bytes() == before
    assert run_tool("make_submission", "--validate", tmp_path / "out.zip", *arguments).code == 0
    with zipfile.ZipFile(tmp_path / "out.zip", "a") as archive:
        archive.writestr("more.png", b"")
    refused = run_tool("make_submission", "--validate", tmp_path / "out.zip", *arguments)
    assert refused.code == 2
    assert "more.png" in refused.err


def test_a_dataset_without_a_server(run_tool, tiny_data, write_config):
    settings = tiny_settings()
    settings["DATASET"]["ROOT"] = str(tiny_data)
    result = run_tool("make_submission", "--cfg", write_config(settings))
    assert result.code == 2
    assert re.search(r"camvid .*server.*tools/test\.py", result.err)
