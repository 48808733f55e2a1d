"""
Models: the values that callers receive.

They are frozen: each shows what was stored when it was read, and never changes.
"""

import inspect
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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

from jobcore.clock import SystemClock, exact_iso_utc, iso_utc, to_datetime
from jobcore.command import Command, CommandView
from jobcore.embedding.locks import GATE
from jobcore.embedding.worker import handed_over
from jobcore.errors import DatabaseCorrupt
from jobcore.hooks import stored_hooks
from jobcore.lifecycle import PipelineStatus, Reason, Status, Trigger
from jobcore.retries import Retries
from jobcore.structured_lines import object_in

if TYPE_CHECKING:
    from typing_extensions import Self


#: A moment. In JSON it is ISO 8601 in UTC with microseconds and `Z`, so that a model read back
#: from its JSON has the same times. The schema is given again because the serializer, which
#: returns a text, loses the format.
Moment = Annotated[
    datetime,
    PlainSerializer(exact_iso_utc, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]


def _camel_case(name: str) -> str:
    """Return the name of a field in JSON: `created_at` becomes `createdAt`."""
    first, *others = name.split("_")
    return first + "".join(other.capitalize() for other in others)


def _stored_moment(microseconds: Any, column: str) -> datetime:
    """
    Return a stored time as a datetime.

    Raises:
        DatabaseCorrupt: It is not a valid time.
    """
    try:
        return to_datetime(microseconds)
    except (TypeError, ValueError, OverflowError) as error:
        raise DatabaseCorrupt(f"a stored time is invalid: {column}") from error


#: The columns of fields that have another name.
_COLUMNS: dict[str | int, str] = {"group": "group_name"}

#: The model classes of which one instance was made and serialized.
_used: set[type[BaseModel]] = set()


#: An attribute and its description, in the `Attributes` section of a docstring.
_ATTRIBUTE = re.compile(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", re.MULTILINE)


def _title(name: str, _field: Any) -> str:
    """Return the title of a field, for people: `max_rss` is "Max RSS"."""
    words = [{"id": "ID", "rss": "RSS", "cpu": "CPU"}.get(word, word) for word in name.split("_")]
    return words[0][:1].upper() + " ".join(words)[1:]


class _Public(BaseModel):
    """Base of the public models: frozen, camelCase in JSON, times in ISO 8601 UTC with `Z`."""

    model_config: ClassVar[ConfigDict] = ConfigDict(
        frozen=True,
        alias_generator=_camel_case,
        populate_by_name=True,
        serialize_by_alias=True,
        extra="ignore",
        defer_build=True,  # the validators are built at the first use, not at import
        field_title_generator=_title,
    )

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: Any) -> dict[str, Any]:
        """Return the JSON schema, with each field's description taken from the docstring."""
        shown: dict[str, Any] = handler.resolve_ref_schema(handler(core_schema))
        about, _, attributes = (inspect.getdoc(cls) or "").partition("\nAttributes:\n")
        shown["description"] = about.strip()
        for name, words in _ATTRIBUTE.findall(attributes):
            field = shown.get("properties", {}).get(_camel_case(name))
            if field is not None:
                field["description"] = " ".join(words.split())
        return shown

    @classmethod
    @handed_over
    def model_rebuild(cls, **options: Any) -> "bool | None":
        """
        Build the validators; pydantic calls this at the first use.

        The gate keeps forks out meanwhile. Pydantic holds a lock for all models here, and
        a forked child, which lacks the thread that builds, would wait for it for ever.
        """
        with GATE:
            return super().model_rebuild(**options)

    @classmethod
    def _checked(cls, fields: dict[str, Any]) -> "Self":
        """Return a model of the fields of a stored row."""
        try:
            return cls.model_validate(fields) if cls in _used else cls._first(fields)
        except ValidationError as error:
            # The columns were checked when they were written, so the file is damaged.
            wrong = ", ".join(
                ".".join(_COLUMNS.get(one, str(one)) for one in each["loc"])
                for each in error.errors()
            )
            raise DatabaseCorrupt(f"a stored {cls.__name__} is invalid: {wrong}") from error

    @classmethod
    @handed_over
    def _first(cls, fields: dict[str, Any]) -> "Self":
        """
        Return the first model of its type, while the gate keeps forks out.

        At the first use of a type, and of a serializer, pydantic's native part fills caches
        that all threads share. A child forked at that moment waits for ever for the thread
        that fills them: under Python 3.10, this happened in 2 of 36 runs of a fork test.

        One of jobcore's own threads takes the gate, not the caller: a signal handler may
        interrupt the caller and wait for other threads that need the gate.
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
            DatabaseCorrupt: The row holds an invalid value.
        """
        return cls._checked(cls._read(row._mapping))  # noqa: SLF001 - SQLAlchemy's public name for it

    @classmethod
    def _read(cls, columns: Mapping[str, Any]) -> dict[str, Any]:
        fields = dict(columns)
        for name in cls._moments:
            if fields.get(name) is not None:
                fields[name] = _stored_moment(fields[name], name)
        return fields

    _moments: ClassVar[tuple[str, ...]] = ("created", "last_modified")


class Workspace(_Public):
    """
    A container for pipelines and jobs.

    Attributes:
        id: Version 4 UUID.
        name: The name that its creator gave it.
        properties: The host's own small JSON object, or None.
        created: When it was created, UTC.
        last_modified: When it was last changed, UTC; at first the same as `created`.
    """

    id: UUID
    name: str
    properties: dict[str, Any] | None = None
    created: Moment
    last_modified: Moment


class Pipeline(_Public):
    """
    A command or script that is run again and again, by one job at a time.

    Attributes:
        id: Version 4 UUID.
        workspace_id: The workspace that it belongs to.
        name: Its name, by which other pipelines refer to it in `triggered_by`.
        status: Whether changes to it have been processed; not whether it is running.
        script: The script that it runs with `/bin/sh -c`; None: it runs `command`.
        timeout: Seconds for each job, as `Command.timeout`; None: no limit for each job.
        max_retries: How often a job that ended ERROR is tried again, after pauses of 10, 20,
            40 seconds and so on, up to an hour, unless `retries` says otherwise.
        retries: After which endings, and after what pauses, a job is tried again; None: as
            `max_retries` describes.
        schedule: The cron expression by which it runs; None: it runs only on demand.
        time_zone: The IANA name of the schedule's time zone; None: UTC.
        catch_up: What happens to missed ticks, those that came while no manager with slots ran.
            `skip`: they are recorded and do not run. `last`: the last of them runs. `all`: each
            runs, one after the other, and so do ticks that come while it is running.
        late_after: Seconds after which a tick that has not run counts as missed.
        next_tick: When the schedule's next run is due, UTC; None: there is none.
        triggered_by: The current names of its sources: each time one of these pipelines is
            COMPLETE, it runs. None: it has none. A name that matched no pipeline when the
            file was migrated is kept.
        requires: The current names of the pipelines that it requires: it runs each time all of them
            have been COMPLETE since its last set. None: it has none.
        group: The group of its jobs, or None.
        paused: Since when its schedule is paused, UTC; None: it is not.
        properties: The host's own small JSON object, or None.
        created: When it was created, UTC.
        last_modified: When it was last changed, UTC; at first the same as `created`.
    """

    id: UUID
    workspace_id: UUID
    name: str
    status: PipelineStatus
    script: str | None = None
    timeout: float | None = None
    max_retries: int = 0
    retries: Retries | None = None
    schedule: str | None = None
    time_zone: str | None = None
    catch_up: Literal["skip", "last", "all"] = "skip"
    late_after: float = 60.0
    next_tick: Moment | None = None
    triggered_by: list[str] | None = None
    requires: list[str] | None = None
    group: str | None = None
    paused: Moment | None = None
    properties: dict[str, Any] | None = None
    created: Moment
    last_modified: Moment

    _moments: ClassVar[tuple[str, ...]] = ("created", "last_modified", "next_tick", "paused")
    # Not a field, so it is in no JSON and no repr: its environment may hold secrets.
    _command: Command | None = PrivateAttr(default=None)
    _hooks: str | None = PrivateAttr(default=None)  # likewise, as they are stored

    @property
    def command(self) -> Command | None:
        """The command that it runs; None if it has a script."""
        return self._command

    @property
    def hooks(self) -> Mapping[str, Sequence[Command]]:
        """
        What runs after its jobs, by `on_complete`, `on_error` and `on_stopped`.

        Raises:
            DatabaseCorrupt: They are stored as something else.
        """
        return stored_hooks(self._hooks)

    @classmethod
    def from_row(cls, row: Any) -> "Self":
        """
        Return the public form of a stored pipeline.

        Args:
            row: A row of the table `pipeline`, all columns, with the names of its sources.

        Raises:
            DatabaseCorrupt: The row holds an invalid value.
        """
        fields = cls._read(row._mapping)  # noqa: SLF001 - SQLAlchemy's public name for it
        fields["triggered_by"] = fields["triggered_by"] or None
        fields["requires"] = fields["requires"] or None
        fields["group"] = fields["group_name"]
        for name in ("catch_up", "late_after"):
            if fields[name] is None:
                del fields[name]  # the default
        if fields["retries"] is not None:
            fields["retries"] = Retries.from_json(fields["retries"])
        made = cls._checked(fields)
        if row.command is not None:
            made._command = Command.from_json(row.command)  # noqa: SLF001 - it is our own
        made._hooks = row.hooks  # noqa: SLF001 - likewise
        return made


class Change(_Public):
    """
    What `JobManager.apply` changed about a pipeline, or would change.

    Attributes:
        action: `create`, `update` or `delete`.
        name: The name of the pipeline.
        pipeline_id: Its id; None: a dry run would create it.
        fields: For each field that differs, the value before and after; None: no value. The value
            of a variable of its environment is shown as `***`.
    """

    action: Literal["create", "update", "delete"]
    name: str
    pipeline_id: UUID | None
    fields: dict[str, tuple[Any, Any]]


class Imported(_Public):
    """
    What `JobManager.import_jobs` did.

    Attributes:
        created: How many jobs it created.
        existing: How many it left alone, because the file has jobs with their ids.
        skipped: How many it left out, because they had not ended, or the export was cut off.
    """

    created: int
    existing: int
    skipped: int


class Retention(_Public):
    """
    A rule by which managers with slots remove final jobs.

    Attributes:
        statuses: The final statuses that it is for.
        keep: Seconds for which each of these jobs is kept after its end.
        count: How many of the newest of these jobs are kept in any case; None: no job.
    """

    statuses: list[Status]
    keep: float
    count: int | None


class Backup(_Public):
    """
    A backup that `JobManager.backup` wrote.

    Attributes:
        path: The file; beside it is the directory `<path>.jobs`, which belongs to it.
        size: Bytes of the file.
        jobs: How many jobs it has of each status. A job that was RUNNING ends as lost where
            the backup is restored.
        pipelines: How many pipelines it has.
    """

    path: str
    size: int
    jobs: dict[Status, int]
    pipelines: int


class Statistics(_Public):
    """
    Numbers about a file, as `JobManager.statistics` returns them.

    Attributes:
        at: When they were taken, UTC.
        since: The start of the period that `ended`, `reasons`, `durations` and `waits` are about,
            UTC. If more than 10,000 jobs ended in the window, it is the end of the first job that
            was counted.
        created: How many jobs were ever created, including deleted ones.
        jobs: How many jobs there are of each status.
        ended: How many jobs ended in this period, by final status.
        reasons: The same by reason.
        durations: Seconds from start to end of the jobs that ended in it, by quantile:
            `0.5` (the median), `0.9`, `0.99` and `1` (the longest). Empty: there are none.
        waits: Seconds for which these jobs waited for their start, by quantile. They count
            from the creation, or from `not_before` if that is later.
        queue_age: Seconds for which the oldest queued job that may start has been waiting;
            None: there is none. It looks at the first 100 only.
        running_age: Seconds for which the longest running job has been running; None: no job runs.
        file_size: Bytes of the database file.
        log_size: Bytes of its write-ahead log.
        free_size: Bytes of the file that are free for new rows.
    """

    at: Moment
    since: Moment
    created: int
    jobs: dict[Status, int]
    ended: dict[Status, int]
    reasons: dict[Reason, int]
    durations: dict[str, float]
    waits: dict[str, float]
    queue_age: float | None
    running_age: float | None
    file_size: int
    log_size: int
    free_size: int


class Progress(_Public):
    """
    The progress of a job, as it reported it; jobcore does not check the numbers.

    Attributes:
        done: How much is done, in the job's own unit; not negative.
        total: How much there is to do, if the job said so, else None. It may be 0, and
            it may be smaller than `done`.
        message: One line for people, or None.
        at: When its supervisor read the report, or its host wrote it, UTC.
    """

    done: float
    total: float | None
    message: str | None
    at: Moment

    _moments: ClassVar[tuple[str, ...]] = ("at",)


class Usage(_Public):
    """
    What the processes of a running job use at one moment.

    Attributes:
        cpu_seconds: CPU time so far, of the processes that run now and of those that they have
            started and waited for. `Job.cpu_seconds` counts all, when the job has ended.
        rss: Resident memory of all of them, in bytes. Memory that processes share is counted
            for each.
        processes: How many processes run now.
    """

    cpu_seconds: float
    rss: int
    processes: int


class Job(_Public):  # noqa: PLW1641 - pydantic adds the hash of the fields
    """
    One unit of work, as it was stored when it was read. Times are UTC.

    Attributes:
        id: Version 4 UUID.
        created: When it was created.
        type: What kind of work it is; executors are registered by type.
        exit_code: The exit code that the kernel reported, 128 + n for signal n; None: there
            is none.
        status: Its status.
        start_time: When it was claimed, or started by its host; None before.
        end_time: When it became final, never before `start_time`; None before.
        number: Its place in the order of creation, and the cursor of `list_jobs`.
        workspace_id: The workspace that it belongs to.
        pipeline_id: The pipeline that it was created from, or None.
        name: The name that its creator gave it, or None.
        data: The creator's own small JSON.
        reason: Why it is final; None before.
        signal: The number of the signal that killed it, or None.
        attempt: 1, and one higher for each retry.
        retry_of: The job that this one repeats, or None.
        not_before: The earliest time at which it starts, or None.
        env_from: Which environment its command gets, in addition to its own `env`: that of
            the `submitter`, or of the `worker` that starts it.
        stop_requested: When it was asked to stop, or None.
        progress: Its last report of progress, kept when it is final; None: there was none.
        line_count: How many log lines can be read.
        dropped: How many lines beyond its output limit were dropped.
        left_processes: How many processes the command left running when it ended by itself.
            They were then ended, and the log names them. None: the job is not final, or the
            number is not known.
        cpu_seconds: CPU time of the command and of the processes that it waited for, in
            seconds.
        max_rss: Largest resident set of any one of its processes, in bytes. For a very short
            process it includes the image of the process that forked it.
        key: The key that its creator gave it, or None.
        priority: Jobs with a higher priority start first.
        group: The group whose limit it counts for, or None.
        expires: When it is cancelled if it has not started, or None.
        hook_of: The job whose end it reports, or None.
        run_if: How the jobs that it depends on have to end; None: it depends on no job.
        retries: How often it is tried again; None: as its pipeline says, or never.
        next_attempt: When it starts at the earliest, if it is a retry in the queue, else None.
        waits_for: What a QUEUED job waits for besides a free slot: `time` (see `not_before`),
            `dependencies`, `limit` (it has no room) or `paused`; None: nothing, or the
            job is not QUEUED.
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
    key: str | None
    priority: int
    group: str | None
    expires: Moment | None
    hook_of: UUID | None
    run_if: Literal["complete", "ended", "failed"] | None
    retries: Retries | None
    next_attempt: Moment | None
    waits_for: Literal["time", "dependencies", "limit", "paused"] | None

    _moments: ClassVar[tuple[str, ...]] = (
        "created", "start_time", "end_time", "not_before", "stop_requested", "expires",
    )  # fmt: skip

    # Not a field, so it is in no JSON and no repr: services return jobs as they are.
    _view: CommandView | None = PrivateAttr(default=None)

    @property
    def command(self) -> CommandView | None:
        """What it runs, as it can be shown; None: it is a task, or runs its pipeline's command."""
        return self._view

    def __eq__(self, other: object) -> bool:
        """Tell whether all fields are the same; a job that was read from JSON has no `command`."""
        if type(self) is not type(other):
            return NotImplemented
        return self.__dict__ == other.__dict__

    @property
    def duration(self) -> float | None:
        """Seconds from its start to its end; None: it is not final, or it never started."""
        if self.start_time is None or self.end_time is None:
            return None
        return (self.end_time - self.start_time).total_seconds()

    @classmethod
    def from_row(cls, row: Any, now: int | None = None) -> "Self":
        """
        Return the public form of a stored job.

        Args:
            row: A row of the table `job`, or its values by column, with at least the columns
                of `tables.SHOWN`.
            now: Microseconds since 1970, for `waits_for`; None: by the machine's clock.

        Raises:
            DatabaseCorrupt: The row holds an invalid value.
        """
        fields = cls._read(getattr(row, "_mapping", row))
        if fields["progress_at"] is not None:
            progress = {name: fields[f"progress_{name}"] for name in Progress.model_fields}
            fields["progress"] = {**progress, "at": _stored_moment(progress["at"], "progress_at")}
        else:
            fields["progress"] = None
        fields["line_count"] = fields["next_sequence"]
        fields["env_from"] = fields["env_from"] or "worker"
        spent = fields["cpu_us"]
        if not isinstance(spent, int | None):
            raise DatabaseCorrupt("a stored Job is invalid: cpu_us")
        fields["cpu_seconds"] = None if spent is None else spent / 1e6
        fields["group"] = fields["group_name"]
        if fields["retries"] is not None:
            fields["retries"] = Retries.from_json(fields["retries"])
        is_queued = fields["status"] == Status.QUEUED
        fields["waits_for"] = _cause_of_waiting(fields, now) if is_queued else None
        is_waiting_retry = is_queued and fields["retry_of"] is not None
        fields["next_attempt"] = fields["not_before"] if is_waiting_retry else None
        made = cls._checked(fields)
        if cls is Job:  # executors get all of it
            made._view = CommandView.from_json(fields.get("command"))  # noqa: SLF001 - it is our own
        return made


def _cause_of_waiting(fields: Mapping[str, Any], now: int | None) -> str | None:
    """Return `Job.waits_for` of a QUEUED job."""
    if fields["unmet"]:
        return "dependencies"
    due = fields["not_before"]
    if due is None:
        return None
    moment = to_datetime(SystemClock().now() if now is None else now)
    return "time" if due > moment else None


class ClaimedJob(Job):
    """A job as its executor gets it: with its command and its pipeline."""

    _command: Command | None = PrivateAttr(default=None)
    _pipeline: Pipeline | None = PrivateAttr(default=None)
    _directory: str | None = PrivateAttr(default=None)

    @property
    def command(self) -> Command | None:  # type: ignore[override]  # all of it, for its executor
        """The command that it was created with, or None."""
        return self._command

    @property
    def directory(self) -> str | None:
        """The path of its job directory while it is being started, else None."""
        return self._directory

    @property
    def pipeline(self) -> Pipeline | None:
        """The pipeline that it was created from, or None."""
        return self._pipeline

    @classmethod
    def from_rows(cls, row: Any, pipeline_row: Any | None, directory: str | None = None) -> "Self":
        """
        Return a stored job in the form for executors.

        Args:
            row: A row of the table `job`, all columns.
            pipeline_row: The row of its pipeline, or None.
            directory: The path of its job directory, or None.

        Raises:
            DatabaseCorrupt: A row holds an invalid value.
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
    A run of a pipeline that was due but did not take place, and will not be caught up.

    Attributes:
        due: When it was due, UTC.
        why: `schedule` or `triggered`: the pipeline was already running when the schedule or
            a source would have started it. `missed`: no manager with slots was open,
            or the schedule was changed before the run could start.
        count: How many runs with the same cause this entry stands for; `due` is the last's.
        job_id: The job that was running, or None.
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
        from_status: The status before; None: the job was created.
        to_status: The status after. A `stop` is only a request, so both are RUNNING.
        reason: Why the job became final; None if it did not.
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
    The result of one check of a database.

    Attributes:
        check: What was checked, in a word or two.
        verdict: `ok`. `note`: worth knowing, or the next manager will put it right.
            `wrong`: you must act.
        detail: What was found, in one line.
    """

    check: str
    verdict: Literal["ok", "note", "wrong"]
    detail: str


class Limit(_Public):
    """
    How many jobs of the file, of a group or of a type may run at once.

    Attributes:
        scope: What is limited.
        name: The name of the group or type; None for the file.
        slots: How many jobs may run at once, over all managers and tasks; None: any number.
        paused: Since when it is paused, UTC; None: it is not.
        running: How many of its jobs are RUNNING.
        queued: How many are QUEUED; of a group, at most 1,000 are counted.
    """

    scope: Literal["file", "group", "type"]
    name: str | None
    slots: int | None
    paused: Moment | None
    running: int
    queued: int


class Event(_Public):
    """
    One transition of one job, as `events` and `subscribe` report it.

    Attributes:
        id: Its number among all events: larger than that of every event committed before.
        job_id: The job.
        job_number: The job's place in the order of creation.
        type: What kind of work the job is.
        name: The name that the job's creator gave it, or None.
        key: The key that the job's creator gave it, or None.
        group: The group whose limit the job counts for, or None.
        workspace_id: The workspace that the job belongs to.
        pipeline_id: The pipeline that the job was created from, or None.
        at: When it happened, UTC, by the clock of the process that wrote it. To order events,
            use `id`.
        trigger: What happened.
        from_status: The status before; None: the job was created.
        to_status: The status after; a `stop` leads from RUNNING to RUNNING.
        reason: Why the job became final; None if it did not.
        exit_code: As `Job.exit_code` if the job became final, else None.
        signal: As `Job.signal` if the job became final, else None.
        actor: The process that wrote it.
    """

    id: int
    job_id: UUID
    job_number: int
    type: str
    name: str | None
    key: str | None
    group: str | None
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
            entry: A named tuple, as `storage.history` reads it.

        Raises:
            DatabaseCorrupt: The row holds an invalid value.
        """
        fields = entry._asdict()  # the named tuple's public name for it
        fields["at"] = _stored_moment(entry.at, "at")
        return cls._checked(fields)


class _Facts:
    """The attributes of a line while it is being made; a finished `LogLine` is immutable."""

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
    change: store only these, and continue from the number after the last of them.

    Attributes:
        sequence: The line's number, from 0 and without gaps within the job; None: the line
            is unfinished.
        time_ns: When its supervisor read it, nanoseconds since 1970; see `timestamp`. For a
            line that took longer than a quarter of a second: when its beginning was read.
        stream: `output` (stdout and stderr in the order of writing), `stdout`, `stderr`, or
            `system` for jobcore's own messages, which no job can fake.
        raw: The bytes, including the line end.
        partial: Whether this is a piece of a longer line that the next line of the same
            stream continues. Lines of other streams may come in between. There is no next
            piece if the output limit or the end of the command came first. A line is cut
            into pieces of 64 KiB, and also where a `system` line interrupts it.

    `dict(line)` is `to_object()`. JSON has no bytes, so a line cannot be read back from it.
    """

    # Not a model, because a log may have millions of lines. Not a tuple, because JSON would
    # make an array of it.
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
        """Return a line with these attributes."""
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
        """Tell whether all attributes are the same."""
        if not isinstance(other, LogLine):
            return NotImplemented
        return _facts_of(self) == _facts_of(other)

    def __hash__(self) -> int:
        """Return a hash, the same for equal lines."""
        return hash(_facts_of(self))

    def __reduce__(self) -> tuple[type["LogLine"], tuple[Any, ...]]:
        """Support pickling and copying."""
        return LogLine, _facts_of(self)

    @property
    def unfinished(self) -> bool:
        """Whether the job has not finished this line yet."""
        return self.sequence is None

    @property
    def timestamp(self) -> datetime:
        """When its supervisor read it, UTC; lines read together have the same time."""
        return to_datetime(self.time_ns // 1000)

    @property
    def text(self) -> str:
        """The line as UTF-8 text without its LF or CRLF; invalid bytes are replaced by U+FFFD."""
        return text_of(self.raw)

    @property
    def fields(self) -> dict[str, Any] | None:
        """
        The JSON object in a line of a structured log; None if the text is anything else.

        Never raises. It is also None for an unfinished line, for a piece of a longer line
        (but the last piece is parsed by itself), and for an object that would lose
        information when parsed: with a duplicate key, NaN, a number too large for a float,
        or nesting that is too deep.
        """
        return None if self.partial else object_in(self.text)

    def to_object(self) -> dict[str, Any]:
        """Return the line as `wire.ndjson` sends it: a JSON object with the decoded text."""
        return line_object(self, iso_utc(self.timestamp))

    def __repr__(self) -> str:
        """Return a text with number, stream and the beginning of the line."""
        return f"LogLine({self.sequence}, {self.stream}, {self.text[:80]!r})"

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: Any) -> Any:
        """Make pydantic, and so FastAPI, accept a line as it is and serialize it as an object."""
        from pydantic_core import core_schema  # noqa: PLC0415 - for those who put lines in models

        return core_schema.is_instance_schema(
            cls,
            serialization=core_schema.plain_serializer_function_ser_schema(
                cls.to_object, when_used="json"
            ),
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, _schema: Any, _handler: Any) -> dict[str, Any]:
        """Return the JSON schema of a line, for the documentation of a service."""
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


def text_of(raw: bytes) -> str:
    """Return the `text` of a line with these bytes."""
    if raw.endswith(b"\n"):
        raw = raw[:-2] if raw.endswith(b"\r\n") else raw[:-1]
    return raw.decode("utf-8", "replace")


def log_lines(
    first: int, time_ns: int, stream: str, raw_lines: Iterable[bytes], partial: bool
) -> list[LogLine]:
    """Return consecutive lines that differ only in their bytes; `first` is the first's number."""
    found: list[Any] = []
    # As in `LogLine.__new__`. A call of it for each line would take twice as long.
    for sequence, raw in enumerate(raw_lines, first):
        line = _Facts()
        line.sequence = sequence
        line.time_ns = time_ns
        line.stream = stream
        line.raw = raw
        line.partial = partial
        line.__class__ = LogLine
        found.append(line)
    return found


def line_object(line: LogLine, timestamp: str) -> dict[str, Any]:
    """Return a line as a JSON object; `timestamp` is the line's own, already formatted."""
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
