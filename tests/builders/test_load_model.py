"""From a file to a network: with the configuration in it, or with another."""

import pytest
import torch

from ovenet import build_model
from ovenet.builders.loading import load_model
from ovenet.errors import UserError


@pytest.fixture
def file(tiny_cfg, tmp_path):
    """A function that saves a randomly initialised tiny network with further content; gives file, network, config."""

    def save(**content):
        cfg = tiny_cfg()
        model = build_model(cfg)
        torch.save({"model": model.state_dict(), **content}, tmp_path / "best.pth")
        return tmp_path / "best.pth", model, cfg

    return save


def is_same(state, expected):
    return state.keys() == expected.keys() and all(torch.equal(state[name], expected[name]) for name in expected)


def test_a_configuration_from_the_file_from_a_path_and_as_it_is(file, tiny_cfg, tmp_path):
    path, model, cfg = file()
    yaml = tmp_path / "experiment.yaml"
    yaml.write_text(cfg.dump())
    torch.save({"model": model.state_dict(), "config": cfg.dump()}, tmp_path / "carries.pth")
    loaded = [
        load_model(tmp_path / "carries.pth", overrides=["TEST.BASE_SIZE", "48"]),
        load_model(path, yaml, ["TEST.BASE_SIZE", "48"]),
        load_model(path, tiny_cfg("TEST.BASE_SIZE", 48)),
    ]
    for trained in loaded:
        assert is_same(trained.model.state_dict(), model.state_dict())
        assert not trained.model.training
        assert trained.settings.base_size == trained.cfg.TEST.BASE_SIZE == 48
        assert trained.info.name == "camvid"
    assert [trained.training_config is None for trained in loaded] == [False, True, True]


def test_overrides_win_over_a_given_configuration(file, tiny_cfg):
    path, _, _ = file()
    given = tiny_cfg("TEST.BASE_SIZE", 48)
    trained = load_model(path, given, ["TEST.BASE_SIZE", "40", "TEST.FLIP_TEST", "True"])
    assert (trained.settings.base_size, trained.settings.flip) == (40, True)
    assert trained.cfg.TRAIN == given.TRAIN
    assert given.TEST.BASE_SIZE == 48
    with pytest.raises(UserError, match=r"TEST\.BASE_SIZE.*-1.*at least 0"):
        load_model(path, given, ["TEST.BASE_SIZE", "-1"])


def test_weights_without_a_configuration_are_refused(file):
    path, _, _ = file()
    with pytest.raises(UserError, match=r"best\.pth: .*configuration.*--cfg FILE"):
        load_model(path)


@pytest.mark.parametrize(
    ("normalization", "problem"),
    [
        ({"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5)}, "normalization is damaged.*channel_order"),
        ({"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.0, 0.5), "channel_order": "RGB"}, "deviations above 0"),
    ],
)
def test_a_damaged_normalization_is_named(file, normalization, problem):
    path, _, cfg = file(normalization=normalization)
    with pytest.raises(UserError, match=rf"best\.pth: .*{problem}"):
        load_model(path, cfg)


def test_pixels_are_normalised_as_in_training(file):
    carried = {"mean": (0.25, 0.5, 0.75), "std": (0.5, 0.25, 0.5), "channel_order": "RGB"}
    path, _, cfg = file(normalization=carried)
    assert load_model(path, cfg).settings.normalization.mean == carried["mean"]
