"""
Models: what is stored, and what callers get to see.

The tables stay inside the store. Callers get frozen values, which are true as
of the moment they were read and never change under them.
"""

from __future__ import annotations

import os
from datetime import datetime
from typing import Any, ClassVar
from uuid import UUID

from pydantic import BaseModel, ConfigDict, PrivateAttr, ValidationError, field_serializer
from pydantic.alias_generators import to_camel
from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    text,
)
from sqlalchemy.orm import registry
from sqlmodel import Field, SQLModel

from jobcore import lifecycle
from jobcore.clock import iso_utc, to_datetime
from jobcore.command import Command
from jobcore.errors import DatabaseCorrupt
from jobcore.lifecycle import Reason, Status, Trigger

# --- tables -------------------------------------------------------------------


class _Row(SQLModel, registry=registry()):
    """Base of the tables, with metadata of its own: a host's `create_all` must not make them."""

    __table__: ClassVar[Table]


def _moment() -> Any:
    """Return a column for wall time: integer microseconds, which sort and compare as they are."""
    return Column(BigInteger)


class StoreRow(_Row, table=True):
    """One row: which job directories belong to this file."""

    __tablename__ = "store"
    id: str = Field(primary_key=True)


class WorkspaceRow(_Row, table=True):
    """What governs pipelines and jobs."""

    __tablename__ = "workspace"
    __table_args__ = (
        # At most one default workspace, whichever process makes it first.
        Index("one_default_workspace", "is_default", unique=True, sqlite_where=text("is_default")),
    )
    id: UUID = Field(sa_column=Column(Uuid, primary_key=True))
    name: str
    is_default: bool = Field(default=False)
    properties: Any = Field(default=None, sa_column=Column(JSON(none_as_null=True)))
    created: int = Field(sa_column=Column(BigInteger, nullable=False))
    last_modified: int = Field(sa_column=Column(BigInteger, nullable=False))
    deleted_at: int | None = Field(default=None, sa_column=_moment())


class PipelineRow(_Row, table=True):
    """A command or script that is run again and again, by one job at a time."""

    __tablename__ = "pipeline"
    __table_args__ = (
        CheckConstraint("status IN ('READY', 'PROVISIONING', 'FAILED')", name="status_is_known"),
    )
    id: UUID = Field(sa_column=Column(Uuid, primary_key=True))
    workspace_id: UUID = Field(
        sa_column=Column(Uuid, ForeignKey("workspace.id", ondelete="CASCADE"), nullable=False)
    )
    name: str
    status: str
    command: str | None = Field(default=None, sa_column=Column(Text))  # as Command.to_json
    script: str | None = Field(default=None, sa_column=Column(Text))
    timeout: float | None = None  # seconds
    max_retries: int = 0
    schedule: str | None = None
    time_zone: str | None = None
    triggered_by: Any = Field(default=None, sa_column=Column(JSON(none_as_null=True)))
    properties: Any = Field(default=None, sa_column=Column(JSON(none_as_null=True)))
    created: int = Field(sa_column=Column(BigInteger, nullable=False))
    last_modified: int = Field(sa_column=Column(BigInteger, nullable=False))
    deleted_at: int | None = Field(default=None, sa_column=_moment())


#: What became of a job. Frozen by a trigger of the database once it is final.
FACTS = (
    "number", "id", "workspace_id", "pipeline_id", "type", "status", "attempt", "retry_of",
    "created", "start_time", "end_time", "exit_code", "signal", "reason", "wait_status", "errno",
    "cpu_us", "max_rss", "spool_offset", "next_sequence", "dropped", "token", "cookie",
)  # fmt: skip


class JobRow(_Row, table=True):
    """One unit of work with its state; the comments say who writes a column, and when."""

    __tablename__ = "job"
    __table_args__ = (
        *(CheckConstraint(rule, name=name) for name, rule in lifecycle.constraints().items()),
        # One QUEUED or RUNNING job per pipeline, whatever number of processes ask.
        Index(
            "one_active_job_per_pipeline",
            "pipeline_id",
            unique=True,
            sqlite_where=text("status IN ('QUEUED', 'RUNNING')"),
        ),
        # The queue in its order, and what recovery looks at: both small, whatever the history.
        Index("queued_jobs", "number", sqlite_where=text("status = 'QUEUED'")),
        Index("running_jobs", "number", sqlite_where=text("status = 'RUNNING'")),
        Index("deleted_jobs", "number", sqlite_where=text("deleted_at IS NOT NULL")),
        # Pages of one workspace's or pipeline's jobs, newest first.
        Index("jobs_of_workspace", "workspace_id", "number"),
        Index("jobs_of_pipeline", "pipeline_id", "number"),
        # Never reuse a number, though the newest job be deleted: it is the pages' cursor.
        {"sqlite_autoincrement": True},
    )
    number: int | None = Field(default=None, primary_key=True)
    id: UUID = Field(sa_column=Column(Uuid, unique=True, nullable=False))

    # Written at create.
    workspace_id: UUID = Field(
        sa_column=Column(Uuid, ForeignKey("workspace.id", ondelete="CASCADE"), nullable=False)
    )
    pipeline_id: UUID | None = Field(
        default=None, sa_column=Column(Uuid, ForeignKey("pipeline.id", ondelete="CASCADE"))
    )
    type: str
    name: str | None = None
    data: Any = Field(default=None, sa_column=Column(JSON(none_as_null=True)))
    command: str | None = Field(default=None, sa_column=Column(Text))  # as Command.to_json
    attempt: int = 1
    retry_of: UUID | None = Field(default=None, sa_column=Column(Uuid))
    not_before: int | None = Field(default=None, sa_column=_moment())
    created: int = Field(sa_column=Column(BigInteger, nullable=False))

    # Moved by the lifecycle alone, each move one guarded statement.
    status: str

    # Written at claim; a job without a process has no token.
    start_time: int | None = Field(default=None, sa_column=_moment())
    token: str | None = None  # of this run: directory and notices carry it too
    cookie: str | None = None  # in the environment of the command, to find what it left behind
    boot_id: str | None = None

    # Written by a wish to stop.
    stop_requested: int | None = Field(default=None, sa_column=_moment())
    stop_grace_ms: int | None = None
    stop_who: str | None = None
    stop_why: str | None = None

    # Moved by import, together, by compare-and-set.
    spool_offset: int = Field(default=0, sa_column=Column(BigInteger, nullable=False))
    next_sequence: int = Field(default=0, sa_column=Column(BigInteger, nullable=False))
    loose_sequence: int = Field(default=0, sa_column=Column(BigInteger, nullable=False))
    loose_bytes: int = Field(default=0, sa_column=Column(BigInteger, nullable=False))

    # Written at settle, out of the exit record.
    end_time: int | None = Field(default=None, sa_column=_moment())
    exit_code: int | None = None
    signal: int | None = None
    reason: str | None = None
    wait_status: int | None = None
    errno: int | None = None
    cpu_us: int | None = Field(default=None, sa_column=Column(BigInteger))
    max_rss: int | None = Field(default=None, sa_column=Column(BigInteger))  # bytes
    dropped: int = Field(default=0, sa_column=Column(BigInteger, nullable=False))
    unreaped: str | None = None  # pids that could not be killed

    # Written by delete: hidden from every read, until the rows are gone.
    deleted_at: int | None = Field(default=None, sa_column=_moment())


class SegmentRow(_Row, table=True):
    """A slice of a job's frames, headers included, compressed."""

    __tablename__ = "log_segment"
    __table_args__ = (UniqueConstraint("job", "first_sequence"),)
    id: int | None = Field(default=None, primary_key=True)
    job: int = Field(
        sa_column=Column(BigInteger, ForeignKey("job.number", ondelete="CASCADE"), nullable=False)
    )
    first_sequence: int = Field(sa_column=Column(BigInteger, nullable=False))
    line_count: int
    raw_bytes: int  # of the frames, before compression
    compressed: bool
    data: bytes = Field(sa_column=Column(LargeBinary, nullable=False))


class TransitionRow(_Row, table=True):
    """Append-only history: what happened to a job, when, why and by whom."""

    __tablename__ = "transition"
    __table_args__ = (Index("transitions_of_job", "job", "id"), {"sqlite_autoincrement": True})
    id: int | None = Field(default=None, primary_key=True)
    job: int = Field(
        sa_column=Column(BigInteger, ForeignKey("job.number", ondelete="CASCADE"), nullable=False)
    )
    at: int = Field(sa_column=Column(BigInteger, nullable=False))
    trigger: str
    from_status: str | None = None
    to_status: str
    reason: str | None = None
    actor: str | None = None


store: Table = StoreRow.__table__
workspace: Table = WorkspaceRow.__table__
pipeline: Table = PipelineRow.__table__
job: Table = JobRow.__table__
log_segment: Table = SegmentRow.__table__
transition: Table = TransitionRow.__table__
METADATA: MetaData = job.metadata

# --- what callers see ---------------------------------------------------------


class _Public(BaseModel):
    """Base of the public models: frozen, camelCase in JSON, times in ISO 8601 UTC with `Z`."""

    model_config = ConfigDict(
        frozen=True,
        alias_generator=to_camel,
        populate_by_name=True,
        serialize_by_alias=True,
        extra="ignore",
        defer_build=True,  # the validators are built at the first use, not at import
    )

    @field_serializer("*", when_used="json", check_fields=False)
    def _json_form(self, value: Any) -> Any:
        return iso_utc(value) if isinstance(value, datetime) else value

    @classmethod
    def _checked(cls, fields: dict[str, Any]) -> Any:
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            # The columns have been checked when they were written, so the file is damaged.
            raise DatabaseCorrupt(f"a stored {cls.__name__} makes no sense: {error}") from error

    @classmethod
    def from_row(cls, row: Any) -> Any:
        """
        Return the public form of a stored row.

        Raises:
            DatabaseCorrupt: The row holds what was never written.
        """
        fields = dict(row._mapping)  # noqa: SLF001 - SQLAlchemy's public name for it
        for name in cls._moments:
            if fields.get(name) is not None:
                fields[name] = to_datetime(fields[name])
        return cls._checked(fields)

    _moments: ClassVar[tuple[str, ...]] = ("created", "last_modified")


class Workspace(_Public):
    """What governs pipelines and jobs."""

    id: UUID
    name: str
    properties: dict[str, Any] | None = None
    created: datetime
    last_modified: datetime


class Pipeline(_Public):
    """
    A command that is run again and again, by one job at a time.

    `status` says whether changes to it have been processed (READY, PROVISIONING,
    FAILED); it does not say whether it runs.
    """

    id: UUID
    workspace_id: UUID
    name: str
    status: str
    script: str | None = None
    timeout: float | None = None
    max_retries: int = 0
    schedule: str | None = None
    time_zone: str | None = None
    triggered_by: list[str] | None = None
    properties: dict[str, Any] | None = None
    created: datetime
    last_modified: datetime
    # Not a field: its environment holds secrets, so it is in no JSON and no repr.
    _command: Command | None = PrivateAttr(default=None)

    @property
    def command(self) -> Command | None:
        """What it runs, unless it has a script."""
        return self._command

    @classmethod
    def from_row(cls, row: Any) -> Pipeline:
        """Return the public form of a stored pipeline."""
        made: Pipeline = super().from_row(row)
        if row.command is not None:
            made._command = Command.from_json(row.command)
        return made


class Job(_Public):
    """
    One unit of work, as it stood when it was read.

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
        stop_requested: When somebody asked it to stop, else None.
        line_count: How many log lines are readable.
        dropped: How many lines were dropped beyond its output limit.
        cpu_seconds: CPU time of the command and all it waited for.
        max_rss: Largest resident set of one of its processes, in bytes. A short
            one's includes the image it was forked from.
    """

    id: UUID
    created: datetime
    type: str
    exit_code: int | None
    status: Status
    start_time: datetime | None
    end_time: datetime | None
    number: int
    workspace_id: UUID
    pipeline_id: UUID | None
    name: str | None
    data: Any
    reason: Reason | None
    signal: int | None
    attempt: int
    retry_of: UUID | None
    not_before: datetime | None
    stop_requested: datetime | None
    line_count: int
    dropped: int
    cpu_seconds: float | None
    max_rss: int | None

    _moments: ClassVar[tuple[str, ...]] = (
        "created", "start_time", "end_time", "not_before", "stop_requested",
    )  # fmt: skip

    @classmethod
    def from_row(cls, row: Any) -> Job:
        """Return the public form of a stored job."""
        fields = dict(row._mapping)  # noqa: SLF001 - SQLAlchemy's public name for it
        for name in cls._moments:
            if fields[name] is not None:
                fields[name] = to_datetime(fields[name])
        fields["line_count"] = fields["next_sequence"]
        fields["cpu_seconds"] = None if fields["cpu_us"] is None else fields["cpu_us"] / 1e6
        return cls._checked(fields)


class ClaimedJob(Job):
    """A job as its executor sees it: with what it was created to run."""

    _command: Command | None = PrivateAttr(default=None)
    _pipeline: Pipeline | None = PrivateAttr(default=None)

    @property
    def command(self) -> Command | None:
        """The command it was created with, if any."""
        return self._command

    @property
    def pipeline(self) -> Pipeline | None:
        """The pipeline it was created from, if any."""
        return self._pipeline

    @classmethod
    def from_rows(cls, row: Any, pipeline_row: Any | None) -> ClaimedJob:
        """Return the form for executors of a stored job and its pipeline."""
        made: Any = cls.from_row(row)
        if row.command is not None:
            made._command = Command.from_json(row.command)  # noqa: SLF001 - it is our own
        if pipeline_row is not None:
            made._pipeline = Pipeline.from_row(pipeline_row)  # noqa: SLF001 - it is our own
        assert isinstance(made, ClaimedJob)  # noqa: S101 - for the type checker alone
        return made


class Transition(_Public):
    """
    One entry of a job's history.

    `from_status` is None for the creation; a `stop` leads from RUNNING to
    RUNNING: it asks. `actor` names the process that wrote it.
    """

    at: datetime
    trigger: Trigger
    from_status: Status | None
    to_status: Status
    reason: Reason | None
    actor: str | None

    _moments: ClassVar[tuple[str, ...]] = ("at",)


class LogLine:
    """
    One numbered line of a job's log.

    Attributes:
        sequence: 0-based and dense within the job.
        stream: `output` (stdout and stderr as they were written), `stdout`,
            `stderr`, or `system` for jobcore's own words, which no job can fake.
        raw: The bytes, with their terminator.
        partial: This is one piece of a longer line, which the next one goes on with.
    """

    __slots__ = ("_time_ns", "partial", "raw", "sequence", "stream")

    def __init__(
        self, sequence: int, time_ns: int, stream: str, raw: bytes, *, partial: bool = False
    ) -> None:
        self.sequence = sequence
        self.stream = stream
        self.raw = raw
        self.partial = partial
        self._time_ns = time_ns

    @property
    def timestamp(self) -> datetime:
        """When its supervisor read it, UTC; lines read together have one time stamp."""
        return to_datetime(self._time_ns // 1000)

    @property
    def text(self) -> str:
        """The line without one LF or CRLF, as UTF-8 with replacement characters."""
        raw = self.raw
        if raw.endswith(b"\n"):
            raw = raw[:-2] if raw.endswith(b"\r\n") else raw[:-1]
        return raw.decode("utf-8", "replace")

    def __repr__(self) -> str:
        """Show number, stream and text."""
        return f"LogLine({self.sequence}, {self.stream}, {os.fsencode(self.text)[:80]!r})"

    def __eq__(self, other: object) -> bool:
        """Two lines are equal when all that is stored of them is."""
        return isinstance(other, LogLine) and all(
            getattr(self, name) == getattr(other, name) for name in self.__slots__
        )

    def __hash__(self) -> int:
        """Hash what is stored."""
        return hash((self.sequence, self._time_ns, self.raw))
