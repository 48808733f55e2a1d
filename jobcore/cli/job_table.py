"""Tables of jobs for a terminal: the columns that fit its width, and a row for each job."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from jobcore.cli import foreground, output
from jobcore.lifecycle import Status

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

    from jobcore.models import Job

#: Widths from which on there is room for more columns.
NORMAL, ROOMY = 76, 110
#: The least width of the last column.
LEAST = 20
#: The greatest width of names of groups and pipelines where there is no room for all columns.
SHORT = 12
#: The columns that are left out, in this order, while the last one is narrower than `LEAST`.
_LEFT_OUT = ("LINES", "PRIO", "STARTED", "PIPELINE", "GROUP")


class Facts(NamedTuple):
    """
    What a table needs besides the jobs.

    Attributes:
        pipelines: Names of pipelines, by id.
        now: The time.
        wide: Whether to show all columns, and nothing cut.
    """

    pipelines: Mapping[UUID, str]
    now: datetime
    wide: bool = False


class _Column(NamedTuple):
    title: str
    value: Callable[[Job, Facts], str | None]
    least: int = 0  # the width of the terminal from which on it is shown
    always: bool = True  # whether it is shown although no job has a value
    right: bool = False
    most: int = 24  # its greatest width, unless the table is wide
    short: int = 24  # the same where there is no room for all columns


class _Shown(NamedTuple):
    column: _Column
    values: list[str]
    width: int


def _title(column: _Column, facts: Facts) -> str:
    if column.title == "STARTED":
        return f"STARTED {output.zone(facts.now)}".rstrip()
    return column.title


def _width(column: _Column, values: Sequence[str], facts: Facts, width: int) -> int:
    """Return the width of a column in a terminal of `width` columns."""
    from rich.cells import cell_len  # noqa: PLC0415 - not needed for pipes

    longest = max(map(cell_len, [_title(column, facts), *values]))
    if facts.wide:
        return longest
    return min(longest, column.most if width >= ROOMY else column.short)


def table(jobs: Sequence[Job], facts: Facts, width: int) -> Table:
    """Return a table of jobs for a terminal of this width."""
    from rich.cells import cell_len  # noqa: PLC0415 - not needed for pipes
    from rich.table import Table  # noqa: PLC0415 - not needed for pipes
    from rich.text import Text  # noqa: PLC0415 - not needed for pipes

    made = Table(box=None, pad_edge=False, padding=(0, output.GAP, 0, 0))
    shown = [
        _Shown(column, values, _width(column, values, facts, width))
        for column in _COLUMNS
        if facts.wide or width >= column.least
        for values in [[output.plain(column.value(job, facts) or "") for job in jobs]]
        if column.always or any(values)
    ]
    used = sum(one.width + output.GAP for one in shown)
    for title in () if facts.wide else _LEFT_OUT:
        if width - used < LEAST:
            used -= sum(one.width + output.GAP for one in shown if one.column.title == title)
            shown = [one for one in shown if one.column.title != title]
    for column, _, fixed in shown:
        # Fixed, because the library would take the room from all columns alike.
        made.add_column(
            _title(column, facts),
            no_wrap=True,
            justify="right" if column.right else "left",
            width=fixed,
        )
    texts = [output.plain(_what(job, facts)) for job in jobs]
    longest = max(map(cell_len, texts), default=0)
    rest = longest if facts.wide else min(longest, width - used)
    made.add_column("WHAT", no_wrap=True, overflow="ellipsis", width=max(rest, len("WHAT")))
    for n in range(len(jobs)):
        cells = [Text(values[n], style=output.colour(values[n])) for _, values, _ in shown]
        made.add_row(*cells, Text(texts[n]))
    return made


def summary(counts: Mapping[Status, int], paused: Iterable[str] = ()) -> RenderableType:
    """Return a line with the number of jobs of each status, and what is paused."""
    from rich.text import Text  # noqa: PLC0415 - not needed for pipes

    parts: list[Text] = [
        Text(f"{status} {count}", style=output.colour(status)) for status, count in counts.items()
    ]
    parts += [Text(f"paused: {name}", style="yellow") for name in map(output.plain, paused)]
    return Text("  ").join(parts)


def _time(job: Job, facts: Facts) -> str | None:
    """Return how long a job ran or has been running, or in what time it is due."""
    if job.status is Status.QUEUED:
        if job.not_before is None or job.not_before <= facts.now:
            return None
        return f"in {output.span((job.not_before - facts.now).total_seconds())}"
    if job.start_time is None:
        return None
    return output.span(((job.end_time or facts.now) - job.start_time).total_seconds())


def _note(job: Job, _: Facts) -> str | None:
    """Return what is worth knowing of a job besides its status, in a word or two."""
    if job.status is Status.RUNNING:
        return "stopping" if job.stop_requested else output.share(job.progress)
    if job.status is Status.QUEUED:
        if job.next_attempt is not None:
            return f"attempt {job.attempt}"
        return {"time": None, "dependencies": "waits"}.get(job.waits_for or "", job.waits_for)
    if job.status is Status.COMPLETE:
        return None
    return foreground.cause(job.reason, job.exit_code, job.signal).replace("exit code", "exit")


def _started(job: Job, facts: Facts) -> str | None:
    if job.start_time is None:
        return None
    return output.short_time(job.start_time, facts.now)


def _pipeline(job: Job, facts: Facts) -> str | None:
    return None if job.pipeline_id is None else facts.pipelines.get(job.pipeline_id)


def _if_any(count: int) -> str | None:
    return str(count) if count else None


def _what(job: Job, facts: Facts) -> str:
    """Return a job's name and command, or what there is of them, or its pipeline or type."""
    command = "" if job.command is None else str(job.command)
    if job.name and command and facts.wide:
        return f"{job.name}: {command}"
    return job.name or command or _pipeline(job, facts) or job.type


_COLUMNS = (
    _Column("JOB", lambda job, _: str(job.number), right=True),
    _Column("ID", lambda job, facts: str(job.id) if facts.wide else job.id.hex[:8], ROOMY),
    _Column("STATUS", lambda job, _: str(job.status)),
    _Column("TIME", _time, right=True),
    _Column("NOTE", _note, always=False),
    _Column("STARTED", _started, NORMAL, always=False),
    _Column("PRIO", lambda job, _: _if_any(job.priority), ROOMY, always=False, right=True),
    _Column("GROUP", lambda job, _: job.group, NORMAL, always=False, most=16, short=SHORT),
    _Column("PIPELINE", _pipeline, NORMAL, always=False, most=20, short=SHORT),
    _Column("LINES", lambda job, _: _if_any(job.line_count), ROOMY, always=False, right=True),
)


def facts_for(jobs: Iterable[Job], name_of: Callable[[UUID], str], *, wide: bool) -> Facts:
    """Return what a table of these jobs needs."""
    ids: dict[Any, None] = dict.fromkeys(job.pipeline_id for job in jobs if job.pipeline_id)
    return Facts({one: name_of(one) for one in ids}, datetime.now(timezone.utc), wide)
