"""
What a terminal shows, and what a pipe gets.

A terminal gets tables and colours, and nothing that a job wrote can move its
cursor. A pipe or a file gets tab-separated fields, and log lines byte for byte.
"""

from __future__ import annotations

import codecs
import io
import json
import math
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO

from jobcore.clock import iso_utc
from jobcore.lifecycle import Status

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text
    from typing_extensions import Self

    from jobcore.models import Finding, Job, LogLine, Progress, Transition

#: Escape sequences first, as a whole, then whatever control is left: C0 without
#: the tab, DEL, and C1, of which some terminals take U+009B for an escape. Then
#: what turns the order of the text behind it, so that it reads as it is not.
_CONTROLS = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"
    r"|\x1b[\]PX^_][^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)"
    r"|\x1b[ -/]*[0-~]"
    r"|[\x00-\x08\x0a-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]"
)
#: Those of them that JSON has as they are: it escapes C0 alone.
_LEFT_BY_JSON = re.compile(r"[\x7f-\x9f\u202a-\u202e\u2066-\u2069]")

#: What erases the row behind the cursor.
_ERASES_REST = re.compile(r"\x1b\[[02]?K")
#: Characters from which a row is drawn again; more than any terminal is wide.
_LONGEST_ROW = 4096

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
    """Tell whether people look at stdout."""
    return sys.stdout.isatty()


def _encoding(stream: TextIO) -> str:
    """Return the encoding of what is written: that of a terminal, else UTF-8."""
    name = getattr(stream, "encoding", None) if stream.isatty() else None
    return codecs.lookup(name or "utf-8").name


def _shown(text: str) -> str:
    """Return `text` with escapes for what stdout, a terminal, cannot show."""
    encoding = _encoding(sys.stdout)
    return text.encode(encoding, "backslashreplace").decode(encoding)


def without_controls(text: str) -> str:
    """Return `text` without escape sequences and control characters, but with tabs."""
    shown = _CONTROLS.sub("", text)
    return shown.encode("utf-8", "replace").decode("utf-8")  # bytes that are no text become "?"


def say(message: str) -> None:
    """Print a line of our own on stderr."""
    sys.stderr.write(f"jobcore: {without_controls(message)}\n")
    sys.stderr.flush()


# --- data -----------------------------------------------------------------------


def print_lines(lines: Iterable[str]) -> None:
    """Print lines of data: in UTF-8, or to a terminal in what it reads."""
    encoding = _encoding(sys.stdout)
    with _binary(sys.stdout) as out:
        out.writelines(line.encode(encoding, "backslashreplace") + b"\n" for line in lines)


def print_json(value: BaseModel | Iterable[BaseModel]) -> None:
    """
    Print one JSON document, an array of several models as they come.

    A terminal gets the same document, with every control character escaped, and what it cannot
    show.
    """
    if hasattr(value, "model_dump_json"):
        print_lines([_json_shown(value.model_dump_json(by_alias=True))])
        return
    encoding = _encoding(sys.stdout)
    with _binary(sys.stdout) as out:
        out.write(b"[")
        between = b""
        for one in value:
            out.write(between + _json_shown(one.model_dump_json(by_alias=True)).encode(encoding))
            between = b", "
        out.write(b"]\n")


def _json_shown(document: str) -> str:
    """Return JSON for stdout: on a terminal nothing of it has an effect, or cannot be shown."""
    if not on_terminal():
        return document
    if _encoding(sys.stdout) != "utf-8":
        return json.dumps(json.loads(document))  # all in ASCII
    return _LEFT_BY_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", document)


def note_copies(jobs: Iterable[Job]) -> None:
    """Say of which jobs nothing new can be known: they were not started in this directory."""
    for job in jobs:
        say(f"job {job.id} is shown as stored: its directory was removed, or this is a copy")


def note_damage(left_out: Sequence[str]) -> None:
    """Say in a line what is missing in a list, since it cannot be read."""
    if left_out:
        more = f", and {len(left_out) - 1} more" if len(left_out) > 1 else ""
        say(f"left out: {left_out[0]}{more}; `jobcore doctor` lists what is damaged")


def print_jobs(jobs: Iterable[Job]) -> None:
    """Print a line for each job: the short form on a terminal, all fields in a pipe."""
    if on_terminal():
        _print_table(_SHORT_TITLES, map(_short_form, jobs))
    else:
        _print_fields(map(_long_form, jobs))


def _long_form(job: Job) -> tuple[Any, ...]:
    ending = (job.status, job.exit_code, job.reason)
    times = (job.created, job.start_time, job.end_time)
    facts = (job.line_count, job.name, _report(job.progress))
    return (job.id, job.number, *ending, job.type, *times, *facts)


_SHORT_TITLES = ("ID", "STATUS", "CODE", "REASON", "CREATED", "TIME", "LINES", "DONE", "NAME")


def _short_form(job: Job) -> tuple[Any, ...]:
    ending = (job.status, job.exit_code, job.reason)
    facts = (_seconds(job), job.line_count, _share(job.progress), job.name)
    return (job.id.hex[:8], *ending, job.created, *facts)


def _report(progress: Progress | None) -> str | None:
    """Return progress in the form in which a job reports it."""
    if progress is None:
        return None
    numbers = [f"{number:.15g}" for number in (progress.done, progress.total) if number is not None]
    return " ".join(["/".join(numbers), *([progress.message] if progress.message else [])])


def _share(progress: Progress | None) -> str | None:
    """Return what is done in percent, or as it is where nobody knows of how much."""
    if progress is None:
        return None
    if not progress.total:
        return f"{progress.done:.15g}"
    # Rounded down: what is not done does not show as 100 %. No host's numbers fill the line.
    return f"{math.floor(min(100 * (progress.done / progress.total), 999))}%"


def print_job(job: Job) -> None:
    """
    Print all that is known of a job, a name as in its JSON and a value a line.

    A terminal gets local times, as in its tables, and how long a job has been running.
    """
    facts = {
        name: json.dumps(value) if isinstance(value, (dict, list)) else value
        for name, value in job.model_dump(mode="json", by_alias=True).items()
    }
    if not on_terminal():
        _print_fields(facts.items())
        return
    values = job.model_dump(by_alias=True)
    facts |= {name: value for name, value in values.items() if isinstance(value, datetime)}
    if job.progress is not None:
        facts["progress"] = f"{_report(job.progress)} (at {_local(job.progress.at)})"
    if job.status is Status.RUNNING:
        facts["elapsed"] = f"{_seconds(job)} s"
    _print_table(("", ""), facts.items())


def print_history(history: Sequence[Transition]) -> None:
    """Print a line for each entry of a job's history."""
    rows = [
        (entry.at, entry.trigger, entry.from_status, entry.to_status, entry.reason, entry.actor)
        for entry in history
    ]
    if on_terminal():
        _print_table(("WHEN", "TRIGGER", "FROM", "TO", "REASON", "BY"), rows)
    else:
        _print_fields(rows)


def print_findings(findings: Sequence[Finding]) -> None:
    """Print a line for each check."""
    rows = [(one.check, one.verdict, one.detail) for one in findings]
    if on_terminal():
        _print_table(("CHECK", "VERDICT", "FOUND"), rows)
    else:
        _print_fields(rows)


def _print_fields(rows: Iterable[Iterable[Any]]) -> None:
    print_lines("\t".join(map(_field, row)) for row in rows)


def _print_table(titles: Sequence[str], rows: Iterable[Iterable[Any]]) -> None:
    _console().print(_table(titles, rows))


def _console() -> Console:
    from rich.console import Console  # noqa: PLC0415 - pipes do without it

    console = Console(highlight=False)
    if console.width < 1:  # COLUMNS=0
        console.width = 80
    return console


def _table(titles: Sequence[str], rows: Iterable[Iterable[Any]]) -> Table:
    from rich.table import Table  # noqa: PLC0415 - the same

    table = Table(box=None, pad_edge=False, show_header=any(titles))
    for title in titles[:-1]:
        table.add_column(title, no_wrap=True)
    table.add_column(titles[-1], overflow="fold")  # whatever does not fit the width is in the last
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    return table


def _field(value: Any) -> str:
    """Return a value that breaks neither line nor column; `-` where a shell would skip nothing."""
    if isinstance(value, datetime):
        return iso_utc(value)
    return "-" if value is None or value == "" else re.sub(r"[\t\r\n]+", " ", str(value))


def _cell(value: Any) -> Text:
    from rich.text import Text  # noqa: PLC0415 - pipes do without it

    if isinstance(value, datetime):
        return Text(_local(value))
    text = _shown(without_controls(_field(value)))
    return Text(text, style=_COLOURS.get(text, ""))


def _local(moment: datetime) -> str:
    """Return a time as a terminal shows it: the user's own."""
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _seconds(job: Job) -> str | None:
    """Return how long the job ran, or how long it has been running by now."""
    if job.start_time is None or (job.end_time is None and job.status is not Status.RUNNING):
        return None
    end = job.end_time or datetime.now(timezone.utc)
    return f"{max((end - job.start_time).total_seconds(), 0):.1f}"


class Screen:
    """
    The whole terminal, drawn anew each time; what was on it before comes back at the end.

    Attributes:
        lines: How many jobs there is room for.
    """

    def __init__(self) -> None:
        from rich.live import Live  # noqa: PLC0415 - pipes do without it

        # No thread of its own redraws it, and what others print is not caught.
        self._live = Live(
            console=_console(),
            screen=True,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    @property
    def lines(self) -> int:
        """The height of the terminal without the counts and the titles."""
        return max(self._live.console.height - 3, 0)

    def __enter__(self) -> Self:
        """Take the terminal."""
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Give it back."""
        self._live.stop()

    def draw(self, counts: Mapping[Status, int], jobs: Sequence[Job]) -> None:
        """Show how many jobs there are of each status, and a line for each of `jobs`."""
        from rich.console import Group  # noqa: PLC0415 - pipes do without it
        from rich.text import Text  # noqa: PLC0415 - the same

        summary = Text("  ").join(
            Text(f"{status} {count}", style=_COLOURS[status]) for status, count in counts.items()
        )
        table = _table(_SHORT_TITLES, map(_short_form, jobs))
        self._live.update(Group(summary, Text(), table), refresh=True)


# --- logs -----------------------------------------------------------------------


class LogPrinter:
    """
    Prints log lines: byte for byte, cleaned for a terminal, or as JSON.

    An unfinished line is printed as far as it goes, and then only what is new of it. On a
    terminal a carriage return begins the line anew. In JSON unfinished lines are left out.

    Args:
        apart: Send `stderr` and `system` lines to stderr; else all go to stdout.
        ndjson: Print an object a line; on a terminal no control character is left as it is.

    Attributes:
        next_sequence: The number behind the last numbered line that was printed.
        unfinished: The unfinished lines that were printed last.
    """

    def __init__(self, sequence: int = 0, *, apart: bool = False, ndjson: bool = False) -> None:
        self.next_sequence = sequence
        self.unfinished: list[LogLine] = []
        self._apart = apart
        self._ndjson = ndjson
        # Not sys.stdout.buffer: with PYTHONUNBUFFERED, which every job has, that
        # is unbuffered, and a write to it may be a short one.
        self._out = _binary(sys.stdout)
        self._err = _binary(sys.stderr)
        # If both are a terminal, it is the same one.
        row = _Row(_encoding(sys.stdout if self._out.isatty() else sys.stderr))
        self._writers = {
            out: row.write if out.isatty() else _Pipe().write for out in (self._out, self._err)
        }

    def print(self, lines: Iterable[LogLine]) -> None:
        """Print lines; all of them are seen when this returns."""
        self.unfinished = []
        if self._ndjson:
            from jobcore import wire  # noqa: PLC0415 - what prints no JSON does without it

            objects = wire.ndjson(self._noted(lines))
            if self._out.isatty():
                objects = (f"{_json_shown(one.decode().rstrip())}\n".encode() for one in objects)
            self._out.writelines(objects)
        else:
            for line in self._noted(lines):
                out = self._out
                if self._apart and line.stream in ("stderr", "system"):
                    out.flush()  # what came before is seen before
                    out = self._err
                self._writers[out](line, out)
                if out is self._err:
                    out.flush()
        self._out.flush()

    def _noted(self, lines: Iterable[LogLine]) -> Iterator[LogLine]:
        for line in lines:
            yield line
            if line.sequence is None:
                self.unfinished.append(line)
            else:
                self.next_sequence = line.sequence + 1


class _Pipe:
    """Prints each byte once, though an unfinished line comes again with more of it."""

    def __init__(self) -> None:
        self._printed: dict[str, bytes] = {}  # by stream, what has no number yet

    def write(self, line: LogLine, out: BinaryIO) -> None:
        """Print what is new of a line."""
        if not self._printed and not line.unfinished:
            out.write(line.raw)
            return
        raw, printed = line.raw, self._printed.pop(line.stream, b"")
        if raw.startswith(printed):
            out.write(raw[len(printed) :])
            left = b""
        elif printed.startswith(raw):
            left = printed[len(raw) :]
        else:
            out.write(raw)
            left = b""
        if line.unfinished:
            self._printed[line.stream] = raw + left
        elif left and line.partial:
            self._printed[line.stream] = left


class _Row:
    """
    The row of a terminal in which the cursor is.

    Args:
        encoding: That of the terminal; what it lacks is shown as an escape.

    Attributes:
        text: What is in it.
        stream: Whose text that is.
    """

    def __init__(self, encoding: str = "utf-8") -> None:
        self.text = ""
        self.stream = ""
        self._encoding = encoding
        self._pieces = ""  # the numbered pieces in it; what follows them may be replaced

    def write(self, line: LogLine, out: BinaryIO) -> None:
        """Print a line in place of what it replaces."""
        if self.text and line.stream != self.stream:
            # Unfinished text comes again behind this line, and pieces stay where they are.
            out.write(b"\n" if self._pieces else b"\r\x1b[K")
            self.text = self._pieces = ""
        self.stream = line.stream
        whole = self._pieces + self._bytes(line.text).decode(self._encoding)
        text = row_of(whole)
        if line.unfinished and "\r" in whole:
            # A row that wraps could not be drawn again.
            text = text[: (os.get_terminal_size(out.fileno()).columns or 80) - 1]
        if text.startswith(self.text):
            out.write(self._bytes(text[len(self.text) :]))
        else:
            out.write(b"\r" + self._bytes(text) + b"\x1b[K")
        self.text = text
        if line.raw.endswith(b"\n"):
            out.write(b"\n")
            self.text = self._pieces = ""
        elif not line.unfinished:
            self._pieces = whole[-_LONGEST_ROW:]
            if len(whole) > _LONGEST_ROW and "\r" not in self._pieces:
                self.text = self._pieces = ""  # it has wrapped, so the rest just follows

    def _bytes(self, text: str) -> bytes:
        return text.encode(self._encoding, "backslashreplace")


def row_of(text: str) -> str:
    """
    Return what a terminal shows of a line, without escape sequences and other controls.

    A carriage return begins the line anew, over what is there.
    """
    *begun, last = text.split("\r")
    shown = without_controls(last)
    while begun and not _ERASES_REST.search(last):
        last = begun.pop()
        shown += without_controls(last)[len(shown) :]
    return shown


def _binary(stream: TextIO) -> BinaryIO:
    return open(stream.fileno(), "wb", closefd=False)


def replace_what_cannot_be_shown() -> None:
    """Let no character fail on a terminal that cannot show it, such as that of a cut column."""
    if on_terminal() and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def give_up_stdout() -> None:
    """Let nothing more fail on a stdout that nobody reads, not even the interpreter's exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
