"""An evaluation on disk that is known by hand, as tools/test.py leaves it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ovenet.data.info import DatasetInfo
from ovenet.evaluation.evaluate import evaluation_from_counts
from ovenet.evaluation.evaluator import SegEvaluator
from ovenet.evaluation.writers import evaluation_as_dict, image_record, write_json
from ovenet.inference.inferencer import Prediction, thinning
from ovenet.report.gallery import picture_data, picture_path, save_picture_data, write_records
from ovenet.structures import Sample

NAMES = ("initial", "seed", "fused")
INFO = DatasetInfo(
    "streets", ("road", "sky </script>", "car"), ((128, 64, 128), (70, 130, 180), (0, 0, 142)), (0, 1, 2),
    conditions=("fog", "rain"),
)  # fmt: skip
HEIGHT, WIDTH = 60, 80
FIELD = (0.05, 0.02)  # 0.05 * 79 / 2 = 2.0 pixels to the right, 0.02 * 59 / 2 = 0.6 down
OFFSET = (0.25, -0.1)  # 0.25 * 79 / 2 = 9.9 pixels to the right, 0.1 * 59 / 2 = 3.0 up
CONFIDENCE = 0.75
GRID_SIDE = 40


def case(index: int, *, with_seeds: bool = True) -> tuple[Sample, Prediction]:
    """Sky above road, with a car in image 1 alone; S_i misses 5 + index rows of the road, S_f one row."""
    labels = np.zeros((HEIGHT, WIDTH), np.int16)
    labels[:30] = 1
    if index == 1:
        labels[40:50, 10:30] = 2
    labels[:, -3:] = 255
    initial, fused = labels.copy(), labels.copy()
    initial[30 : 35 + index] = 1
    fused[30:31] = 1
    maps = {"initial": initial, "seed": fused, "fused": fused} if with_seeds else {"fused": initial}
    maps = {name: np.where(m == 255, 0, m) for name, m in maps.items()}
    stride = thinning((HEIGHT, WIDTH), GRID_SIDE)
    scores = {}
    for name, m in maps.items():
        one_hot = torch.nn.functional.one_hot(torch.from_numpy(m).long(), 3).permute(2, 0, 1).float()
        scores[name] = (0.8 * one_hot + 0.2 / 3)[:, ::stride, ::stride]
    photo = np.full((HEIGHT, WIDTH, 3), 40 * index, np.uint8)
    photo[:30, :, 2] = 200
    prediction = Prediction(
        labels={name: torch.from_numpy(m).to(torch.uint8) for name, m in maps.items()},
        offset=torch.tensor(OFFSET).view(2, 1, 1).expand(2, HEIGHT, WIDTH) if with_seeds else None,
        confidence=torch.full((1, HEIGHT, WIDTH), CONFIDENCE) if with_seeds else None,
        scores=scores,
        fields={"SRM, stride 4": torch.tensor(FIELD).view(2, 1, 1).expand(2, 30, 40)} if with_seeds else {},
    )
    return Sample(photo, labels, f"{'fog' if index else 'rain'}/img_{index}.png"), prediction


def write_evaluation(folder: Path, *, num_images: int = 4, with_seeds: bool = True, info: DatasetInfo = INFO) -> Path:
    """Evaluates the cases, and writes what the report is made of."""
    names = NAMES if with_seeds else ("fused",)
    evaluator = SegEvaluator(info, names, ignore_label=255, detailed=True, device=torch.device("cpu"))
    records = []
    for index in range(num_images):
        sample, prediction = case(index, with_seeds=with_seeds)
        counts = evaluator.add(sample.labels, prediction, sample.name)
        records.append(image_record(index, sample, counts, names))
        data = picture_data(sample, prediction, info.num_classes, photo_side=80, grid_side=GRID_SIDE)
        save_picture_data(data, picture_path(folder, index))
    write_records(records, folder / "images.jsonl")
    settings = {"model_file": "best.pth", "list": "list/streets/val.lst", "scales": [1.0], "flip": False}
    content = {"date": "2026-11-21 12:00", "settings": settings, "max_offset": 0.5}
    write_json(content | evaluation_as_dict(evaluation_from_counts(evaluator), info), folder / "results.json")
    return folder


def write_log(run: Path) -> None:
    """A training log of two points."""
    points = [
        {"kind": "train", "iteration": 10, "loss": 2.0, "loss_initial": 1.5},
        {"kind": "val", "iteration": 10, "mean_iou_fused": 0.25},
    ]
    run.mkdir(parents=True, exist_ok=True)
    (run / "log.jsonl").write_text("".join(json.dumps(p) + "\n" for p in points) + '{"kind": "tra')


@pytest.fixture(scope="session")
def evaluation(tmp_path_factory):
    """The folder of an OVeNet's evaluation, in a run with a training log."""
    run = tmp_path_factory.mktemp("runs") / "ovenet_small"
    write_log(run)
    return write_evaluation(run / "test" / "val_best_s1")


@pytest.fixture(scope="session")
def baseline(tmp_path_factory):
    """The folder of a baseline's evaluation of the same images."""
    return write_evaluation(tmp_path_factory.mktemp("runs") / "hrnet_small" / "test" / "val_best_s1", with_seeds=False)


@pytest.fixture
def other_classes():
    """Classes of another dataset."""
    return dataclasses.replace(INFO, class_names=("a", "b", "c"))
