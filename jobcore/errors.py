"""
Errors: every exception that jobcore raises, with the facts as attributes.

    JobcoreError
    ├── JobNotFound (LookupError)                404
    │   └── JobDeleted
    ├── WorkspaceNotFound (LookupError)          404
    ├── PipelineNotFound (LookupError)           404
    ├── InvalidTransition                        409
    │   └── JobNotRunning
    ├── Stopped                                  409
    ├── PipelineAlreadyRunning                   409
    ├── PipelineExists                           409
    ├── DuplicateKey                             409
    ├── NoResult                                 409
    ├── ArgumentError (ValueError)               400
    ├── CommandError (ValueError)                400
    ├── ScheduleError (ValueError)               400
    ├── PipelineCycle (ValueError)               400
    ├── PipelineFileError (ValueError)           400
    ├── InvalidParameter (ValueError)            400
    ├── NotAcceptable                            406
    ├── SpawnError                               503
    ├── TooManyFollowers                         503
    ├── WaitTimeout (TimeoutError)               504
    └── StoreError                               503
        ├── DatabaseBusy
        ├── DatabaseFull
        ├── DatabaseCorrupt
        ├── DatabaseGone
        ├── NotAJobcoreDatabase
        ├── ReadOnlyDatabase
        ├── SchemaTooNew
        ├── StoreMismatch
        └── UnsupportedFileSystem

`status` is the HTTP status that a service should answer with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

#: The functions that `repr` calls in Python; the second is that of a dataclass.
_REPRS = {"__repr__", "wrapper"}


def shown(value: object, most: int = 200) -> str:
    """Return the `repr` of a value for the text of an error, cut if it is long."""
    try:
        text = repr(value)
    except Exception as error:  # nested too deeply, too many digits, or a `repr` that fails
        inner = error.__traceback__ and error.__traceback__.tb_next
        if inner and inner.tb_frame.f_code.co_name not in _REPRS:
            raise  # a signal handler of the host raised it, such as a time-out by SIGALRM
        return f"a value of type {type(value).__name__}"
    return text if len(text) <= most else f"{text[:most]}..."


def _given_id(given: object) -> object:
    """Return the id that a caller passed, or that of the job, pipeline or workspace."""
    some_id = getattr(given, "id", None)
    return some_id if isinstance(some_id, UUID) else given


def _id_shown(some_id: object) -> str:
    return shown(str(some_id) if isinstance(some_id, UUID) else some_id)


class JobcoreError(Exception):
    """Base of all errors of jobcore; never raised itself."""

    #: The HTTP status that a service should answer with.
    status: int = 500

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the message and the attributes; `__init__` would build the message twice."""
        return _revive, (type(self), self.args, dict(vars(self)))


def _revive(kind: type[JobcoreError], args: tuple[Any, ...], facts: dict[str, Any]) -> JobcoreError:
    error = kind.__new__(kind, *args)
    error.args = args
    vars(error).update(facts)
    return error


class JobNotFound(JobcoreError, LookupError):
    """
    No job has this id; a malformed id counts as unknown.

    Attributes:
        job_id: The id as it was given, or that of the job that was given.
    """

    status = 404

    def __init__(self, job_id: object) -> None:
        self.job_id = _given_id(job_id)
        super().__init__(f"no job has the id {_id_shown(self.job_id)}")


class JobDeleted(JobNotFound):
    """The job existed at the beginning of the call or iteration, and has been deleted since."""


class WorkspaceNotFound(JobcoreError, LookupError):
    """
    No workspace has this id.

    Attributes:
        workspace_id: The id as it was given, or that of the workspace that was given.
    """

    status = 404

    def __init__(self, workspace_id: object) -> None:
        self.workspace_id = _given_id(workspace_id)
        super().__init__(f"no workspace has the id {_id_shown(self.workspace_id)}")


class PipelineNotFound(JobcoreError, LookupError):
    """
    No pipeline has this id.

    Attributes:
        pipeline_id: The id as it was given, or that of the pipeline that was given.
    """

    status = 404

    def __init__(self, pipeline_id: object) -> None:
        self.pipeline_id = _given_id(pipeline_id)
        super().__init__(f"no pipeline has the id {_id_shown(self.pipeline_id)}")


class InvalidTransition(JobcoreError):
    """
    The job's status does not allow this trigger; nothing was changed.

    Attributes:
        job_id: The job.
        job_status: Its status when the trigger was refused.
        trigger: The trigger.
    """

    status = 409

    def __init__(self, job_id: object, job_status: object, trigger: object, why: str = "") -> None:
        super().__init__(f"job {job_id} is {job_status}: cannot {trigger}" + (why and f"; {why}"))
        self.job_id = job_id
        self.job_status = job_status
        self.trigger = trigger


class JobNotRunning(InvalidTransition):
    """Only a RUNNING job can be stopped; use `cancel_job` for a QUEUED one."""


class Stopped(JobcoreError):
    """
    The job of a task is over: raised in the body of the task, which should end.

    The job was stopped, cancelled or deleted, or another process finished it.

    Attributes:
        job_id: The job.
        job_status: Its status; None: it was deleted.
    """

    status = 409

    def __init__(self, job_id: object, job_status: object | None) -> None:
        what = "was deleted" if job_status is None else f"is {job_status}"
        super().__init__(f"job {job_id} {what}: end its task")
        self.job_id = job_id
        self.job_status = job_status


class PipelineAlreadyRunning(JobcoreError):
    """
    The pipeline already has a QUEUED or RUNNING job; no job was created.

    Attributes:
        pipeline_id: The pipeline.
        job_id: Its QUEUED or RUNNING job.
    """

    status = 409

    def __init__(self, pipeline_id: UUID, job_id: UUID) -> None:
        super().__init__(f"pipeline {pipeline_id} is already running job {job_id}")
        self.pipeline_id = pipeline_id
        self.job_id = job_id


class PipelineExists(JobcoreError):
    """
    Another pipeline of the workspace has this name, ignoring case; nothing was written.

    Attributes:
        name: The name as it was given.
        pipeline_id: The other pipeline.
    """

    status = 409

    def __init__(self, name: str, pipeline_id: UUID) -> None:
        super().__init__(f"pipeline {pipeline_id} of this workspace already has the name {name!r}")
        self.name = name
        self.pipeline_id = pipeline_id


class DuplicateKey(JobcoreError):
    """
    Another job of the workspace holds this key; no job was created.

    Attributes:
        key: The key.
        job_id: The job that holds it.
    """

    status = 409

    def __init__(self, key: str, job_id: UUID) -> None:
        super().__init__(f"job {job_id} already has the key {shown(key)}")
        self.key = key
        self.job_id = job_id


class NoResult(JobcoreError):
    """
    The job has no result, or none yet: only a COMPLETE job can have one.

    Attributes:
        job_id: The job.
        job_status: Its status. If it is COMPLETE, its command wrote no result, or its function
            ended the interpreter itself.
    """

    status = 409

    def __init__(self, job_id: object, job_status: object) -> None:
        super().__init__(f"job {job_id} is {job_status}, and has no result")
        self.job_id = job_id
        self.job_status = job_status


class ArgumentError(JobcoreError, ValueError):
    """An argument of a call is invalid; nothing was changed."""

    status = 400


class CommandError(JobcoreError, ValueError):
    """The command, or another part of the job, is invalid; no job was created."""

    status = 400


class InvalidParameter(JobcoreError, ValueError):
    """
    A parameter of a request is not an unsigned integer.

    Attributes:
        name: The name of the parameter.
        value: Its value as it was given.
    """

    status = 400

    def __init__(self, name: str, value: object) -> None:
        super().__init__(f"{name} must be an unsigned integer, not {shown(value, 80)}")
        self.name = name
        self.value = value


class NotAcceptable(JobcoreError):
    """
    A log is not available in any media type that the request accepts.

    Attributes:
        accept: The Accept header as it was given.
        available: The media types in which a log is available.
    """

    status = 406

    def __init__(self, accept: str | None, available: tuple[str, ...]) -> None:
        super().__init__(f"a log is available as {', '.join(available)}, not as {shown(accept)}")
        self.accept = accept
        self.available = available


class ScheduleError(JobcoreError, ValueError):
    """A schedule is invalid, matches no time, or cannot be evaluated on this system."""

    status = 400


class PipelineCycle(JobcoreError, ValueError):
    """
    Pipelines would trigger each other for ever; nothing was written.

    Attributes:
        name: A pipeline that would trigger itself, directly or through others.
    """

    status = 400

    def __init__(self, name: str) -> None:
        super().__init__(f"pipeline {name!r} would trigger itself, directly or through others")
        self.name = name


class PipelineFileError(JobcoreError, ValueError):
    """
    A description of pipelines is invalid; nothing was written.

    Attributes:
        problems: For each problem, its place in the description, as keys and indexes from the
            outside to the inside, and a text.
    """

    status = 400

    def __init__(self, problems: Sequence[tuple[tuple[str | int, ...], str]]) -> None:
        told = [
            f"{'.'.join(map(str, place))}: {text}" if place else text for place, text in problems
        ]
        super().__init__("; ".join(told))
        self.problems = list(problems)


class SpawnError(JobcoreError):
    """
    Jobs cannot be started here; queued jobs stay QUEUED and are tried again.

    Attributes:
        errno: The system's error number, or None.
        lasting: Whether retrying cannot help: the host program, or the interpreter that it
            names, must be changed.
    """

    status = 503

    def __init__(self, message: str, errno: int | None = None, *, lasting: bool = False) -> None:
        super().__init__(message)
        self.errno = errno
        self.lasting = lasting


class TooManyFollowers(JobcoreError):
    """
    As many clients follow logs as the server allows; try again later.

    Attributes:
        most: How many clients may follow at once.
    """

    status = 503

    def __init__(self, most: int) -> None:
        super().__init__(f"{most} clients are following logs, which is the limit")
        self.most = most


class WaitTimeout(JobcoreError, TimeoutError):
    """The job was not final within the given time; it continues."""

    status = 504


class StoreError(JobcoreError):
    """
    The database failed; the whole transaction was rolled back.

    Attributes:
        errno: The system's error number, or None.
    """

    status = 503

    def __init__(self, message: str = "", errno: int | None = None) -> None:
        super().__init__(message)
        self.errno = errno


class DatabaseBusy(StoreError):
    """Another process held a lock of the database for longer than the busy timeout."""


class DatabaseFull(StoreError):
    """No space is left for the database."""


class DatabaseCorrupt(StoreError):
    """SQLite found the file damaged; it was left as it is."""


class DatabaseGone(StoreError):
    """The file or its job directories were removed or replaced while it was open."""


class NotAJobcoreDatabase(StoreError):
    """The file is not a database, or belongs to another program; nothing was written to it."""


class ReadOnlyDatabase(StoreError):
    """The file, its directory or its file system is read-only; reading works."""


class SchemaTooNew(StoreError):
    """A newer version of jobcore made this file; nothing was written to it."""


class StoreMismatch(StoreError):
    """Files do not belong together: a database, its WAL or its job directories."""


class UnsupportedFileSystem(StoreError):
    """SQLite's locks and shared memory do not work reliably on this file system."""
