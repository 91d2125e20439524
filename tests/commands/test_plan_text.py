"""What plan says of loading processes and of cards that are not there."""

import re

import pytest
from tests.drawn_scenes import write_dataset
from tests.tools.conftest import ROOT

from ovenet import builders, load_config
from ovenet.commands import plan
from ovenet.config import default_config


@pytest.fixture
def scene_config(tmp_path):
    write_dataset(tmp_path / "synthetic", {"train": 4, "val": 1, "test": 1}, size=(256, 512), seed=0)
    settings = ["DATASET.ROOT", str(tmp_path), "TRAIN.IMAGE_SIZE", "128,64", "TRAIN.BASE_SIZE", "512"]
    return load_config(ROOT / "experiments/synthetic/ovenet_hrnet_w18_small_v2.yaml", settings)


@pytest.mark.parametrize(("rate", "sample_s", "expected"), [(64, 0.15, 10), (64, 0.02, 2), (3, 0.01, 1), (10, 0.1, 1)])
def test_loading_processes_that_a_speed_needs(rate, sample_s, expected):
    assert plan.num_workers(rate, sample_s) == expected


@pytest.mark.parametrize(("cache", "hint"), [("none", True), ("disk", False)])
def test_the_cache_is_recommended_where_decoding_is_too_slow(monkeypatch, capsys, cache, hint):
    cfg = default_config()
    cfg.DATASET.CACHE = cache
    monkeypatch.setattr(plan, "num_cores", lambda: 16)
    trial = {"step_s": 0.0625, "decoded_s": 0.15, "cached_s": 0.02}
    plan.report_feeding(cfg, trial, 1, 4)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(
        "64.0 images/s need 10 loading process(es) (WORKERS 10) for this process, of this machine"
    )
    assert "16 core(s), at 150.0 ms a crop; with DATASET.CACHE disk or ram 2, at 20.0 ms" in lines[0]
    assert (len(lines) == 2) == hint
    assert not hint or "set DATASET.CACHE disk or ram" in lines[1]


def test_a_table_of_an_assumed_step(tiny_cfg):
    cfg = tiny_cfg()
    table = plan.assumed_table(cfg, 0.05, 8, 100.0, 8)
    head, _, *rows = table.splitlines()
    assert head.startswith("64 card(s) on 8 host(s), 100 Gbit/s, 0.05 s a step")
    assert head.endswith("a model, nothing of it measured")
    assert len({row.count("|") for row in rows}) == 1
    cells = {row.split("|")[1].strip(): [cell.strip() for cell in row.split("|")[2:-1]] for row in rows[2:]}
    plain, apart = cells["as it is"], cells["TRAIN.SYNC_BN False"]
    batch = cfg.TRAIN.BATCH_SIZE_PER_GPU * cfg.TRAIN.ACCUMULATE
    assert float(plain[3].replace(",", "")) == pytest.approx(64 * batch / float(plain[0]), rel=0.02)
    assert float(apart[2]) == 0 < float(plain[2])


def test_the_share_of_a_card_is_told(tiny_cfg, monkeypatch):
    """989 TFLOP/s at most: a step that needs that many in 1 s and takes 4 s uses a quarter."""
    cfg = tiny_cfg()
    counted = builders.count_step(cfg)
    monkeypatch.setattr(builders, "count_step", lambda asked: counted if asked is cfg else None)  # it takes a second
    tflop = float(re.search(r"([\d.]+) TFLOP;", plan.use_of_card(cfg, 1.0, "?"))[1])
    flops = counted.flops
    assert flops / 1e12 == pytest.approx(tflop, abs=0.005)
    line = plan.use_of_card(cfg, 4 * flops / 989e12, "NVIDIA H100 80GB HBM3")
    assert line.endswith("on NVIDIA H100 80GB HBM3: 25.0% of the bfloat16 peak")
    assert plan.use_of_card(cfg, 1.0, "a card").endswith("on a card: the peak is not known")


def test_nonsense_is_refused(monkeypatch, write_config):
    path = write_config({})
    monkeypatch.setattr("sys.argv", ["plan", "--cfg", str(path), "--assume", "0"])
    with pytest.raises(ValueError, match=r"--assume.*\b0\.0\b.*seconds, above 0"):
        plan.main()


def test_decoding_costs_more_than_the_cache(scene_config):
    """And the list keeps the cache that it had; drawn scenes of 512x256 decode in milliseconds."""
    dataset = builders.train_dataset(scene_config)
    decoded_s, cached_s = plan.sample_seconds(dataset, 255)
    assert 0 < cached_s < decoded_s < 5
    assert dataset.dataset.cache is None


def test_messages_are_counted_for_layers_that_learn(tiny_cfg):
    model = builders.build_model(tiny_cfg())
    whole = plan.num_batch_norms(model.train())
    model.backbone.eval()
    assert 0 < plan.num_batch_norms(model) < whole
