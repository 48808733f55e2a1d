"""Schedule: the ticks of a cron expression in a time zone, without a clock or a database."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone, tzinfo
from typing import TYPE_CHECKING

from jobcore.errors import ScheduleError

if TYPE_CHECKING:
    from cronsim import CronSim

#: The five fields that cron's names stand for.
MACROS = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}

_UTC = timezone.utc
_SECOND = timedelta(seconds=1)
_DAY = timedelta(days=1)
#: How far to look at a time for a change of the UTC offset. It is more than the largest change,
#: the day that Samoa skipped when it crossed the date line, and less than the time between any
#: two changes of a zone.
_CHANGE_MARGIN = timedelta(days=2)


@dataclass(frozen=True)
class Passed:
    """
    The ticks in a span of time.

    Attributes:
        count: How many there are.
        latest: The last of them; None if there is none.
    """

    count: int
    latest: datetime | None


@dataclass(frozen=True)
class Schedule:
    """
    A cron expression in a time zone.

    Five fields are minute, hour, day of month, month and day of week; six fields
    begin with the second, as in `0 0 9-17 * * MON-FRI`. Names of months and days,
    lists, ranges and steps work as in cron. `L`, `LW`, `5L` and `MON#1` work in the
    day fields, where `?` means `*`. Days are numbered as in cron, not as in Quartz:
    1 is Monday, 0 and 7 are Sunday. If both day fields are restricted, a day matches
    when either does. `@hourly` and the other names in `MACROS` stand for five fields.

    When the local clock changes, as for daylight saving, it does what cron does:

    - A schedule of fixed times runs once for each time. If the change skips times, it
      runs once at the change, however many times were skipped. If a time is repeated,
      it runs only the first time.
    - A schedule whose minute or hour field begins with `*` or `0/`, or that lists all
      24 hours, runs at each real tick: not at all for a skipped time, and twice for a
      repeated one.

    Schedules with the same arguments are equal. They are hashable and picklable.

    Args:
        expression: The cron expression; case is ignored.
        time_zone: The name of the time zone of the fields, as in the tz database.

    Raises:
        ScheduleError: The expression is invalid or matches no time, the time zone is
            unknown on this system, or the extra `schedule` is not installed.
    """

    expression: str
    time_zone: str = "UTC"
    _fields: str = field(init=False, repr=False, compare=False)
    _zone: tzinfo = field(init=False, repr=False, compare=False)
    _fixed: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check both arguments now, so that a mistake is reported where it was made."""
        put = object.__setattr__  # a frozen dataclass can set its own fields only like this
        put(self, "_fields", _as_cronsim_has_it(self.expression))
        put(self, "_zone", _zone(self.time_zone))
        put(self, "_fixed", _checked(self.expression, self._fields))

    def next_after(self, moment: datetime) -> datetime:
        """
        Return the first tick strictly after `moment`, in UTC.

        Raises:
            ValueError: `moment` has no time zone.
            OverflowError: The tick is beyond the last year of a datetime.
        """
        if moment.tzinfo is None:
            raise ValueError("a time needs a time zone")
        moment = moment.astimezone(_UTC).replace(microsecond=0)  # ticks are on whole seconds
        return self._fixed_after(moment) if self._fixed else self._real_after(moment)

    def passed(self, after: datetime, until: datetime) -> Passed:
        """
        Return how many ticks lie in `after < tick <= until`, and the latest of them.

        This takes about 2 ms for a year, whatever the number of ticks.

        Args:
            after: The last tick that was handled, or when the schedule was created.
            until: The current time.

        Raises:
            ValueError: `after` or `until` has no time zone.
            OverflowError: A tick is beyond the last year of a datetime.
        """
        first = self.next_after(after)
        if first > until:
            return Passed(0, None)
        latest = self._latest(first, until)
        # Both are ticks, and there is none before the first or after the latest.
        return Passed(self._count(first - _SECOND, latest), latest)

    def offset_at(self, moment: datetime) -> int:
        """Return by how many seconds local time is ahead of UTC at `moment`, by current rules."""
        return int(self._offset(moment).total_seconds())

    def moved(self, tick: datetime, offset: int) -> datetime:
        """
        Return when a stored tick is due now, if the time-zone rules have changed since.

        A tick of a schedule of fixed times keeps its local time, so that it runs once on its
        day. For any other schedule, it is the first matching time at or after `tick`.

        Args:
            tick: When the tick was due.
            offset: `offset_at(tick)` when the tick was computed.
        """
        if self._fixed:
            return self._first_instant((tick + timedelta(seconds=offset)).replace(tzinfo=None))
        if offset == self.offset_at(tick):
            return tick
        return self.next_after(tick - _SECOND)

    def _latest(self, tick: datetime, until: datetime) -> datetime:
        """Return the last tick that is not after `until`; `tick` is an earlier one, or the same."""
        none_after = until.astimezone(_UTC)
        # Bisect instead of walking: a schedule of seconds has 31 million ticks in a year.
        while none_after - tick >= _SECOND:
            middle = tick + (none_after - tick) / 2
            later = self.next_after(middle)
            if later <= until:
                tick = later
            else:
                none_after = middle
        return tick

    # Ticks are counted by the day: a whole matching day has hours * minutes * seconds of them.
    # That works between two changes of the UTC offset, where local time has no gap or repetition.

    def _count(self, after: datetime, until: datetime) -> int:
        """Return how many ticks lie in `after < tick <= until`, both on whole seconds."""
        return (self._count_fixed if self._fixed else self._count_real)(after, until)

    def _count_real(self, after: datetime, until: datetime) -> int:
        count = 0
        for change in self._changes(after, until):
            offset = self._offset(change - _SECOND)
            count += self._count_local(after + offset, change - _SECOND + offset)
            after = change - _SECOND  # as if the new offset had applied a second earlier
        offset = self._offset(until)
        return count + self._count_local(after + offset, until + offset)

    def _count_fixed(self, after: datetime, until: datetime) -> int:
        changes = list(self._changes(after - _CHANGE_MARGIN, until))
        count = self._count_local(self._shown(after, changes), self._shown(until, changes))
        for change in changes:
            skipped = self._count_local(self._shown(change - _SECOND, []), self._shown(change, []))
            if change > after and skipped > 1:  # all skipped times together are one tick
                count -= skipped - 1
        return count

    def _shown(self, moment: datetime, changes: list[datetime]) -> datetime:
        """Return the latest local time that clocks had shown by `moment`, labelled as UTC."""
        before = [change - _SECOND for change in changes if change <= moment]
        return max(one + self._offset(one) for one in (moment, *before))

    def _changes(self, low: datetime, high: datetime) -> Iterator[datetime]:
        """Yield the first second of each new offset, after `low` and up to `high`."""
        while low < high:
            near = min(low + _CHANGE_MARGIN, high)
            if self._offset(near) != self._offset(low):
                near = self._change(low, near, self._offset(low))
                yield near
            low = near

    def _count_local(self, after: datetime, until: datetime) -> int:
        """Return how many matching local times lie in `after < time <= until`."""
        if after >= until:
            return 0
        cron = self._local_ticks(after)
        clock = [sorted(cron.hours), sorted(cron.minutes), sorted(cron.seconds)]
        day, last, count = after.date(), until.date(), 0
        while True:
            if day.month in cron.months and cron.match_day(day):
                count += _up_to(clock, until) if day == last else _up_to(clock, None)
                if day == after.date():
                    count -= _up_to(clock, after)
            if day >= last:
                return count
            day += _DAY

    # cronsim gets only local times without a zone; this module handles the zone. cronsim 2.8
    # handles most changes of a zone correctly, but not all. It walks in whole hours from minute
    # 0, so it loses 03:00 to 03:20 of `*/10 3 * * *` when Lord Howe shifts by half an hour. It
    # treats fixed times specially only with five fields. And for a moment in the second pass of
    # a repeated hour, it returns an earlier tick.

    def _local_ticks(self, local: datetime) -> CronSim:
        """Return an iterator of the matching local times after `local`, without a zone."""
        return _cronsim(self._fields, local.replace(tzinfo=None))

    def _fixed_after(self, moment: datetime) -> datetime:
        """Return the next tick: skipped times come at the change, repeated times only once."""
        ticks = map(self._first_instant, self._local_ticks(moment.astimezone(self._zone)))
        return next(tick for tick in ticks if tick > moment)

    def _real_after(self, moment: datetime) -> datetime:
        """Return the next real second whose local time matches."""
        offset = self._offset(moment)
        while True:
            tick = next(self._local_ticks(moment + offset)).replace(tzinfo=_UTC) - offset
            near = min(tick, moment + _CHANGE_MARGIN)
            if self._offset(near) != offset:
                # Continue just before the change, as if the new offset had always applied.
                change = self._change(moment, near, offset)
                moment, offset = change - _SECOND, self._offset(change)
            elif near < tick:
                # Nothing matches before `tick`, unless the offset changes in between.
                moment = max(near, tick - _CHANGE_MARGIN)
                offset = self._offset(moment)
            else:
                return tick

    def _first_instant(self, local: datetime) -> datetime:
        """Return when the local clock first shows `local`, or when a change skips it."""
        instant = local.replace(tzinfo=self._zone).astimezone(_UTC)
        if instant.astimezone(self._zone).replace(tzinfo=None) == local:
            return instant
        # In a gap, fold 0 uses the offset before the change and fold 1 the one after it. So
        # fold 1 gives a moment before the change, and fold 0 one after it.
        before = local.replace(tzinfo=self._zone, fold=1).astimezone(_UTC)
        return self._change(before, instant, self._offset(before))

    def _change(self, low: datetime, high: datetime, offset: timedelta) -> datetime:
        """Return the first second after `low` with another offset; `high` has another one."""
        while high - low > _SECOND:
            middle = low + (high - low) // _SECOND // 2 * _SECOND
            if self._offset(middle) == offset:
                low = middle
            else:
                high = middle
        return high

    def _offset(self, moment: datetime) -> timedelta:
        """Return by how much local time is ahead of UTC at this moment."""
        return moment.astimezone(self._zone).utcoffset() or timedelta()


def _up_to(clock: list[list[int]], moment: datetime | None) -> int:
    """Return how many times of day match, up to that of `moment`; None: in the whole day."""
    hours, minutes, seconds = clock
    if moment is None:
        return len(hours) * len(minutes) * len(seconds)
    count = bisect_left(hours, moment.hour) * len(minutes) * len(seconds)
    if moment.hour in hours:
        count += bisect_left(minutes, moment.minute) * len(seconds)
        if moment.minute in minutes:
            count += bisect_right(seconds, moment.second)
    return count


def _cronsim(fields: str, local: datetime) -> CronSim:
    """
    Return cronsim's iterator of the local times after `local`.

    Raises:
        ScheduleError: cronsim is not installed, or refuses the fields.
    """
    try:
        import cronsim  # noqa: PLC0415 - optional: only schedules need it
    except ImportError as error:
        raise ScheduleError("schedules need cronsim: pip install cronsim tzdata") from error
    try:
        return cronsim.CronSim(fields, local)
    except (cronsim.CronSimError, ValueError) as error:  # ValueError: thousands of digits
        raise ScheduleError(f"{fields[:200]!r} is not a cron expression: {error}") from error


def _as_cronsim_has_it(expression: str) -> str:
    """Return five or six fields in cron's own syntax."""
    text = str(expression).strip()  # a number from JSON is refused like any other bad text
    fields = MACROS.get(text.lower(), text).upper().split()
    if len(fields) in {5, 6}:
        # Quartz requires `?` in one of the two day fields; in cron it is `*`.
        fields[-3:] = [
            "*" if part == "?" and at != 1 else part for at, part in enumerate(fields[-3:])
        ]
        # Cron's ranges must ascend, and SUN is 0 there, so MON-SUN would be refused.
        fields[-1] = re.sub(r"-SUN\b", "-7", fields[-1])
    return " ".join(fields)


def _checked(expression: str, fields: str) -> bool:
    """
    Return whether the fields are fixed times of day.

    Raises:
        ScheduleError: cronsim is not installed, refuses the fields, or finds no matching time.
    """
    # Any start will do: a schedule that ever matches does so within 40 years (a leap day that
    # is a Monday, for example).
    cron = _cronsim(fields, datetime(2000, 1, 1))  # noqa: DTZ001 - local times have no zone here
    minute, hour = fields.split()[-5:-3]
    fixed = not (minute.startswith(("*", "0/")) or hour.startswith(("*", "0/")))
    fixed = fixed and len(cron.hours) < 24
    if next(cron, None) is None:
        raise ScheduleError(f"the schedule {expression!r} matches no time")
    return fixed


def _zone(name: str) -> tzinfo:
    """
    Return the time zone of this name.

    Raises:
        ScheduleError: Neither the system nor the package tzdata has this time zone.
    """
    if name == "UTC":
        return _UTC  # the default needs no time zone data
    from zoneinfo import ZoneInfo  # noqa: PLC0415 - hosts without schedules need not load it

    try:
        return ZoneInfo(name)
    # In this order: unknown zone, malformed name, name of a folder of zones, not a string.
    except (KeyError, ValueError, OSError, TypeError) as error:
        raise ScheduleError(
            f"this system has no time zone {name!r}; if it has no time zones at all, "
            "pip install tzdata adds them"
        ) from error
