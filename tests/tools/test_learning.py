"""Small networks learn the drawn scenes."""

import json

import pytest


@pytest.mark.slow
@pytest.mark.parametrize(
    ("experiment", "options"),
    [
        ("demo_ovenet", ("TRAIN.END_EPOCH", 20, "TRAIN.BATCH_SIZE_PER_GPU", 4)),
        ("ovenet_mask2former_lite0", ("TRAIN.END_EPOCH", 25, "TRAIN.EVAL_INTERVAL", 25)),
    ],
)
def test_it_learns_drawn_scenes(run_tool, tmp_path, experiment, options):
    data, output = tmp_path / "data", tmp_path / "output"
    drawn = run_tool("prepare_data", "synthetic", "--root", data, "--train", 48, "--val", 8, "--test", 1)
    assert drawn.code == 0, drawn.err
    arguments = ("--cfg", f"experiments/synthetic/{experiment}.yaml", "DATASET.ROOT", data, "OUTPUT_DIR", output)
    trained = run_tool("train", *arguments, *options)
    assert trained.code == 0, trained.err
    assert run_tool("test", *arguments).code == 0
    (file,) = output.rglob("results.json")
    results = json.loads(file.read_text())["results"]
    # guessing the most frequent class everywhere would give a mean IoU of about 0.36 / 7 or 0.35 / 19, 0.05 or 0.02
    assert results["fused"]["mean_iou"] > 0.1
    assert results["fused"]["pixel_accuracy"] > 0.6
