"""``ovenet refine``: saved predictions, refined by a SegFix model."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from tests.conftest import tiny_settings
from torch import nn

from ovenet import build_model, load_config
from ovenet.commands import main

SEED = {"NAME": "segfix", "PROJECTION": 4, "CHANNELS": 8}


@pytest.fixture
def weights(tiny_data, tmp_path, write_config):
    """A checkpoint that finds a border everywhere, with the interior to the right."""
    settings = tiny_settings("seg_hrnet")
    del settings["MODEL"]["EXTRA"]["OFFSET_BRANCH"]
    settings["MODEL"] |= {"SEED": SEED}
    settings["DATASET"] |= {"ROOT": str(tiny_data)}
    cfg = load_config(write_config(settings))
    model = build_model(cfg)
    for branch, sign in ((model.seed.boundary, 1), (model.seed.direction, -1)):
        nn.init.constant_(branch[-1].weight, sign)
        nn.init.constant_(branch[1].bias, 1.0)  # hidden values are positive
    nn.init.constant_(model.seed.direction[-1].weight[:1], 1.0)
    path = tmp_path / "segfix.pth"
    torch.save({"model": model.state_dict(), "config": cfg.dump()}, path)
    return path


@pytest.fixture
def saved(tmp_path):
    """Predictions of the validation images, columns of classes."""
    folder = tmp_path / "predictions"
    ids = np.tile(np.arange(64, dtype=np.uint8) // 8, (48, 1))
    (folder / "ids/val").mkdir(parents=True)
    for i in range(3):
        Image.fromarray(ids).save(folder / f"ids/val/{i}.png")
    return folder


@pytest.fixture
def refine(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["ovenet", "refine", *map(str, arguments)])
        try:
            main()
        except SystemExit as end:
            return end.code, capsys.readouterr()
        return 0, capsys.readouterr()

    return run


def test_predictions_are_moved_and_scored(refine, weights, saved, tmp_path):
    code, told = refine(weights, saved, "--output", tmp_path / "new")
    assert code == 0, told.err
    columns = np.minimum(np.arange(64) + 2, 63) // 8  # each pixel has the class two to the right
    for i in range(3):
        refined = np.asarray(Image.open(tmp_path / f"new/ids/val/{i}.png"))
        np.testing.assert_array_equal(refined, np.tile(columns, (48, 1)))
    assert "S_i" in told.out
    assert set(json.loads((tmp_path / "new/results.json").read_text())["results"]) == {"initial", "fused"}
    again = refine(weights, saved, "--output", tmp_path / "new")
    assert again[0] == 2
    assert "exists already" in again[1].err


def test_bad_input_is_one_line(refine, weights, saved, tmp_path):
    def refused(*arguments):
        code, told = refine(*arguments, "--output", tmp_path / "new")
        assert (code, told.err.count("\n")) == (2, 1), told.err
        assert not (tmp_path / "new").exists()
        return told.err

    assert "val/0.png" in refused(weights, tmp_path / "nowhere")
    (saved / "ids/val/0.png").unlink()
    assert "1 of 3 missing" in refused(weights, saved / "ids")
    Image.fromarray(np.zeros((5, 7), np.uint8)).save(saved / "ids/val/0.png")
    assert "7x5 pixels, but its image has 64x48" in refused(weights, saved)
    Image.fromarray(np.full((48, 64), 77, np.uint8)).save(saved / "ids/val/0.png")
    assert "holds the id 77" in refused(weights, saved)
    (saved / "ids/val/0.png").write_bytes((saved / "ids/val/1.png").read_bytes())
    Image.fromarray(np.full((48, 64), 78, np.uint8)).save(saved / "ids/val/2.png")
    assert "holds the id 78" in refused(weights, saved)  # nothing is left of the two before it
    assert not list(tmp_path.glob(".*"))
    assert "expected segfix" in refused("camvid-lite0", saved)
