"""Curves of several runs: read, grouped by seed, summed up."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from PIL import Image

from ovenet.config.schema import affects_training
from ovenet.evaluation.curves import format_curves, group_curves, plot_curves, read_curve, short_names


@pytest.fixture
def runs(tmp_path):
    """Two seeds of one experiment and one run of another."""
    for name, lr, seed, values in (
        ("a", 0.1, 0, (0.2, 0.5, 0.4)),
        ("b", 0.1, 1, (0.2, 0.4, 0.6)),
        ("c", 0.2, 0, (0.1,)),
    ):
        run = tmp_path / name
        run.mkdir()
        points = [
            {"kind": "val", "iteration": 10 * i, "epoch": i, "time": 0, "iou": v} for i, v in enumerate(values, 1)
        ]
        points.append({"kind": "train", "iteration": 10, "epoch": 1, "time": 0, "loss": None})
        text = "".join(json.dumps(point) + "\n" for point in points)
        (run / "log.jsonl").write_text(text + '{"kind": "val", "iter')  # the last line is being written
        settings = {"SEED": seed, "OUTPUT_DIR": name, "WORKERS": seed, "TRAIN": {"LR": lr, "RESUME": bool(seed)}}
        (run / "config.yaml").write_text(yaml.safe_dump(settings))
    return [read_curve(tmp_path / name, "val/iou", affects_training) for name in "abc"]


def test_runs_that_differ_by_the_seed_are_one_line(runs):
    groups = group_curves(runs)
    assert [len(members) for members in groups.values()] == [2, 1]
    rows = [line.split() for line in format_curves(groups, "val/iou").splitlines()[2:]]
    # last 0.4 and 0.6: mean 0.5, deviation 0.1414; best 0.5 and 0.6: 0.55, 0.0707
    assert rows[0][1:] == ["2", "30", "0.5000", "±", "0.1414", "0.5500", "±", "0.0707"]
    assert rows[1][1:] == ["1", "10", "0.1000", "0.1000"]
    lowest = format_curves(groups, "val/iou", lowest=True).splitlines()[2].split()
    assert lowest[-3] == "0.2000"


def test_runs_that_start_from_weights_of_their_own_seed_are_one_line(tmp_path):
    for name, seed, start in (("a", 0, "base-seed0-1f"), ("b", 1, "base-seed1-2e"), ("c", 2, "base-seed1-2e")):
        run = tmp_path / name
        run.mkdir()
        (run / "log.jsonl").write_text('{"kind": "val", "iteration": 1, "iou": 0.5}')
        (run / "config.yaml").write_text(
            yaml.safe_dump({"SEED": seed, "MODEL": {"PRETRAINED": f"out/{start}/best.pth"}})
        )
    curves = [read_curve(tmp_path / name, "val/iou", affects_training) for name in "abc"]
    assert [curve.seed for curve in curves] == [0, 1, 2]
    assert [len(members) for members in group_curves(curves).values()] == [2, 1]  # c starts from another seed's


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (
            ("OVeNet-seed2-f9a31b98", "OVeNet-seed3-bfbfc4cf", "baseline-seed2-a6ddedf3"),
            ["OVeNet", "baseline-seed2-a6ddedf3"],
        ),
        (("runs/small_0", "runs/small_1", "runs/large"), ["runs/small", "runs/large"]),
        (("seed0", "seed1", "other"), ["seed0", "other"]),  # nothing but the seed is shared
        (("net-seed0", "net-seed1", "net"), ["net-seed0", "net"]),  # two groups of one name
    ],
)
def test_a_group_is_called_by_what_its_runs_share(runs, names, expected):
    renamed = [replace(run, name=name) for run, name in zip(runs, names, strict=True)]
    assert list(group_curves(renamed)) == expected


def test_the_plot_shows_every_curve_in_its_colour(runs):
    (axes,) = plot_curves(group_curves(runs), "val/iou").axes
    lines = [(line.get_color(), line.get_ydata().tolist()) for line in axes.lines]
    first, second = "#0072B2", "#D55E00"
    assert lines[:2] == [(first, [0.2, 0.5, 0.4]), (first, [0.2, 0.4, 0.6])]
    assert lines[2] == (first, pytest.approx([0.2, 0.45, 0.5]))  # their mean
    assert lines[3] == (second, [0.1])


def test_mean_iou_is_in_percent(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"kind": "val", "iteration": 1, "mean_iou_fused": 0.67344}')
    curve = read_curve(tmp_path, "val/mean_iou_fused", affects_training)
    text = format_curves({"a": [curve]}, "val/mean_iou_fused")
    assert text.splitlines()[0] == "val/mean_iou_fused, %"
    assert text.splitlines()[2].split() == ["a", "1", "1", "67.34", "67.34"]


def test_names_of_runs_are_what_tells_them_apart():
    runs = [Path("out/OVeNet-seed0-1f/camvid/lite0"), Path("out/baseline-seed0-2e/camvid/lite0")]
    assert short_names(runs) == ["OVeNet-seed0-1f", "baseline-seed0-2e"]
    assert short_names(runs[:1]) == [str(runs[0])]
    assert short_names([Path("a/b"), Path("a/b")]) == ["a/b", "a/b"]
    crossed = [Path("s/1/2"), Path("1/s/2"), Path("s")]
    assert short_names(crossed) == [str(run) for run in crossed]  # without s the first two would be one


def test_what_is_not_there_is_named(tmp_path, runs):
    with pytest.raises(ValueError, match=r"log\.jsonl: .*val/loss; .*train/loss, val/iou"):
        read_curve(tmp_path / "a", "val/loss", affects_training)
    with pytest.raises(ValueError, match=r"none.log\.jsonl: "):
        read_curve(tmp_path / "none", "val/iou", affects_training)


def test_the_tool_writes_a_table_and_a_picture(tmp_path, runs, capsys, monkeypatch):
    import sys

    import compare

    arguments = ["compare", *(str(tmp_path / n) for n in "abc"), "--seeds", "--metric", "val/iou", "--output"]
    monkeypatch.setattr(sys, "argv", [*arguments, str(tmp_path / "curves.png")])
    compare.main()
    assert "0.5000 ± 0.1414" in capsys.readouterr().out
    assert Image.open(tmp_path / "curves.png").size == (990, 550)
