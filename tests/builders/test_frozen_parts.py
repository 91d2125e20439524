"""Parts that are not trained need weights from somewhere."""

import logging

import pytest
import torch

from ovenet.builders import build_model, build_trainer
from ovenet.errors import UserError

FROZEN = ("MODEL.FREEZED_PAR", True, "TRAIN.BATCH_SIZE_PER_GPU", 2)


@pytest.fixture
def start(tiny_cfg, tiny_data, tmp_path, caplog, monkeypatch):
    """A function that builds a trainer and gives what was warned of."""
    monkeypatch.setattr(logging.getLogger("ovenet"), "propagate", True)

    def build(*options):
        caplog.clear()
        cfg = tiny_cfg("DATASET.ROOT", tiny_data, *options)
        build_trainer(cfg, tmp_path / "run", tmp_path / "log", torch.device("cpu"))
        return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]

    return build


@pytest.fixture
def weights(tiny_cfg, tmp_path):
    state = build_model(tiny_cfg(offset_branch=0)).state_dict()
    torch.save(state, tmp_path / "whole.pth")
    torch.save({k: v for k, v in state.items() if k.startswith("backbone.")}, tmp_path / "backbone.pth")
    return tmp_path


def test_a_seed_is_not_trained_on_a_random_network(start):
    with pytest.raises(UserError, match=r"MODEL\.FREEZED_PAR in published files\) is .*MODEL\.PRETRAINED") as error:
        start(*FROZEN)
    assert "\n" not in str(error.value)


def test_what_rests_at_random_is_said(start, weights):
    told = start(*FROZEN, "MODEL.PRETRAINED", weights / "backbone.pth")
    assert [m for m in told if "MODEL.FROZEN" in m and "head stays as it was drawn at random" in m]
    assert not [m for m in start(*FROZEN, "MODEL.PRETRAINED", weights / "whole.pth") if "MODEL.FROZEN" in m]
    assert not [m for m in start() if "MODEL.FROZEN" in m]
    told = start("MODEL.FROZEN", "backbone.layer1", "TRAIN.BATCH_SIZE_PER_GPU", 2)
    assert [m for m in told if "backbone.layer1 stays as it was drawn at random" in m]


def test_a_run_that_goes_on_has_its_weights(start, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/checkpoint.pth").touch()
    start(*FROZEN, "TRAIN.RESUME", True)
