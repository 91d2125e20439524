"""Requests to stop, with real signals to this process."""

import os
import signal

import pytest

from ovenet.engine.interruption import EXIT_REQUEUE, Interruption


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGTERM, EXIT_REQUEUE),
        (signal.SIGUSR1, EXIT_REQUEUE),
        (signal.SIGHUP, EXIT_REQUEUE),
        (signal.SIGINT, 130),
    ],
)
def test_a_request_is_remembered_and_the_handlers_come_back(request, number, code):
    if number == signal.SIGHUP:
        use_default_handler(request, number)  # tests may be run under nohup, which ignores it
    before = signal.getsignal(number)
    with Interruption() as interruption:
        assert interruption.received is None
        os.kill(os.getpid(), number)
        assert interruption.received == number
        assert interruption.exit_code == code
    assert signal.getsignal(number) is before


def use_default_handler(request, number):
    """The default handler for the time of a test."""
    before = signal.signal(number, signal.SIG_DFL)
    request.addfinalizer(lambda: signal.signal(number, before))


def test_a_second_ctrl_c_ends_at_once():
    with Interruption() as interruption:
        os.kill(os.getpid(), signal.SIGINT)
        assert interruption.received == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_scheduler_that_repeats_itself_is_not_a_second_ctrl_c(caplog):
    with Interruption() as interruption:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.received == signal.SIGTERM
    assert len(caplog.records) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_before_there_is_anything_to_save_the_process_ends_at_once(number):
    with Interruption(at_once=True) as interruption, pytest.raises(SystemExit) as end:
        os.kill(os.getpid(), number)
    assert end.value.code == interruption.exit_code


def test_a_hangup_that_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interruption() as interruption:
            os.kill(os.getpid(), signal.SIGHUP)
            assert interruption.received is None
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
