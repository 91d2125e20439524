"""Work behind the main thread."""

import threading
import time

import pytest

from ovenet.utils.behind import Behind, finish_behind


def test_all_is_called_in_other_threads_and_little_waits():
    behind, done = Behind(), []

    def work(number):
        time.sleep(0.001)
        done.append((number, threading.current_thread()))

    for number in range(60):
        behind.call(work, number)
        assert behind.num_waiting <= behind.max_waiting < 60
        assert len(done) >= number + 1 - behind.max_waiting
    behind.wait()
    assert sorted(number for number, _ in done) == list(range(60))
    assert threading.main_thread() not in {thread for _, thread in done}


def test_what_a_call_raises_is_raised():
    behind, done = Behind(), []
    behind.call(int, "no number")
    behind.call(done.append, 1)
    with pytest.raises(ValueError, match="no number"):
        behind.wait()
    behind.wait()
    assert done == [1]
    for text in ("no number either", *"1" * (behind.max_waiting - 1)):
        behind.call(int, text)
    with pytest.raises(ValueError, match="either"):
        behind.call(int, "1")


@pytest.mark.parametrize(("num_ahead", "expected"), [(0, "bfbfbf"), (1, "bbfbff"), (2, "bbbfff"), (9, "bbbfff")])
def test_as_many_are_begun_before_one_is_finished(num_ahead, expected):
    order = []

    def begin(number):
        order.append("b")
        return lambda: order.append("f") or number

    assert list(finish_behind(map(begin, range(3)), num_ahead)) == [0, 1, 2]
    assert "".join(order) == expected
