"""What a supervisor is due that does not react to a stop."""

from __future__ import annotations

import signal

from jobcore.overdue import KILL_AFTER, WAKE_AFTER, Overdue


def test_nothing_is_due_within_the_grace_and_half_a_minute():
    """A supervisor has its grace, and `WAKE_AFTER` seconds more, from when the wish was seen."""
    overdue = Overdue()

    assert overdue.judge(1, 10.0, 1000.0) is None
    assert overdue.judge(1, 10.0, 1000.0 + 10.0 + WAKE_AFTER - 0.1) is None


def test_it_is_woken_first_and_killed_later():
    """SIGCONT comes first; SIGKILL only `KILL_AFTER` seconds later."""
    overdue = Overdue()
    overdue.judge(1, 0.0, 0.0)

    assert overdue.judge(1, 0.0, WAKE_AFTER) is signal.SIGCONT
    assert overdue.judge(1, 0.0, WAKE_AFTER + KILL_AFTER) is signal.SIGKILL


def test_a_job_that_is_gone_is_forgotten():
    """A job that is kept no more begins anew."""
    overdue = Overdue()
    overdue.judge(1, 0.0, 0.0)

    overdue.keep(set())

    assert overdue.judge(1, 0.0, WAKE_AFTER + KILL_AFTER) is None
