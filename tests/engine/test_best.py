"""Which weights a run keeps as its best, and what it says of a seed that costs."""

import json
import logging

import pytest
import torch
from tests.engine.test_trainer import make_trainer

from ovenet.builders import build_model
from ovenet.builders.loading import load_model
from ovenet.builders.models import without_seed
from ovenet.engine.checkpoint import BEST, BEST_EMA, save_atomically
from ovenet.engine.epoch_log import SeedGain
from ovenet.evaluation.metrics import scores_from_counts
from ovenet.models.weight_files import WITHOUT_SEED, read_checkpoint


def results(**means):
    """Scores of two classes, of which one has pixels, with these IoU in percent."""
    counts = {name: torch.tensor([[mean, 100 - mean], [0, 0]]) for name, mean in means.items()}
    return {name: scores_from_counts(one, ("a", "b")) for name, one in counts.items()}


def fit(cfg, folder, series, **options):
    """A run whose validations score as told, first the model's and then those of the averaged one."""
    trainer = make_trainer(cfg, folder, end_epoch=len(series) // (2 if cfg.TRAIN.EMA else 1), **options)
    scores = iter(series)
    trainer.evaluate = lambda model, stop: results(**next(scores))
    return trainer, trainer.fit()


SERIES = [
    {"initial": 30, "fused": 20}, {"initial": 10, "fused": 15},
    {"initial": 50, "fused": 45}, {"initial": 40, "fused": 40},
    {"initial": 35, "fused": 42}, {"initial": 45, "fused": 47},
]  # fmt: skip


def test_the_fused_prediction_of_the_trained_weights_by_default(small_cfg, tmp_path):
    _, best = fit(small_cfg("TRAIN.EMA", 0.5), tmp_path / "run", SERIES)
    assert best == pytest.approx(0.45)
    saved = [read_checkpoint(tmp_path / "run" / file) for file in (BEST, BEST_EMA)]
    assert [content["epoch"] for content in saved] == [2, 3]
    assert not any(WITHOUT_SEED in content for content in saved)


@pytest.mark.parametrize(("last", "epoch", "has_seed"), [(47, 2, False), (60, 3, True)])
def test_any_keeps_the_best_of_all(small_cfg, tmp_path, last, epoch, has_seed):
    series = [*SERIES[:-1], {"initial": 45, "fused": last}]
    about = {"config": "without"}
    trainer, best = fit(small_cfg("TRAIN.EMA", 0.5), tmp_path / "run", series, best="any", metadata_without_seed=about)
    assert best == pytest.approx(max(50, last) / 100)
    content = read_checkpoint(tmp_path / "run" / BEST)
    assert (content["epoch"], WITHOUT_SEED in content) == (epoch, not has_seed)
    assert any(name.startswith("seed.") for name in content["model"]) == has_seed
    assert content["config"] == ("c" if has_seed else "without")
    if has_seed:  # it is that of the averaged weights
        averaged = trainer.step.ema.module.state_dict()
        assert all(torch.equal(value, averaged[name]) for name, value in content["model"].items())
    assert read_checkpoint(tmp_path / "run" / BEST_EMA)["epoch"] == 3


def test_a_resumed_run_keeps_the_best_of_before(small_cfg, tmp_path):
    cfg = small_cfg()
    fit(cfg, tmp_path / "run", [{"initial": 50, "fused": 40}], best="any")
    trainer = make_trainer(cfg, tmp_path / "run", end_epoch=2, best="any")
    trainer.checkpoints.resume()
    trainer.evaluate = lambda model, stop: results(initial=45, fused=45)
    assert trainer.fit() == pytest.approx(0.5)
    assert read_checkpoint(tmp_path / "run" / BEST)["epoch"] == 1


def test_a_network_without_its_seed_loads_with_either_configuration(tiny_cfg, tmp_path, tiny_data):
    losses = ("LOSS.CONFIDENCE_TARGET", "better_scores", "LOSS.INTERIOR", 0.3)  # which go without a seed
    cfg = tiny_cfg("DATASET.ROOT", tiny_data, *losses)
    model, bare = build_model(cfg), without_seed(cfg)
    weights = {name: value for name, value in model.state_dict().items() if not name.startswith("seed.")}
    path = tmp_path / "best.pth"
    save_atomically({"model": weights, "config": bare.dump(), WITHOUT_SEED: True}, path)
    for loaded in (load_model(path, cfg), load_model(path, bare)):
        assert loaded.cfg.MODEL.SEED.NAME == "none"
        images = torch.randn(1, 3, 64, 64)
        with torch.no_grad():
            expected = model.eval()(images).initial[-1]
            assert torch.equal(loaded.model(images).fused[-1], expected)


def told(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_a_seed_that_costs_is_warned_of_once_and_at_the_end(caplog):
    caplog.set_level(logging.WARNING, "ovenet")
    gain = SeedGain()
    gain.look(1, {"initial": 0.601, "fused": 0.425})
    assert told(caplog) == []  # one validation may be chance
    for epoch in (2, 3):
        gain.look(epoch, {"initial": 0.601, "fused": 0.425})
    (line,) = told(caplog)
    assert "epoch 2" in line
    assert "17.6 points" in line
    gain.conclude()
    assert all(key in told(caplog)[-1] for key in ("17.6 points", "MODEL.SEED.NAME none", "TRAIN.BEST any"))


@pytest.mark.parametrize("means", [{"fused": 0.4}, {"initial": 0.4, "fused": 0.398}, {"initial": 0.4, "fused": 0.5}])
def test_a_seed_that_helps_or_is_not_there_is_no_reason_to_warn(caplog, means):
    gain = SeedGain()
    for epoch in range(3):
        gain.look(epoch, means)
    gain.conclude()
    assert told(caplog) == []


def test_scores_in_the_log_are_those_of_before(small_cfg, tmp_path):
    fit(small_cfg("TRAIN.EMA", 0.5), tmp_path / "run", SERIES[:2])
    lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    validated = [line for line in lines if line["kind"] == "val"]
    names = [{key for key in line if key.startswith("mean_iou")} for line in validated]
    assert names == [
        {"mean_iou_initial", "mean_iou_fused"},
        {"mean_iou_initial_ema", "mean_iou_fused_ema"},
    ]
