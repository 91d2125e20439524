"""Which runs a sweep file asks for, and when two runs are the same."""

import pytest
import yaml

from ovenet.config import default_config
from ovenet.errors import UserError
from ovenet.sweep.definition import read_sweep, run_config, training_overrides
from tests.shipped import shipped

BASE = {"CFG": "tiny.yaml", "SEEDS": [0, 1], "RUNS": {"plain": {}, "longer": {"TRAIN.END_EPOCH": 3, "SEEDS": [1, 2]}}}


@pytest.fixture
def sweep_file(write_config, tmp_path):
    from tests.conftest import tiny_settings

    write_config(tiny_settings(), "tiny.yaml")

    def write(content):
        path = tmp_path / "sweep.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        return path

    return write


def keys(sweep):
    return {(run.name, run.seed): run.key for run in sweep.runs}


def test_overrides_times_seeds(sweep_file, tmp_path):
    sweep = read_sweep(sweep_file(BASE), ["OUTPUT_DIR", str(tmp_path / "out")])
    names = [(run.name, run.seed) for run in sweep.runs]
    assert names == [("plain", 0), ("plain", 1), ("longer", 1), ("longer", 2)]
    assert sweep.reference == "plain"
    cfg, run_dir = run_config(sweep.runs[2], sweep)
    assert (cfg.TRAIN.END_EPOCH, cfg.SEED, cfg.TRAIN.RESUME) == (3, 1, True)
    assert run_dir.parent.parent.parent == tmp_path / "out/sweeps/sweep"
    assert len({run.key for run in sweep.runs}) == 4


def test_a_grid_is_a_run_for_each_value(sweep_file):
    content = {"CFG": "tiny.yaml", "RUNS": {"lr": {"GRID": {"TRAIN.LR": [0.1, 0.2]}}, "plain": {}}}
    runs = read_sweep(sweep_file(content)).runs
    assert [(run.name, run.group, run.at, run.settings.get("TRAIN.LR")) for run in runs] == [
        ("lr=0.1", "lr", 0.1, 0.1),
        ("lr=0.2", "lr", 0.2, 0.2),
        ("plain", "", None, None),
    ]


def test_grids_may_share_a_run(sweep_file):
    """The same point of two curves is one run."""
    grids = {
        "lr": {"TRAIN.WD": 0.5, "GRID": {"TRAIN.LR": [0.01, 0.02]}},
        "decay": {"TRAIN.LR": 0.02, "GRID": {"TRAIN.WD": [0.5, 0.6]}},
    }
    runs = keys(read_sweep(sweep_file({"CFG": "tiny.yaml", "RUNS": grids})))
    assert [name for name, _ in runs] == ["lr=0.01", "lr=0.02", "decay=0.5", "decay=0.6"]
    assert runs["lr=0.02", 0] == runs["decay=0.5", 0]
    assert len(set(runs.values())) == 3


def test_a_seed_may_have_settings_of_its_own(sweep_file):
    """Such as the weights that it begins with; a run's own settings win, and so does the command line."""
    runs = {"plain": {}, "other": {"TRAIN.LR": 0.5}, "third": {"SEEDS": [3]}}
    content = {**BASE, "RUNS": runs, "BY_SEED": {1: {"TRAIN": {"LR": 0.25, "WD": 0.125}}}}
    rates = {
        (run.name, run.seed): (run.settings.get("TRAIN.LR"), run.settings.get("TRAIN.WD"))
        for run in read_sweep(sweep_file(content)).runs
    }
    usual = rates["plain", 0]
    assert rates == {
        ("plain", 0): usual,
        ("plain", 1): (0.25, 0.125),
        ("other", 0): (0.5, usual[1]),
        ("other", 1): (0.5, 0.125),
        ("third", 3): usual,
    }
    written = {**BASE, "RUNS": {"x": {"TRAIN.LR": 0.25, "TRAIN.WD": 0.125, "SEEDS": [1]}}}
    assert keys(read_sweep(sweep_file(content)))["plain", 1] == keys(read_sweep(sweep_file(written)))["x", 1]
    content["RUNS"] = {"plain": {}}
    typed = read_sweep(sweep_file(content), ["TRAIN.LR", "0.75"]).runs
    assert [run.settings["TRAIN.LR"] for run in typed] == [0.75, 0.75]


def test_a_run_may_start_from_the_weights_of_another(sweep_file):
    """Of the same seed; another start is another run, and whatever others start from comes first."""
    content = {**BASE, "RUNS": {"plain": {}, "on": {"FROM": "plain", "TRAIN.LR": 0.5}, "alone": {"TRAIN.LR": 0.5}}}
    sweep = read_sweep(sweep_file(content))
    assert [run.name for run in sweep.runs] == ["plain", "alone", "plain", "alone", "on", "on"]
    assert [run.seed for run in sweep.runs] == [0, 0, 1, 1, 0, 1]
    for run in sweep.runs:
        given = training_overrides(run, sweep)
        if run.name == "on":
            start = next(other for other in sweep.runs if (other.name, other.seed) == ("plain", run.seed))
            path = given[given.index("MODEL.BACKBONE.PRETRAINED") + 1]
            assert path == f"output/sweeps/{sweep.name}/{start.file_name}/camvid/tiny/best.pth"
        else:
            assert "MODEL.BACKBONE.PRETRAINED" not in given
    before = keys(sweep)
    assert len(set(before.values())) == 6
    content["RUNS"]["plain"] = {"TRAIN.WD": 0.125}
    after = keys(read_sweep(sweep_file(content)))
    assert {name for name in before if before[name] != after[name]} == {(n, s) for n in ("plain", "on") for s in (0, 1)}
    assert keys(read_sweep(sweep_file(content), ["OUTPUT_DIR", "elsewhere"])) == after


def test_tables_may_be_nested_as_in_experiments(sweep_file):
    nested = {"CFG": "tiny.yaml", "RUNS": {"a": {"TRAIN": {"LR": 0.5}}}, "TEST": {"TEST": {"FLIP_TEST": True}}}
    flat = {"CFG": "tiny.yaml", "RUNS": {"a": {"TRAIN.LR": 0.5}}, "TEST": {"TEST.FLIP_TEST": True}}
    assert keys(read_sweep(sweep_file(nested))) == keys(read_sweep(sweep_file(flat)))


def test_where_a_run_is_made_does_not_change_it(sweep_file):
    first = keys(read_sweep(sweep_file(BASE)))
    elsewhere = ["OUTPUT_DIR", "other", "DATASET.ROOT", "d", "WORKERS", "3", "TRAIN.CHECKPOINT_EVERY", "5"]
    assert keys(read_sweep(sweep_file(BASE), elsewhere)) == first
    renamed = {**BASE, "RUNS": {"other": {}, "longer": BASE["RUNS"]["longer"]}}
    assert keys(read_sweep(sweep_file(renamed)))["other", 0] == first["plain", 0]


@pytest.mark.parametrize(
    "change",
    [
        {"TEST": {"TEST.FLIP_TEST": True}},
        {"WEIGHTS": "final"},
        {"RUNS": {"plain": {"TRAIN.LR": 0.5}}},
        {"RUNS": {"plain": {"MODEL.SEED.MAX_OFFSET": 0.25}}},
    ],
)
def test_what_changes_the_result_changes_the_key(sweep_file, change):
    before = keys(read_sweep(sweep_file(BASE)))
    assert keys(read_sweep(sweep_file({**BASE, **change})))["plain", 0] != before["plain", 0]


def test_a_later_setting_of_the_schema_leaves_old_keys(sweep_file, monkeypatch):
    """Only what differs from the defaults makes the key."""
    before = keys(read_sweep(sweep_file(BASE)))

    def grown():
        cfg = default_config()
        cfg.TRAIN.SOMETHING_NEW = 7
        return cfg

    for module in ("ovenet.config.loading", "ovenet.sweep.definition"):
        monkeypatch.setattr(f"{module}.default_config", grown)
    assert keys(read_sweep(sweep_file(BASE))) == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"SEEDS": [0]}, "RUNS is None; .*table"),
        ({"RUNS": {"a": {}}}, "RUNS.a: CFG is None; .*path"),
        ({"CFG": "tiny.yaml", "RUNS": {"a": 3}}, "RUNS.a is 3; .*table"),
        ({"CFG": "tiny.yaml", "RUNS": {"a": {}}, "SEED": [1]}, "SEED; .*SEEDS"),
        ({"CFG": "tiny.yaml", "RUNS": {"a": {}}, "SEEDS": [0.5]}, r"SEEDS is \[0.5\]; .*integers of at least 0"),
        ({"CFG": "tiny.yaml", "RUNS": {"a": {}}, "SEEDS": []}, r"RUNS.a: SEEDS is \[\]; .*integers"),
        ({"CFG": "tiny.yaml", "RUNS": {"a": {}}, "WEIGHTS": "last"}, "WEIGHTS is 'last'; .*best or final"),
        ({"CFG": "tiny.yaml", "RUNS": {"a": {}}, "REFERENCE": "b"}, "REFERENCE is 'b'; .*\\ba\\b"),
        (
            {"CFG": "tiny.yaml", "RUNS": {"a": {"GRID": {"TRAIN.LR": 0.1}}}},
            r"RUNS.a: GRID is \{'TRAIN.LR': 0.1\}; .*VALUE",
        ),
        ({"CFG": "tiny.yaml", "RUNS": {"a": {"TRAIN.LT": 0.1}}}, "TRAIN.LT; .*TRAIN.LR"),
        (
            {"CFG": "tiny.yaml", "RUNS": {"a": {}, "b": {"WORKERS": 0}}},
            "'[ab]' and '[ab]' .*same settings",
        ),
        ({"CFG": "tiny.yaml", "RUNS": {"a": {"FROM": "b"}, "b": {}}}, "RUNS.a: FROM is 'b'; .*above"),
        ({"CFG": "tiny.yaml", "RUNS": {"a": {}, "b": {"FROM": "a", "SEEDS": [2]}}}, "RUNS.b: FROM is 'a', .*seed 2"),
        ({"CFG": "tiny.yaml", "RUNS": {"a": {}}, "BY_SEED": [1]}, r"BY_SEED is \[1\]; .*table"),
        ({"CFG": "tiny.yaml", "RUNS": {"a": {}}, "BY_SEED": {1: {}}}, r"BY_SEED .*\b1\b"),
        ({"CFG": "tiny.yaml", "RUNS": {"a": {}}, "BY_SEED": {0: {"TRAIN.LT": 1}}}, "TRAIN.LT"),
        ({"CFG": "missing.yaml", "RUNS": {"a": {}}}, "missing.yaml: "),
    ],
)
def test_bad_files_are_named(sweep_file, content, message):
    with pytest.raises(UserError, match=message):
        read_sweep(sweep_file(content))


@pytest.mark.parametrize("path", shipped("**/sweeps/*.yaml"), ids=lambda p: p.stem)
def test_the_sweeps_of_the_project_resolve(path):
    sweep = read_sweep(path)
    assert len(keys(sweep)) == len(sweep.runs)
    plain = [run for run in sweep.runs if not run.group]
    assert len({run.key for run in plain}) == len(plain)
