"""The model of several hosts, by numbers that can be worked out by hand."""

import pytest

from ovenet.commands.plan import Workload, step_time

SMALL = Workload(compute_s=0.3, input_s=0.1, gradient_bytes=10e6, num_messages=0)


def test_one_host_sends_nothing():
    times = step_time(SMALL, hosts=1, link_gbit=1)
    assert (times.link_s, times.exposed_s, times.total_s) == (0, 0, 0.3)
    assert times.limit == "the computation"


def test_two_hosts_send_their_gradients_once_each_way():
    """10 MB over 0.1 Gbit/s take 0.8 s, and one bucket of 25 MiB holds all of them: nothing is hidden."""
    times = step_time(SMALL, hosts=2, link_gbit=0.1)
    assert times.link_s == pytest.approx(0.8)
    assert times.total_s == pytest.approx(1.1)
    assert times.limit == "the link"


def test_many_buckets_hide_behind_the_backward_pass():
    """Of 262 MB the last tenth is exposed; 64 hosts send 2 * 63 / 64 of them."""
    large = Workload(compute_s=1.5, input_s=0.0, gradient_bytes=10 * 25 * 2**20, num_messages=0)
    times = step_time(large, hosts=64, link_gbit=100)
    assert times.link_s == pytest.approx(8 * 2 * 63 / 64 * 10 * 25 * 2**20 / 100e9)
    assert times.exposed_s == pytest.approx(0.1 * times.link_s)
    slow = step_time(large, hosts=64, link_gbit=1)
    assert slow.exposed_s == pytest.approx(slow.link_s - 1.0)  # two thirds of the computation hide no more


def test_input_and_messages_can_be_the_limit():
    assert step_time(Workload(0.1, 0.5, 1e6, 0), hosts=8, link_gbit=100).limit == "the input"
    assert step_time(Workload(0.1, 0.5, 1e6, 0), hosts=8, link_gbit=100).total_s == 0.5
    assert step_time(Workload(0.01, 0.0, 1e6, 1000), hosts=8, link_gbit=100).limit == "BatchNorm's messages"
