"""Tables of a sweep, from results whose numbers can be told by heart."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ovenet.sweep.definition import Sweep, SweepRun
from ovenet.sweep.details import details_markdown
from ovenet.sweep.results import RunResult
from ovenet.sweep.summary import Summary, mean_and_spread

CLASSES = ("road", "pole")


def result(name, seed, iou, *, edge=None, lengths=(60, 20, 15, 5, 0)):
    """The shares of road and pole that each prediction has right, of 100 pixels each; the others are unlabelled."""
    right = {kind: np.array([values]) for kind, values in iou.items()}
    scores = {
        kind: {
            "mean_iou": sum(values) / 200,
            "pixel_accuracy": sum(values) / 200,
            "iou": dict(zip(CLASSES, (v / 100 for v in values), strict=True)),
        }
        for kind, values in iou.items()
    }
    return RunResult(
        name=name,
        seed=seed,
        class_names=CLASSES,
        images=("a.png",),
        labelled=np.array([[100, 100]]),
        right=right,
        predicted=right,
        scores=scores,
        parameters=1234,
        images_per_second=1.0,
        details=None if edge is None else details(list(iou), edge, seed, lengths),
    )


def details(kinds, edge, seed, lengths):
    return {
        "boundaries": {"mean_iou": {kind: [edge, edge + 0.01, edge + 0.02] for kind in kinds}},
        "edges": {
            "distances_px": [1, 2, 4, 8, 16, None],
            "trimap_iou": {kind: [0.1, 0.2, 0.3, 0.4, 0.5, 0.6] for kind in kinds},
        },
        "segments": {"mean_recall": {kind: [0.7, 0.8, None] for kind in kinds}},
        "seeds": {
            "right_class": 0.9 + 0.01 * seed,
            "right_class_where_wrong": 0.8,
            "corrected": {"seed": 0.5, "fused": 0.15 + 0.02 * seed},
            "broken": {"seed": 0.5, "fused": 0.01},
            "lengths_px": [1, 2, 4, 8, None],
            "length_pixels": list(lengths),
        }
        if "seed" in kinds
        else None,
    }


def summary_of(results, reference="baseline"):
    runs = [SweepRun(r.name, r.seed, (), Path("a.yaml"), (), f"{r.name}{r.seed}") for r in results]
    return Summary(Sweep("it", tuple(runs), reference, (), "best", Path()), results)


@pytest.fixture
def summary():
    baseline = [result("baseline", seed, {"fused": (80, 40 + 2 * seed)}, edge=0.3) for seed in (0, 1)]
    ovenet = [
        result("OVeNet", seed, {"initial": (80, 40), "seed": (84, 30), "fused": (85 + 2 * seed, 38)}, edge=0.4)
        for seed in (0, 1, 2)
    ]
    return summary_of(baseline + ovenet)


def test_versions_of_the_code_are_told_apart():
    """Results of before they were written down, or of one version, have no such line."""
    results = [result("baseline", seed, {"fused": (80, 40)}) for seed in range(4)]
    assert "versions of the code" not in summary_of(results).markdown()
    one = [replace(r, code="0.1.0, commit 1a") for r in results[:2]]
    assert "versions of the code" not in summary_of(one + results[2:]).markdown()
    two = [replace(results[2], code="0.1.0, commit 2b-dirty")]
    line = summary_of(one + two + results[3:]).markdown().splitlines()[-1]
    assert line == (
        "made by 2 versions of the code: 0.1.0, commit 1a (2 of the runs); 0.1.0, commit 2b-dirty (1 of the runs)"
    )


def rows(table):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_scores_by_seed_gains_edges_and_seeds(summary):
    by_seed, differences, gains, edges, seeds = map(rows, details_markdown(summary).split("\n\n"))
    assert by_seed == [
        ["mIoU", "seed 0", "seed 1", "seed 2"],
        ["---", "--:", "--:", "--:"],
        ["baseline", "60.00", "61.00", ""],
        ["OVeNet, S_i", "60.00", "60.00", "60.00"],
        ["OVeNet, S_s", "57.00", "57.00", "57.00"],
        ["OVeNet, S_f", "61.50", "62.50", "63.50"],
    ]
    assert differences[0] == ["mIoU", "mean", "95 % over seeds", "95 % over images", "seed 0", "seed 1", "seed 2"]
    assert differences[2:] == [  # 1.5, 2.5, 3.5: 2.5 ± 4.303 / √3, and 1.5 twice; the one image is drawn every time
        ["OVeNet, S_f less S_i", "+2.50", "[+0.02, +4.98]", "[+2.50, +2.50]", "+1.50", "+2.50", "+3.50"],
        ["OVeNet less baseline", "+1.50", "[+1.50, +1.50]", "[+1.50, +1.50]", "+1.50", "+1.50", ""],
    ]
    assert gains[0] == ["IoU", "OVeNet, S_f less S_i", "OVeNet less baseline"]
    assert gains[2:] == [
        ["road", "+7.00 ± 2.00", "+6.00 ± 1.41"],  # three seeds and the two that both have
        ["pole", "-2.00 ± 0.00", "-3.00 ± 1.41"],
    ]
    assert [row[0] for row in edges[2:]] == ["baseline", "OVeNet, S_i", "OVeNet, S_s", "OVeNet, S_f"]
    assert edges[2][1:] == ["30.00 / 31.00 / 32.00", "10.00 / 30.00 / 50.00", "70.00 / 80.00 / –"]
    assert seeds[0][-2:] == ["offsets up to 1 px", "offsets up to 8 px"]
    assert seeds[2:] == [["OVeNet", "90.0 to 92.0", "80.0", "15.0 to 19.0", "1.0", "60.0", "100.0"]]


def test_offsets_beyond_the_last_bound_count():
    runs = [
        result("OVeNet", 0, {"initial": (1, 1), "seed": (1, 1), "fused": (1, 1)}, edge=0.4, lengths=(1, 1, 1, 1, 4))
    ]
    table = details_markdown(summary_of(runs, "OVeNet")).split("\n\n")[-1]
    assert rows(table)[2][-2:] == ["12.5", "50.0"]


def test_shares_of_no_pixels_are_left_open():
    """A test without a wrong pixel, and one without a labelled pixel that has a seed."""
    same = dict.fromkeys(("initial", "seed", "fused"), (100, 100))
    runs = [result("OVeNet", seed, same, edge=0.4, lengths=(0, 0, 0, 0, 0)) for seed in (0, 1)]
    for run in runs:
        run.details["seeds"]["right_class_where_wrong"] = None
    runs[1].details["seeds"]["corrected"]["fused"] = None
    table = rows(details_markdown(summary_of(runs, "OVeNet")).split("\n\n")[-1])
    assert table[2] == ["OVeNet", "90.0 to 91.0", "–", "15.0", "1.0", "–", "–"]


def test_tables_that_would_be_empty_are_left_away():
    """One variant without a seed, tested without details."""
    tables = details_markdown(summary_of([result("baseline", 3, {"fused": (80, 40)})]))
    assert rows(tables) == [["mIoU", "seed 3"], ["---", "--:"], ["baseline", "60.00"]]


def test_boundaries_are_in_the_table_where_they_were_scored(summary):
    main = summary.markdown().partition("\n\n")[0]
    assert [row[5] for row in rows(main)[2:]] == ["32.00 ± 0.00", "42.00 ± 0.00"]
    borderless = result("baseline", 0, {"fused": (80, 40)}, edge=0.3)
    borderless.details["boundaries"]["mean_iou"]["fused"][-1] = None
    assert rows(summary_of([borderless]).markdown().partition("\n\n")[0])[2][5] == "–"
    unscored = summary_of([result("baseline", 0, {"fused": (80, 40)})]).markdown()
    assert rows(unscored.partition("\n\n")[0])[2][5] == ""


def test_mean_and_spread():
    assert mean_and_spread(np.array([0.25])) == "25.00"
    assert mean_and_spread(np.array([0.25, 0.75])) == "50.00 ± 35.36"
    assert mean_and_spread(np.array([0.01, 0.03]), sign="+") == "+2.00 ± 1.41"
    assert mean_and_spread(np.array([0.01, np.nan])) == "–"
