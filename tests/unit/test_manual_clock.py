"""The clock that a test moves: past everything that waits for it, one moment after the other."""

from __future__ import annotations

import threading
from datetime import datetime, timedelta, timezone

import pytest

from jobcore.clock import from_datetime, to_datetime
from jobcore.testing import ManualClock
from jobcore.testing.manual_clock import START, START_MONOTONIC
from tests.processes import PATIENCE, in_child

BEGIN = from_datetime(START)


class Waits:
    """Something that waits for moments, and notes at which time it was moved on."""

    def __init__(self, clock, *moments, again=None):
        self.clock = clock
        self.moments = sorted(moments)
        self.again = again  # seconds from each moment to one more, found out only there
        self.seen = []
        self.steps = 0
        self.end = clock.drive(self)

    def due(self):
        """Return the next of them."""
        return min(self.moments, default=None)

    def step(self):
        """Note all that have come."""
        self.steps += 1
        while self.moments and self.moments[0] <= self.clock.monotonic():
            self.seen.append(self.clock.monotonic())
            moment = self.moments.pop(0)
            if self.again is not None:
                self.moments.append(moment + self.again)
                self.again = None

    def runs(self):
        """Return no runs."""
        return frozenset({str(id(self))})


def at(seconds):
    """Return a moment of the monotonic clock."""
    return START_MONOTONIC + seconds


def test_manual_clock_starts_at_a_fixed_time():
    """Unless told otherwise it is 22:13:20 UTC on 14 November 2023, and 1000 seconds."""
    clock = ManualClock()

    assert to_datetime(clock.now()) == datetime(2023, 11, 14, 22, 13, 20, tzinfo=timezone.utc)
    assert clock.monotonic() == 1000.0


def test_manual_clock_starts_at_the_given_time():
    """A start in any time zone is that moment."""
    start = datetime(2030, 1, 1, tzinfo=timezone(timedelta(hours=9)))

    assert to_datetime(ManualClock(start).now()) == start


def test_manual_clock_stands_still():
    """Nothing but a move makes it go on."""
    clock = ManualClock()

    assert (clock.now(), clock.monotonic()) == (BEGIN, at(0))


def test_time_goes_by_on_both():
    """An hour is an hour of wall time and of monotonic time."""
    clock = ManualClock()
    clock.advance(3600)

    assert (clock.now(), clock.monotonic()) == (BEGIN + 3_600_000_000, at(3600))


def test_many_small_moves_are_as_far_as_one():
    """Ten thousand milliseconds are ten seconds, to the microsecond."""
    clock = ManualClock()
    for _ in range(10_000):
        clock.advance(0.001)

    assert clock.now() == BEGIN + 10_000_000


@pytest.mark.parametrize("seconds", [-1, -0.001, float("nan"), float("inf"), "1", None, True])
def test_time_does_not_go_back(seconds):
    """An invalid or negative span raises, and the clock does not move."""
    clock = ManualClock()

    with pytest.raises(ValueError, match="jump"):
        clock.advance(seconds)

    assert (clock.now(), clock.monotonic()) == (BEGIN, at(0))


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), "1", None, True])
def test_the_wall_clock_is_set_by_a_number(seconds):
    """Anything but a number of seconds raises."""
    with pytest.raises(ValueError):
        ManualClock().jump(seconds)


def test_start_without_a_time_zone_is_refused():
    """It is refused, for the clock and for its wall time."""
    naive = datetime(2030, 1, 1)  # noqa: DTZ001 - that is the point

    with pytest.raises(ValueError):
        ManualClock(naive)
    with pytest.raises(ValueError):
        ManualClock().set_wall(naive)


def test_the_wall_clock_alone_can_be_set():
    """An operator's change moves no monotonic time, whether by an amount or to a moment."""
    clock = ManualClock()
    clock.jump(-86_400)
    assert (clock.now(), clock.monotonic()) == (BEGIN - 86_400_000_000, at(0))

    moment = datetime(2024, 2, 29, tzinfo=timezone.utc)
    clock.set_wall(moment)
    assert (to_datetime(clock.now()), clock.monotonic()) == (moment, at(0))

    clock.set_wall(1_700_000_000_123_456)
    clock.advance(1)
    assert (clock.now(), clock.monotonic()) == (1_700_000_001_123_456, at(1))


def test_driven_objects_act_at_their_own_times():
    """However far the clock is moved, it stands at each moment that is due on the way."""
    clock = ManualClock()
    one = Waits(clock, at(5), at(80.25))
    other = Waits(clock, at(60), at(101))
    clock.advance(100)

    assert one.seen == [at(5), at(80.25)]
    assert other.seen == [at(60)]
    assert clock.monotonic() == at(100)
    assert clock.next_due() == at(101)


def test_a_moment_found_on_the_way_is_stood_at_too():
    """The clock also stops at a time that becomes due during a move."""
    clock = ManualClock()
    waits = Waits(clock, at(10), again=7)
    clock.advance(30)

    assert waits.seen == [at(10), at(17)]


def test_a_moment_that_no_float_hits_is_reached():
    """Sums of such fractions as 0.1 are not passed over, and do not stop the clock."""
    clock = ManualClock()
    moments = [at(0) + 0.1 * number for number in range(1, 200)]
    waits = Waits(clock, *moments)
    clock.advance(20)

    assert waits.seen == moments


def test_arrived_work_is_done_before_time_moves():
    """Moving the clock begins with a step at the present time."""
    clock = ManualClock()
    waits = Waits(clock, at(-1))
    clock.advance(50)

    assert waits.seen == [at(0)]


def test_settling_moves_no_time():
    """`step` handles what has arrived, and does not move the clock."""
    clock = ManualClock()
    waits = Waits(clock, at(0), at(1))
    told = []
    clock.watch(lambda: told.append(clock.monotonic()))
    clock.step()

    assert waits.seen == [at(0)]
    assert told == []
    assert clock.monotonic() == at(0)


def test_a_moment_can_be_gone_to():
    """A moment that has passed is now."""
    clock = ManualClock()
    clock.advance_to(at(3))
    clock.advance_to(at(1))

    assert clock.monotonic() == at(3)


def test_watchers_are_called_after_each_move():
    """They see the time that is set, at each moment on the way and for the wall clock, too."""
    clock = ManualClock()
    Waits(clock, at(5))
    told = []
    end = clock.watch(lambda: told.append((clock.monotonic(), clock.now())))
    clock.advance(10)
    clock.jump(-1)
    clock.set_wall(BEGIN)
    clock.advance(0)
    end()
    end()
    clock.advance(10)

    assert told == [
        (at(5), BEGIN + 5_000_000),
        (at(10), BEGIN + 10_000_000),
        (at(10), BEGIN + 9_000_000),
        (at(10), BEGIN),
    ]


def test_one_who_watches_twice_ends_once():
    """Ending one watch leaves the other, though they are the same function."""
    clock = ManualClock()
    told = []

    def tell():
        told.append(clock.monotonic())

    end = clock.watch(tell)
    clock.watch(tell)
    end()
    clock.advance(1)

    assert told == [at(1)]


def test_removed_object_is_not_called():
    """The clock does not stop at its times."""
    clock = ManualClock()
    waits = Waits(clock, at(5))
    waits.end()
    waits.end()
    clock.advance(10)

    assert waits.steps == 0
    assert clock.next_due() is None
    assert clock.runs() == frozenset()


def test_clock_knows_the_runs_of_what_it_drives():
    """The clock knows all of them."""
    clock = ManualClock()
    one, other = Waits(clock), Waits(clock)

    assert clock.runs() == {str(id(one)), str(id(other))}


def test_a_watcher_may_move_it_on():
    """A move within a move is done there, and the outer one goes on to its end."""
    clock = ManualClock()
    told = []

    def push():
        told.append(clock.monotonic())
        if len(told) == 1:
            clock.advance(20)

    clock.watch(push)
    clock.advance(10)

    assert told == [at(10), at(30)]
    assert clock.monotonic() == at(30)


def test_moves_from_many_threads_are_serialised():
    """No second is lost, and no moment is seen twice or out of its order."""
    clock = ManualClock()
    moments = [at(number) for number in range(1, 400)]
    waits = Waits(clock, *moments)
    threads = [
        threading.Thread(target=lambda: [clock.advance(1) for _ in range(100)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)

    assert waits.seen == moments
    assert clock.monotonic() == at(400)


def test_forked_child_has_its_own_clock():
    """A child can move its clock even if another thread was moving it during the fork."""
    clock = ManualClock()
    inside, go_on = threading.Event(), threading.Event()

    def hold():
        inside.set()
        assert go_on.wait(PATIENCE)

    end = clock.watch(hold)
    thread = threading.Thread(target=lambda: clock.advance(1))
    thread.start()
    assert inside.wait(PATIENCE)

    def move():
        end()
        clock.advance(10)
        return clock.monotonic()

    try:
        assert in_child(move) == at(11)
    finally:
        go_on.set()
        thread.join(PATIENCE)

    assert clock.monotonic() == at(1)
