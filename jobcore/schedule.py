"""Schedule: when a cron expression comes true in a time zone. Pure: no clock, no database."""

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

#: What cron's own words stand for.
FAMILY = {
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
#: How far a change of offset is looked for at a time. More than the day that the date line once
#: took from Samoa, and less than lies between two changes of any zone.
_REACH = timedelta(days=2)


@dataclass(frozen=True)
class Passed:
    """
    The ticks of a span of time.

    Attributes:
        count: How many.
        latest: The last of them; None if there was none.
    """

    count: int
    latest: datetime | None


@dataclass(frozen=True)
class Schedule:
    """
    A cron expression in a time zone.

    Five fields are minute, hour, day of month, month and day of week; six have
    the second in front of them, as in `0 0 9-17 * * MON-FRI`. Names of months
    and days, lists, ranges and steps are cron's; `L`, `LW`, `5L` and `MON#1` work in
    the day fields, and `?` there is `*`. Numbers of days are cron's, not Quartz's:
    1 is Monday, 0 and 7 are Sunday. When both day fields are restricted, either
    of them will do. `@hourly` and its family (`FAMILY`) stand for five fields.

    Where the local clock is changed, it does what cron does:

    - A schedule of fixed times runs once for each. One whose time is skipped runs
      right when the clock has been changed, once however many of its times were
      skipped; one whose time comes twice runs the first time only.
    - A schedule whose minute or hour field begins with `*` or `0/`, or that names all
      24 hours, runs at each real tick: not for a time that does not come, and
      twice for one that comes twice.

    Equal, hashable and picklable by its two arguments.

    Args:
        expression: The cron expression; case does not matter.
        time_zone: A name of the tz database, in which the fields are meant.

    Raises:
        ScheduleError: The expression is none or never comes true, the time zone is
            not known here, or the extra `schedule` is not installed.
    """

    expression: str
    time_zone: str = "UTC"
    _fields: str = field(init=False, repr=False, compare=False)
    _zone: tzinfo = field(init=False, repr=False, compare=False)
    _fixed: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check both, so that a mistake is met where it was made."""
        put = object.__setattr__  # the way of a frozen dataclass to fill itself
        put(self, "_fields", _as_cronsim_has_it(self.expression))
        put(self, "_zone", _zone(self.time_zone))
        put(self, "_fixed", _checked(self.expression, self._fields))

    def next_after(self, moment: datetime) -> datetime:
        """
        Return the first tick strictly later than `moment`, in UTC.

        Raises:
            ValueError: `moment` has no time zone, so it is no moment.
            OverflowError: The tick would lie beyond the years that a datetime has.
        """
        if moment.tzinfo is None:
            raise ValueError("a time without a time zone is no moment")
        moment = moment.astimezone(_UTC).replace(microsecond=0)  # ticks are on whole seconds
        return self._fixed_after(moment) if self._fixed else self._real_after(moment)

    def passed(self, after: datetime, until: datetime) -> Passed:
        """
        Return how many ticks lie in `after < tick <= until`, and the latest.

        Takes some 2 ms for a year, whatever the number of ticks.

        Args:
            after: The last tick that was dealt with, or when the schedule was made.
            until: Now.

        Raises:
            ValueError: A moment has no time zone.
            OverflowError: A tick would lie beyond the years that a datetime has.
        """
        first = self.next_after(after)
        if first > until:
            return Passed(0, None)
        latest = self._latest(first, until)
        # Both are ticks: what lies around them has none.
        return Passed(self._count(first - _SECOND, latest), latest)

    def offset_at(self, moment: datetime) -> int:
        """Return the seconds that local time is ahead of UTC at `moment`, by today's rules."""
        return int(self._offset(moment).total_seconds())

    def moved(self, tick: datetime, offset: int) -> datetime:
        """
        Return when a tick comes that was computed by other time-zone rules, perhaps.

        A tick of a fixed time keeps its local time, so that its day has it once. Another
        one comes at the first time from then on that matches.

        Args:
            tick: When it was to come.
            offset: `offset_at(tick)`, as it was when the tick was computed.
        """
        if self._fixed:
            return self._first_instant((tick + timedelta(seconds=offset)).replace(tzinfo=None))
        if offset == self.offset_at(tick):
            return tick
        return self.next_after(tick - _SECOND)

    def _latest(self, tick: datetime, until: datetime) -> datetime:
        """Return the last tick not later than `until`; `tick` is one of them."""
        none_after = until.astimezone(_UTC)
        # Halving the span, not walking: a year of a schedule of seconds has 31 million ticks.
        while none_after - tick >= _SECOND:
            middle = tick + (none_after - tick) / 2
            later = self.next_after(middle)
            if later <= until:
                tick = later
            else:
                none_after = middle
        return tick

    # Counting goes by days: of each that matches, a whole one has as many ticks as its hours,
    # minutes and seconds allow. Between two changes of offset local time runs like any clock.

    def _count(self, after: datetime, until: datetime) -> int:
        """Return how many ticks lie in `after < tick <= until`, both on whole seconds."""
        return (self._count_fixed if self._fixed else self._count_real)(after, until)

    def _count_real(self, after: datetime, until: datetime) -> int:
        count = 0
        for change in self._changes(after, until):
            offset = self._offset(change - _SECOND)
            count += self._count_local(after + offset, change - _SECOND + offset)
            after = change - _SECOND  # as if the new offset had held there already
        offset = self._offset(until)
        return count + self._count_local(after + offset, until + offset)

    def _count_fixed(self, after: datetime, until: datetime) -> int:
        changes = list(self._changes(after - _REACH, until))
        count = self._count_local(self._shown(after, changes), self._shown(until, changes))
        for change in changes:
            skipped = self._count_local(self._shown(change - _SECOND, []), self._shown(change, []))
            if change > after and skipped > 1:  # of these times there is one tick
                count -= skipped - 1
        return count

    def _shown(self, moment: datetime, changes: list[datetime]) -> datetime:
        """Return the latest local time that was shown up to `moment`, in the guise of UTC."""
        before = [change - _SECOND for change in changes if change <= moment]
        return max(one + self._offset(one) for one in (moment, *before))

    def _changes(self, low: datetime, high: datetime) -> Iterator[datetime]:
        """Yield the first second of each offset, of those behind `low` and up to `high`."""
        while low < high:
            near = min(low + _REACH, high)
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

    # cronsim is asked about local times without a zone only, and the zone is ours. Given one,
    # 2.8 is right for most changes, but its walk takes whole hours from minute 0: where Lord Howe
    # shifts by half an hour, `*/10 3 * * *` loses 03:00 to 03:20. Its care for fixed times is for
    # five fields alone, and its answer to a moment in an hour's second pass is an earlier tick.

    def _local_ticks(self, local: datetime) -> CronSim:
        """Return the local times after `local` that match, ascending, without a zone."""
        return _cronsim(self._fields, local.replace(tzinfo=None))

    def _fixed_after(self, moment: datetime) -> datetime:
        """Each local time once: in a gap at its end, in a repeated hour the first time."""
        ticks = map(self._first_instant, self._local_ticks(moment.astimezone(self._zone)))
        return next(tick for tick in ticks if tick > moment)

    def _real_after(self, moment: datetime) -> datetime:
        """Each real second whose local time matches."""
        offset = self._offset(moment)
        while True:
            tick = next(self._local_ticks(moment + offset)).replace(tzinfo=_UTC) - offset
            near = min(tick, moment + _REACH)
            if self._offset(near) != offset:
                # As if the new offset had always held, from just before it does.
                change = self._change(moment, near, offset)
                moment, offset = change - _SECOND, self._offset(change)
            elif near < tick:
                # Nothing matches before `tick`, give or take the changes on the way to it.
                moment = max(near, tick - _REACH)
                offset = self._offset(moment)
            else:
                return tick

    def _first_instant(self, local: datetime) -> datetime:
        """Return when the local clock first shows `local`, or is changed to skip it."""
        instant = local.replace(tzinfo=self._zone).astimezone(_UTC)
        if instant.astimezone(self._zone).replace(tzinfo=None) == local:
            return instant
        # In a gap the two folds are read with the offsets of its two sides, each from the other.
        before = local.replace(tzinfo=self._zone, fold=1).astimezone(_UTC)
        return self._change(before, instant, self._offset(before))

    def _change(self, low: datetime, high: datetime, offset: timedelta) -> datetime:
        """Return the first second after `low` that has not this offset; `high` has not."""
        while high - low > _SECOND:
            middle = low + (high - low) // _SECOND // 2 * _SECOND
            if self._offset(middle) == offset:
                low = middle
            else:
                high = middle
        return high

    def _offset(self, moment: datetime) -> timedelta:
        """Return what local time is ahead of UTC at this moment."""
        return moment.astimezone(self._zone).utcoffset() or timedelta()


def _up_to(clock: list[list[int]], moment: datetime | None) -> int:
    """Return how many times of a day match, up to that of `moment`; None: of the whole day."""
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
        import cronsim  # noqa: PLC0415 - hosts without schedules need not have it
    except ImportError as error:
        raise ScheduleError("schedules need cronsim: pip install cronsim tzdata") from error
    try:
        return cronsim.CronSim(fields, local)
    except (cronsim.CronSimError, ValueError) as error:  # ValueError: thousands of digits
        raise ScheduleError(f"{fields[:200]!r} is no cron expression: {error}") from error


def _as_cronsim_has_it(expression: str) -> str:
    """Return five or six fields without what is said differently elsewhere than in cron."""
    text = str(expression).strip()  # a number out of some JSON is refused like any other text
    fields = FAMILY.get(text.lower(), text).upper().split()
    if len(fields) in {5, 6}:
        # Of Quartz, which wants it in one of the two; cron says `*`.
        fields[-3:] = [
            "*" if part == "?" and at != 1 else part for at, part in enumerate(fields[-3:])
        ]
        # Cron's ranges ascend, and its names count Sunday as 0: MON-SUN would be refused.
        fields[-1] = re.sub(r"-SUN\b", "-7", fields[-1])
    return " ".join(fields)


def _checked(expression: str, fields: str) -> bool:
    """
    Return whether the fields say fixed times of the day.

    Raises:
        ScheduleError: cronsim is not installed, refuses the fields, or finds no time for them.
    """
    # Any start will do: what comes at all comes every 40 years (a leap day on a Monday).
    cron = _cronsim(fields, datetime(2000, 1, 1))  # noqa: DTZ001 - local times have no zone here
    minute, hour = fields.split()[-5:-3]
    fixed = not (minute.startswith(("*", "0/")) or hour.startswith(("*", "0/")))
    fixed = fixed and len(cron.hours) < 24
    if next(cron, None) is None:
        raise ScheduleError(f"the schedule {expression!r} never comes true")
    return fixed


def _zone(name: str) -> tzinfo:
    """
    Return the time zone of this name.

    Raises:
        ScheduleError: The system and the package tzdata have none of this name.
    """
    if name == "UTC":
        return _UTC  # so that the default needs no time zone data
    from zoneinfo import ZoneInfo  # noqa: PLC0415 - hosts without schedules need not load it

    try:
        return ZoneInfo(name)
    # By cause: no such zone, a malformed name, a name of a folder of zones, no string.
    except (KeyError, ValueError, OSError, TypeError) as error:
        raise ScheduleError(
            f"no time zone {name!r} here; where the system has no zones at all, "
            "pip install tzdata brings them"
        ) from error
