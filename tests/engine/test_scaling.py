"""The model of several cards and hosts, by numbers that can be worked out by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest

from ovenet.engine.scaling import (
    AROUND_S,
    Workload,
    all_gather_s,
    all_reduce_s,
    disturbances,
    expected_maximum,
    remedies,
    step_time,
)

SMALL = Workload(compute_s=0.3, input_s=0.1, gradient_bytes=10e6, num_layers=0)


def test_one_process_sends_nothing():
    times = step_time(replace(SMALL, num_layers=400), hosts=1, per_host=1, link_gbit=1)
    assert (times.link_s, times.exposed_s, times.messages_s, times.total_s) == (0, 0, 0, 0.3)
    assert times.limit == "the computation"
    assert times.efficiency == 1


def test_two_hosts_send_their_gradients_once_each_way():
    """10 MB over 0.1 Gbit/s take 0.8 s, and one bucket of 25 MiB holds all of them: nothing is hidden."""
    times = step_time(SMALL, hosts=2, per_host=1, link_gbit=0.1)
    assert times.link_s == pytest.approx(0.8)
    assert times.total_s == pytest.approx(1.1)
    assert times.efficiency == pytest.approx(0.3 / 1.1)
    assert times.limit == "the link"


def test_many_buckets_hide_behind_the_backward_pass():
    """Of 262 MB the last tenth is exposed; 64 hosts send 2 * 63 / 64 of them."""
    large = Workload(compute_s=1.5, input_s=0.0, gradient_bytes=10 * 25 * 2**20, num_layers=0)
    times = step_time(large, hosts=64, per_host=1, link_gbit=100)
    assert times.link_s == pytest.approx(8 * 2 * 63 / 64 * 10 * 25 * 2**20 / 100e9)
    assert times.exposed_s == pytest.approx(0.1 * times.link_s)
    slow = step_time(large, hosts=64, per_host=1, link_gbit=1)
    assert slow.exposed_s == pytest.approx(slow.link_s - 1.0)  # two thirds of the computation hide no more


def test_input_and_messages_can_be_the_limit():
    eight = {"hosts": 8, "per_host": 1, "link_gbit": 100}
    assert step_time(Workload(0.1, 0.5, 1e6, 0), **eight).limit == "the input"
    assert step_time(Workload(0.1, 0.5, 1e6, 0), **eight).total_s == 0.5
    assert step_time(Workload(0.01, 0.0, 1e6, 1000), **eight).limit == "BatchNorm's messages"


def test_latency_inside_a_host():
    """Eight cards: a ring of 7 hops of 0.6 us, and chains of 7 hops up and down."""
    assert all_gather_s(1, 8) == pytest.approx(6.6e-6 + 7 * 0.6e-6)
    assert all_reduce_s(1, 8) == pytest.approx(6.8e-6 + 2 * 7 * 0.6e-6)
    times = step_time(replace(SMALL, num_layers=400), hosts=1, per_host=8, link_gbit=1)
    assert times.messages_s == pytest.approx(400 * (10.8e-6 + 15.2e-6 + 2 * AROUND_S))
    assert times.exposed_s == 0


def test_latency_between_hosts_grows_with_the_ring_and_with_the_depth_of_the_tree():
    """64 cards of 8 hosts: 56 hops of 1 us and 7 of 2.7 us; 7 hops and 3 levels of 5 us, both up and down."""
    assert all_gather_s(8, 8) == pytest.approx(6.6e-6 + 56 * 1e-6 + 7 * 2.7e-6)
    assert all_reduce_s(8, 8) == pytest.approx(6.8e-6 + 2 * (7 * 0.6e-6 + 3 * 5e-6))
    assert all_reduce_s(5, 1) == pytest.approx(6.8e-6 + 2 * 3 * 5e-6)  # a tree of 5 is 3 deep
    assert all_gather_s(64, 8) > 5 * all_gather_s(8, 8) > 5 * all_reduce_s(64, 8)


def test_each_remedy_changes_what_it_says():
    start = Workload(0.05, 0.0, 400e6, 400)
    total = {name: step_time(w, hosts=8, per_host=8, link_gbit=100) for name, w in remedies(start).items()}
    before = total["as it is"]
    assert total["TRAIN.GRADIENT_COMPRESSION bf16"].link_s == before.link_s / 2
    assert total["TRAIN.SYNC_BN False"].total_s == pytest.approx(before.total_s - before.messages_s)
    assert total["both"].total_s < min(total[name].total_s for name in total if name != "both")
    assert total["twice the batch"].efficiency > before.efficiency
    merged = next(times for name, times in total.items() if name.startswith("four layers"))
    assert merged.messages_s == pytest.approx(before.messages_s / 4)


def test_the_largest_of_several_normal_times():
    """Two and three have closed forms; of more, draws."""
    assert expected_maximum(1) == pytest.approx(0, abs=1e-9)
    assert expected_maximum(2) == pytest.approx(1 / math.sqrt(math.pi))
    assert expected_maximum(3) == pytest.approx(3 / (2 * math.sqrt(math.pi)))
    drawn = np.random.default_rng(0).standard_normal((4000, 512)).max(axis=1)
    assert expected_maximum(512) == pytest.approx(drawn.mean(), abs=0.03)


def test_all_wait_for_the_slowest():
    two = {"hosts": 1, "per_host": 2, "link_gbit": 1}
    assert step_time(replace(SMALL, straggler=1.5), **two).total_s == pytest.approx(0.45)
    assert step_time(replace(SMALL, straggler=4.0), hosts=1, per_host=8, link_gbit=1).limit == "the slowest process"
    varying = step_time(replace(SMALL, spread=0.1), **two)
    assert varying.waiting_s == pytest.approx(0.3 * 0.1 / math.sqrt(math.pi))
    assert step_time(replace(SMALL, spread=0.1, straggler=1.5), hosts=1, per_host=1, link_gbit=1).total_s == 0.3


def test_a_slow_disk_is_the_limit():
    """24 images of 2.3 MB at 500 MB/s take 0.11 s."""
    slowed = disturbances(Workload(0.05, 0.0, 400e6, 0), images_per_host=24)
    disk = next(workload for name, workload in slowed.items() if "disk" in name)
    times = step_time(disk, hosts=1, per_host=8, link_gbit=100)
    assert times.total_s == pytest.approx(24 * 2.3 / 500)
    assert times.limit == "the input"
