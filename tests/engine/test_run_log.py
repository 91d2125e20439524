"""What a run writes down."""

import json
import struct
import sys

import pytest
import torch

from ovenet.engine.run_log import RunLog


def lines(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def write(folder, iterations, *, mean_iou=None, **options):
    with RunLog(folder, folder / "tb", iteration=min(iterations) - 1, **options) as log:
        for iteration in iterations:
            log.scalars("train", {"loss": iteration / 2, "odd": float("nan")}, iteration=iteration, epoch=0)
        if mean_iou is not None:
            log.scalars("val", {"mean_iou_fused": mean_iou}, iteration=iterations[-1], epoch=0)
        log.picture("a", torch.zeros(3, 2, 2, dtype=torch.uint8), iteration=iterations[-1])


def test_points_are_json_lines(tmp_path):
    write(tmp_path, [1, 2])
    first, second = lines(tmp_path)
    assert {k: first[k] for k in ("kind", "iteration", "epoch", "loss", "odd")} == {
        "kind": "train", "iteration": 1, "epoch": 0, "loss": 0.5, "odd": None,
    }  # fmt: skip
    assert second["time"] >= first["time"]


def test_what_a_cut_run_wrote_beyond_its_checkpoint_is_dropped(tmp_path):
    write(tmp_path, [1, 2, 3])
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"kind": "train", "itera')
    write(tmp_path, [3, 4])
    assert [line["iteration"] for line in lines(tmp_path)] == [1, 2, 3, 4]


def test_weights_and_biases_gets_the_numbers_where_it_is_installed(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    write(tmp_path, [1, 2], wandb_project="ovenet-test", config="TRAIN: {LR: 0.5}", mean_iou=0.25125)
    (file,) = (tmp_path / "wandb").rglob("*.wandb")
    assert b"train/loss" in file.read_bytes()
    percent = struct.pack("<d", 25.125), b"25.125"  # as the lines of the log; newer versions write binary numbers
    assert any(form in file.read_bytes() for form in percent)
    assert list((tmp_path / "wandb").rglob("media/images/*.png"))


def test_weights_and_biases_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"WANDB .*pip install wandb"):
        write(tmp_path, [1], wandb_project="ovenet-test")


def test_mlflow_gets_the_numbers_where_it_is_installed(tmp_path, monkeypatch):
    """A run that goes on, too, in one and the same run of MLflow."""
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    write(tmp_path, [1, 2], mlflow_experiment="ovenet-test", config="TRAIN: {LR: 0.5}")
    write(tmp_path, [3], mlflow_experiment="ovenet-test", config="TRAIN: {LR: 0.5}")
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("ovenet-test")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == tmp_path.name
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(point.step, point.value) for point in history] == [(1, 0.5), (2, 1.0), (3, 1.5)]
    assert not list((tmp_path / "elsewhere").iterdir())
    (config,) = tmp_path.rglob("config.yaml")
    assert config.read_text() == "TRAIN: {LR: 0.5}"


def test_mlflow_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ValueError, match=r"MLFLOW .*pip install mlflow"):
        write(tmp_path, [1], mlflow_experiment="ovenet-test")
