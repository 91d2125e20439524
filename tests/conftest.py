"""What the tests share: a tiny model's config, and a tiny dataset on disk."""

from __future__ import annotations

import os
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the cores are shared out among the processes of the suite
if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"  # kernels run on the CPU; has to be set before anything imports Triton

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from yacs.config import CfgNode

from ovenet.config import load_config

TINY_WIDTHS = (4, 8, 12, 16)


def tiny_settings(name: str = "branched_seg_hrnet", offset_branch: int = 4) -> dict:
    """Settings of a model that runs in milliseconds: one block per resolution, widths 4 to 16, CamVid's classes."""
    stage1 = {"NUM_MODULES": 1, "NUM_BLOCKS": [1], "NUM_CHANNELS": [4], "BLOCK": "BOTTLENECK"}
    stages = {"STAGE1": stage1}
    for number in (2, 3, 4):
        spec = {"NUM_MODULES": 1, "NUM_BLOCKS": [1] * number, "NUM_CHANNELS": list(TINY_WIDTHS[:number])}
        stages[f"STAGE{number}"] = stages[f"STAGE{number}_2"] = spec
    return {
        "WORKERS": 0,
        "DEVICE": "cpu",
        "MODEL": {
            "NAME": name,
            "EXTRA": {"OFFSET_BRANCH": offset_branch, **stages},
            "OCR": {"MID_CHANNELS": 8, "KEY_CHANNELS": 4},
        },
        "DATASET": {
            "DATASET": "camvid",
            "NUM_CLASSES": 11,
            "TRAIN_SET": "list/camvid/train.lst",
            "TEST_SET": "list/camvid/val.lst",
        },
        "TRAIN": {"IMAGE_SIZE": [48, 32], "BASE_SIZE": 64, "BATCH_SIZE_PER_GPU": 2, "END_EPOCH": 2},
        "TEST": {"IMAGE_SIZE": [64, 64], "BASE_SIZE": 64},
    }


@pytest.fixture
def write_config(tmp_path):
    """A function that writes settings as YAML and returns the file's path."""

    def write(settings: dict, name: str = "config.yaml") -> Path:
        path = tmp_path / name
        path.write_text(yaml.safe_dump(settings), encoding="utf-8")
        return path

    return write


@pytest.fixture
def tiny_cfg(write_config):
    """A function that gives the checked config of a tiny model, with overrides ``KEY, VALUE, …``."""

    def make(*overrides: object, name: str = "branched_seg_hrnet", offset_branch: int = 4) -> CfgNode:
        path = write_config(tiny_settings(name, offset_branch), f"{name}_{offset_branch}.yaml")
        return load_config(path, [str(o) for o in overrides])

    return make


@pytest.fixture
def tiny_data(tmp_path):
    """A ``DATASET.ROOT`` with a ``camvid`` of 6 training, 3 validation and 2 unlabelled test images of 64x48."""
    root = tmp_path / "data"
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 3)):
        lines = []
        for i in range(count):
            labels = np.repeat(np.repeat(rng.integers(0, 12, (6, 8)), 8, axis=0), 8, axis=1).astype(np.uint8)
            image = (labels[..., None] * np.array([20, 10, 5]) + rng.integers(0, 30, (48, 64, 3))).astype(np.uint8)
            for kind, pixels in (("", image), ("annot", labels)):
                path = root / "camvid" / f"{split}{kind}" / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
            lines.append(f"{split}/{i}.png {split}annot/{i}.png")
        list_file = root / "list" / "camvid" / f"{split}.lst"
        list_file.parent.mkdir(parents=True, exist_ok=True)
        list_file.write_text("\n".join(lines) + "\n")
    (root / "list" / "camvid" / "test.lst").write_text("val/0.png\nval/1.png\n")
    return root


@pytest.fixture(autouse=True)
def _same_random_numbers():
    torch.manual_seed(0)
