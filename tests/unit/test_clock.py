"""Clock: exact times, and moments only with a zone."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobcore import SystemClock
from jobcore.clock import from_datetime, iso_utc, to_datetime

# The years 1 to 9999, in microseconds since 1970.
_LEAST = from_datetime(datetime.min.replace(tzinfo=timezone.utc))
_MOST = from_datetime(datetime.max.replace(tzinfo=timezone.utc))
_ZONES = st.integers(-23 * 60, 23 * 60).map(lambda m: timezone(timedelta(minutes=m)))


@given(st.integers(_LEAST, _MOST))
def test_stored_time_survives(stored):
    """A stored time becomes a datetime and comes back exact to the microsecond."""
    assert from_datetime(to_datetime(stored)) == stored


@given(st.datetimes(datetime(1900, 1, 2), datetime(2200, 1, 1), timezones=_ZONES))  # noqa: DTZ001
def test_zone_does_not_change_the_moment(moment):
    """A time of any zone is stored as the moment that it is."""
    assert to_datetime(from_datetime(moment)) == moment


@given(st.datetimes(datetime(1900, 1, 2), datetime(2200, 1, 1), timezones=_ZONES))  # noqa: DTZ001
def test_iso_is_utc_with_milliseconds(moment):
    """The JSON form is UTC, cut to milliseconds, and ends in Z."""
    utc = moment.astimezone(timezone.utc)
    expected = utc.replace(tzinfo=None).isoformat(timespec="milliseconds") + "Z"

    assert iso_utc(moment) == expected


def test_naive_time_is_refused():
    """A time without a zone is refused: it is no moment."""
    naive = datetime(2024, 1, 1)  # noqa: DTZ001 - that is what is refused

    with pytest.raises(ValueError, match="zone"):
        from_datetime(naive)


def test_system_clock_is_the_machines_clock():
    """The system clock's wall time is now, in microseconds, and its other one never goes back."""
    clock = SystemClock()
    before = from_datetime(datetime.now(timezone.utc))
    now = clock.now()
    after = from_datetime(datetime.now(timezone.utc))
    first, second = clock.monotonic(), clock.monotonic()

    assert before - 1 <= now <= after + 1
    assert first <= second
