"""Signals wait for a checkpoint once; long spans without a report have checkpoints too."""

import _thread
import os
import signal

import pytest

from oodflow.training import interruption
from oodflow.training.interruption import SIGNALS, Checkpoints


@pytest.fixture(autouse=True)
def handled(monkeypatch):
    """Before and after each test both signals interrupt, as they do in the command line."""

    def interrupt(number, _):
        raise KeyboardInterrupt(number)

    before = {each: signal.signal(each, interrupt) for each in SIGNALS}
    yield interrupt
    assert {signal.getsignal(each) for each in SIGNALS} == {interrupt}
    for each, handler in before.items():
        signal.signal(each, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_waits_for_the_next_checkpoint(number):
    saved = []
    with pytest.raises(KeyboardInterrupt), Checkpoints(lambda: saved.append(1)) as made:
        made.between_updates()
        assert not saved
        os.kill(os.getpid(), number)
        made.between_updates()
        pytest.fail("goes on after the checkpoint")
    assert saved == [1]


def test_a_signal_that_the_system_holds_back_waits_and_acts_all_the_same():
    """As in a Ray worker, which blocks SIGINT and is interrupted from within."""
    saved = []
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        with pytest.raises(KeyboardInterrupt), Checkpoints(lambda: saved.append(1)) as made:
            _thread.interrupt_main(signal.SIGINT)
            made.between_updates()
            pytest.fail("goes on after the checkpoint")
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    assert saved == [1]


def test_the_second_signal_acts_at_once():
    saved = []
    with pytest.raises(KeyboardInterrupt), Checkpoints(lambda: saved.append(1)):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("still there")
    assert not saved


def test_a_signal_after_the_last_update_is_not_lost():
    done = []
    with pytest.raises(KeyboardInterrupt), Checkpoints(lambda: None):
        os.kill(os.getpid(), signal.SIGINT)
        done.append(1)
    assert done == [1]


def test_a_training_without_reports_is_saved_every_ten_minutes(monkeypatch):
    clock, saved = [0.0], []
    monkeypatch.setattr(interruption.time, "monotonic", lambda: clock[0])
    with Checkpoints(lambda: saved.append(clock[0])) as made:
        for minute in range(35):
            clock[0] = 60.0 * minute
            if minute == 5:
                made.save()
            made.between_updates()
    assert saved == [300, 960, 1620]
