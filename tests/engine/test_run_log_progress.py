"""What a person sees, and what the log file keeps."""

import sys
import time

import pytest
import torch

from ovenet.engine.run_log import Meter, Progress, WaitingClock
from ovenet.structures import LossTerms
from ovenet.utils.logging import configure_logging


@pytest.mark.parametrize("is_terminal", [True, False])
def test_the_log_file_keeps_the_losses_with_or_without_a_bar(tmp_path, capsys, monkeypatch, is_terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    configure_logging(file=tmp_path / "train.log")
    summary = {"loss": 1.5, "loss_fused": 1.25, "images_per_second": 2.0}
    with Progress("epoch 1/1", 2, enabled=True) as progress:
        progress.advance()
        progress.report(1, summary, 0.01, later_steps=0)
    line = "epoch 1/1, iteration 1/2: loss 1.5000 (fused 1.2500) lr 0.01, 2.0 images/s"
    shown = capsys.readouterr().err
    assert line in (tmp_path / "train.log").read_text()
    assert (line in shown) != is_terminal
    assert ("loss 1.5000 lr 0.01 ETA" in shown) == is_terminal


def test_a_slow_run_says_that_it_goes_on(tmp_path, monkeypatch):
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    configure_logging(file=tmp_path / "train.log")
    with Progress("epoch 1/2", 10, enabled=True) as progress:
        for step in range(1, 6):
            now += 25.0
            progress.advance(later_steps=10)
            if step == 4:
                progress.report(4, {"loss": 1.0, "images_per_second": 1.0}, 0.01, later_steps=10)
    lines = (tmp_path / "train.log").read_text().splitlines()
    assert len(lines) == 2  # after 75 s of silence, and the report; 25 s after it is no silence
    assert "epoch 1/2, iteration 3/10: 25.0 s each, ETA 0:07:05" in lines[0]


def test_means_are_over_the_iterations():
    meter = Meter()
    for value in (1.0, 3.0):
        meter.add(LossTerms(torch.tensor(value), {"fused": torch.tensor(2 * value)}), num_images=4)
    summary = meter.summary()
    assert (summary["loss"], summary["loss_fused"]) == (2.0, 4.0)
    assert summary["images_per_second"] > 0


def test_waiting_is_told_from_working():
    def slow_items():
        for number in range(4):
            time.sleep(0.2 if number == 0 else 0.05)  # the first one starts processes, and does not count
            yield number

    clock = WaitingClock()
    for _ in clock.watch(slow_items()):
        time.sleep(0.05)
    assert 0.14 < clock.waited_s < 0.3
    assert 0.35 < clock.waiting_share < 0.6
    assert "data-bound: raise WORKERS" in str(clock)
    assert "compute-bound" in str(WaitingClock())


def test_the_share_of_the_peak_is_told_where_it_is_known(tmp_path):
    configure_logging(file=tmp_path / "train.log")
    summary = {"loss": 1.5, "images_per_second": 2.0}
    with Progress("epoch 1/1", 2, enabled=True) as progress:
        progress.report(1, summary, 0.01, later_steps=0)
        progress.report(2, {**summary, "mfu": 0.4567}, 0.01, later_steps=0)
    plain, told = (tmp_path / "train.log").read_text().splitlines()
    assert "2.0 images/s, ETA" in plain
    assert "2.0 images/s, 45.7% of the peak, ETA" in told
