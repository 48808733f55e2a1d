"""
The tables. Only storage uses them; callers see `models`.

Comments at the columns say who writes them, and when. This module does not postpone
annotations (`from __future__`), because evaluating them from text doubled its import
time. SQLite's own options are in `info`, where `schema` reads them. Passing them to
SQLAlchemy here would import its SQLite dialect, with ten modules.
"""

from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    Column,
    ColumnElement,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    and_,
    between,
    case,
    column,
    exists,
    func,
    literal_column,
    null,
    text,
)
from sqlalchemy import table as lightweight
from sqlalchemy.orm import registry
from sqlmodel import Field, SQLModel

from jobcore import lifecycle
from jobcore.errors import DatabaseCorrupt


class Id(Uuid[UUID]):
    """A UUID, stored as 32 hex digits. Reading anything else raises `DatabaseCorrupt`."""

    def result_processor(self, dialect: Any, coltype: Any) -> Any:
        """Return the function that converts a stored value to a UUID."""
        process = super().result_processor(dialect, coltype)  # type: ignore[no-untyped-call]

        def checked(value: Any) -> Any:
            try:
                return process(value)
            except (ValueError, TypeError, AttributeError) as error:
                raise DatabaseCorrupt("a stored ID is not a valid UUID") from error

        return checked if process is not None else None


class _Row(SQLModel, registry=registry()):
    """Base of the tables. It has its own metadata, so a host's `create_all` ignores them."""

    # Only the tables are used, so build neither the models' validators nor, by SQLAlchemy's mark
    # for classes that are mapped later, their mappers.
    model_config = {"defer_build": True}
    _sa_decl_prepare: ClassVar[bool] = True

    __table__: ClassVar[Table]


def _moment() -> Any:
    """Return a column for wall time, in integer microseconds since 1970."""
    return Column(BigInteger)


def _owner(table: str, **options: Any) -> Any:
    """Return a column with the row of a table to which a row belongs, and with which it goes."""
    kind, key = (BigInteger, "job.number") if table == "job" else (Id(), f"{table}.id")
    return Column(kind, ForeignKey(key, ondelete="CASCADE"), **{"nullable": False, **options})


def _partial(name: str, *columns: Any, where: str, unique: bool = False) -> Index:
    """Return an index of the rows for which a condition holds."""
    return Index(name, *columns, unique=unique, info={"sqlite_where": text(where)})


class StoreRow(_Row, table=True):
    """One row with the store id, which the root of the job directories has, too."""

    __tablename__ = "store"
    id: str = Field(primary_key=True)


class WorkspaceRow(_Row, table=True):
    """A workspace, to which pipelines and jobs belong."""

    __tablename__ = "workspace"
    __table_args__ = (
        # At most one default workspace, even if several processes create it at once.
        _partial("one_default_workspace", "is_default", unique=True, where="is_default"),
        _partial("marked_workspaces", "id", where="deleted_at IS NOT NULL"),
    )
    id: UUID = Field(sa_column=Column(Id(), primary_key=True))
    name: str
    is_default: bool = Field(default=False)
    properties: Any = Field(default=None, sa_column=Column(JSON(none_as_null=True)))
    created: int = Field(sa_column=Column(BigInteger, nullable=False))
    last_modified: int = Field(sa_column=Column(BigInteger, nullable=False))
    deleted_at: int | None = Field(default=None, sa_column=_moment())


class PipelineRow(_Row, table=True):
    """A command or script that is run repeatedly, by one job at a time."""

    __tablename__ = "pipeline"
    __table_args__ = (
        CheckConstraint(
            f"status IN ({lifecycle.quoted(lifecycle.PipelineStatus)})", name="status_is_known"
        ),
        # Names are unique within a workspace, regardless of case.
        _partial(
            "one_pipeline_per_name",
            "workspace_id",
            "folded_name",
            unique=True,
            where="deleted_at IS NULL",
        ),
        Index("pipelines_of_workspace", "workspace_id", "created", "id"),
        _partial(
            "scheduled_pipelines",
            "next_tick",
            "id",
            where="next_tick IS NOT NULL AND deleted_at IS NULL",
        ),
        _partial("marked_pipelines", "id", where="deleted_at IS NOT NULL"),
    )
    id: UUID = Field(sa_column=Column(Id(), primary_key=True))
    workspace_id: UUID = Field(sa_column=_owner("workspace"))
    name: str
    status: str
    command: str | None = Field(default=None, sa_column=Column(Text))  # as Command.to_json
    script: str | None = Field(default=None, sa_column=Column(Text))
    timeout: float | None = None  # seconds
    max_retries: int = 0
    schedule: str | None = None
    time_zone: str | None = None
    # The next tick of the schedule. The process that moves it on has taken that tick.
    next_tick: int | None = Field(default=None, sa_column=_moment())
    properties: Any = Field(default=None, sa_column=Column(JSON(none_as_null=True)))
    created: int = Field(sa_column=Column(BigInteger, nullable=False))
    last_modified: int = Field(sa_column=Column(BigInteger, nullable=False))
    deleted_at: int | None = Field(default=None, sa_column=_moment())
    folded_name: str | None = None  # the case-folded name, unique within the workspace
    # UTC offset at `next_tick`, in seconds, by the time-zone rules it was computed with.
    # None: computed by an older jobcore.
    tick_offset: int | None = None
    catch_up: str | None = None  # skip, last or all; None: skip
    late_after: float | None = None  # seconds; None: the default
    retries: str | None = Field(default=None, sa_column=Column(Text))  # as Retries.to_json
    group_name: str | None = None  # the group of its jobs
    hooks: str | None = Field(default=None, sa_column=Column(Text))  # as Hooks.to_json
    # What its last run handed to the next one, as JSON.
    state: str | None = Field(default=None, sa_column=Column(Text))
    # Since when its schedule is paused, which then has no next tick; None: it is not.
    paused: int | None = Field(default=None, sa_column=_moment())


class RequirementRow(_Row, table=True):
    """A pipeline runs once after each complete set of runs of these sources."""

    __tablename__ = "requirement"
    __table_args__ = (Index("requirements_of_source", "source_id"),)
    pipeline_id: UUID = Field(sa_column=_owner("pipeline", primary_key=True))
    position: int = Field(primary_key=True)
    source_id: UUID = Field(sa_column=_owner("pipeline"))
    # When the source was COMPLETE since the pipeline's last run for a set; None: not yet.
    met: int | None = Field(default=None, sa_column=_moment())


class LinkRow(_Row, table=True):
    """A pipeline runs after another one. `position` is the order in which the user named them."""

    __tablename__ = "link"
    __table_args__ = (Index("links_of_source", "source_id"),)
    pipeline_id: UUID = Field(sa_column=_owner("pipeline", primary_key=True))
    position: int = Field(primary_key=True)
    source_id: UUID | None = Field(default=None, sa_column=_owner("pipeline", nullable=True))
    name: str | None = None  # a name that no pipeline has; this link never triggers


class NoteRow(_Row, table=True):
    """A note for the user of a pipeline, which `doctor` lists."""

    __tablename__ = "pipeline_note"
    __table_args__ = (Index("notes_of_pipeline", "pipeline_id", "topic"),)
    id: int | None = Field(default=None, primary_key=True)
    pipeline_id: UUID = Field(sa_column=_owner("pipeline"))
    topic: str  # "name" or "chain"; changing the pipeline's name or chain removes the note
    detail: str


class SkipRow(_Row, table=True):
    """Runs of a pipeline that were due and did not happen; they are not made up for."""

    __tablename__ = "skip"
    __table_args__ = (
        Index("skips_of_pipeline", "pipeline_id", "id"),
        Index("skips_by_time", "recorded"),
    )
    id: int | None = Field(default=None, primary_key=True)
    pipeline_id: UUID = Field(sa_column=_owner("pipeline"))
    due: int = Field(sa_column=Column(BigInteger, nullable=False))
    recorded: int = Field(sa_column=Column(BigInteger, nullable=False))
    # schedule, triggered: the pipeline already had an active job; missed: no host was running.
    why: str
    count: int = 1  # number of skipped runs; `due` is the last of them
    job_id: UUID | None = Field(default=None, sa_column=Column(Id()))  # the active job


#: The condition of the indexes of the queue, and the columns by which they are searched.
_MAY_START = "status = 'QUEUED' AND unmet = 0 AND deleted_at IS NULL"
_SEARCHED = ("type", "status", "unmet", "deleted_at", "owner")

#: Columns that a trigger of the database freezes once the job is final.
FACTS = (
    "number", "id", "workspace_id", "pipeline_id", "type", "status", "attempt", "retry_of",
    "created", "start_time", "end_time", "exit_code", "signal", "reason", "wait_status", "errno",
    "cpu_us", "max_rss", "spool_offset", "next_sequence", "dropped", "token", "cookie", "key",
)  # fmt: skip


class JobRow(_Row, table=True):
    """A job: one unit of work with its state."""

    __tablename__ = "job"
    __table_args__ = (
        *(CheckConstraint(rule, name=name) for name, rule in lifecycle.constraints().items()),
        # At most one QUEUED or RUNNING job per pipeline, over all processes.
        _partial(
            "one_active_job_per_pipeline",
            "pipeline_id",
            unique=True,
            where="status IN ('QUEUED', 'RUNNING')",
        ),
        # For recovery, and to count the jobs that run. These two indexes stay small however long
        # the history is.
        _partial("running_jobs", "type", "group_name", "number", where="status = 'RUNNING'"),
        _partial("deleted_jobs", "number", where="deleted_at IS NOT NULL"),
        # Jobs of a dead process. It stays small however long the history is.
        _partial("owned_jobs", "number", where="owner IS NOT NULL"),
        # To find stored environments that no job needs.
        _partial("jobs_by_environment", "environment", where="environment IS NOT NULL"),
        # Pages of all jobs, and of the jobs of one status, newest first.
        _partial("jobs_by_status", "status", where="deleted_at IS NULL"),
        # Pages of the jobs of one status in a workspace or pipeline, newest first.
        Index("jobs_of_workspace", "workspace_id", "deleted_at", "status", "number"),
        _partial(
            "jobs_of_pipeline",
            "pipeline_id",
            "deleted_at",
            "status",
            "number",
            where="pipeline_id IS NOT NULL",
        ),
        # The same for one type, in a workspace, a pipeline or the whole file. Without these
        # SQLite would read the jobs of all types.
        Index(
            "jobs_of_workspace_by_type", "workspace_id", "deleted_at", "type", "status", "number"
        ),
        _partial(
            "jobs_of_pipeline_by_type",
            "pipeline_id",
            "deleted_at",
            "type",
            "status",
            "number",
            where="pipeline_id IS NOT NULL",
        ),
        _partial("jobs_of_type", "type", "status", "number", where="deleted_at IS NULL"),
        # The queue: for each type, owner and group, the jobs that may start, in order. The columns
        # before the group are constant in a search. They are included because SQLite prefers the
        # index with more columns to compare, and so that it need not read the rows.
        _partial(
            "queue",
            *_SEARCHED,
            "not_before",
            "group_name",
            text("priority DESC"),
            "number",
            where=f"{_MAY_START} AND not_before IS NULL",
        ),
        # The same for jobs that wait for their time, or have waited for it: of each priority,
        # those that are due come first.
        _partial(
            "delayed_queue",
            *_SEARCHED,
            "group_name",
            text("priority DESC"),
            "not_before",
            "number",
            where=f"{_MAY_START} AND not_before IS NOT NULL",
        ),
        # When the next job is due.
        _partial(
            "delayed_jobs",
            "type",
            "status",
            "unmet",
            "deleted_at",
            "not_before",
            where=f"{_MAY_START} AND not_before IS NOT NULL",
        ),
        # At most one job of a workspace holds a key, over all processes.
        _partial(
            "one_job_per_key", "workspace_id", "held_key", unique=True, where="held_key IS NOT NULL"
        ),
        _partial("jobs_by_key", "key", "number", where="key IS NOT NULL"),
        _partial("jobs_by_name", "name", "number", where="name IS NOT NULL"),
        _partial("jobs_of_group", "group_name", "status", "number", where="group_name IS NOT NULL"),
        _partial(
            "expiring_jobs",
            "status",  # constant, as in the indexes of the queue
            "expires",
            where="status = 'QUEUED' AND expires IS NOT NULL",
        ),
        _partial("retries_of_job", "retry_of", where="retry_of IS NOT NULL"),
        # With the start, so that durations can be compared without reading the rows.
        _partial("jobs_by_end", "end_time", "number", "start_time", where="end_time IS NOT NULL"),
        Index("jobs_by_creation", "created"),
        _partial(
            "delayed_retries",
            "status",
            "not_before",
            "number",
            where="status = 'QUEUED' AND not_before IS NOT NULL AND retry_of IS NOT NULL "
            "AND deleted_at IS NULL",
        ),
        # Never reuse a number, even if the newest job is deleted: pages use it as a cursor.
        {"info": {"sqlite_autoincrement": True}},
    )
    number: int | None = Field(default=None, primary_key=True)
    id: UUID = Field(sa_column=Column(Id(), unique=True, nullable=False))

    # Written at create.
    workspace_id: UUID = Field(sa_column=_owner("workspace"))
    pipeline_id: UUID | None = Field(default=None, sa_column=_owner("pipeline", nullable=True))
    type: str
    name: str | None = None
    data: Any = Field(default=None, sa_column=Column(JSON(none_as_null=True)))
    command: str | None = Field(default=None, sa_column=Column(Text))  # as Command.to_json
    attempt: int = 1
    retry_of: UUID | None = Field(default=None, sa_column=Column(Id()))
    not_before: int | None = Field(default=None, sa_column=_moment())
    created: int = Field(sa_column=Column(BigInteger, nullable=False))

    # Written only by the guarded statements in `transitions`.
    status: str

    # Written at claim. A job without a process has no token.
    start_time: int | None = Field(default=None, sa_column=_moment())
    token: str | None = None  # identifies this run, also in its directory and notifications
    cookie: str | None = None  # in the command's environment, to find processes it left behind
    boot_id: str | None = None
    grace_ms: int | None = None  # of the command that was started
    timeout_ms: int | None = Field(default=None, sa_column=Column(BigInteger))  # likewise
    calls_function: bool | None = None  # it leaves a result; None: claimed by an older jobcore
    directory_id: str | None = None  # its job directory: see `job_directories.DirectoryId`

    # Written by a stop request.
    stop_requested: int | None = Field(default=None, sa_column=_moment())
    stop_grace_ms: int | None = None
    stop_who: str | None = None
    stop_why: str | None = None

    # Moved on by the import of the log, together, by compare-and-set.
    spool_offset: int = Field(default=0, sa_column=Column(BigInteger, nullable=False))
    next_sequence: int = Field(default=0, sa_column=Column(BigInteger, nullable=False))
    loose_sequence: int = Field(default=0, sa_column=Column(BigInteger, nullable=False))
    loose_bytes: int = Field(default=0, sa_column=Column(BigInteger, nullable=False))

    # The job's last progress report. Written by the import with the offset, never by settling.
    progress_done: float | None = None
    progress_total: float | None = None
    progress_message: str | None = Field(default=None, sa_column=Column(Text))
    progress_at: int | None = Field(default=None, sa_column=_moment())

    # Written when the job is settled, from the exit record.
    end_time: int | None = Field(default=None, sa_column=_moment())
    exit_code: int | None = None
    signal: int | None = None
    reason: str | None = None
    wait_status: int | None = None
    errno: int | None = None
    cpu_us: int | None = Field(default=None, sa_column=Column(BigInteger))
    max_rss: int | None = Field(default=None, sa_column=Column(BigInteger))  # bytes
    dropped: int = Field(default=0, sa_column=Column(BigInteger, nullable=False))
    left_processes: int | None = None  # processes left when it ended by itself; None: unknown
    unreaped: str | None = None  # pids that could not be killed
    # True: a retry need not wait until these processes have ended.
    unreaped_ignored: bool | None = None

    # Written by delete. The job is hidden from every read until its rows are removed.
    deleted_at: int | None = Field(default=None, sa_column=_moment())

    # The only process that may start a QUEUED job, or that does a RUNNING job itself. If it
    # dies, the job is cancelled or lost. Cleared when a supervisor takes over, and at the end.
    owner: str | None = None

    # Whose environment the command gets; None: that of the worker that starts it.
    env_from: str | None = None
    # The stored environment, while this job may still start.
    environment: str | None = None

    # Written at create; those that matter only until the start can be changed before it.
    priority: int = Field(
        default=0, sa_column=Column(Integer, nullable=False, server_default=text("0"))
    )
    group_name: str | None = None
    expires: int | None = Field(default=None, sa_column=_moment())
    retries: str | None = Field(default=None, sa_column=Column(Text))  # as Retries.to_json
    hooks: str | None = Field(default=None, sa_column=Column(Text))  # as Hooks.to_json
    hook_of: UUID | None = Field(default=None, sa_column=Column(Id()))  # the job it reports
    # Arguments, environment and time-out of this run of the pipeline, as JSON.
    parameters: str | None = Field(default=None, sa_column=Column(Text))

    # The key, and the same text while the job holds it: until it is final and `unique_until` has
    # passed. A retry takes it over.
    key: str | None = None
    held_key: str | None = None
    unique_until: int | None = Field(default=None, sa_column=_moment())

    # How the jobs that it depends on have to end, and how many of them have not ended yet.
    run_if: str | None = None  # complete, ended or failed
    unmet: int = Field(
        default=0, sa_column=Column(Integer, nullable=False, server_default=text("0"))
    )


class DependencyRow(_Row, table=True):
    """A job starts only after another one. The other may be deleted, so it is no foreign key."""

    __tablename__ = "dependency"
    __table_args__ = (_partial("dependents", "upstream_id", where="met IS NULL"),)
    job: int = Field(sa_column=_owner("job", primary_key=True))
    position: int = Field(primary_key=True)
    # The last attempt of the job that was named.
    upstream_id: UUID = Field(sa_column=Column(Id(), nullable=False))
    met: bool | None = None  # whether it has ended as asked; None: it has not ended


class UndecidedRow(_Row, table=True):
    """An ended job that has undecided dependents left; any manager decides them."""

    __tablename__ = "undecided"
    upstream_id: UUID = Field(sa_column=Column(Id(), primary_key=True))
    outcome: str  # complete, failed, stopped or deleted


class LimitRow(_Row, table=True):
    """How many jobs of the file, of a group or of a type may run, and whether they are paused."""

    __tablename__ = "job_limit"
    scope: str = Field(primary_key=True)  # file, group or type
    name: str = Field(primary_key=True)  # empty for the file
    slots: int | None = None  # None: no limit
    paused: int | None = Field(default=None, sa_column=_moment())  # since when; None: it is not


class SettingRow(_Row, table=True):
    """A setting of the file, such as its retention."""

    __tablename__ = "setting"
    name: str = Field(primary_key=True)
    value: str = Field(sa_column=Column(Text, nullable=False))  # JSON


class EnvironmentRow(_Row, table=True):
    """An environment with which queued jobs will start."""

    __tablename__ = "environment"
    hash: str = Field(primary_key=True)  # SHA-256 of the data
    data: bytes = Field(sa_column=Column(LargeBinary, nullable=False))


class SegmentRow(_Row, table=True):
    """A slice of a job's frames, headers included, compressed."""

    __tablename__ = "log_segment"
    __table_args__ = (UniqueConstraint("job", "first_sequence"),)
    id: int | None = Field(default=None, primary_key=True)
    job: int = Field(sa_column=_owner("job"))
    first_sequence: int = Field(sa_column=Column(BigInteger, nullable=False))
    line_count: int
    raw_bytes: int  # of the frames, before compression
    compressed: bool
    data: bytes = Field(sa_column=Column(LargeBinary, nullable=False))


class ResultRow(_Row, table=True):
    """The return value of a function; written with the verdict if that is COMPLETE."""

    __tablename__ = "result"
    __table_args__ = (CheckConstraint("encoding IN ('json', 'pickle')", name="encoding_is_known"),)
    job: int = Field(sa_column=_owner("job", primary_key=True, autoincrement=False))
    encoding: str
    data: bytes = Field(sa_column=Column(LargeBinary, nullable=False))


class TransitionRow(_Row, table=True):
    """An entry of the append-only history: what happened to a job, when, why and by whom."""

    __tablename__ = "transition"
    __table_args__ = (
        Index("transitions_of_job", "job", "id"),
        _partial("transitions_of_pipeline", "pipeline_id", "id", where="pipeline_id IS NOT NULL"),
        {"info": {"sqlite_autoincrement": True}},
    )
    id: int | None = Field(default=None, primary_key=True)
    job: int = Field(sa_column=_owner("job"))
    at: int = Field(sa_column=Column(BigInteger, nullable=False))
    trigger: str
    from_status: str | None = None
    to_status: str
    reason: str | None = None
    actor: str | None = None
    # A copy of the job's pipeline, which never changes, to find the events of a pipeline.
    pipeline_id: UUID | None = Field(default=None, sa_column=Column(Id()))


class BatchRow(_Row, table=True):
    """Jobs that are being written in steps. No read shows them while this row exists."""

    __tablename__ = "batch"
    id: int | None = Field(default=None, primary_key=True)
    first: int = Field(sa_column=Column(BigInteger, nullable=False))  # a job number, inclusive
    last: int = Field(sa_column=Column(BigInteger, nullable=False))  # likewise
    owner: str  # the process that writes the jobs


store: Table = StoreRow.__table__
workspace: Table = WorkspaceRow.__table__
pipeline: Table = PipelineRow.__table__
batch: Table = BatchRow.__table__
job: Table = JobRow.__table__
link: Table = LinkRow.__table__
requirement: Table = RequirementRow.__table__
dependency: Table = DependencyRow.__table__
undecided: Table = UndecidedRow.__table__
job_limit: Table = LimitRow.__table__
setting: Table = SettingRow.__table__
pipeline_note: Table = NoteRow.__table__
skip: Table = SkipRow.__table__
environment: Table = EnvironmentRow.__table__
log_segment: Table = SegmentRow.__table__
result: Table = ResultRow.__table__
transition: Table = TransitionRow.__table__
METADATA: MetaData = job.metadata


def _count_table(name: str, owner: str) -> Table:
    """Return a table with the number of jobs of a type and owner, which triggers maintain."""
    return Table(
        name,
        METADATA,
        # The batch of these jobs, which is not published yet; 0: jobs that reads show.
        Column("batch", Integer, primary_key=True, autoincrement=False),
        Column(owner, String, primary_key=True),
        Column("type", String, primary_key=True),
        *(Column(str(one).lower(), Integer, nullable=False) for one in lifecycle.Status),
    )


workspace_count = _count_table("workspace_count", "workspace_id")
pipeline_count = _count_table("pipeline_count", "pipeline_id")

#: The columns that listings read. Of the command, they leave out the stdin, which may be large;
#: a damaged one reads as NULL, as it must not hide the job.
SHOWN = (
    *(column for column in job.c if column is not job.c.command),
    case(
        (func.json_valid(job.c.command), func.json_remove(job.c.command, "$.stdin")),
        else_=null(),
    ).label("command"),
)


def has_status(*statuses: lifecycle.Status) -> ColumnElement[bool]:
    """
    Return the condition that a job has one of these statuses, written as literals.

    SQLite uses a partial index only if the text of the query implies the condition of the
    index. Bound parameters do not.
    """
    words: list[ColumnElement[str]] = [literal_column(f"'{status}'") for status in statuses]
    return job.c.status == words[0] if len(words) == 1 else job.c.status.in_(words)


#: The conditions that a job is QUEUED or RUNNING, and that it is final.
IS_ACTIVE = has_status(*sorted(lifecycle.ACTIVE))
IS_FINAL = has_status(*sorted(lifecycle.FINAL))

#: The condition that reads show a job: it is not being deleted and belongs to no open batch.
IS_VISIBLE: ColumnElement[bool] = and_(
    job.c.deleted_at.is_(None),
    ~exists().where(between(job.c.number, batch.c.first, batch.c.last)).correlate(job),
)

#: The job is in the queue, and waits for no other job.
IS_QUEUED = and_(
    has_status(lifecycle.Status.QUEUED), job.c.unmet == literal_column("0"), IS_VISIBLE
)

#: SQLite's own table with the largest number that AUTOINCREMENT has assigned, per table.
sequence = lightweight("sqlite_sequence", column("name"), column("seq"))
