"""Postponement: what fails is tried again at growing distance, and told now and then."""

from __future__ import annotations

import errno
import logging

import pytest

from jobcore import DatabaseBusy, StoreError
from jobcore.clock import SystemClock, seconds_of
from jobcore.engine.postponement import Postponement
from jobcore.testing import ManualClock
from jobcore.tuning import FIRST_PAUSE, LOG_EVERY, LONGEST_PAUSE


class Seconds:
    """Seconds that the test moves."""

    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def seconds():
    return Seconds()


@pytest.fixture
def postponed(seconds):
    return Postponement(seconds)


@pytest.fixture
def told(caplog):
    """Return a function that returns what was told since the last call."""
    caplog.set_level(logging.INFO, logger="jobcore")

    def new():
        messages = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return messages

    return new


def test_distance_between_tries_doubles_up_to_a_bound(postponed, seconds):
    """Each try that fails doubles the pause until the next one; the longest is bounded."""
    delays = []
    for _ in range(12):
        delays.append(postponed.fail(1, StoreError("no"), "job postponed"))
        assert not postponed.is_due(1)
        seconds.now += delays[-1]
        assert postponed.is_due(1)

    assert delays == [FIRST_PAUSE] * 2 + [1, 2, 4, 8, 16] + [LONGEST_PAUSE] * 5


def test_many_who_fail_at_once_do_not_make_it_longer(postponed):
    """The pause depends on the time that it fails, not on how many threads try."""
    assert {postponed.fail(1, StoreError("no"), "e") for _ in range(100)} == {FIRST_PAUSE}


@pytest.mark.parametrize(
    "error", [DatabaseBusy("busy"), StoreError("no descriptor", errno.EMFILE), OSError(28, "full")]
)
def test_shortage_keeps_the_first_pause(postponed, seconds, error):
    """A failure that concerns all jobs and ends by itself keeps the first pause."""
    postponed.fail(1, error, "e")
    seconds.now += 1000

    assert postponed.fail(1, error, "e") == FIRST_PAUSE


def test_failure_is_logged_when_new_changed_or_an_hour_old(postponed, seconds, told):
    """The log has one event at the beginning, one for each new cause, and one an hour."""
    for _ in range(100):
        postponed.fail(7, StoreError("mode 755"), "job postponed", job="7")
        seconds.now += 1
    assert told() == ["event='job postponed' job='7' error='StoreError: mode 755'"]

    postponed.fail(7, StoreError("a FIFO"), "job postponed", job="7")
    assert told() == ["event='job postponed' job='7' error='StoreError: a FIFO'"]

    seconds.now += LOG_EVERY - 1
    postponed.fail(7, StoreError("a FIFO"), "job postponed", job="7")
    assert told() == []

    seconds.now += 1
    postponed.fail(7, StoreError("a FIFO"), "job postponed", job="7")
    assert len(told()) == 1


def test_success_ends_it(postponed, told):
    """After a success, the next failure is logged as a new one."""
    postponed.fail(7, StoreError("no"), "e")
    postponed.succeed(7)
    assert postponed.is_due(7)

    postponed.fail(7, StoreError("no"), "e")
    assert len(told()) == 2


def test_failure_is_persistent_after_three_in_a_row_over_ten_seconds(postponed, seconds):
    """Neither many failures within a moment are persistent, nor two over a long time."""
    error = StoreError("no")
    for _ in range(5):
        postponed.fail("many", error, "e")
    postponed.fail("few", error, "e")
    seconds.now += 9.9
    assert postponed.persistent("many") is None

    seconds.now += 0.1
    postponed.fail("few", error, "e")

    assert postponed.persistent("many").error is error
    assert postponed.persistent("few") is None
    assert postponed.persistent("nothing") is None


def test_keys_do_not_touch_each_other(postponed):
    """A postponed key does not delay another."""
    postponed.fail(1, StoreError("no"), "e")

    assert (postponed.is_due(1), postponed.is_due(2), postponed.waiting()) == (False, True, {1})


def test_failure_without_retries_is_forgotten(postponed, seconds):
    """A job that was deleted leaves nothing: memory does not grow with the history."""
    postponed.fail(1, StoreError("no"), "e")
    seconds.now += 2 * LOG_EVERY
    postponed.fail(2, StoreError("no"), "e")

    assert list(postponed._failures) == [2]


def test_error_with_a_failing_str_is_described_by_its_type(postponed, told):
    """An exception whose `str` fails is reported by its type."""

    class Wordless(Exception):
        def __str__(self):
            raise ZeroDivisionError

    postponed.fail(1, Wordless(), "e")

    assert told() == ["event='e' error='Wordless'"]


def test_seconds_pass_under_a_manual_clock():
    """Under a clock that is moved, real time passes as well, and a move is seen at once."""
    clock = ManualClock()
    now = seconds_of(clock)
    before = now()
    clock.advance(3600)

    assert now() - before >= 3600
    assert seconds_of(SystemClock())() > 0
