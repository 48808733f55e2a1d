"""When a job is overdue, and what its supervisor is due then."""

from __future__ import annotations

import signal
from types import SimpleNamespace

import pytest

from jobcore.engine.unresponsive import Overdue
from jobcore.tuning import KILL_AFTER, WAKE_AFTER


def run(*, stop=None, timeout=None, grace=10):
    """Return what is looked at of a job that was started at 0; all in seconds."""
    return SimpleNamespace(
        number=1,
        stop_requested=stop,
        effective_grace_ms=None if grace is None else grace * 1000,
        timeout_ms=None if timeout is None else timeout * 1000,
        start_time=0,
    )


def test_job_without_stop_or_time_out_is_never_overdue():
    """Only something that should have ended it makes it overdue."""
    assert not Overdue().is_overdue(run(), 10**15, 10**9)


def test_stop_is_overdue_after_its_grace_from_when_it_was_seen():
    """The moment in the row is of a clock that may have jumped."""
    overdue = Overdue()

    assert not overdue.is_overdue(run(stop=5), 10**15, 1000.0)
    assert not overdue.is_overdue(run(stop=5), 10**15, 1009.9)
    assert overdue.is_overdue(run(stop=5), 10**15, 1010.0)


def test_time_out_is_overdue_after_its_grace():
    """It counts from the start in the row, so any manager can tell."""
    overdue = Overdue()

    assert not overdue.is_overdue(run(timeout=60), 69_999_999, 0.0)
    assert overdue.is_overdue(run(timeout=60), 70_000_000, 0.0)


def test_job_whose_grace_is_unknown_is_never_overdue():
    """An older jobcore has started it, and its grace may be any."""
    assert not Overdue().is_overdue(run(stop=1, timeout=1, grace=None), 10**15, 10**9)


def test_nothing_is_due_within_half_a_minute():
    """A supervisor has `WAKE_AFTER` seconds from when its job was seen to be overdue."""
    overdue = Overdue()

    assert overdue.judge(1, 1000.0, answers=False) is None
    assert overdue.judge(1, 1000.0 + WAKE_AFTER - 0.1, answers=False) is None


def test_overdue_supervisor_is_woken_before_it_is_killed():
    """SIGCONT comes first; SIGKILL only `KILL_AFTER` seconds later."""
    overdue = Overdue()
    overdue.judge(1, 0.0, answers=False)

    assert overdue.judge(1, WAKE_AFTER, answers=False) is signal.SIGCONT
    assert overdue.judge(1, WAKE_AFTER + KILL_AFTER - 0.1, answers=False) is signal.SIGCONT
    assert overdue.judge(1, WAKE_AFTER + KILL_AFTER, answers=False) is signal.SIGKILL


def test_overdue_supervisor_is_woken_first_after_a_late_look():
    """A manager that was frozen with the supervisor gives it the time to answer."""
    overdue = Overdue()
    overdue.judge(1, 0.0, answers=False)

    assert overdue.judge(1, 10_000.0, answers=False) is signal.SIGCONT
    assert overdue.judge(1, 10_001.0, answers=False) is signal.SIGCONT
    assert overdue.judge(1, 10_000.0 + KILL_AFTER, answers=False) is signal.SIGKILL


def test_supervisor_that_answers_is_never_signalled():
    """One that waits for room on a full disk answers, and is left alone."""
    overdue = Overdue()

    for now in range(0, 10_000, 7):
        assert overdue.judge(1, float(now), answers=True) is None


def test_answer_restarts_the_wait():
    """Only the time since the last answer counts."""
    overdue = Overdue()
    overdue.judge(1, 0.0, answers=False)
    assert overdue.judge(1, WAKE_AFTER, answers=False) is signal.SIGCONT
    assert overdue.judge(1, WAKE_AFTER + 5, answers=True) is None

    assert overdue.judge(1, WAKE_AFTER + KILL_AFTER, answers=False) is signal.SIGCONT


@pytest.mark.parametrize("stop", [None, 1])
def test_job_that_is_gone_is_forgotten(stop):
    """A job that is no longer kept starts over."""
    overdue = Overdue()
    overdue.is_overdue(run(stop=stop), 0, 0.0)
    overdue.judge(1, 0.0, answers=False)

    overdue.keep(set())

    assert not overdue.is_overdue(run(stop=stop), 0, 100.0)
    assert overdue.judge(1, WAKE_AFTER + KILL_AFTER, answers=False) is None
