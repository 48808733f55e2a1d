"""Schedule: which expressions are understood, and when they come true, clock changes included."""

from __future__ import annotations

import json
import pickle
import sys
from datetime import datetime, timedelta, timezone
from itertools import islice, pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobcore.errors import JobcoreError, ScheduleError
from jobcore.schedule import MACROS, Passed, Schedule
from tests.cases import each, every
from tests.processes import run_python

UTC = timezone.utc
SECOND = timedelta(seconds=1)
ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata"]
#: Moments around which the zones above change their offset, in 2026.
CHANGES = [
    datetime(2026, 3, 29, 1, tzinfo=UTC), datetime(2026, 10, 25, 1, tzinfo=UTC),
    datetime(2026, 3, 8, 7, tzinfo=UTC), datetime(2026, 11, 1, 6, tzinfo=UTC),
    datetime(2026, 10, 3, 15, 30, tzinfo=UTC), datetime(2026, 4, 4, 15, tzinfo=UTC),
]  # fmt: skip


def ticks(schedule, moment):
    """Iterate over the ticks after a moment."""
    while True:
        moment = schedule.next_after(moment)
        yield moment


def local_ticks(expression, zone, start, count):
    """Return local time and offset of the first ticks after a local start."""
    schedule = Schedule(expression, zone)
    start = datetime.fromisoformat(start).replace(tzinfo=ZoneInfo(zone))
    found = islice(ticks(schedule, start), count)
    return [tick.astimezone(ZoneInfo(zone)).strftime("%d %H:%M:%S %z")[:14] for tick in found]


def instants(expression, zone, start, end):
    """Return the UTC times, as text, of the ticks between two moments in UTC."""
    start, end = (datetime.fromisoformat(text).replace(tzinfo=UTC) for text in (start, end))
    found = []
    for tick in ticks(Schedule(expression, zone), start):
        if tick > end:
            return found
        found.append(tick.strftime("%H:%M"))
    return None


# What is understood


@each(
    ("expression", "expected"),
    [
        ("30 4 * * *", "2026-01-01 04:30:00"),
        ("0 0 9-17 * * MON-FRI", "2026-01-01 09:00:00"),
        ("*/20 * * * * *", "2026-01-01 00:00:20"),
        ("15 30 4 * * *", "2026-01-01 04:30:15"),
        ("0 0 12 ? * SAT", "2026-01-03 12:00:00"),
        ("0 0 12 2 * ?", "2026-01-02 12:00:00"),
        ("0 0 12 ? * ?", "2026-01-01 12:00:00"),
        ("0 12 ? feb mon", "2026-02-02 12:00:00"),
        ("0 0/15 * * * ?", "2026-01-01 00:15:00"),
        ("5,10 8 * * *", "2026-01-01 08:05:00"),
        ("0 0 L * *", "2026-01-31 00:00:00"),
        ("0 0 * * FRI#2", "2026-01-09 00:00:00"),
        ("0 0 * * SAT-SUN", "2026-01-03 00:00:00"),
        ("0 0 * * 0", "2026-01-04 00:00:00"),
        ("0 0 * * 7", "2026-01-04 00:00:00"),
        ("0 0 * * 1", "2026-01-05 00:00:00"),
        ("0 0 13 * FRI", "2026-01-02 00:00:00"),
        ("0 0 29 2 *", "2028-02-29 00:00:00"),
        ("0 0 * 2 MON#5", "2044-02-29 00:00:00"),
        ("@hourly", "2026-01-01 01:00:00"),
        ("@daily", "2026-01-02 00:00:00"),
        ("@midnight", "2026-01-02 00:00:00"),
        ("@Weekly", "2026-01-04 00:00:00"),
        ("@monthly", "2026-02-01 00:00:00"),
        ("@yearly", "2027-01-01 00:00:00"),
        ("@annually", "2027-01-01 00:00:00"),
        ("  0   5 * *  * ", "2026-01-01 05:00:00"),
    ],
)
def test_expression_is_understood(expression, expected):
    """Five fields, six with seconds first, names, `?` and the macros have their meaning."""
    midnight = datetime(2026, 1, 1, tzinfo=UTC)

    assert Schedule(expression).next_after(midnight).strftime("%Y-%m-%d %H:%M:%S") == expected


@each(
    "expression",
    [
        "", " ", "* * * *", "* * * * * * *", "60 * * * *", "* 24 * * *", "* * 0 * *", "* * 32 * *",
        "* * * 13 * ", "* * * * 8", "60 * * * * *", "*/0 * * * *", "a * * * *", "? * * * *",
        "* * * ? *", "*?* * * * *", "5-1 * * * *", "1- * * * *", ", * * * *", "-1 * * * *",
        "* * * * MOON", "* * 15W * *", "@reboot", "@", "every day", "9" * 5000 + " * * * *",
        5, None, b"@daily",
    ],
)  # fmt: skip
def test_no_expression_is_refused(expression):
    """An invalid cron expression raises at once, and is in the message."""
    with pytest.raises(ScheduleError, match="is not a cron expression") as refused:
        Schedule(expression)

    assert isinstance(refused.value, (ValueError, JobcoreError))
    assert refused.value.status == 400
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize(
    "expression",
    ["0 0 30 2 *", "0 0 0 30 FEB ?", "0 0 31 4,6,9,11 *", "* * */20 * 1L"],
)
def test_schedule_that_never_matches_is_refused(expression):
    """An expression that matches no time is refused when it is given."""
    with pytest.raises(ScheduleError):
        Schedule(expression)


@pytest.mark.parametrize(
    "zone", ["Europe/Bärlin", "Berlin", "", "../etc/passwd", "/etc/localtime", "Europe", None, 5]
)
def test_unknown_time_zone_is_refused(zone):
    """A time zone that is not there is refused when it is given."""
    with pytest.raises(ScheduleError, match="no time zone"):
        Schedule("@daily", zone)


def test_schedule_is_a_value():
    """Two of the same arguments are equal, hash alike, and one survives pickling."""
    one, same = Schedule("0 9 * * *", "Europe/Berlin"), Schedule("0 9 * * *", "Europe/Berlin")
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    back = pickle.loads(pickle.dumps(one))

    assert one == same == back
    assert hash(one) == hash(same)
    assert one != Schedule("0 9 * * *")
    assert repr(one) == "Schedule(expression='0 9 * * *', time_zone='Europe/Berlin')"
    assert back.next_after(moment) == one.next_after(moment)


# The times that it matches


def test_next_is_strictly_later_and_in_utc():
    """A tick itself is not its next one, a part of a second before it is enough."""
    schedule = Schedule("0 12 * * *", "Europe/Berlin")
    tick = datetime(2026, 7, 1, 10, tzinfo=UTC)

    assert schedule.next_after(tick) == tick + timedelta(days=1)
    assert schedule.next_after(tick + timedelta(microseconds=1)) == tick + timedelta(days=1)
    assert schedule.next_after(tick - timedelta(microseconds=1)) == tick
    assert schedule.next_after(tick.astimezone(ZoneInfo("Asia/Tokyo")) - SECOND) == tick
    assert schedule.next_after(tick).tzinfo is UTC


def test_moment_needs_a_time_zone():
    """A time without a zone is no moment, and is not guessed to be one."""
    with pytest.raises(ValueError, match="needs a time zone"):
        Schedule("@daily").next_after(datetime(2026, 1, 1))  # noqa: DTZ001


def test_end_of_time_is_an_error():
    """After the last year there is no tick, and the search ends."""
    with pytest.raises(OverflowError):
        Schedule("0 0 29 2 *").next_after(datetime(9999, 1, 1, tzinfo=UTC))


@each("second", ["", "0 "])
@each(
    ("expression", "zone", "start", "expected"),
    [
        # The skipped hour: once, right behind the gap.
        ("30 2 * * *", "Europe/Berlin", "2026-03-28T12:00",
         ["29 03:00:00 +0", "30 02:30:00 +0"]),
        ("0,20,40 2 * * *", "Europe/Berlin", "2026-03-28T12:00",
         ["29 03:00:00 +0", "30 02:00:00 +0"]),
        ("0,30 2-3 * * *", "Europe/Berlin", "2026-03-28T12:00",
         ["29 03:00:00 +0", "29 03:30:00 +0", "30 02:00:00 +0"]),
        ("30 2 29 3 *", "Europe/Berlin", "2026-01-01T00:00",
         ["29 03:00:00 +0", "29 02:30:00 +0"]),
        ("30 2 * * *", "America/New_York", "2026-03-07T12:00",
         ["08 03:00:00 -0", "09 02:30:00 -0"]),
        ("15 2 * * *", "Australia/Lord_Howe", "2026-10-03T12:00",
         ["04 02:30:00 +1", "05 02:15:00 +1"]),
        ("30 2 * * *", "Australia/Lord_Howe", "2026-10-03T12:00",
         ["04 02:30:00 +1", "05 02:30:00 +1"]),
        ("0 0 * * *", "Africa/Cairo", "2026-04-23T12:00",
         ["24 01:00:00 +0", "25 00:00:00 +0"]),
        # Around it: as written.
        ("59 1 * * *", "Europe/Berlin", "2026-03-28T12:00", ["29 01:59:00 +0", "30 01:59:00 +0"]),
        ("0 3 * * *", "Europe/Berlin", "2026-03-28T12:00", ["29 03:00:00 +0", "30 03:00:00 +0"]),
        # UTC has no such days.
        ("30 2 * * *", "UTC", "2026-03-28T12:00", ["29 02:30:00 +0", "30 02:30:00 +0"]),
    ],
)  # fmt: skip
def test_skipped_fixed_time_runs_once_after_the_gap(second, expression, zone, start, expected):
    """A job of a fixed time in the skipped hour runs right when the clock was changed, once."""
    assert local_ticks(second + expression, zone, start, len(expected)) == expected


@each("second", ["", "0 "])
@each(
    ("expression", "zone", "start", "end", "expected"),
    [
        ("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00", "2026-10-26T00:00", ["00:30"]),
        ("0,30 2-3 * * *", "Europe/Berlin", "2026-10-24T12:00", "2026-10-26T00:00",
         ["00:00", "00:30", "02:00", "02:30"]),
        ("30 1 * * *", "America/New_York", "2026-10-31T12:00", "2026-11-02T00:00", ["05:30"]),
        ("45 1 * * *", "Australia/Lord_Howe", "2026-04-04T00:00", "2026-04-05T00:00", ["14:45"]),
        ("15 1 * * *", "Australia/Lord_Howe", "2026-04-04T00:00", "2026-04-05T00:00", ["14:15"]),
        ("0 2 * * *", "Australia/Lord_Howe", "2026-04-04T00:00", "2026-04-05T00:00", ["15:30"]),
        ("30 2 * * *", "UTC", "2026-10-24T12:00", "2026-10-25T12:00", ["02:30"]),
    ],
)  # fmt: skip
def test_fixed_time_that_comes_twice_runs_the_first_time(
    second, expression, zone, start, end, expected
):
    """A job of a fixed time in the repeated hour runs once, in its first pass."""
    assert instants(second + expression, zone, start, end) == expected


def test_no_moment_of_a_second_pass_goes_back():
    """In the second pass of an hour, a fixed time is tomorrow's, not a past one."""
    schedule = Schedule("30 2 * * *", "Europe/Berlin")
    again = datetime(2026, 10, 25, 1, tzinfo=UTC)
    expected = {datetime(2026, 10, 26, 1, 30, tzinfo=UTC)}

    assert {schedule.next_after(again + SECOND * step) for step in range(0, 3600, 7)} == expected


@every(
    change=CHANGES,
    zone=ZONES,
    expression=["*/15 * * * *", "0/15 * * * *", "0,15,30,45 0-23 * * *"],
    second=["", "0 "],
)
def test_every_so_many_minutes_is_that_in_real_time(second, expression, zone, change):
    """A job of every 15 minutes runs every real 15 minutes, whatever the clock on the wall does."""
    start = change - timedelta(hours=12)
    expected = [start + timedelta(minutes=15) * step for step in range(1, 97)]

    assert list(islice(ticks(Schedule(second + expression, zone), start), 96)) == expected


@each(
    ("expression", "zone", "start", "end", "expected"),
    [
        ("@hourly", "Europe/Berlin", "2026-03-28T23:30", "2026-03-29T03:30",
         ["00:00", "01:00", "02:00", "03:00"]),
        ("@hourly", "Europe/Berlin", "2026-10-24T23:30", "2026-10-25T03:30",
         ["00:00", "01:00", "02:00", "03:00"]),
        ("0 0 0-23 * * *", "America/New_York", "2026-11-01T03:30", "2026-11-01T07:30",
         ["04:00", "05:00", "06:00", "07:00"]),
        # On Lord Howe 01:30 comes at 15:00 UTC again; no full hour is shown twice.
        ("@hourly", "Australia/Lord_Howe", "2026-04-04T12:30", "2026-04-04T17:00",
         ["13:00", "14:00", "15:30", "16:30"]),
        # There 02:00 is changed to 02:30, and 02:00 is not shown.
        ("@hourly", "Australia/Lord_Howe", "2026-10-03T13:00", "2026-10-03T17:30",
         ["13:30", "14:30", "16:00", "17:00"]),
        # Every so many minutes of one hour: of each pass of it, or of none.
        ("*/30 2 * * *", "Europe/Berlin", "2026-10-24T12:00", "2026-10-25T12:00",
         ["00:00", "00:30", "01:00", "01:30"]),
        ("*/30 2 25 10 *", "Europe/Berlin", "2026-01-01T00:00", "2026-12-31T00:00",
         ["00:00", "00:30", "01:00", "01:30"]),
        ("*/30 2 * * *", "Europe/Berlin", "2026-03-28T12:00", "2026-03-29T12:00", []),
        ("*/30 2 29 3 *", "Europe/Berlin", "2026-01-01T00:00", "2026-12-31T00:00", []),
        # Where cronsim, asked with the zone, loses the first half hour.
        ("*/15 3 * * *", "Australia/Lord_Howe", "2026-10-03T12:00", "2026-10-04T12:00",
         ["16:00", "16:15", "16:30", "16:45"]),
        ("*/15 2 * * *", "Australia/Lord_Howe", "2026-04-04T12:00", "2026-04-05T12:00",
         ["15:30", "15:45", "16:00", "16:15"]),
    ],
)  # fmt: skip
def test_schedule_of_every_hour_runs_at_each_real_tick(expression, zone, start, end, expected):
    """A repeating schedule runs whenever the wall shows its time: twice, if it does so twice."""
    assert instants(expression, zone, start, end) == expected


def test_lost_day_is_made_up_for_when_it_was_lost():
    """Where a zone skipped a whole day, its fixed time runs when the next day began."""
    schedule = Schedule("30 2 * * *", "Pacific/Apia")
    start = datetime(2011, 12, 29, 20, tzinfo=UTC)
    expected = [datetime(2011, 12, 30, 10, tzinfo=UTC), datetime(2011, 12, 30, 12, 30, tzinfo=UTC)]

    assert list(islice(ticks(schedule, start), 2)) == expected


# Properties

fields = {
    "second": st.sampled_from(["0", "30", "*/20", "5,50", "0-2"]),
    "minute": st.sampled_from(["*", "*/7", "0/20", "0", "30", "5,45", "10-50/20"]),
    "hour": st.sampled_from(["*", "*/2", "0-23", "1", "2", "3", "0-3", "9-17", "0,2,22"]),
    "day": st.sampled_from(["*", "?", "*/2", "1-7", "25,29", "L"]),
    "month": st.sampled_from(["*", "3,10", "MAR-NOV"]),
    "weekday": st.sampled_from(["*", "?", "MON-FRI", "SUN", "6,7"]),
}
expressions = st.builds("{second} {minute} {hour} {day} {month} {weekday}".format, **fields)
near_changes = st.builds(
    lambda change, seconds: change + timedelta(seconds=seconds),
    st.sampled_from(CHANGES),
    st.integers(-2 * 86400, 2 * 86400),
)
anywhere = st.datetimes(datetime(1971, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
moments = near_changes | anywhere


def matcher(expression):
    """Return a slow reference, of local time without a zone, that shares nothing with cronsim."""
    second, minute, hour, day, month, weekday = expression.replace("?", "*").split()
    names = {"MAR": 3, "NOV": 11, "SUN": 7, "MON": 1, "FRI": 5}

    def numbers(text, low, high):
        found = set()
        for part in text.split(","):
            span, _, step = part.partition("/")
            if span == "*":
                first, last = low, high
            else:
                ends = [int(names.get(end, end)) for end in span.split("-")]
                first, last = ends[0], high if step and len(ends) == 1 else ends[-1]
            found |= set(range(first, last + 1, int(step or 1)))
        return found

    seconds, minutes = numbers(second, 0, 59), numbers(minute, 0, 59)
    hours, months = numbers(hour, 0, 23), numbers(month, 1, 12)
    days = {0} if day == "L" else numbers(day, 1, 31)
    weekdays = numbers(weekday, 1, 7)
    both = day.startswith("*") or weekday.startswith("*")

    def matches(local):
        last = (local + timedelta(days=1)).day == 1
        on_day = local.day in days or (0 in days and last)
        on_weekday = local.isoweekday() in weekdays
        return (
            local.second in seconds
            and local.minute in minutes
            and local.hour in hours
            and local.month in months
            and ((on_day and on_weekday) if both else (on_day or on_weekday))
        )

    return matches


@given(expressions, st.sampled_from(ZONES), moments)
def test_next_is_strictly_monotonic(expression, zone, moment):
    """Each tick is later than the one before, and is the next from any moment in between."""
    schedule = Schedule(expression, zone)
    found = list(islice(ticks(schedule, moment), 5))

    assert [moment, *found] == sorted({moment, *found})
    for one, following in pairwise(found):
        assert schedule.next_after(one + (following - one) / 2) == following
        assert schedule.next_after(following - SECOND / 2) == following


@given(expressions, st.sampled_from(ZONES), moments)
def test_tick_matches_the_fields_in_local_time(expression, zone, moment):
    """A tick matches the fields in local time, or is the first second after a gap."""
    zone_info = ZoneInfo(zone)
    tick = Schedule(expression, zone).next_after(moment)
    local, before = (at.astimezone(zone_info) for at in (tick, tick - SECOND))
    behind_a_gap = local.utcoffset() > before.utcoffset()

    assert tick.microsecond == 0
    assert matcher(expression)(local.replace(tzinfo=None)) or behind_a_gap


@given(expressions, st.integers(0, 400), st.integers(0, 86399))
def test_utc_is_what_a_slow_reference_finds(expression, day, second):
    """In UTC nothing but the fields decides: within three hours, second by second."""
    matches = matcher(expression)
    start = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=day, seconds=second)
    span = [start + SECOND * step for step in range(1, 3 * 3600 + 1)]
    expected = [moment for moment in span if matches(moment)][:20]
    found = islice(ticks(Schedule(expression), start), len(expected) or 1)

    assert [tick for tick in found if tick <= span[-1]] == expected


@given(expressions, st.sampled_from(ZONES), near_changes)
def test_zone_is_what_a_slow_reference_finds(expression, zone, moment):
    """Within two hours of a change, second by second: real ticks, or fixed times once each."""
    matches, zone_info = matcher(expression), ZoneInfo(zone)
    minute, hour = expression.split()[1:3]
    repeating = minute[:2] in {"*", "*/", "0/"} or hour[0] == "*" or hour == "0-23"
    expected = []
    for step in range(1, 2 * 3600 + 1):
        now = moment + SECOND * step
        local = now.astimezone(zone_info)
        shown = [local.replace(tzinfo=None, fold=0)]
        shift = local.utcoffset() - (now - SECOND).astimezone(zone_info).utcoffset()
        if not repeating:
            # What was skipped to come here, and not what has been shown before.
            shown += [shown[0] - SECOND * back for back in range(1, int(shift / SECOND) + 1)]
            shown = [] if local.fold else shown
        if any(map(matches, shown)):
            expected.append(now)
    expected = expected[:20]
    found = islice(ticks(Schedule(expression, zone), moment), len(expected) or 1)

    assert [tick for tick in found if tick <= moment + timedelta(hours=2)] == expected


# What has passed


def test_passed_counts_and_names_the_latest():
    """It returns the number of ticks after `after` up to and including `until`, and the last."""
    schedule = Schedule("@hourly")
    noon = datetime(2026, 1, 1, 12, tzinfo=UTC)
    hour = timedelta(hours=1)

    assert schedule.passed(noon, noon) == Passed(0, None)
    assert schedule.passed(noon, noon + hour - SECOND) == Passed(0, None)
    assert schedule.passed(noon, noon + hour) == Passed(1, noon + hour)
    assert schedule.passed(noon - SECOND, noon + hour * 2.5) == Passed(3, noon + hour * 2)
    assert schedule.passed(noon + hour, noon) == Passed(0, None)


def test_passed_counts_a_year_of_seconds():
    """However many ticks there were, count and latest are exact."""
    year, now = datetime(2025, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, 12, 0, 0, 5, tzinfo=UTC)
    night = datetime(2026, 1, 1, 2, 59, 59, tzinfo=UTC)
    seconds = 365 * 86400 + 12 * 3600

    assert Schedule("* * * * * *").passed(year, now) == Passed(seconds, now.replace(microsecond=0))
    assert Schedule("* * 2 * * *").passed(year, now) == Passed(366 * 3600, night)
    assert Schedule("0 0 * * MON").passed(year, now).count == 52
    assert Schedule("0 0 L * *", "Europe/Berlin").passed(year, now).count == 12
    assert Schedule("*/30 * * * *", "Australia/Lord_Howe").passed(year, now).count == 2 * 8772


@given(expressions, st.sampled_from(ZONES), near_changes, st.integers(0, 200_000))
def test_passed_is_what_counting_one_by_one_finds(expression, zone, moment, seconds):
    """Also where the clock is changed in between, once or twice."""
    schedule, until = Schedule(expression, zone), moment + timedelta(seconds=seconds)
    found = []
    for tick in ticks(schedule, moment):
        if tick > until or len(found) == 3000:
            break
        found.append(tick)
    until = found[-1] if len(found) == 3000 else until

    assert schedule.passed(moment, until) == Passed(len(found), found[-1] if found else None)


# Other rules of a time zone


def moved(expression, before, behind, start):
    """Return a tick by the rules of zone `before`, and when it comes by those of `behind`."""
    old, new = Schedule(expression, before), Schedule(expression, behind)
    tick = old.next_after(datetime.fromisoformat(start).replace(tzinfo=UTC))
    return [one.strftime("%d %H:%M") for one in (tick, new.moved(tick, old.offset_at(tick)))]


def test_tick_of_a_fixed_time_keeps_its_local_time():
    """Whichever way the rules change, 9 o'clock is 9 o'clock, once on that day."""
    nine = ("0 9 * * *", "Etc/GMT-2", "Etc/GMT-1", "2026-06-01T00:00")

    assert moved(*nine) == ["01 07:00", "01 08:00"]
    assert moved(nine[0], nine[2], nine[1], nine[3]) == ["01 08:00", "01 07:00"]
    assert moved(nine[0], nine[1], nine[1], nine[3]) == ["01 07:00", "01 07:00"]


def test_tick_of_every_few_minutes_stays_if_it_matches():
    """A schedule by real time continues with the next tick that matches by the new rules."""
    every = ("*/20 * * * *", "Etc/GMT-2", "Etc/GMT-1", "2026-06-01T00:50")

    assert moved(*every) == ["01 01:00", "01 01:00"]
    assert moved(every[0], "UTC", "Asia/Kolkata", every[3]) == ["01 01:00", "01 01:10"]


@given(expressions, st.sampled_from(ZONES), near_changes)
def test_tick_stays_where_no_rule_was_changed(expression, zone, moment):
    """Also in the hours around a change of the clock."""
    schedule = Schedule(expression, zone)
    tick = schedule.next_after(moment)

    assert schedule.moved(tick, schedule.offset_at(tick)) == tick


# The library


def test_library_is_not_imported_with_jobcore():
    """Importing jobcore, or this module, leaves cronsim alone; making a schedule loads it."""
    printed = run_python(
        "import json, sys, jobcore, jobcore.schedule\n"
        "before = 'cronsim' in sys.modules\n"
        "jobcore.schedule.Schedule('@daily')\n"
        "sys.stdout.write(json.dumps([before, 'cronsim' in sys.modules]))"
    )

    assert json.loads(printed) == [False, True]


def test_missing_cronsim_is_reported_with_the_remedy(monkeypatch):
    """Where the extra is missing, a schedule is refused with the command that brings it."""
    monkeypatch.setitem(sys.modules, "cronsim", None)

    with pytest.raises(ScheduleError, match=r"pip install cronsim tzdata"):
        Schedule("@daily")


@pytest.mark.parametrize("word", MACROS)
def test_family_is_five_fields(word):
    """A word of the family is the five fields it stands for."""
    moment = datetime(2026, 5, 5, 5, 5, tzinfo=UTC)

    assert Schedule(word).next_after(moment) == Schedule(MACROS[word]).next_after(moment)
