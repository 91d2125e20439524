"""`ovenet latency`: networks side by side, their sizes by arithmetic."""

import sys
import time
from pathlib import Path

import pytest

from ovenet.commands import main
from ovenet.commands.latency import Network, Times, measure, table, unsteady

CITYSCAPES = Path(__file__).parents[2] / "experiments/cityscapes"
LEVELS, D = 3, 128  # the pyramid raises its map three times
SRM = 2 * D * 64 + 2 * 64 + (9 * 64 + 1) * 2 + (9 * 64 + 1) * 9
FAM = 2 * D * 64 + 9 * D * 2
ALIGN_FA = 2 * (2 * D * D + 2 * D + 9 * D * 2)


def cells(line):
    return [cell.strip() for cell in line.split("|")[1:-1]]


@pytest.mark.ci
def test_what_takes_the_place_of_bilinear_upsampling_costs_parameters_by_arithmetic(monkeypatch, capsys):
    names = ["srm_crm_ablation_no-srm", "srm_crm_mscan-s_160k_cityscapes-1024x1024"]
    names += ["srm_crm_ablation_fam", "srm_crm_ablation_align-fa"]
    files = [str(CITYSCAPES / f"{name}.yaml") for name in names]
    options = ("--size", "64x128", "--ways", "torch", "--runs", "2", "--set", "MODEL.HEAD.EMBEDDING", "null")
    monkeypatch.setattr(sys, "argv", ["ovenet", "latency", *files, *options, "LOSS.CONTRAST.WEIGHT", "0"])
    main()
    first, _, _, *rows = capsys.readouterr().out.splitlines()
    assert first.startswith("64x128, ")
    rows = [cells(row) for row in rows]
    assert [row[0] for row in rows] == [f"{name}.yaml" for name in names]
    counts = [int(row[1].replace(",", "")) for row in rows]
    assert [count - counts[0] for count in counts] == [0, LEVELS * SRM, LEVELS * FAM, LEVELS * ALIGN_FA]
    assert all(float(row[4].split()[0]) > 0 for row in rows)


def test_times_are_medians_and_differences_are_taken_within_a_turn():
    ways = {"torch": print, "onnxruntime": print}
    networks = [Network("a", 1000, 2.0, ways), Network("b", 5, 3.04, {"torch": print})]
    times = [
        Times([0.1, 0.3, 0.2], [0.1, 0.3, 0.2]),
        Times([0.05, 0.1, 0.2], [0.05, 0.1, 0.2]),
        Times([0.4, 0.9, 0.5], [0.101, 0.305, 0.203]),
    ]
    _, _, *rows = table(networks, times).splitlines()
    assert [cells(row) for row in rows] == [
        ["a", "1,000", "2.0", "torch", "200.0 (100.0 to 300.0)", "1.00", "200.0", ""],
        ["a", "1,000", "2.0", "onnxruntime", "100.0 (50.0 to 200.0)", "2.00", "100.0", "-50.0 (-125.0 to -25.0)"],
        ["b", "5", "3.0", "torch", "500.0 (400.0 to 900.0)", "0.33", "203.0", "+3.0 (+2.0 to +4.0)"],
    ]


def test_times_that_jump_are_warned_of():
    assert unsteady([Times([0.1, 0.2], []), Times([0.1, 0.29], [])]) == ""
    assert "4.0 times" in unsteady([Times([0.1, 0.2], []), Times([0.1, 0.4], [])])


def test_networks_run_in_turn_after_one_run_each_that_is_not_counted():
    called = []
    times = measure([lambda: called.append("a"), lambda: called.append(time.sleep(0.2))], 2)
    assert called == ["a", None] * 3
    assert [(len(taken.elapsed_s), len(taken.processor_s)) for taken in times] == [(2, 2)] * 2
    assert min(times[1].elapsed_s) >= 0.2 > 0.1 > max(times[1].processor_s)  # sleep is no work


@pytest.mark.parametrize("option", [("--runs", "0"), ("--threads", "0")])
def test_no_runs_and_no_threads_are_refused(monkeypatch, capsys, option):
    monkeypatch.setattr(sys, "argv", ["ovenet", "latency", "camvid-lite0", *option])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: --runs and --threads are at least 1\n"
