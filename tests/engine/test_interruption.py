"""Requests to stop, with real signals, each test in a process of its own: what goes wrong must not end the others."""

import functools
import io
import logging
import os
import signal
import sys
import time

import pytest
from tests import forking

from ovenet.engine.interruption import EXIT_REQUEUE, Interruption
from ovenet.utils.logging import get_logger

TIMEOUT_S = 60
IS_CHILD = "OVENET_TEST_IS_CHILD"


def in_a_child(test):
    """Runs a test in a process of its own, with a pytest of its own.

    Not in a fork of this one: forks of a test worker that had run other files were seen to crash at their first signal.
    """

    @functools.wraps(test)
    def run(*args, **kwargs):
        if IS_CHILD in os.environ:
            return test(*args, **kwargs)
        name = os.environ["PYTEST_CURRENT_TEST"].rpartition(" ")[0]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
        environment |= {IS_CHILD: "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # they take most of its time
        command = ["-m", "pytest", "-p", "no:cacheprovider", "--assert=plain", name]
        done = forking.run(command, env=environment, timeout=TIMEOUT_S)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "1 passed" in done.stdout

    return run


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGTERM, EXIT_REQUEUE),
        (signal.SIGUSR1, EXIT_REQUEUE),
        (signal.SIGHUP, EXIT_REQUEUE),
        (signal.SIGINT, 130),
    ],
)
@in_a_child
def test_a_request_is_remembered_and_the_handlers_come_back(number, code):
    before = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    signal.signal(number, before)  # whatever ran the tests may ignore some of them
    with Interruption() as interruption:
        assert interruption.received is None
        os.kill(os.getpid(), number)
        assert interruption.received == number
        assert interruption.exit_code == code
    assert signal.getsignal(number) is before


@in_a_child
def test_a_second_ctrl_c_ends_at_once():
    with Interruption() as interruption:
        os.kill(os.getpid(), signal.SIGINT)
        assert interruption.received == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


@in_a_child
def test_a_scheduler_that_repeats_itself_is_not_a_second_ctrl_c(caplog):
    with Interruption() as interruption:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.received == signal.SIGTERM
    assert len(caplog.records) == 1


@in_a_child
def test_a_request_while_a_line_is_written_is_told_too():
    """Python's buffered files refuse to be written by a signal handler that interrupts them, and logging hides it."""

    class Raw(io.RawIOBase):
        written = b""

        def writable(self):
            return True

        def write(self, data):
            is_first, self.written = not self.written, self.written + bytes(data)
            if is_first:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.01)  # the handler runs here
            return len(data)

    raw = Raw()
    stream = io.TextIOWrapper(io.BufferedWriter(raw), write_through=True)
    handler = logging.StreamHandler(stream)
    get_logger().addHandler(handler)
    with Interruption() as interruption:
        get_logger().warning("first")
        assert interruption.received == signal.SIGTERM
        deadline = time.monotonic() + 5
        while b"saving" not in raw.written and time.monotonic() < deadline:
            time.sleep(0.01)
    get_logger().removeHandler(handler)
    assert raw.written.splitlines() == [b"first", b"SIGTERM: saving after this step"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@in_a_child
def test_before_there_is_anything_to_save_the_process_ends_at_once(number):
    with Interruption(at_once=True) as interruption, pytest.raises(SystemExit) as end:
        os.kill(os.getpid(), number)
    assert end.value.code == interruption.exit_code


class EndsWithARequest:
    """What a finaliser raises, Python swallows and prints: a handler may run inside one at any time."""

    def __init__(self, number):
        self.number = number

    def __del__(self):
        os.kill(os.getpid(), self.number)
        for _ in range(1000):
            pass


def end_and_wait(number):
    EndsWithARequest(number)
    time.sleep(TIMEOUT_S / 2)


@in_a_child
def test_a_request_inside_a_finaliser_ends_the_process_all_the_same():
    swallowed = []
    sys.unraisablehook = swallowed.append

    with Interruption(at_once=True) as interruption, pytest.raises(SystemExit) as end:
        end_and_wait(signal.SIGTERM)
    assert end.value.code == interruption.exit_code
    assert not swallowed


@in_a_child
def test_a_second_ctrl_c_inside_a_finaliser_ends_at_once_too():
    swallowed = []
    sys.unraisablehook = swallowed.append

    with Interruption():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            end_and_wait(signal.SIGINT)
    assert not swallowed


@in_a_child
def test_what_else_a_finaliser_raises_is_still_reported():
    class Broken:
        def __del__(self):
            raise ValueError

    swallowed = []
    sys.unraisablehook = swallowed.append
    with Interruption(at_once=True):
        Broken()
    assert [type(fault.exc_value) for fault in swallowed] == [ValueError]
    assert sys.unraisablehook == swallowed.append


@in_a_child
def test_a_hangup_that_nohup_ignores_stays_ignored():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with Interruption() as interruption:
        os.kill(os.getpid(), signal.SIGHUP)
        assert interruption.received is None
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
