"""Compositions from a YAML file of a few lines, trained and tested as a user does."""

import json
from pathlib import Path

import pytest
import torch

from ovenet import Predictor, builders, load_config

ROOT = Path(__file__).parents[2]
SHORT = (
    "WORKERS", 0, "TRAIN.NUM_SAMPLES", 4, "TRAIN.BATCH_SIZE_PER_GPU", 2, "TRAIN.IMAGE_SIZE", "[64,64]",
    "TRAIN.END_EPOCH", 1,
    "TEST.NUM_SAMPLES", 1, "TEST.BASE_SIZE", 96, "DEVICE", "cpu",
)  # fmt: skip


def test_convnext_with_ocr_and_a_shared_seed_trains_from_under_ten_lines(run_tool, scenes, tmp_path):
    file = ROOT / "experiments/synthetic/ovenet_convnext_tiny_ocr.yaml"
    assert len(file.read_text().splitlines()) < 10
    smallest = ("MODEL.BACKBONE.NAME", "convnext_atto")
    options = ("--cfg", file, "DATASET.ROOT", scenes, "OUTPUT_DIR", tmp_path, *SHORT, *smallest)
    assert run_tool("train", *options).code == 0
    done = run_tool("test", *options)
    assert done.code == 0, done.err
    run = tmp_path / "synthetic" / file.stem
    results = json.loads(next(run.glob("test/*/results.json")).read_text())
    assert set(results["results"]) == {"initial", "seed", "fused"}
    predictor = Predictor.from_checkpoint(run / "final_state.pth", device="cpu")
    assert type(predictor.model.backbone).__name__ == "TimmBackbone"


def test_pixels_follow_the_backbone_into_training_checkpoints_and_prediction(run_tool, scenes, tmp_path):
    """EfficientNet-Lite0 takes (x - 127) / 128."""
    (tmp_path / "lite.yaml").write_text(
        f"_BASE_: {ROOT}/experiments/_base_/synthetic.yaml\n"
        "MODEL: {BACKBONE: {NAME: efficientnet_lite0_imagenet}, HEAD: {NAME: conv1x1}}\n"
    )
    options = ("DATASET.ROOT", scenes, "OUTPUT_DIR", tmp_path, *SHORT)
    assert run_tool("train", "--cfg", tmp_path / "lite.yaml", *options).code == 0
    cfg = load_config(tmp_path / "lite.yaml", [str(o) for o in options])
    assert builders.train_dataset(cfg).transform.pad_color == (127, 127, 127)
    path = tmp_path / "synthetic/lite/final_state.pth"
    content = torch.load(path, weights_only=True)
    assert content["normalization"]["mean"] == pytest.approx((127 / 255,) * 3)
    predictor = Predictor.from_checkpoint(path, device="cpu")
    assert predictor.settings.normalization.std == pytest.approx((128 / 255,) * 3)
    content["normalization"]["std"] = (0.25, 0.25, 0.25)  # what the file says holds
    torch.save(content, path)
    assert Predictor.from_checkpoint(path, device="cpu").settings.normalization.std == (0.25, 0.25, 0.25)


@pytest.mark.parametrize(
    ("lines", "parts"),
    [
        ("MODEL: {BACKBONE: {NAME: convnext_tini}}", ["there is no backbone 'convnext_tini'"]),
        (
            "MODEL: {BACKBONE: {NAME: mit_b0}, SEED: {NAME: fork}}",
            ["MODEL.SEED.NAME is fork", "MixTransformer", "shared or neck"],
        ),
        ("MODEL: {NECK: {NAME: concat}, HEAD: {NAME: light_ham}}", ["light_ham head reads at least 3 maps"]),
        (
            "MODEL: {BACKBONE: {NAME: mit_b0}, NECK: {NAME: none}, HEAD: {NAME: ocr}}",
            ["strides are 16 and 32", "concat"],
        ),
        (
            "MODEL: {BACKBONE: {NAME: hrnet_w18_small_v1}, SEED: {NAME: fork, STAGE: 5}}",
            ["MODEL.SEED.STAGE is 5", "2, 3 or 4"],
        ),
        ("MODEL: {BACKBONE: {NAME: mit_b0, PRETRAINED: timm}}", ["PRETRAINED is timm, but timm does not have"]),
        (
            "MODEL: {BACKBONE: {NAME: mit_b0, PRETRAINED: nowhere.pth}}",
            ["nowhere.pth: there is no such checkpoint file"],
        ),
        (
            "MODEL: {BACKBONE: {NAME: maxvit_pico_rw_256, IMG_SIZE: [64, 64]}}\nTRAIN: {IMAGE_SIZE: [96, 64]}",
            ["64x64", "96x64", "MODEL.BACKBONE.IMG_SIZE"],
        ),
        ("MODEL: {SEED: {NAME: shared}, FROZEN: [backbone.stage9]}", ["no part 'backbone.stage9'"]),
        ("TRAIN: {FREEZE_LAYERS: 'layer1,layer9'}", ["TRAIN.FREEZE_LAYERS: 'layer9'"]),
        ("LOSS: {TERMS: [{NAME: focus}]}", ["there is no loss 'focus'; the nearest are focal"]),
    ],
)
def test_bad_compositions_are_one_line(run_tool, scenes, tmp_path, lines, parts):
    text = f"_BASE_: {ROOT}/experiments/_base_/synthetic.yaml\n{lines}\n"
    (tmp_path / "bad.yaml").write_text(text)
    options = [part for part in SHORT if "IMAGE_SIZE" not in lines or part not in ("TRAIN.IMAGE_SIZE", "[64,64]")]
    small = () if "BACKBONE" in lines else ("MODEL.BACKBONE.NAME", "hrnet_w18_small_v1")
    result = run_tool(
        "train", "--cfg", tmp_path / "bad.yaml", "DATASET.ROOT", scenes, "OUTPUT_DIR", tmp_path, *options, *small
    )
    assert result.code == 2
    (line,) = [line for line in result.err.splitlines() if line.startswith("error: ")]
    for part in parts:
        assert part in line


def test_weights_of_timm_that_cannot_be_reached_are_one_line(run_fork, scenes, tmp_path):
    done = run_fork(
        "tools/train.py", "--cfg", "experiments/synthetic/ovenet_convnext_tiny_ocr.yaml",
        "DATASET.ROOT", scenes, "OUTPUT_DIR", tmp_path,
        *SHORT, "MODEL.BACKBONE.NAME", "convnext_atto", "MODEL.BACKBONE.PRETRAINED", "timm",
        HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path),
    )  # fmt: skip
    assert done.returncode == 2
    assert "timm's weights of convnext_atto" in done.stderr.splitlines()[-1]
    assert "file" in done.stderr.splitlines()[-1]
