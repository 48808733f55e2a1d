"""
Output for terminals and for pipes.

A terminal gets tables and colours, and control characters from jobs are removed. A pipe or
a file gets tab-separated fields, and log lines byte for byte.
"""

from __future__ import annotations

import codecs
import io
import json
import math
import os
import re
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO, cast

from jobcore import errors
from jobcore.cli import suspension
from jobcore.clock import iso_utc
from jobcore.lifecycle import Status

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text
    from typing_extensions import Self

    from jobcore.models import Finding, Job, Limit, Progress, Transition

#: Whole escape sequences first, then the remaining control characters: C0 except the tab,
#: DEL, and C1, because some terminals treat U+009B as an escape. Finally the characters that
#: reverse the order of text, which can make it look like another text.
_CONTROLS = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"
    r"|\x1b[\]PX^_][^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)"
    r"|\x1b[ -/]*[0-~]"
    r"|[\x00-\x08\x0a-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]"
)
#: The control characters that JSON does not escape. It escapes only C0.
_UNESCAPED_BY_JSON = re.compile(r"[\x7f-\x9f\u202a-\u202e\u2066-\u2069]")

#: Blanks between two columns of a table, and the least width of a last column that is wrapped.
GAP, LEAST_WRAPPED = 2, 12

#: The zone of times on a terminal; None: the user's own.
_zone: timezone | None = None

_COLOURS = {
    "QUEUED": "yellow",
    "RUNNING": "cyan",
    "COMPLETE": "green",
    "ERROR": "red",
    "STOPPED": "magenta",
    "ok": "green",
    "note": "yellow",
    "wrong": "red",
}


def on_terminal() -> bool:
    """Tell whether stdout is a terminal."""
    return sys.stdout.isatty()


def encoding_of(stream: TextIO) -> str:
    """Return the encoding for a stream: the terminal's own, else UTF-8."""
    name = getattr(stream, "encoding", None) if stream.isatty() else None
    return codecs.lookup(name or "utf-8").name


def _shown(text: str) -> str:
    """Return `text` with escapes for characters that stdout, a terminal, cannot show."""
    encoding = encoding_of(sys.stdout)
    return text.encode(encoding, "backslashreplace").decode(encoding)


def without_controls(text: str) -> str:
    """Return `text` without escape sequences and control characters, except tabs."""
    shown = _CONTROLS.sub("", text)
    return shown.encode("utf-8", "replace").decode("utf-8")  # invalid bytes become "?"


def say(message: str) -> None:
    """Print a message on stderr, with the prefix `jobcore: `."""
    sys.stderr.write(f"jobcore: {without_controls(message)}\n")
    sys.stderr.flush()


def say_error(error: Exception) -> None:
    """Print an error on stderr; one about an unknown job says all that an `ID` may be."""
    if type(error) is errors.JobNotFound and isinstance(error.job_id, str):  # as it was typed
        say(f"no job has the number, name or ID {errors.shown(error.job_id)}")
    else:
        say(str(error))


# --- data -----------------------------------------------------------------------


def binary(stream: TextIO) -> BinaryIO:
    """Return a file for bytes on the descriptor of a stream, which stays open."""
    return open(stream.fileno(), "wb", closefd=False)


def print_lines(lines: Iterable[str]) -> None:
    """Print lines of data, in UTF-8 or in the terminal's encoding."""
    encoding = encoding_of(sys.stdout)
    with binary(sys.stdout) as out:
        out.writelines(line.encode(encoding, "backslashreplace") + b"\n" for line in lines)


def print_json(value: BaseModel | Iterable[BaseModel]) -> None:
    """
    Print a model as a JSON document, or several as an array, which is written as they come.

    On a terminal, control characters and characters that it cannot show are escaped.
    """
    if hasattr(value, "model_dump_json"):
        print_lines([json_shown(_json(cast("BaseModel", value)))])
        return
    encoding = encoding_of(sys.stdout)
    with binary(sys.stdout) as out:
        out.write(b"[")
        between = b""
        for one in value:
            out.write(between + json_shown(_json(one)).encode(encoding))
            between = b", "
        out.write(b"]\n")


def _json(model: BaseModel) -> str:
    """Return a model as JSON; a job also with its command and its duration in seconds."""
    document = model.model_dump_json(by_alias=True)
    if not hasattr(model, "retry_of"):
        return document
    job = cast("Job", model)
    moments = {"created": job.created, "startTime": job.start_time, "endTime": job.end_time}
    further = {
        "command": None if job.command is None else list(job.command.argv),
        "shell": None if job.command is None else job.command.shell,
        "duration": job.duration,
        "epoch": {name: one and one.timestamp() for name, one in moments.items()},
    }
    return f"{document[:-1]},{json.dumps(further, ensure_ascii=False)[1:]}"


def json_shown(document: str) -> str:
    """Return JSON for stdout; for a terminal, escape characters that it cannot show safely."""
    if not on_terminal():
        return document
    if encoding_of(sys.stdout) != "utf-8":
        return json.dumps(json.loads(document))  # ASCII only
    return _UNESCAPED_BY_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", document)


def note_copies(jobs: Iterable[Job]) -> None:
    """Print a note for each job that cannot be updated: it was not started in this directory."""
    for job in jobs:
        say(f"job {job.id} is shown as stored: its directory was removed, or this is a copy")


def note_damage(left_out: Sequence[str]) -> None:
    """Print a line about rows that are missing in a list because they are damaged."""
    if left_out:
        more = f", and {len(left_out) - 1} more" if len(left_out) > 1 else ""
        say(f"left out: {left_out[0]}{more}; `jobcore doctor` lists what is damaged")


def print_jobs(jobs: Iterable[Job]) -> None:
    """Print a line for each job, with tab-separated fields."""
    _print_fields(map(_long_form, jobs))


def print_ids(jobs: Iterable[Job]) -> None:
    """Print the id of each job; on a terminal, also its number, by which one can name it."""
    if on_terminal():
        print_lines(f"#{job.number}  {job.id}" for job in jobs)
    else:
        print_lines(str(job.id) for job in jobs)


def label(job: Job) -> str:
    """Return what a message calls a job: its number on a terminal, its ID in a pipe."""
    return f"#{job.number}" if on_terminal() else str(job.id)


def what(job: Job) -> str:
    """Return a job's name, or its command, in one line; empty: it has neither."""
    return job.name or ("" if job.command is None else str(job.command))


def _long_form(job: Job) -> tuple[Any, ...]:
    ending = (job.status, job.exit_code, job.reason)
    times = (job.created, job.start_time, job.end_time)
    facts = (job.line_count, job.name, _report(job.progress))
    queue = (job.group, job.priority, job.not_before, job.command)
    return (job.id, job.number, *ending, job.type, *times, *facts, *queue)


def _report(progress: Progress | None) -> str | None:
    """Return progress in the format in which jobs report it."""
    if progress is None:
        return None
    numbers = [f"{number:.15g}" for number in (progress.done, progress.total) if number is not None]
    return " ".join(["/".join(numbers), *([progress.message] if progress.message else [])])


def share(progress: Progress | None) -> str | None:
    """Return progress in percent, or the number that is done if the total is unknown."""
    if progress is None:
        return None
    if not progress.total:
        return f"{progress.done:.15g}"
    # Round down, so that unfinished work never shows as 100 %. Limit it, to keep the column narrow.
    return f"{math.floor(min(100 * (progress.done / progress.total), 999))}%"


def print_job(job: Job, further: Mapping[str, Any]) -> None:
    """
    Print all facts about a job, one per line: the name as in its JSON, and the value.

    On a terminal, times are local, a running job shows how long it has been running, and what
    is empty is left out.

    Args:
        job: The job.
        further: Facts that its model does not have.
    """
    facts = {
        name: json.dumps(value) if isinstance(value, (dict, list)) else value
        for name, value in job.model_dump(mode="json", by_alias=True).items()
    }
    facts |= _command_facts(job)
    facts |= further
    if not on_terminal():
        _print_fields(facts.items())
        return
    values = job.model_dump(by_alias=True)
    facts |= {name: value for name, value in values.items() if isinstance(value, datetime)}
    if job.progress is not None:
        facts["progress"] = f"{_report(job.progress)} (at {local(job.progress.at)})"
    if job.status is Status.RUNNING and job.start_time is not None:
        seconds = (datetime.now(timezone.utc) - job.start_time).total_seconds()
        facts["elapsed"] = f"{max(seconds, 0):.1f} s"
    for name in ("duration", "timeout", "grace"):
        if facts[name] is not None:
            facts[name] = span(float(facts[name]))
    if job.max_rss is not None:
        facts["maxRss"] = size(job.max_rss)
    for name in ("dropped", "leftProcesses"):
        facts[name] = facts[name] or None
    first = ("number", "id", "status", "reason", "name", "command")
    print_facts({name: facts.pop(name) for name in first if name in facts} | facts)


def print_facts(facts: Mapping[str, Any]) -> None:
    """Print facts with their names, one per line; a terminal leaves out what is empty."""
    if on_terminal():
        _print_table(("", ""), [one for one in facts.items() if one[1] not in (None, "")])
    else:
        _print_fields(facts.items())


def _command_facts(job: Job) -> dict[str, Any]:
    """Return what can be shown of a job's command, and its duration."""
    view = job.command
    return {
        "command": None if view is None else str(view),
        "cwd": None if view is None else view.cwd,
        "env": None if view is None else " ".join(view.env_names),
        "timeout": None if view is None else view.timeout,
        "grace": None if view is None else view.grace,
        "duration": job.duration,
    }


def print_history(history: Sequence[Transition]) -> None:
    """Print a line for each entry of a job's history."""
    rows = [
        (entry.at, entry.trigger, entry.from_status, entry.to_status, entry.reason, entry.actor)
        for entry in history
    ]
    titles = ("WHEN", "TRIGGER", "FROM", "TO", "REASON", "BY")
    print_rows(titles, rows, optional=("FROM",))


def print_limits(limits: Sequence[Limit]) -> None:
    """Print a line for each limit."""
    rows = [(one.scope, one.name, one.slots, one.running, one.queued, one.paused) for one in limits]
    titles = ("SCOPE", "NAME", "SLOTS", "RUNNING", "QUEUED", "PAUSED SINCE")
    print_rows(titles, rows, cut={"NAME": 16})


def print_findings(findings: Sequence[Finding]) -> None:
    """Print a line for each check."""
    rows = [(one.check, one.verdict, one.detail) for one in findings]
    print_rows(("CHECK", "VERDICT", "FOUND"), rows)


def print_rows(
    titles: Sequence[str],
    rows: Iterable[Iterable[Any]],
    *,
    cut: Mapping[str, int] | None = None,
    optional: Sequence[str] = (),
) -> None:
    """
    Print a table with these titles on a terminal, and only the fields in a pipe.

    Args:
        titles: The titles of the columns.
        rows: The values.
        cut: The columns whose values are cut on a narrow terminal, with their least widths.
        optional: The columns that are left out, in this order, while the others do not fit.
    """
    if on_terminal():
        _print_table(titles, rows, cut=cut, optional=optional)
    else:
        _print_fields(rows)


def _print_fields(rows: Iterable[Iterable[Any]]) -> None:
    print_lines("\t".join(map(_field, row)) for row in rows)


def _print_table(
    titles: Sequence[str],
    rows: Iterable[Iterable[Any]],
    *,
    cut: Mapping[str, int] | None = None,
    optional: Sequence[str] = (),
) -> None:
    shown = console()
    cells = [[cell(value) for value in row] for row in rows]
    shown.print(_table(titles, cells, cut or {}, optional, shown.width))


def console(*, stderr: bool = False) -> Console:
    """Return a console on stdout or stderr, for tables and bars."""
    from rich.console import Console  # noqa: PLC0415 - not needed for pipes

    made = Console(highlight=False, stderr=stderr)
    if made.width < 1:  # COLUMNS=0
        made.width = 80
    return made


def _table(
    titles: Sequence[str],
    cells: Sequence[Sequence[Text]],
    cut: Mapping[str, int],
    optional: Sequence[str],
    room: int,
) -> Table:
    """Return a table for a terminal of `room` columns; see `print_rows`."""
    from rich.cells import cell_len  # noqa: PLC0415 - not needed for pipes
    from rich.table import Table  # noqa: PLC0415 - not needed for pipes

    last = len(titles) - 1
    natural = [
        min(max(cell_len(title), *(row[n].cell_len for row in cells), 0), room)
        for n, title in enumerate(titles)
    ]
    least = [
        min(natural[n], cut.get(title, LEAST_WRAPPED if n == last else room))
        for n, title in enumerate(titles)
    ]
    columns = list(range(len(titles)))
    for title in optional:
        if title in titles and sum(least[n] + GAP for n in columns) - GAP > room:
            columns.remove(titles.index(title))
    widths = dict(zip(columns, (natural[n] for n in columns), strict=True))
    while sum(widths.values()) + GAP * (len(columns) - 1) > room:
        wider = [n for n in columns if widths[n] > least[n]]
        if not wider:
            break
        widths[max(wider, key=widths.__getitem__)] -= 1
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), show_header=any(titles))
    for n in columns:
        wrapped = n == last and titles[n] not in cut
        table.add_column(
            titles[n],
            width=widths[n],
            no_wrap=not wrapped,
            overflow="fold" if wrapped else "ellipsis",
        )
    for row in cells:
        table.add_row(*(row[n] for n in columns))
    return table


def _field(value: Any) -> str:
    """Return a value without tabs and line ends; `-` if empty, because shells skip empty fields."""
    if isinstance(value, datetime):
        return iso_utc(value)
    return "-" if value is None or value == "" else re.sub(r"[\t\r\n]+", " ", str(value))


def cell(value: Any) -> Text:
    """Return a value as a cell of a table: without controls, statuses in colour."""
    from rich.text import Text  # noqa: PLC0415 - not needed for pipes

    if isinstance(value, datetime):
        return Text(local(value))
    text = plain(_field(value))
    return Text(text, style=_COLOURS.get(text, ""))


def plain(text: str) -> str:
    """Return a text in one line, without controls, as this terminal can show it."""
    return _shown(without_controls(re.sub(r"[\t\r\n]+", " ", text)))


def colour(text: str) -> str:
    """Return the style of a status or verdict; empty: it has none."""
    return _COLOURS.get(text, "")


def show_utc(wanted: bool) -> None:
    """Choose the zone of times on a terminal: UTC, or the user's own."""
    global _zone  # noqa: PLW0603 - an option of the program
    _zone = timezone.utc if wanted else None


def local(moment: datetime) -> str:
    """Return a time with its zone, for a terminal: in the user's zone, or as `show_utc` says."""
    return moment.astimezone(_zone).strftime("%Y-%m-%d %H:%M:%S %Z")


def zone(moment: datetime) -> str:
    """Return the name of the zone of `local`."""
    return moment.astimezone(_zone).strftime("%Z")


def short_time(moment: datetime, now: datetime) -> str:
    """Return a time without its zone: the time of day if it is today, else the day, too."""
    there, here = moment.astimezone(_zone), now.astimezone(_zone)
    if there.date() == here.date():
        return there.strftime("%H:%M:%S")
    return there.strftime("%m-%d %H:%M" if there.year == here.year else "%Y-%m-%d")


def clock(moment: datetime) -> str:
    """Return the time of day, in the zone of `local`."""
    return moment.astimezone(_zone).strftime("%H:%M:%S")


def span(seconds: float) -> str:
    """Return a time in the two units that matter most, such as `4.2s`, `5m10s` or `3d4h`."""
    if seconds < 10:
        return f"{max(seconds, 0):.1f}s"
    whole = int(seconds)
    for unit, size, smaller, part in (
        ("d", 86_400, "h", 3600),
        ("h", 3600, "m", 60),
        ("m", 60, "s", 1),
    ):
        if whole >= size:
            rest = whole % size // part
            return f"{whole // size}{unit}{rest:02}{smaller}" if rest else f"{whole // size}{unit}"
    return f"{whole}s"


def size(count: int) -> str:
    """Return a number of bytes in the unit that fits, such as `512 B` or `8.5 MiB`."""
    for power, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if count >= 1 << power:
            return f"{count / (1 << power):.1f} {unit}"
    return f"{count} B"


class Screen:
    """
    Uses the whole terminal; the previous content is restored at the end, and during Ctrl-Z.

    Attributes:
        lines: The number of jobs that fit.
    """

    def __init__(self) -> None:
        from rich.live import Live  # noqa: PLC0415 - not needed for pipes

        # No refresh thread, and no redirection of other output.
        self._live = Live(
            console=console(),
            screen=True,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._turn = threading.Lock()

    @property
    def lines(self) -> int:
        """The height of the terminal without the lines for counts and titles."""
        return max(self._live.console.height - 3, 0)

    def __enter__(self) -> Self:
        """Switch to the terminal's alternate screen."""
        self._live.start()
        suspension.around.append(self._hidden)
        return self

    def __exit__(self, *_: object) -> None:
        """Restore the terminal's previous content."""
        with self._turn:
            suspension.around.remove(self._hidden)
            self._live.stop()

    @contextmanager
    def _hidden(self) -> Iterator[None]:
        with self._turn:
            self._live.stop()
            yield
            self._live.start(refresh=True)

    @property
    def width(self) -> int:
        """The width of the terminal."""
        return self._live.console.width

    def draw(self, summary: RenderableType, table: RenderableType) -> None:
        """Show a line and a table."""
        from rich.console import Group  # noqa: PLC0415 - not needed for pipes

        with self._turn:
            self._live.update(Group(summary, "", table), refresh=True)


def replace_what_cannot_be_shown() -> None:
    """Replace characters that the terminal cannot show, such as the ellipsis of a cut column."""
    if on_terminal() and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def discard_stdout() -> None:
    """Redirect stdout to /dev/null, so that a broken pipe fails no later write or the exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
