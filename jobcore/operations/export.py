"""
Jobs with their logs as lines of JSON, and back.

Each job is a record `job`, records `log` with consecutive lines of the same time and stream, and a
record `end`. A job whose `end` is missing was cut off, and is not imported. An imported job goes
through the statuses by the same statements as any other, in one transaction, with its own times.
"""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import Connection, Row, select, update

from jobcore import checks
from jobcore.clock import Clock
from jobcore.command import Command, CommandView
from jobcore.errors import ArgumentError, DatabaseCorrupt, JobcoreError, StoreError
from jobcore.functions.encoding import PICKLE
from jobcore.hooks import stored_hooks
from jobcore.lifecycle import UNSTARTED, Ending, Reason, Status
from jobcore.log_lines import pieces_of, taken_in_groups
from jobcore.models import Imported, LogLine
from jobcore.operations.arguments import RUN_IF, checked_data, checked_progress
from jobcore.operations.lookup import Id, require_job
from jobcore.operations.submission import place_in_workspace
from jobcore.parameters import stored_parameters
from jobcore.retries import Retries
from jobcore.storage import environments, job_rows, log_segments, pipelines, settlement, transitions
from jobcore.storage.database import Database
from jobcore.storage.log_segments import Slice
from jobcore.storage.tables import job
from jobcore.storage.transitions import Report
from jobcore.supervisor import frames

#: The version of the records.
VERSION = 1
#: The most jobs in one transaction, and bytes of their logs after which it ends.
JOBS_AT_ONCE, BYTES_AT_ONCE = 100, 4 * 2**20
#: The most bytes of a record of a log. A line of a task can be long.
MOST_RECORD_BYTES = 2**28

#: Columns that are exported and imported as they are. Times are microseconds since 1970.
_PLAIN = (
    "type", "name", "data", "attempt", "created", "not_before", "priority", "key", "start_time",
    "end_time", "status", "reason", "exit_code", "signal", "wait_status", "errno", "cpu_us",
    "max_rss", "dropped", "left_processes", "stop_requested", "stop_who", "stop_why", "expires",
    "run_if", "env_from",
)  # fmt: skip
_AT_CREATE = (
    "type", "name", "data", "attempt", "not_before", "priority", "key", "expires", "run_if",
    "env_from",
)  # fmt: skip
#: Columns with JSON that is exported with the commands, except `retries`, which is always.
_AS_JSON = ("command", "hooks", "parameters", "retries")
#: Ids of other jobs.
_IDS = ("retry_of", "hook_of")
_AT_END = ("errno", "cpu_us", "max_rss", "dropped", "left_processes")
_STREAMS = {name: number for number, name in enumerate(frames.STREAM_NAMES)}
_INTEGERS = {
    "attempt", "created", "not_before", "priority", "start_time", "end_time", "exit_code",
    "signal", "wait_status", "errno", "cpu_us", "max_rss", "dropped", "left_processes",
    "stop_requested", "expires",
}  # fmt: skip


# --- export ---------------------------------------------------------------------


def header(now: int) -> str:
    """Return the first line of an export."""
    return _line({"export": {"version": VERSION, "at": now}})


def records(
    database: Database, job_id: Id, lines: Iterable[LogLine], *, commands: bool
) -> Iterator[str]:
    """Yield the lines of an export for one job."""
    with database.read() as connection:
        row = require_job(connection, job_id)
        pipeline = row.pipeline_id and pipelines.find_pipeline(connection, row.pipeline_id)
        result = settlement.find_result(connection, row.number)
    found: dict[str, Any] = {"id": str(row.id), "number": row.number}
    found |= {name: getattr(row, name) for name in _PLAIN}
    found["group"] = row.group_name
    found |= {name: (one := getattr(row, name)) and str(one) for name in _IDS}
    found["progress"] = _progress(row)
    found["result"] = None if result is None else _result(*result)
    found["pipeline"] = pipeline and pipeline.name
    view = CommandView.from_json(row.command)
    found["shown_command"] = None if view is None else str(view)
    for name in _AS_JSON if commands else ("retries",):
        found[name] = _loaded(getattr(row, name), f"{name} of job {row.id}")
    yield _line({"job": found})
    count = 0
    for frame in _frames(lines):
        count += frame["lines"]
        yield _line({"log": {"job": str(row.id), **frame}})
    yield _line({"end": {"job": str(row.id), "lines": count}})


def _loaded(text: str | None, what: str) -> Any:
    try:
        return None if text is None else json.loads(text)
    except ValueError:
        pass
    raise DatabaseCorrupt(f"the {what} are damaged")  # without a cause, which would show the text


def _progress(row: Row[Any]) -> dict[str, Any] | None:
    if row.progress_at is None:
        return None
    return {name: getattr(row, f"progress_{name}") for name in Report._fields}


def _result(encoding: str, data: bytes) -> dict[str, Any]:
    """Return a result: as it is if it is JSON, else in base64."""
    if encoding == settlement.JSON:
        return {"json": data.decode("utf-8")}
    return {encoding: base64.b64encode(data).decode("ascii")}


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False, separators=(",", ":"))


def _frames(lines: Iterable[LogLine]) -> Iterator[dict[str, Any]]:
    """Yield numbered lines, together where time and stream are the same."""
    taken = taken_in_groups(lines)
    if taken is not None:
        for group in taken[0]:
            if len(group.raw) <= frames.MAX_PAYLOAD:
                same = (group.time_ns, group.stream, group.partial)
                yield _frame(group.first, group.line_count, group.raw, same)
            else:  # lines of a task, or lost ones: a record has a limited length
                yield from _frames(itertools.chain.from_iterable(pieces_of([group])))
        return
    first, raw, kind = 0, b"", None
    count = 0
    for line in lines:
        if line.sequence is None:
            continue
        same = (line.time_ns, line.stream, line.partial)
        whole = raw.endswith(b"\n") and not line.partial
        if count and (same != kind or not whole or len(raw) + len(line.raw) > frames.MAX_PAYLOAD):
            yield _frame(first, count, raw, kind)
            count, raw = 0, b""
        if not count:
            first, kind = line.sequence, same
        count, raw = count + 1, raw + line.raw
    if count:
        yield _frame(first, count, raw, kind)


def _frame(first: int, count: int, raw: bytes, kind: Any) -> dict[str, Any]:
    time_ns, stream, partial = kind
    found = {"first": first, "lines": count, "time_ns": time_ns, "stream": stream}
    if partial:
        found["partial"] = True
    try:
        return {**found, "text": raw.decode("utf-8")}
    except UnicodeDecodeError:
        return {**found, "base64": base64.b64encode(raw).decode("ascii")}


# --- import ---------------------------------------------------------------------


class _Ended(NamedTuple):
    """A job of an export, complete."""

    id: UUID
    facts: dict[str, Any]
    slices: list[Slice]
    lines: int
    result: tuple[str, bytes] | None


class Importer:
    """
    Reads exports.

    Args:
        workspace_id: The workspace of the jobs; None: the default one.
        with_pickles: Whether to store pickled results, too.
    """

    def __init__(
        self, database: Database, clock: Clock, workspace_id: Id | None, *, with_pickles: bool
    ) -> None:
        self._database = database
        self._clock = clock
        self._workspace_id = workspace_id
        self._with_pickles = with_pickles

    def take(self, lines: Iterable[str | bytes]) -> Imported:
        """Create the final jobs of an export that the file does not have."""
        created = complete = skipped = 0
        for some in _together(_jobs(lines)):
            whole = [one for one in some if one is not None]
            complete, skipped = complete + len(whole), skipped + len(some) - len(whole)
            try:
                created += self._write(whole)
            except JobcoreError as error:
                if isinstance(error, StoreError) or len(whole) < 2:
                    raise
                # One of them is at fault: those before it are created.
                created += sum(self._write([one]) for one in whole)
        return Imported(created=created, existing=complete - created, skipped=skipped)

    def _write(self, some: list[_Ended]) -> int:
        """Create jobs in one transaction; return how many of them are new."""

        def create(connection: Connection) -> int:
            return sum(self._create(connection, found) for found in some)

        return self._database.write(create, about=f"job {some[0].id}") if some else 0

    def _create(self, connection: Connection, found: _Ended) -> bool:
        """Create a job and bring it to its end; False: a job has this id, perhaps a hidden one."""
        if connection.execute(select(job.c.number).where(job.c.id == found.id)).first():
            return False
        facts = found.facts
        place = place_in_workspace(connection, self._workspace_id, self._clock.now())
        name = facts.get("pipeline")
        made = job_rows.insert_job(
            connection,
            now=facts["created"],
            id=found.id,
            workspace_id=place,
            pipeline_id=name and pipelines.find_pipeline_called(connection, place, name),
            group_name=facts["group"],
            **{column: facts[column] for column in (*_AT_CREATE, *_AS_JSON)},
        )
        number = made["number"]
        # Not before: the next attempt of a job would take its key from another job.
        others = {name: facts[name] for name in _IDS}
        connection.execute(update(job).where(job.c.number == number).values(others))
        reason = Reason(facts["reason"])
        if facts["start_time"] is None:
            transitions.cancel_if_queued(connection, number, now=facts["end_time"], reason=reason)
        else:
            transitions.start_if_queued(connection, number, now=facts["start_time"])
            log_segments.insert_slices(connection, number, found.slices)
            connection.execute(
                update(job)
                .where(job.c.number == number)
                .values(
                    next_sequence=found.lines,
                    loose_sequence=found.lines,
                    **{one: facts[one] for one in ("stop_requested", "stop_who", "stop_why")},
                    **facts["progress"],
                )
            )
            run = transitions.find(connection, number)
            asked = facts["stop_requested"] is not None
            if run is not None:
                transitions.settle_if_running(
                    connection,
                    run,
                    offset=0,
                    ending=Ending(reason, _wait_status(facts), asked),
                    now=facts["end_time"],
                    facts={one: facts[one] for one in _AT_END},
                )
        if found.result is not None and (self._with_pickles or found.result[0] == settlement.JSON):
            settlement.store_result(connection, number, *found.result)
        row = job_rows.get_job(connection, number)
        wrong = _differences(row, facts)
        if wrong:
            raise ArgumentError(
                f"job {found.id} of the export cannot have ended like this: {', '.join(wrong)}"
            )
        return True


def _together(jobs: Iterable[_Ended | None]) -> Iterator[list[_Ended | None]]:
    """Yield jobs in groups that one transaction takes."""
    some: list[_Ended | None] = []
    size = 0
    for one in jobs:
        some.append(one)
        size += 0 if one is None else sum(part.size for part in one.slices)
        if len(some) == JOBS_AT_ONCE or size > BYTES_AT_ONCE:
            yield some
            some, size = [], 0
    yield some


def _wait_status(facts: dict[str, Any]) -> int | None:
    """Return the wait status, or one with the same meaning: old jobs have none."""
    status: int | None = facts["wait_status"]
    if status is None and facts["exit_code"] is not None:
        status = facts["signal"] or facts["exit_code"] << 8
    return status


def _differences(row: Row[Any] | None, facts: dict[str, Any]) -> list[str]:
    """Return the names of facts that the rules gave another value."""
    ending = ("status", "reason", "exit_code", "signal", "start_time", "end_time")
    return [one for one in ending if row is None or getattr(row, one) != facts[one]]


def _jobs(lines: Iterable[str | bytes]) -> Iterator[_Ended | None]:
    """Yield the jobs of an export; None for one that has not ended, or is not complete."""
    reader = _Reader()
    for number, text in enumerate(lines, 1):
        try:
            found = list(reader.read(*_record(text))) if text.strip() else []
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            raise ArgumentError(f"line {number} is not a record of an export: {error}") from error
        yield from found
    if reader.facts is not None:
        yield None


class _Reader:
    """
    Puts the records of each job together.

    Attributes:
        facts: The record of the job whose end has not come yet.
    """

    def __init__(self) -> None:
        self.facts: dict[str, Any] | None = None
        self._slices: list[Slice] = []
        self._position = 0

    def read(self, kind: str, record: dict[str, Any]) -> Iterator[_Ended | None]:
        """Take a record; yield the job that it ends, or None for one that was cut off."""
        if kind == "export":
            if record["version"] != VERSION:
                raise ValueError(f"it has version {record['version']!r:.40}, not {VERSION}")
        elif kind == "job":
            if self.facts is not None:
                yield None
            self.facts, self._slices, self._position = _facts(record), [], 0
        elif self.facts is None or record["job"] != self.facts["id"]:
            raise ValueError("it does not belong to the job before it")
        elif kind == "log":
            self._position = _add(self._slices, record, self._position)
        else:
            yield self._ended(self.facts, record["lines"])
            self.facts = None

    def _ended(self, facts: dict[str, Any], lines: Any) -> _Ended | None:
        if lines != self._position or not Status(facts["status"]).final:
            return None
        return _Ended(UUID(facts["id"]), facts, self._slices, self._position, facts["result"])


def _record(text: str | bytes) -> tuple[str, dict[str, Any]]:
    record = json.loads(text)
    if not isinstance(record, dict) or len(record) != 1:
        raise ValueError("it must be an object with one key")
    ((kind, content),) = record.items()
    if kind not in ("export", "job", "log", "end") or not isinstance(content, dict):
        raise ValueError(f"its kind is {kind!r:.40}")
    return kind, content


def _facts(record: dict[str, Any]) -> dict[str, Any]:
    """Check the record of a job."""
    found = {name: record.get(name) for name in (*_PLAIN, *_IDS, "id", "group", "pipeline")}
    for name, value in found.items():
        if name in _INTEGERS and value is not None:
            checks.integer(value, name, -checks.LARGEST_INTEGER, checks.LARGEST_INTEGER)
        elif name != "data" and value is not None:
            checks.text(value, name)
    for name in ("type", "created", "attempt", "priority", "status", "dropped"):
        if found[name] is None:
            raise ValueError(f"{name} is missing")
    UUID(found["id"])
    found |= {name: found[name] and UUID(found[name]) for name in _IDS}
    if Status(found["status"]).final:
        has_started = Reason(found["reason"]) not in UNSTARTED
        if found["end_time"] is None or (found["start_time"] is not None) != has_started:
            raise ValueError("its times do not match its reason")
    for name, known in (
        ("run_if", RUN_IF),
        ("env_from", (environments.SUBMITTER, environments.WORKER)),
    ):
        if found[name] not in (None, *known):
            raise ValueError(f"its {name} is unknown")
    return {
        **found,
        "data": checked_data(found["data"]),
        **{name: _stored(name, record.get(name)) for name in _AS_JSON},
        "progress": _stored_progress(record.get("progress")),
        "result": _stored_result(record.get("result")),
    }


#: Reads the stored form of each column with JSON, to check it.
_READERS: dict[str, Callable[[str], Any]] = {
    "command": Command.from_json,
    "hooks": stored_hooks,
    "parameters": stored_parameters,
    "retries": Retries.from_json,
}


def _stored(name: str, value: Any) -> str | None:
    """Return a value of a job's record in the form in which it is stored."""
    if value is None:
        return None
    text = json.dumps(value)
    try:
        _READERS[name](text)
    except DatabaseCorrupt as error:
        raise ValueError(f"its {name} is invalid") from error
    return text


def _stored_progress(found: Any) -> dict[str, Any]:
    """Return the columns of a job's progress."""
    if found is None:
        return {}
    checked = checked_progress(found["done"], found["total"], found["message"])
    report = Report(*checked, checks.integer(found["at"], "at", 0, checks.LARGEST_INTEGER))
    return {f"progress_{name}": value for name, value in report._asdict().items()}


def _stored_result(found: Any) -> tuple[str, bytes] | None:
    """Return the encoding and the bytes of a job's result."""
    if found is None:
        return None
    ((encoding, text),) = found.items()
    if encoding == settlement.JSON:
        json.loads(text)
        return encoding, text.encode("utf-8")
    if encoding != PICKLE:
        raise ValueError("the encoding of its result is unknown")
    return encoding, base64.b64decode(text, validate=True)


def _add(slices: list[Slice], record: dict[str, Any], position: int) -> int:
    """Add a record of a log; return the number of the line after it."""
    if record["first"] != position:
        raise ValueError(f"line {position} of the log is expected, not {record['first']!r:.40}")
    raw = (
        base64.b64decode(record["base64"], validate=True)
        if "base64" in record
        else record["text"].encode("utf-8")
    )
    count = checks.integer(record["lines"], "lines", 1, frames.MAX_PAYLOAD)
    if len(raw) > MOST_RECORD_BYTES:
        raise ValueError(f"it has more than {MOST_RECORD_BYTES} bytes")
    flags = frames.PARTIAL if record.get("partial") else 0
    if not raw.endswith(b"\n") and not flags:
        flags = frames.OPEN_END
    if raw.count(b"\n") + (not raw.endswith(b"\n")) != count:
        raise ValueError("its count does not match the number of lines in its text")
    time_ns = checks.integer(record["time_ns"], "time_ns", 0, checks.LARGEST_INTEGER)
    data = frames.encode_header(_STREAMS[record["stream"]], flags, position, count, time_ns, raw)
    log_segments.append_to(slices, position, count, data + raw)
    return position + count
