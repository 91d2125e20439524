"""The scripts of the arena: docs/plot_arena.py on results of a few pixels, docs/measure_arena.py on small networks."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import yaml

from ovenet.errors import UserError
from ovenet.sweep.definition import read_sweep
from ovenet.sweep.results import RunResult

DOCS = Path(__file__).parents[1] / "docs"
CLASSES = ("road", "pole")
COSTS = {
    "frozen: baseline": {"parameters": 100.0, "gmac": 1.0, "milliseconds": 10.0, "processor_milliseconds": 9.0},
    "trained on: baseline": {"parameters": 100.0, "gmac": 1.0, "milliseconds": 10.0, "processor_milliseconds": 9.0},
    "frozen: OVeNet": {"parameters": 150.0, "gmac": 1.5, "milliseconds": 12.0, "processor_milliseconds": 11.0},
    "frozen: CRF": {"parameters": 102.0, "gmac": 1.0, "milliseconds": 30.0, "processor_milliseconds": 29.0},
    "trained on: OVeNet": {"parameters": 150.0, "gmac": 1.5, "milliseconds": 12.0, "processor_milliseconds": 11.0},
}


def load(name):
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def script():
    return load("plot_arena")


def run(name, seed, **mean_iou):
    """A run with two images of 10 pixels of each class; `mean_iou` by prediction, all classes alike."""
    labelled = np.full((2, 2), 10)
    counts = {kind: np.full((2, 2), 10 * iou) for kind, iou in mean_iou.items()}  # as many predicted as labelled
    scores = {
        kind: {"mean_iou": iou / (2 - iou), "iou": dict.fromkeys(CLASSES, iou / (2 - iou))}
        for kind, iou in mean_iou.items()
    }
    predicted = dict.fromkeys(mean_iou, labelled)
    return RunResult(name, seed, CLASSES, ("1", "2"), labelled, counts, predicted, scores, 150, 1.0)


def variants():
    return {
        "frozen: OVeNet": tuple(run("frozen: OVeNet", seed, initial=0.5, fused=0.6 + 0.01 * seed) for seed in range(3)),
        "frozen: CRF": tuple(run("frozen: CRF", seed, fused=0.7) for seed in (0, 2)),
        "trained on: baseline": tuple(run("trained on: baseline", seed, fused=0.6) for seed in range(3)),
        "trained on: OVeNet": tuple(run("trained on: OVeNet", seed, initial=0.6, fused=0.8) for seed in range(3)),
    }


def points(share):
    """IoU in points of a share of right pixels, with as many predicted as labelled."""
    return 100 * share / (2 - share)


def test_each_base_has_its_reference(script):
    """Frozen refiners without S_i are compared with the S_i of a refiner that has it, by seed."""
    rows = {(row.base, row.title): row for row in script.arena_rows(variants(), COSTS)}
    assert list(rows) == [
        ("frozen", "baseline"),
        ("frozen", "OVeNet"),
        ("frozen", "CRF"),
        ("trained on", "baseline"),
        ("trained on", "OVeNet"),
    ]
    gain = rows["frozen", "OVeNet"].gain
    np.testing.assert_allclose(100 * gain.by_seed, [points(0.6 + 0.01 * seed) - points(0.5) for seed in range(3)])
    assert rows["frozen", "CRF"].gain.seeds == (0, 2)
    assert 100 * rows["frozen", "CRF"].gain.mean == pytest.approx(points(0.7) - points(0.5))
    assert 100 * rows["trained on", "OVeNet"].gain.mean == pytest.approx(points(0.8) - points(0.6))
    assert rows["trained on", "baseline"].gain is None


def test_a_run_of_the_baseline_comes_before_the_scores_of_a_sibling(script):
    base = {"baseline": tuple(run("baseline", seed, fused=0.4) for seed in range(3))}
    rows = {(row.base, row.title): row for row in script.arena_rows(base | variants(), COSTS)}
    assert 100 * rows["frozen", "CRF"].gain.mean == pytest.approx(points(0.7) - points(0.4))
    assert 100 * rows["frozen", "OVeNet"].gain.by_seed[0] == pytest.approx(points(0.6) - points(0.5))


def test_the_table(script):
    oracle = [run("oracle seed", seed, **{"initial": 0.5, "oracle, τ = 0.2": 0.9}) for seed in (1, 0)]
    lines = script.markdown(script.arena_rows(variants(), COSTS) + script.oracle_rows(oracle)).splitlines()
    assert [line.split(" | ")[0] for line in lines if line.startswith("| ")] == [
        *("| frozen", "| baseline", "| OVeNet", "| CRF", "| oracle seed, τ = 0.2"),
        *("| trained on", "| baseline", "| OVeNet"),
    ]
    crf = lines[4].strip("| ").split(" | ")
    change = points(0.7) - points(0.5)
    assert crf[1:4] == ["2", f"{points(0.7):.2f} ± 0.00", f"{change:+.2f}"]
    assert crf[7:] == [f"{points(0.7):.2f} ({change:+.2f})", "+2", "1.00", "30.0"]
    assert f"{points(0.9) - points(0.5):+.2f}" in lines[5]


def test_the_plot_needs_every_cost(script):
    rows = script.arena_rows(variants(), {k: v for k, v in COSTS.items() if k != "frozen: CRF"})
    with pytest.raises(UserError, match="no cost is known of frozen: CRF; give --costs"):
        script.draw(rows, "gmac")
    figure = script.draw(script.arena_rows(variants(), COSTS), "gmac")
    assert [ax.get_title() for ax in figure.axes] == ["frozen", "trained on"]
    names = [text.get_text().rsplit(" ", 1)[0] for text in figure.axes[0].texts]
    assert names == ["baseline", "OVeNet", "CRF"]


def test_names_do_not_overlap(script):
    assert script.spread_out([0.0, 0.5, 5.0], 1.0, 10.0) == [0.0, 1.0, 5.0]
    assert script.spread_out([8.0, 9.5, 9.6], 1.0, 10.0) == [8.0, 9.0, 10.0]


def test_costs_of_another_file_are_refused(script, tmp_path):
    path = tmp_path / "costs.json"
    path.write_text('{"runs": {"frozen: CRF": {"parameters": 1}}}')
    with pytest.raises(UserError, match=r"costs\.json: not a file of docs/measure_arena\.py"):
        script.read_costs(path)


def test_runs_that_differ_in_their_training_share_a_network(tmp_path):
    crf = {"MODEL.SEED": {"NAME": "crf", "NUM_ITERATIONS": 1, "WINDOW": 3}}
    runs = {"frozen: CRF": {**crf, "MODEL.FROZEN": ["backbone", "neck", "head"]}, "trained on: CRF": crf}
    content = {"CFG": str(DOCS.parent / "experiments/camvid/lite0_fcn.yaml"), "SEEDS": [0, 1], "RUNS": runs}
    (tmp_path / "arena.yaml").write_text(yaml.safe_dump(content))
    costs = load("measure_arena").measured(read_sweep(tmp_path / "arena.yaml"), (32, 64), 1)
    assert set(costs) == {*runs, "frozen: baseline", "trained on: baseline"}
    assert costs["frozen: CRF"] is costs["trained on: CRF"]
    assert costs["frozen: baseline"] is costs["trained on: baseline"]
    assert costs["frozen: CRF"]["parameters"] - costs["frozen: baseline"]["parameters"] == 2
    assert costs["frozen: CRF"]["milliseconds"] > 0
