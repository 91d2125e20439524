"""Files that version 1 wrote: a run of it goes on, and its weights are tested and inferred with.

``tests/engine/version_1`` holds the checkpoint of a tiny OVeNet on HRNet+OCR after two of four epochs on ``tiny_data``,
and the experiment's file.
"""

import json
import lzma
import shutil
from pathlib import Path

import pytest
import torch

from ovenet import Predictor

FILES = Path(__file__).parents[1] / "engine" / "version_1"
# What version 1 itself logged for the remaining epochs, with torch 2.15 on a CPU.
LOSSES = [7.29107666015625, 7.23338254292806]


@pytest.fixture
def run_dir(tmp_path):
    folder = tmp_path / "output" / "camvid" / "config"
    folder.mkdir(parents=True)
    (folder / "checkpoint.pth").write_bytes(lzma.decompress((FILES / "checkpoint.pth.xz").read_bytes()))
    shutil.copy(FILES / "config.yaml", tmp_path)
    return folder


def test_a_run_goes_on_as_version_1_would_have(run_tool, run_dir, tiny_data, tmp_path):
    options = ("DATASET.ROOT", tiny_data, "OUTPUT_DIR", tmp_path / "output", "TRAIN.RESUME", True)
    done = run_tool("train", "--cfg", tmp_path / "config.yaml", *options)
    assert done.code == 0, done.err
    assert "resumed from" in done.out + done.err
    points = [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]
    assert [p["loss"] for p in points if p["kind"] == "train"] == pytest.approx(LOSSES, rel=1e-5)
    assert [p["iteration"] for p in points if p["kind"] == "train"] == [9, 12]


def test_its_weights_carry_their_settings(run_dir):
    predictor = Predictor.from_checkpoint(run_dir / "checkpoint.pth", device="cpu")
    assert predictor.max_offset == 0.3
    assert type(predictor.model.head).__name__ == "OCRHead"
    image = torch.randint(0, 255, (40, 60, 3), dtype=torch.uint8).numpy()
    assert predictor(image).shape == (40, 60)
