"""Every name that an experiment has had is found, wherever its file lies now.

``experiment_names.txt`` lists the files as they lay before the folders ``published`` were made.
"""

from pathlib import Path

import pytest
from tests.shipped import EXPERIMENTS, experiment_name, shipped

from ovenet.config import load_config
from ovenet.config.loading import find_experiment
from ovenet.errors import UserError
from ovenet.predictor.run_folder import run_directory

NAMES = (Path(__file__).parent / "experiment_names.txt").read_text().split()
MOVED = [name for name in NAMES if not (EXPERIMENTS / f"{name}.yaml").exists()]
LONG = "seg_hrnet_w48_train_512x1024_sgd_lr1e-2_wd5e-4_bs_12_epoch484"


def published(name: str) -> Path:
    dataset, stem = name.split("/")
    return EXPERIMENTS / dataset / "published" / f"{stem}.yaml"


def test_one_name_is_one_file():
    present = [path for path in shipped("**/*.yaml") if path.parent.name not in ("_base_", "sweeps")]
    names = {experiment_name(path) for path in present}
    assert names >= set(NAMES)
    assert len(names) == len(present)
    assert len(MOVED) == 105


@pytest.mark.parametrize("name", NAMES)
def test_every_old_name_loads_and_its_run_goes_where_it_went(name):
    path = f"experiments/{name}.yaml"
    assert run_directory(load_config(path), path) == Path("output") / name


@pytest.mark.parametrize("name", MOVED)
def test_old_paths_are_found_from_anywhere(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for given in (
        name,
        f"{name}.yaml",
        f"experiments/{name}",
        f"experiments/{name}.yaml",
        EXPERIMENTS / f"{name}.yaml",
    ):
        assert find_experiment(given) == published(name)
    monkeypatch.chdir(EXPERIMENTS / name.split("/")[0])
    assert find_experiment(f"{name.split('/')[1]}.yaml").resolve() == published(name)


@pytest.mark.parametrize(
    "base", [f"cityscapes/{LONG}", f"experiments/cityscapes/{LONG}.yaml", f"{EXPERIMENTS}/cityscapes/{LONG}.yaml"]
)
def test_old_names_are_bases_of_a_users_file(base, write_config):
    expected = load_config(published(f"cityscapes/{LONG}"), ["SEED", "77"])
    assert load_config(write_config({"_BASE_": base, "SEED": 77})) == expected


def test_a_file_beside_the_experiments_may_name_one_by_its_old_place(tmp_path):
    """As one that a user put into ``experiments/cityscapes``."""
    (tmp_path / "published").mkdir()
    (tmp_path / f"published/{LONG}.yaml").write_text("TRAIN: {LR: 0.125}\n")
    (tmp_path / "mine.yaml").write_text(f"_BASE_: {LONG}.yaml\n")
    assert load_config(tmp_path / "mine.yaml").TRAIN.LR == 0.125
    (tmp_path / f"{LONG}.yaml").write_text("TRAIN: {LR: 0.25}\n")
    assert load_config(tmp_path / "mine.yaml").TRAIN.LR == 0.25  # the file of that very path goes first


def test_a_name_of_no_experiment_is_named_as_it_was_given():
    with pytest.raises(UserError, match=r"^cityscapes.published.no_such: cannot read"):
        load_config("cityscapes/published/no_such")
