"""Uncertainty-aware scores and submissions, on an ACDC-like tree of drawn scenes."""

import json
import re
import shutil
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from tests.conftest import tiny_settings

from ovenet import build_model, load_config
from ovenet.synthetic.scenes import draw_scene

SIZE = (63, 95)
ASKED = ("TEST.UNCERTAINTY", "product")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """An ``acdc`` of four validation images in fog and snow, as it is published, and their list."""
    folder, lines = tmp_path_factory.mktemp("drawn") / "acdc", []
    for n, condition in enumerate(["fog", "snow"] * 2):
        image, ids = draw_scene(SIZE, np.random.default_rng(n))
        invalid = np.zeros(SIZE, np.uint8)
        invalid[10 + n : 40, 20:60] = 1
        stem = f"{condition}/val/GOPR1/GOPR1_frame_00000{n}"
        files = {f"rgb_anon/{stem}_rgb_anon": image, f"gt/{stem}_gt_labelIds": ids, f"gt/{stem}_gt_invIds": invalid}
        for name, pixels in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / f"{name}.png")
        lines.append("\t".join(f"{name}.png" for name in list(files)[:2]))
    (folder.parent / "list/acdc").mkdir(parents=True)
    (folder.parent / "list/acdc/val.lst").write_text("\n".join(lines))
    return folder.parent


@pytest.fixture
def asked(drawn, tmp_path, write_config):
    """Arguments for a tiny OVeNet with random weights, scored with its uncertainty."""
    shutil.copytree(drawn, tmp_path / "data")
    settings = tiny_settings()
    settings["DATASET"] = {"DATASET": "acdc", "ROOT": str(tmp_path / "data"), "NUM_CLASSES": 19}
    settings["DATASET"]["TEST_SET"] = "list/acdc/val.lst"
    settings["TEST"] = {"IMAGE_SIZE": [95, 63], "BASE_SIZE": 95, "DETAILS": False}
    settings["OUTPUT_DIR"] = str(tmp_path / "output")
    path = write_config(settings, "tiny.yaml")
    torch.save({"model": build_model(load_config(path)).state_dict()}, tmp_path / "weights.pth")
    return ("--cfg", path, "TEST.MODEL_FILE", tmp_path / "weights.pth", *ASKED)


def scores_of(tmp_path):
    (path,) = (tmp_path / "output/acdc/tiny/test").glob("*/results.json")
    content = json.loads(path.read_text())
    path.unlink()
    return content["uncertainty"]


def mask_of(tmp_path, number, condition):
    return tmp_path / f"data/acdc/gt/{condition}/val/GOPR1/GOPR1_frame_00000{number}_gt_invIds.png"


@pytest.mark.ci
def test_processes_and_interruptions_do_not_change_the_scores(asked, tmp_path, run_tool, run_ranks):
    done = run_tool("test", *asked)
    assert done.code == 0, done.err
    expected = scores_of(tmp_path)
    assert expected["confidence"] == "product"
    assert expected["by_condition"].keys() == {"fog", "snow"}
    assert 0 < expected["overall"]["fused"]["average"] < 1
    row = next(line.split() for line in done.out.splitlines() if line.startswith("AUIoU "))
    assert row == ["AUIoU", "–", "–", f"{100 * expected['overall']['fused']['average']:.2f}"]
    for process in run_ranks(2, "tools/test.py", *asked):
        assert process.returncode == 0, process.stderr
    assert scores_of(tmp_path) == expected

    path = mask_of(tmp_path, 3, "snow")
    pixels = path.read_bytes()
    Image.fromarray(np.full(SIZE, 2, np.uint8)).save(path)
    stopped = run_tool("test", *asked)
    assert stopped.code == 2
    assert re.search(rf"{path}: .*value 2; expected 0 .* 1 ", stopped.err)
    path.write_bytes(pixels)
    other = run_tool("test", *asked, "TEST.RESUME", True, "TEST.UNCERTAINTY", "seed")
    assert other.code == 2
    assert re.search(r"TEST\.UNCERTAINTY 'product'.*'seed'", other.err)
    resumed = run_tool("test", *asked, "TEST.RESUME", True)
    assert resumed.code == 0, resumed.err
    assert "3 of 4 images are done" in resumed.err
    assert scores_of(tmp_path) == expected


def test_a_submissions_confidence_maps_score_like_the_test(asked, tmp_path, run_tool):
    tested = run_tool("test", *asked)
    zip_file = tmp_path / "val.zip"
    packed = run_tool("make_submission", "--dry-run", "--output", zip_file, *asked)
    assert packed.code == 0, packed.err
    assert f"{zip_file}: 8 files, complete and valid for acdc" in packed.out
    rows = [[line.split()[-1] for line in r.out.splitlines() if line.startswith("AUIoU ")] for r in (tested, packed)]
    assert rows[0] == rows[1] != []
    with zipfile.ZipFile(zip_file) as archive:
        names = archive.namelist()
        confidence = Image.open(archive.open(names[0]))
        assert names[:1] + names[4:5] == [
            f"{f}/GOPR1_frame_000000_rgb_anon.png" for f in ("confidence", "labelTrainIds")
        ]
    assert (confidence.mode, confidence.size) == ("I;16", SIZE[::-1])
    assert 0 < np.asarray(confidence).min() < np.asarray(confidence).max() < 65535


def test_what_cannot_be_scored_is_said_in_one_line(asked, tmp_path, run_tool):
    for override, message in [
        (("MODEL.SEED.NAME", "none"), r"TEST\.UNCERTAINTY is product\b.*\bprobability\b"),
        (("TEST.UNCERTAINTY", "sure"), r"TEST\.UNCERTAINTY is 'sure'; .*probability, seed, product"),
    ]:
        refused = run_tool("test", *asked, *override)
        assert refused.code == 2
        assert re.search(message, refused.err), refused.err
    missing = mask_of(tmp_path, 0, "fog")
    missing.unlink()
    for tool in (("test",), ("make_submission", "--dry-run")):
        refused = run_tool(*tool, *asked)
        assert refused.code == 2
        assert f"{missing}: " in refused.err.splitlines()[-1]
    assert run_tool("test", *asked, "TEST.UNCERTAINTY", "none").code == 0
