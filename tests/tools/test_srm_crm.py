"""The SRM/CRM network as a user runs it: trained with the contrast, tested without its embedding."""

import json
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]


def test_a_batch_too_small_for_its_norms_is_one_line(run_tool, scenes, tmp_path):
    """PPM's mean of the whole image is one number per channel and image."""
    (tmp_path / "ppm.yaml").write_text(
        f"_BASE_: {ROOT}/experiments/_base_/synthetic.yaml\n"
        "MODEL: {BACKBONE: {NAME: hrnet_w18_small_v1}, NECK: {NAME: fpn, CHANNELS: 8, CONTEXT: ppm}}\n"
    )
    options = ("WORKERS", 0, "DEVICE", "cpu", "TRAIN.IMAGE_SIZE", "[64,64]", "TRAIN.BATCH_SIZE_PER_GPU", 1)
    result = run_tool("train", "--cfg", tmp_path / "ppm.yaml", "DATASET.ROOT", scenes, "OUTPUT_DIR", tmp_path, *options)
    assert result.code == 2
    assert "Traceback" not in result.err
    last = result.err.splitlines()[-1]
    assert last.startswith("error: TRAIN.BATCH_SIZE_PER_GPU is 1: ")
    assert last.endswith("set at least 2")


def test_a_model_trained_with_an_embedding_is_tested_without(run_tool, scenes, tmp_path):
    (tmp_path / "srm.yaml").write_text(
        f"_BASE_: [{ROOT}/experiments/_base_/synthetic.yaml, {ROOT}/experiments/_base_/srm_crm.yaml]\n"
        "MODEL: {BACKBONE: {NAME: efficientnet_lite0_imagenet}, SEED: {NAME: shared}, HEAD: {EMBEDDING: 8},\n"
        "  NECK: {CHANNELS: 16}}\n"
        "LOSS: {CONTRAST: {START: 1, MAX_VIEWS: 4}}\n"
    )
    options = (
        "--cfg", tmp_path / "srm.yaml", "DATASET.ROOT", scenes, "OUTPUT_DIR", tmp_path, "WORKERS", 0, "DEVICE", "cpu",
        "TRAIN.IMAGE_SIZE", "[64,64]", "TRAIN.BATCH_SIZE_PER_GPU", 2, "TRAIN.NUM_SAMPLES", 4, "TRAIN.END_EPOCH", 1,
        "PRINT_FREQ", 1, "TEST.BASE_SIZE", 128,
    )  # fmt: skip
    trained = run_tool("train", *options)
    assert trained.code == 0, trained.err
    run = tmp_path / "synthetic/srm"
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    first, second = (line["loss_contrast"] for line in lines if line["kind"] == "train")
    assert first == 0 < second
    assert "head.embedding.weight" in torch.load(run / "final_state.pth", weights_only=True)["model"]
    assert run_tool("test", *options).code == 0
    without = (*options, "MODEL.HEAD.EMBEDDING", "null", "LOSS.CONTRAST.WEIGHT", 0)
    tested = run_tool("test", *without)
    assert tested.code == 0, tested.err
    results = [json.loads(path.read_text())["results"] for path in run.glob("test/*/results.json")]
    assert len(results) == 2
    assert results[0] == results[1]
