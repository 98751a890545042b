"""Signals and limits are an embedding program's own again when we are done."""

import os
import signal
from threading import Thread

import pytest

from sft_hydra.chat.resource_limits import limit_resources
from sft_hydra.process import signals


def test_a_wish_to_stop_does_not_outlive_its_run() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with signals.listening():
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.stop_requested()
    assert not signals.stop_requested()
    assert signal.getsignal(signal.SIGTERM) is before
    with signals.listening():
        assert not signals.stop_requested()


def test_work_that_nobody_asks_is_stopped_at_once() -> None:
    with signals.listening():
        with pytest.raises(signals.StoppedError), signals.at_once():
            os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(signals.StoppedError), signals.at_once():  # it came before
            pytest.fail("began all the same")


def test_in_another_thread_nothing_is_kept() -> None:
    before, seen = signal.getsignal(signal.SIGTERM), []

    def run() -> None:
        with signals.listening():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [before]


def test_limits_leave_timer_and_handler_as_they_were() -> None:
    mine = []
    before = signal.signal(signal.SIGVTALRM, lambda *_: mine.append(1))
    try:
        signal.setitimer(signal.ITIMER_VIRTUAL, 1000.0)
        with limit_resources(5.0):
            assert signal.getitimer(signal.ITIMER_VIRTUAL)[0] <= 5.1  # the kernel rounds up
        assert 5.1 < signal.getitimer(signal.ITIMER_VIRTUAL)[0] <= 1000.1
        signal.raise_signal(signal.SIGVTALRM)
        assert mine == [1]
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
