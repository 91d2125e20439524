"""Mask2Former with offset learning and the seed on top, as a user runs it."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BASELINE, OVENET = (ROOT / f"experiments/synthetic/{name}mask2former_lite0.yaml" for name in ("", "ovenet_"))
TINY = (
    "WORKERS", 0, "DEVICE", "cpu", "TRAIN.IMAGE_SIZE", "[64,64]", "TRAIN.BATCH_SIZE_PER_GPU", 2,
    "TRAIN.NUM_SAMPLES", 4, "TRAIN.END_EPOCH", 1, "PRINT_FREQ", 1, "TEST.BASE_SIZE", 128, "TEST.IMAGE_SIZE", "[128,64]",
    "MODEL.HEAD.NUM_QUERIES", 8, "MODEL.HEAD.CHANNELS", 32, "MODEL.HEAD.NUM_LAYERS", 1,
    "MODEL.HEAD.NUM_PIXEL_LAYERS", 1,
)  # fmt: skip


@pytest.mark.ci
def test_it_trains_tests_reports_and_infers(run_tool, scenes, tmp_path):
    options = ("--cfg", OVENET, *TINY, "DATASET.ROOT", scenes, "OUTPUT_DIR", tmp_path)
    trained = run_tool("train", *options)
    assert trained.code == 0, trained.err
    run = tmp_path / "synthetic/ovenet_mask2former_lite0"
    steps = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    losses = {"loss_class", "loss_mask", "loss_dice", "loss_seed", "loss_fused", "loss_confidence"}
    assert all(losses < step.keys() for step in steps if step["kind"] == "train")
    scales = ("TEST.SCALE_LIST", "0.75,1.0", "TEST.FLIP_TEST", True, "TEST.REPORT", True)
    tested = run_tool("test", *options, *scales, "TEST.SAVE_PREDICTIONS", True)
    assert tested.code == 0, tested.err
    (results,) = run.glob("test/*/results.json")
    assert set(json.loads(results.read_text())["results"]) == {"initial", "seed", "fused"}
    assert list(results.parent.rglob("report.html"))
    photo = next((scenes / "synthetic").rglob("*.png"))
    inferred = run_tool("infer", run / "final_state.pth", photo, "--output", tmp_path / "out")
    assert inferred.code == 0, inferred.err
    assert list((tmp_path / "out").iterdir())
    windows = run_tool("test", *options, "TEST.IMAGE_SIZE", "[64,64]", "TEST.STRIDE", "[32,32]")
    assert windows.code == 0, windows.err


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (("LOSS.USE_OHEM", True), ("LOSS.USE_OHEM is True", "seed", "mask2former")),
        (("LOSS.BOUNDARY_WEIGHT", 1.0), ("LOSS.BOUNDARY_WEIGHT is 1.0", "seed", "mask2former")),
        (("LOSS.TERMS", "[{'NAME': 'focal'}]"), ("LOSS.TERMS is [{'NAME': 'focal'}]", "seed")),
        (("MODEL.NECK.NAME", "concat"), ("mask2former", "4 maps", "got 1")),
        (("MODEL.HEAD.NUM_QUERIES", 0), ("MODEL.HEAD.NUM_QUERIES is 0", "at least 1")),
    ],
)
def test_settings_that_do_not_go_with_it(run_tool, scenes, tmp_path, options, parts):
    result = run_tool("train", "--cfg", BASELINE, *TINY, "DATASET.ROOT", scenes, "OUTPUT_DIR", tmp_path, *options)
    assert result.code == 2
    assert "Traceback" not in result.err
    assert all(part in result.err.splitlines()[-1] for part in parts), result.err
