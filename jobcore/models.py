"""
Models: what callers get to see.

Frozen values, true as of the moment they were read; they never change under their holder.
"""

import inspect
import operator
import re
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, cast, final
from uuid import UUID

from pydantic import (
    BaseModel,
    ConfigDict,
    PlainSerializer,
    PrivateAttr,
    ValidationError,
    WithJsonSchema,
)
from pydantic.alias_generators import to_camel

from jobcore.clock import exact_iso_utc, iso_utc, to_datetime
from jobcore.command import Command
from jobcore.embedding.forking import GATE
from jobcore.embedding.worker import handed_over
from jobcore.errors import DatabaseCorrupt
from jobcore.lifecycle import PipelineStatus, Reason, Status, Trigger
from jobcore.structured_lines import object_in

if TYPE_CHECKING:
    from typing_extensions import Self


#: A moment; in JSON ISO 8601 UTC with microseconds and `Z`, so that a model that is read
#: back from its JSON has the same times. The schema is said
#: once more, as what a function returns has lost its format.
Moment = Annotated[
    datetime,
    PlainSerializer(exact_iso_utc, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]


def _stored_moment(microseconds: Any, column: str) -> datetime:
    """
    Return a stored time.

    Raises:
        DatabaseCorrupt: It is no time that was ever written.
    """
    try:
        return to_datetime(microseconds)
    except (TypeError, ValueError, OverflowError) as error:
        raise DatabaseCorrupt(f"a stored time makes no sense: {column}") from error


#: The models of which one was made and serialized.
_used: set[type[BaseModel]] = set()


#: An attribute and its words, in the section of a docstring.
_ATTRIBUTE = re.compile(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", re.MULTILINE)


def _title(name: str, _field: Any) -> str:
    """Return what a field is called for people: `max_rss` is "Max RSS"."""
    words = [{"id": "ID", "rss": "RSS", "cpu": "CPU"}.get(word, word) for word in name.split("_")]
    return words[0][:1].upper() + " ".join(words)[1:]


class _Public(BaseModel):
    """Base of the public models: frozen, camelCase in JSON, times in ISO 8601 UTC with `Z`."""

    model_config: ClassVar[ConfigDict] = ConfigDict(
        frozen=True,
        alias_generator=to_camel,
        populate_by_name=True,
        serialize_by_alias=True,
        extra="ignore",
        defer_build=True,  # the validators are built at the first use, not at import
        field_title_generator=_title,
    )

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: Any) -> dict[str, Any]:
        """Return what a service's documentation says: each field's words stand at the field."""
        shown: dict[str, Any] = handler.resolve_ref_schema(handler(core_schema))
        about, _, attributes = (inspect.getdoc(cls) or "").partition("\nAttributes:\n")
        shown["description"] = about.strip()
        for name, words in _ATTRIBUTE.findall(attributes):
            field = shown.get("properties", {}).get(to_camel(name))
            if field is not None:
                field["description"] = " ".join(words.split())
        return shown

    @classmethod
    @handed_over
    def model_rebuild(cls, **options: Any) -> "bool | None":
        """
        Build the validators; pydantic calls it at the first use.

        No fork comes meanwhile: a lock that is pydantic's for all models is held, and
        a child, which has not the thread that builds, would wait for it for ever.
        """
        with GATE:
            return super().model_rebuild(**options)

    @classmethod
    def _checked(cls, fields: dict[str, Any]) -> "Self":
        """Return a model of these fields, which are those of a stored row."""
        try:
            return cls.model_validate(fields) if cls in _used else cls._first(fields)
        except ValidationError as error:
            # The columns have been checked when they were written, so the file is damaged.
            wrong = ", ".join(".".join(map(str, one["loc"])) for one in error.errors())
            raise DatabaseCorrupt(f"a stored {cls.__name__} makes no sense: {wrong}") from error

    @classmethod
    @handed_over
    def _first(cls, fields: dict[str, Any]) -> "Self":
        """
        Return the first model of its type; no fork comes meanwhile.

        At the first use of a type, and of a serializer, pydantic's native part fills what
        all threads share, and a child forked just then waits for ever for the thread that
        was filling it: 2 of 36 runs of the campaign of forks had one under Python 3.10.

        One of jobcore's own threads holds the gate. A signal handler may interrupt
        the caller and wait for other threads that need it.
        """
        with GATE:
            first = cls.model_validate(fields)
            first.model_dump()
            first.model_dump_json()
            _used.add(cls)
            return first

    @classmethod
    def from_row(cls, row: Any) -> "Self":
        """
        Return the public form of a stored row.

        Raises:
            DatabaseCorrupt: The row holds what was never written.
        """
        return cls._checked(cls._read(row))

    @classmethod
    def _read(cls, row: Any) -> dict[str, Any]:
        fields = dict(row._mapping)  # noqa: SLF001 - SQLAlchemy's public name for it
        for name in cls._moments:
            if fields.get(name) is not None:
                fields[name] = _stored_moment(fields[name], name)
        return fields

    _moments: ClassVar[tuple[str, ...]] = ("created", "last_modified")


class Workspace(_Public):
    """
    What governs pipelines and jobs.

    Attributes:
        id: Version 4 UUID.
        name: What its creator called it.
        properties: The host's own small JSON object, else None.
        created: When it was created, UTC.
        last_modified: When it was changed last, UTC; at first the same.
    """

    id: UUID
    name: str
    properties: dict[str, Any] | None = None
    created: Moment
    last_modified: Moment


class Pipeline(_Public):
    """
    A command that is run again and again, by one job at a time.

    Attributes:
        id: Version 4 UUID.
        workspace_id: The workspace that governs it.
        name: What others name it by in `triggered_by`.
        status: Whether changes to it have been processed; it does not say whether it runs.
        script: What it runs by `/bin/sh -c`, else None: see `command`.
        timeout: Seconds for each job, as `Command.timeout`; None: no limit of its own.
        max_retries: How often a job that ended ERROR is tried again, after pauses of 10, 20,
            40 seconds and so on, up to an hour.
        schedule: When it runs by itself, as cron says it; None: only when asked.
        time_zone: The IANA name of the schedule's time zone; None: UTC.
        catch_up: What becomes of ticks that came while no manager with slots ran: `skip`:
            they are recorded and do not run; `last`: the last of them runs; `all`: each
            runs, one after the other, and so do those that come while it runs.
        late_after: Seconds after which a tick that has not run is one of these.
        next_tick: When the schedule's next run is due, UTC; None: it has none.
        triggered_by: The names, as they are now, of the pipelines after whose COMPLETE it
            runs, else None. A name that no pipeline had when the file was migrated stays.
        properties: The host's own small JSON object, else None.
        created: When it was created, UTC.
        last_modified: When it was changed last, UTC; at first the same.
    """

    id: UUID
    workspace_id: UUID
    name: str
    status: PipelineStatus
    script: str | None = None
    timeout: float | None = None
    max_retries: int = 0
    schedule: str | None = None
    time_zone: str | None = None
    catch_up: Literal["skip", "last", "all"] = "skip"
    late_after: float = 60.0
    next_tick: Moment | None = None
    triggered_by: list[str] | None = None
    properties: dict[str, Any] | None = None
    created: Moment
    last_modified: Moment

    _moments: ClassVar[tuple[str, ...]] = ("created", "last_modified", "next_tick")
    # Not a field: its environment holds secrets, so it is in no JSON and no repr.
    _command: Command | None = PrivateAttr(default=None)

    @property
    def command(self) -> Command | None:
        """What it runs, unless it has a script."""
        return self._command

    @classmethod
    def from_row(cls, row: Any) -> "Self":
        """
        Return the public form of a stored pipeline.

        Args:
            row: A row of the table `pipeline`, all columns, with the names of its sources.

        Raises:
            DatabaseCorrupt: The row holds what was never written.
        """
        fields = cls._read(row)
        fields["triggered_by"] = fields["triggered_by"] or None
        for name in ("catch_up", "late_after"):
            if fields[name] is None:
                del fields[name]  # the default
        made = cls._checked(fields)
        if row.command is not None:
            made._command = Command.from_json(row.command)  # noqa: SLF001 - it is our own
        return made


class Progress(_Public):
    """
    How far a job was, by its own word, which nobody checks.

    Attributes:
        done: How much is done, in whatever it counts; not negative.
        total: Of how much, where it said so; it may be less than what is done, or 0.
        message: What it said beside, one line, else None.
        at: When its supervisor read it, or its host wrote it, UTC.
    """

    done: float
    total: float | None
    message: str | None
    at: Moment

    _moments: ClassVar[tuple[str, ...]] = ("at",)


class Job(_Public):
    """
    One unit of work, as it stood when it was read. Times are UTC.

    Attributes:
        id: Version 4 UUID.
        created: When it was created.
        type: What kind of process it is; executors are registered by it.
        exit_code: What the kernel said, 128 + n for signal n; None where there is no answer.
        status: Where it stands.
        start_time: When it was claimed, or started by its host; None before.
        end_time: When it became final; never before `start_time`.
        number: Its place in the order of creation, and the cursor of pages.
        workspace_id: The workspace that governs it.
        pipeline_id: The pipeline it was created from, else None.
        name: What its creator called it.
        data: The creator's own small JSON.
        reason: Why it is final; None before.
        signal: The signal that killed it, else None.
        attempt: 1, and one more at each retry.
        retry_of: The job that this one repeats, else None.
        not_before: It is not started before, else None.
        env_from: Whose environment its command gets, beside its own `env`: that of the
            `submitter`, or of the `worker` that starts it.
        stop_requested: When somebody asked it to stop, else None.
        progress: What it last reported of its progress, kept when it is final; None: nothing.
        line_count: How many log lines are readable.
        dropped: How many lines were dropped beyond its output limit.
        left_processes: How many processes the command left running when it ended by itself,
            which were then ended; the log names them. None: it is not final, or that is not known.
        cpu_seconds: CPU time of the command and all it waited for, in seconds.
        max_rss: Largest resident set of one of its processes, in bytes. A short
            one's includes the image it was forked from.
    """

    id: UUID
    created: Moment
    type: str
    exit_code: int | None
    status: Status
    start_time: Moment | None
    end_time: Moment | None
    number: int
    workspace_id: UUID
    pipeline_id: UUID | None
    name: str | None
    data: Any
    reason: Reason | None
    signal: int | None
    attempt: int
    retry_of: UUID | None
    not_before: Moment | None
    env_from: Literal["submitter", "worker"]
    stop_requested: Moment | None
    progress: Progress | None
    line_count: int
    dropped: int
    left_processes: int | None
    cpu_seconds: float | None
    max_rss: int | None

    _moments: ClassVar[tuple[str, ...]] = (
        "created", "start_time", "end_time", "not_before", "stop_requested",
    )  # fmt: skip

    @classmethod
    def from_row(cls, row: Any) -> "Self":
        """
        Return the public form of a stored job.

        Args:
            row: A row of the table `job`; of its columns, those of `tables.SHOWN` at least.

        Raises:
            DatabaseCorrupt: The row holds what was never written.
        """
        fields = cls._read(row)
        if fields["progress_at"] is not None:
            said = {name: fields[f"progress_{name}"] for name in Progress.model_fields}
            fields["progress"] = {**said, "at": _stored_moment(said["at"], "progress_at")}
        else:
            fields["progress"] = None
        fields["line_count"] = fields["next_sequence"]
        fields["env_from"] = fields["env_from"] or "worker"
        spent = fields["cpu_us"]
        fields["cpu_seconds"] = spent / 1e6 if isinstance(spent, int) else spent
        return cls._checked(fields)


class ClaimedJob(Job):
    """A job as its executor sees it: with what it was created to run."""

    _command: Command | None = PrivateAttr(default=None)
    _pipeline: Pipeline | None = PrivateAttr(default=None)
    _directory: str | None = PrivateAttr(default=None)

    @property
    def command(self) -> Command | None:
        """The command it was created with, if any."""
        return self._command

    @property
    def directory(self) -> str | None:
        """The path of its directory while it is being started, else None."""
        return self._directory

    @property
    def pipeline(self) -> Pipeline | None:
        """The pipeline it was created from, if any."""
        return self._pipeline

    @classmethod
    def from_rows(cls, row: Any, pipeline_row: Any | None, directory: str | None = None) -> "Self":
        """
        Return the form for executors of a stored job.

        Args:
            row: A row of the table `job`, all columns.
            pipeline_row: The row of its pipeline, else None.
            directory: The path of its directory, where there is one.

        Raises:
            DatabaseCorrupt: A row holds what was never written.
        """
        made = cls.from_row(row)
        if row.command is not None:
            made._command = Command.from_json(row.command)  # noqa: SLF001 - it is our own
        if pipeline_row is not None:
            made._pipeline = Pipeline.from_row(pipeline_row)  # noqa: SLF001 - it is our own
        made._directory = directory  # noqa: SLF001 - it is our own
        return made


class Skip(_Public):
    """
    A run of a pipeline that was to be, and was not; it is not made up for.

    Attributes:
        due: When it was to be, UTC.
        why: `schedule` or `triggered`: the pipeline was running. `missed`: no
            manager with slots was there to see it.
        count: How many runs of one cause this stands for; `due` is when the last was to be.
        job_id: The job that was in the way, else None.
    """

    due: Moment
    why: str
    count: int
    job_id: UUID | None

    _moments: ClassVar[tuple[str, ...]] = ("due",)


class Transition(_Public):
    """
    One entry of a job's history.

    Attributes:
        at: When it was written, UTC.
        trigger: What happened.
        from_status: Where the job stood before; None: it was just created.
        to_status: Where it stood then. A `stop` asks, so both are RUNNING.
        reason: Why it became final; None where it did not.
        actor: The process that wrote it, such as `pid 4711`.
    """

    at: Moment
    trigger: Trigger
    from_status: Status | None
    to_status: Status
    reason: Reason | None
    actor: str | None

    _moments: ClassVar[tuple[str, ...]] = ("at",)


class Finding(_Public):
    """
    What one check of a database found.

    Attributes:
        check: What was looked at, in a word or two.
        verdict: `ok`; `note`: what the next manager puts right, or what is good
            to know; `wrong`: what is not as it must be.
        detail: What was found, in a line.
    """

    check: str
    verdict: Literal["ok", "note", "wrong"]
    detail: str


class Event(_Public):
    """
    One transition of one job, as the feed of all jobs has it.

    Attributes:
        id: Its number in the feed: larger than that of every event committed before.
        job_id: The job.
        job_number: Its place in the order of creation.
        type: What kind of process the job is.
        name: What the job's creator called it, else None.
        workspace_id: The workspace that governs it.
        pipeline_id: The pipeline it was created from, else None.
        at: When it happened, UTC, by the clock of who wrote it. Order is the id's matter.
        trigger: What happened.
        from_status: Where the job stood before; None at its creation.
        to_status: Where it stood then; a `stop` leads from RUNNING to RUNNING.
        reason: Why it became final, else None.
        exit_code: As `Job.exit_code`, where it became final, else None.
        signal: As `Job.signal`, where it became final, else None.
        actor: The process that wrote it.
    """

    id: int
    job_id: UUID
    job_number: int
    type: str
    name: str | None
    workspace_id: UUID
    pipeline_id: UUID | None
    at: Moment
    trigger: Trigger
    from_status: Status | None
    to_status: Status
    reason: Reason | None
    exit_code: int | None
    signal: int | None
    actor: str | None

    @classmethod
    def from_entry(cls, entry: Any) -> "Self":
        """
        Return the public form of an entry of the history.

        Args:
            entry: As the feed reads it.

        Raises:
            DatabaseCorrupt: The row holds what was never written.
        """
        fields = entry._asdict()  # the named tuple's public name for it
        fields["at"] = _stored_moment(entry.at, "at")
        return cls._checked(fields)


class _Facts:
    """The facts of a line while it is made: the line itself cannot be changed."""

    __slots__ = ("partial", "raw", "sequence", "stream", "time_ns")

    sequence: int | None
    time_ns: int
    stream: str
    raw: bytes
    partial: bool


@final
class LogLine(_Facts):
    """
    One line of a job's log: a numbered one, or one that the job has not finished yet.

    A prompt or a progress bar is text without a newline. It has no number until its line
    ends, a `system` line follows it, or the job ends. Until then `sequence` is None,
    `unfinished` and `partial` are true, and `raw` is all that was written since the last
    numbered line of the stream. The next line of the same stream *replaces* it: a longer
    unfinished one, or a numbered one that begins with the same bytes. Numbered lines never
    change, so store these, and go on from the number behind the last of them.

    Attributes:
        sequence: 0-based and dense within the job; None: the line is unfinished.
        time_ns: When its supervisor read it, nanoseconds since 1970; see `timestamp`. Of a
            line that took longer than a quarter of a second, when its beginning was read.
        stream: `output` (stdout and stderr as they were written), `stdout`,
            `stderr`, or `system` for jobcore's own words, which no job can fake.
        raw: The bytes, with their terminator.
        partial: This is one piece of a longer line, which the next line of the same stream
            goes on with: one of another may lie between them, and where the output limit
            or the command's end came first, there is none. A line is cut into pieces
            of 64 KiB, and where a `system` line follows an unfinished one.

    `dict(line)` is `to_object()`. JSON has no bytes, so a line is not read back from it.
    """

    # Not a model, as a log has millions of them, and not a tuple, which JSON makes an array of.
    __slots__ = ()
    __match_args__ = ("sequence", "time_ns", "stream", "raw", "partial")

    def __new__(
        cls,
        sequence: int | None,
        time_ns: int,
        stream: str,
        raw: bytes,
        partial: bool = False,
    ) -> "LogLine":
        """Return a line; see the attributes."""
        self = _Facts()
        self.sequence = sequence
        self.time_ns = time_ns
        self.stream = stream
        self.raw = raw
        self.partial = partial
        # Setting each by `object.__setattr__` would take twice as long.
        self.__class__ = cls
        return cast("LogLine", self)

    def __setattr__(self, name: str, _value: object) -> None:
        """Refuse: a line that was read does not change."""
        raise AttributeError(f"a LogLine cannot be changed: {name}")

    def __delattr__(self, name: str) -> None:
        """Refuse: a line that was read does not change."""
        raise AttributeError(f"a LogLine cannot be changed: {name}")

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        """Iterate over the pairs of `to_object`, as a pydantic model does over its own."""
        return iter(self.to_object().items())

    def __eq__(self, other: object) -> bool:
        """Tell whether number, time, stream, bytes and mark are the same."""
        if not isinstance(other, LogLine):
            return NotImplemented
        return _facts_of(self) == _facts_of(other)

    def __hash__(self) -> int:
        """Return the same for equal lines."""
        return hash(_facts_of(self))

    def __reduce__(self) -> tuple[type["LogLine"], tuple[Any, ...]]:
        """Have a line pickled and copied."""
        return LogLine, _facts_of(self)

    @property
    def unfinished(self) -> bool:
        """Whether the job has not finished this line; see above."""
        return self.sequence is None

    @property
    def timestamp(self) -> datetime:
        """When its supervisor read it, UTC; lines read together have one time stamp."""
        return to_datetime(self.time_ns // 1000)

    @property
    def text(self) -> str:
        """The line without one LF or CRLF, as UTF-8 with replacement characters."""
        raw = self.raw
        if raw.endswith(b"\n"):
            raw = raw[:-2] if raw.endswith(b"\r\n") else raw[:-1]
        return raw.decode("utf-8", "replace")

    @property
    def fields(self) -> dict[str, Any] | None:
        """
        The JSON object that the text is, as programs with structured logs write them, else None.

        Never raises. An unfinished line has none, nor has a piece that is gone on with (the
        last piece of a long line is read by itself), nor an object that cannot be read
        without loss: with a key twice, NaN, a number or a nesting beyond all bounds.
        """
        return None if self.partial else object_in(self.text)

    def to_object(self) -> dict[str, Any]:
        """Return the line as `wire.ndjson` sends it: an object for JSON, with its text."""
        return line_object(self, iso_utc(self.timestamp))

    def __repr__(self) -> str:
        """Show number, stream and the beginning of the text."""
        return f"LogLine({self.sequence}, {self.stream}, {self.text[:80]!r})"

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: Any) -> Any:
        """Have pydantic, and so FastAPI, take a line as it is, and make an object of it in JSON."""
        from pydantic_core import core_schema  # noqa: PLC0415 - for those who put lines in models

        return core_schema.is_instance_schema(
            cls,
            serialization=core_schema.plain_serializer_function_ser_schema(
                cls.to_object, when_used="json"
            ),
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, _schema: Any, _handler: Any) -> dict[str, Any]:
        """Return what a service's documentation says of a line."""
        return {
            "type": "object",
            "title": cls.__name__,
            "properties": {
                "sequence": {"type": "integer", "minimum": 0},
                "timestamp": {"type": "string", "format": "date-time"},
                "stream": {"type": "string", "enum": ["output", "stdout", "stderr", "system"]},
                "message": {"type": "string"},
                "partial": {"type": "boolean"},
                "unfinished": {"type": "boolean"},
                "fields": {"type": "object", "additionalProperties": True},
            },
            "required": ["timestamp", "stream", "message"],  # an unfinished line has no number
        }


_facts_of: Callable[[LogLine], tuple[Any, ...]] = operator.attrgetter(*LogLine.__match_args__)


def line_object(line: LogLine, timestamp: str) -> dict[str, Any]:
    """Return a line as an object for JSON; `timestamp` is its own, in that form."""
    message = line.text
    found: dict[str, Any] = {
        "sequence": line.sequence,
        "timestamp": timestamp,
        "stream": line.stream,
        "message": message,
    }
    if line.unfinished:
        del found["sequence"]
        found["unfinished"] = True
    elif line.partial:
        found["partial"] = True
    elif (fields := object_in(message)) is not None:
        found["fields"] = fields
    return found
