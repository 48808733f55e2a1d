"""The values of options on the command line."""

from __future__ import annotations

import time
from datetime import datetime, timedelta, timezone

import pytest
import typer

from jobcore.cli import values
from tests.cases import each


@pytest.fixture
def berlin(monkeypatch):
    """Make the local time zone that of Berlin, with its summer time."""
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("1.5", 1.5), ("5m", 300), ("1h30m", 5400), ("1.5d", 129_600), ("2w1s", 1_209_601),
     ("0", 0), ("1e3", 1000)],
)  # fmt: skip
def test_time_is_a_number_of_seconds_or_has_units(text, seconds):
    """One parser for all options: numbers, and numbers with units."""
    assert values.delay(text) == seconds
    if text != "1e3":
        assert values.age(text) == seconds
    if seconds:
        assert values.time_limit(text) == seconds


@each("text", ["", "x", "m", "5 m", "5m-", "-5m", "1h-30m", "nan", "inf", "1y", "٣m"])
def test_invalid_time_is_refused(text):
    """The error shows the value and an example."""
    for parse in (values.delay, values.time_limit, values.age):
        with pytest.raises(typer.BadParameter, match="not '"):
            parse(text)


@pytest.mark.usefixtures("berlin")
def test_moment_is_local_unless_it_has_a_zone():
    """Date and time of day, with or without a zone, in any season."""
    assert values.moment("2026-12-01 18:30").astimezone(timezone.utc) == datetime(
        2026, 12, 1, 17, 30, tzinfo=timezone.utc
    )
    assert values.moment("2026-07-01T18:30").astimezone(timezone.utc).hour == 16
    assert values.moment("2026-12-01T18:30Z").astimezone(timezone.utc).hour == 18
    assert values.moment("2026-12-01T18:30:05+09:00").astimezone(timezone.utc).hour == 9
    assert values.moment("2026-12-01").astimezone(timezone.utc).day == 30


@pytest.mark.usefixtures("berlin")
def test_time_of_day_is_the_next_one_or_the_last_one():
    """`--at 18:30` is within the next day, `--since 18:30` within the last."""
    now = datetime.now().astimezone()
    for text in ("00:00", "12:34", "23:59:59"):
        due, since = values.moment(text), values.past(text)
        assert now < due <= now + timedelta(days=1, hours=1)
        assert now - timedelta(days=1, hours=1) <= since <= datetime.now().astimezone()
        assert due.strftime("%H:%M:%S") == since.strftime("%H:%M:%S") == f"{text}:00"[:8]


def test_age_is_a_moment_in_the_past():
    """`--since 2h` is two hours ago."""
    since = values.past("2h")
    ago = datetime.now().astimezone() - since

    assert timedelta(hours=2) <= ago < timedelta(hours=2, minutes=1)


@pytest.mark.parametrize(
    "text", ["25:00", "12:60", "tomorrow", "2026-13-01", "9999-12-31T23:59-23:59", ""]
)
def test_invalid_moment_is_refused(text):
    """The error shows the value and an example."""
    for parse in (values.moment, values.past):
        with pytest.raises(typer.BadParameter, match="a time of day such as 18:30"):
            parse(text)
