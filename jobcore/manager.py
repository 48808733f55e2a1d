"""`JobManager`: the facade. Each method checks its arguments and calls the layer below."""

from __future__ import annotations

import weakref
from collections.abc import (
    AsyncIterator,
    Callable,
    Collection,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from typing import TYPE_CHECKING, Any, Literal, overload
from uuid import UUID

from jobcore import checks, lifecycle
from jobcore.clock import Clock, SystemClock, seconds_of
from jobcore.command import checked_grace
from jobcore.embedding.worker import handed_over
from jobcore.engine.dispatcher import Dispatcher
from jobcore.engine.executors import Executor, default_executors
from jobcore.engine.importer import Importer
from jobcore.engine.job_directories import Directories
from jobcore.engine.launcher import Launcher, ProcessLauncher, require_host
from jobcore.engine.ownership import Ownership
from jobcore.engine.postponement import Postponement
from jobcore.engine.recovery import Recovery
from jobcore.engine.remover import Remover
from jobcore.engine.scheduler import Scheduler
from jobcore.engine.stopper import Stopper
from jobcore.errors import (
    ArgumentError,
    CommandError,
    DatabaseCorrupt,
    InvalidTransition,
    JobDeleted,
    JobNotFound,
    NoResult,
    PipelineAlreadyRunning,
    StoreError,
)
from jobcore.functions.call import describe, function_command
from jobcore.lifecycle import FINAL, JobType, Reason, Status
from jobcore.models import (
    Backup,
    Change,
    Event,
    Finding,
    Imported,
    Job,
    LogLine,
    Pipeline,
    Retention,
    Skip,
    Statistics,
    Transition,
    Usage,
    Workspace,
)
from jobcore.operations import arguments
from jobcore.operations.arguments import UNSET, Runnable, Unset
from jobcore.operations.events import AsyncEvents, EventReader, Events
from jobcore.operations.lookup import (
    Id,
    Listings,
    job_filter,
    public,
    require_job,
    require_pipeline,
    require_workspace,
)
from jobcore.operations.pipelines import PipelineOperations
from jobcore.operations.submission import JobCreator
from jobcore.operations.task_operations import TaskOperations
from jobcore.operations.tasks import Task
from jobcore.operations.waiting import Waiter, checked_until
from jobcore.storage import job_rows, queue, settlement, transitions
from jobcore.storage.database import Database
from jobcore.storage.environments import SUBMITTER, WORKER, capture
from jobcore.storage.job_rows import JobFilter
from jobcore.storage.log_segments import Unfinished
from jobcore.storage.statement import read_json
from jobcore.storage.transitions import Run
from jobcore.tuning import LONGEST_BUSY

if TYPE_CHECKING:
    import os
    from datetime import datetime
    from types import TracebackType

    from sqlalchemy import Connection, Row
    from typing_extensions import Self, Unpack

    from jobcore.models import Limit
    from jobcore.operations.bulk import BulkOperations
    from jobcore.operations.claiming import Claimer
    from jobcore.operations.completion import Completions, CompletionWaiter, Waited
    from jobcore.operations.deletion import Deleter
    from jobcore.operations.job_filters import EventFilters, FurtherFilters, JobFilters
    from jobcore.operations.limits import LimitOperations
    from jobcore.retries import Retries
    from jobcore.submission import Hook, Submission

#: Seconds that `on_exit="stop"` waits for a command to end, in addition to its grace.
STOP_PATIENCE = 1.0

#: The open managers of this process, for `jobcore.testing`.
OPEN: weakref.WeakSet[JobManager] = weakref.WeakSet()


class JobManager:
    """
    Jobs whose status, exit code and numbered log lines are true, in one SQLite file.

    Any number of managers, in any number of processes, can have the same file
    open. All methods can be called from any thread, and after a fork.

    When a method returns, its changes are committed: they survive any crash and a
    power failure, unless the method says otherwise. Every method may raise
    `StoreError` when the database fails. Nothing was changed then, except that a stop,
    a cancellation or a deletion may have begun: call the method again. A wrong
    argument is an `ArgumentError`, which is a `ValueError`; so is a list in the place
    of an id. Where a method takes an id, it also takes the `Job`, `Pipeline` or
    `Workspace` itself; a text that is not a UUID is treated as an unknown id. Times are
    UTC. Returned lists, models and texts are copies.

    In an event loop (asyncio, trio, or anyio on either), await the methods that end in
    `_async`. Call all others in a thread, as in `await asyncio.to_thread(jobs.submit,
    command)`: they use the database and may have to wait for another process's
    transaction. The manager needs and installs no child watcher and no signal handler.

    Args:
        database: Path of the file. A new one is created with mode 0600, and an empty file
            becomes a database. A file that other users can read, such as a backup, is made
            private. A file that they can write is refused, and so is a directory in which
            they can create files. The directory `<database>.jobs` beside it holds what
            running jobs wrote and no manager has imported yet.
        slots: How many jobs this manager runs at once. A running job whose manager was
            closed or died takes a slot of one other manager. None: one per CPU. 0: run no
            jobs; the manager then has only a thread for its writes, which ends when idle,
            and one for the callbacks of `subscribe`, while there are any.
        executors: By job type. The manager claims only jobs of these types.
        clock: Tells the time; None: the machine's. Use a `MovableClock` if it can be moved.
        on_exit: What `close()` and the end of the `with` block do. `"detach"`: running
            jobs continue, and the next manager that opens the database settles them.
            `"stop"`: jobs that this manager started are stopped.
        busy_timeout: Seconds to wait for another process's write transaction.
        python: The interpreter for supervisors, and for functions unless you pass
            `executors`; None: `sys.executable`.
        launcher: Starts supervisors; None: as processes, with `python`.
        only_own: Claim only jobs that were created through this manager.
        trust_directory: Use the database even if another user can create files in its
            directory; that user could then run commands as this one. Setting the
            environment variable JOBCORE_TRUST_DIRECTORY to the directory does the same.
        create: False: refuse a missing or empty file instead of making it a database. For
            programs that only read.

    Raises:
        NotAJobcoreDatabase: The file is not a database, or is another program's; or it is
            missing or empty, and `create` is false. It is left unchanged.
        StoreError: The file cannot be used. The subclass says why.
        SpawnError: The system cannot start another thread, or no job could ever run in this
            process: gevent or eventlet has replaced its threads, or it is a frozen program
            and `python` is not given.
        ArgumentError: An argument is invalid: a database that is not a file, such as
            ":memory:", a negative number of slots, a time-out of NaN seconds, ...
    """

    def __init__(
        self,
        database: str | os.PathLike[str] = "jobs.db",
        *,
        slots: int | None = None,
        executors: Mapping[str, Executor] | None = None,
        clock: Clock | None = None,
        on_exit: str = "detach",
        busy_timeout: float = 30.0,
        python: str | None = None,
        launcher: Launcher | None = None,
        only_own: bool = False,
        trust_directory: bool = False,
        create: bool = True,
    ) -> None:
        checks.one_of(on_exit, "on_exit", ("detach", "stop"))
        if clock is not None:
            arguments.require_methods(clock, "clock", "now", "monotonic")
        if launcher is not None:
            arguments.require_methods(launcher, "launcher", "start")
            if python is not None:
                raise ArgumentError("python is for jobcore's own launcher: give launcher or python")
        path = arguments.checked_database(database)
        patience = checks.seconds(busy_timeout, "busy_timeout", LONGEST_BUSY)
        count, interpreter = arguments.checked_slots(slots), arguments.checked_python(python)
        self._on_exit = on_exit
        self._slots = arguments.usable_processors() if count is None else count
        self._host: dict[str, Any] = {"python": interpreter, "own_launcher": launcher is not None}
        if self._slots:
            require_host(**self._host)
        self._executors = arguments.checked_executors(
            default_executors(interpreter) if executors is None else executors
        )
        self._clock = clock or SystemClock()
        self._only_own = only_own
        self._trust_directory = bool(trust_directory)
        from jobcore.operations import dropped  # noqa: PLC0415 - not at the import of jobcore

        open_database = handed_over(Database)
        self._database = open_database(
            path,
            busy_timeout=patience,
            trust_directory=self._trust_directory,
            runs_jobs=self._slots > 0,
            create=bool(create),
        )
        try:
            self._assemble(launcher or ProcessLauncher(interpreter))
            OPEN.add(self)
            self._dropped = dropped.watch(
                self,
                self._database.path,
                (self._dispatcher, self._notifier),
                (self._directories, self._database),
            )
            self._start()
        except BaseException:
            # The process may be out of descriptors or threads: leave nothing open.
            OPEN.discard(self)
            self._database.close()
            raise

    def _assemble(self, launcher: Launcher) -> None:
        """Create the parts that do the work, without starting any of them."""
        # Not at the import of jobcore.
        from jobcore.engine.expiry import Expiry  # noqa: PLC0415
        from jobcore.engine.retention import RetentionChore  # noqa: PLC0415
        from jobcore.engine.supervisor_pool import SupervisorPool  # noqa: PLC0415
        from jobcore.operations.staging import BatchCreator  # noqa: PLC0415
        from jobcore.operations.subscriptions import Notifier  # noqa: PLC0415
        from jobcore.operations.waiting_async import AsyncWaiter  # noqa: PLC0415

        self._listings = Listings(self._database, self._clock)
        self._event_reader = EventReader(self._database, self._listings.leave_out("event"))
        # Before the dispatcher: `atexit` runs handlers in reverse order, so that the notifier
        # ends after the dispatcher.
        self._notifier = Notifier(self._database)
        self._directories = directories = Directories(self._database.path, self._database)
        self._database.guard(directories)
        self._ownership = ownership = Ownership(directories)
        importer = Importer(self._database, directories, self._clock)
        postponed = Postponement(seconds_of(self._clock))
        self._staging = staging = BatchCreator(self._database, ownership)
        self._creator = JobCreator(self._database, staging, self._clock, ownership)
        self._pipelines = PipelineOperations(self._database, self._clock, self._executors)
        self._tasks = TaskOperations(self._database, self._clock, ownership)
        self._stopper = Stopper(self._database, directories, self._clock)
        self._remover = remover = Remover(self._database, directories, self._clock, postponed)
        self._recovery = recovery = Recovery(
            self._database,
            directories,
            importer,
            self._stopper,
            remover,
            self._clock,
            ownership,
            postponed,
        )
        self._expiry = expiry = Expiry(self._database, self._clock, postponed)
        retention = RetentionChore(self._database, remover, self._clock)
        self._waiter = Waiter(self._database, recovery)
        self._async_waiter = AsyncWaiter(self._waiter)
        self._dispatcher = Dispatcher(
            database=self._database,
            directories=directories,
            importer=importer,
            pool=SupervisorPool(
                launcher, slots=self._slots, postponed=postponed, host=self._database
            ),
            clock=self._clock,
            executors=self._executors,
            slots=self._slots,
            only_own=self._only_own,
            ownership=ownership,
            reconcile=lambda run: recovery.try_to_reconcile(run, kill=True),
            chores={
                "expiry": expiry.tick,
                "schedules": Scheduler(self._database, self._clock, postponed).tick,
                "sweep": recovery.sweep,
                "dependencies": recovery.decide,
                "batches": staging.remove_abandoned,
                "retention": retention.tick,
            },
            in_steps=lambda: any(one.is_unfinished() for one in (recovery, expiry, retention)),
            postponed=postponed,
        )
        recovery.connected = self._dispatcher.connected
        recovery.is_connected = self._dispatcher.is_connected
        self._liveness = self._dispatcher.liveness

    # --- creating -----------------------------------------------------------------

    def submit(
        self,
        command: Runnable,
        *,
        name: str | None = None,
        data: Any = None,
        workspace_id: Id | None = None,
        pipeline_id: Id | None = None,
        type: str = JobType.COMMAND,  # noqa: A002 - the name of the field in Matatika's Jobs API
        not_before: float | datetime | None = None,
        env_from: Literal["submitter", "worker"] = "worker",
        reserved: bool = False,
        key: str | None = None,
        unique_for: float | None = None,
        on_conflict: Literal["return", "raise"] = "return",
        priority: int = 0,
        group: str | None = None,
        expires: float | datetime | None = None,
        after: Id | Iterable[Id] = (),
        run_if: Literal["complete", "ended", "failed"] = "complete",
        retries: Retries | int | None = None,
        on_complete: Hook = None,
        on_error: Hook = None,
        on_stopped: Hook = None,
        **options: Any,
    ) -> Job:
        """
        Create a QUEUED job that runs `command` in the next free slot, in the order of creation.

        When this returns, the job survives any crash, and a power failure.

        With a key, the call can be repeated: while a job of the workspace holds the key, this
        returns that job, whatever the other arguments are. A job holds its key until it is
        final or deleted; a retry takes it over.

        Args:
            command: A list of words, or a `Command`.
            name: A name of your choice.
            data: Your own small JSON, up to 64 KiB.
            workspace_id: Its workspace; None: the default one.
            pipeline_id: Its pipeline, which can have no other job until this one is final.
            type: Managers with an executor for this type run it.
            not_before: The earliest time at which it starts: seconds from its creation, or a
                time with a time zone.
            env_from: Which environment the command gets, in addition to its own `env`.
                `"worker"`: that of the process that starts the job. `"submitter"`: that
                of this process, as it is now. The database (mode 0600) stores it until no
                job that may still start needs it; it is never shown. These variables are
                left out: `JOBCORE_*`, `NOTIFY_SOCKET`, `LISTEN_*`, `INVOCATION_ID`,
                `SSH_AUTH_SOCK`, `DISPLAY`, `PWD`, `SHLVL` and `_`.
            reserved: Only this process may start the job, so the command gets this process's
                environment. If this process ends first, the job is cancelled.
            key: A text of your choice, such as `nightly-2026-11-29`. Over all processes, at
                most one job of the workspace holds it.
            unique_for: The job holds its key for at least this many seconds from its creation,
                even if it is final before.
            on_conflict: What this does if another job holds the key: `"return"` that job, or
                `"raise"` DuplicateKey.
            priority: Jobs with a higher priority start first.
            group: The group whose limit the job counts for.
            expires: Seconds from its creation, or a time with a time zone: if the job has not
                started by then, it is cancelled, with the reason `expired`.
            after: Jobs that it waits for, by their ids; an id stands for the last attempt of that
                job. It starts when all of them have ended as `run_if` says. If one of them ends
                otherwise, or is deleted, this job is cancelled, with the reason `upstream`.
            run_if: `"complete"`: COMPLETE. `"failed"`: ERROR, or stopped by a time-out. `"ended"`:
                in any way.
            retries: How often, after which endings and after what pauses it is tried again; a
                number stands for `Retries(number)`.
            on_complete: A command, or a list of commands, that runs as a separate job when this one
                has ended COMPLETE. It is queued in the transaction that ends this job, and finds
                the facts in its environment: `JOBCORE_HOOK_JOB_ID`, `_NAME`, `_STATUS`, `_REASON`,
                `_EXIT_CODE`, `_SIGNAL` and `_PIPELINE`.
            on_error: The same after ERROR, if no retry follows.
            on_stopped: The same after STOPPED, if no retry follows.
            options: Further arguments of `Command`: `timeout`, `cwd`, `env`, ...

        Returns:
            The job as it was created, or the job that holds the key.

        Raises:
            CommandError: The job could never run, or `data` cannot be stored; nothing was
                created.
            WorkspaceNotFound, PipelineNotFound: No workspace or pipeline has this id.
            JobNotFound: `after` names an unknown job.
            ArgumentError: `after` or `retries` is of the wrong type, or not a sensible value.
            PipelineAlreadyRunning: The pipeline has a QUEUED or RUNNING job.
            DuplicateKey: Another job holds the key, and `on_conflict` is `"raise"`; its id is
                `.job_id`.
        """
        fields = {
            "type": type,
            "name": name,
            "data": arguments.checked_data(data),
            "command": arguments.checked_command(command, options).to_json(),
            **arguments.queue_fields(
                priority=priority,
                group=group,
                expires=expires,
                key=key,
                unique_for=unique_for,
                not_before=not_before,
                after=after,
                run_if=run_if,
                retries=retries,
                on_complete=on_complete,
                on_error=on_error,
                on_stopped=on_stopped,
            ),
        }
        source = arguments.checked_env_from(env_from)
        return self._create(
            [fields],
            workspace_id,
            pipeline_id,
            env_from=source,
            reserved=bool(reserved),
            on_conflict=on_conflict,
        )[0]

    def submit_many(
        self,
        commands: Sequence[Runnable | Submission],
        *,
        name: str | None = None,
        data: Any = None,
        workspace_id: Id | None = None,
        type: str = JobType.COMMAND,  # noqa: A002 - the name of the field in Matatika's Jobs API
        not_before: float | datetime | None = None,
        env_from: Literal["submitter", "worker"] = "worker",
        reserved: bool = False,
        on_conflict: Literal["return", "raise"] = "return",
        priority: int = 0,
        group: str | None = None,
        expires: float | datetime | None = None,
        after: Id | Iterable[Id] = (),
        run_if: Literal["complete", "ended", "failed"] = "complete",
        retries: Retries | int | None = None,
        on_complete: Hook = None,
        on_error: Hook = None,
        on_stopped: Hook = None,
        **options: Any,
    ) -> list[Job]:
        """
        Create many jobs: all of them, or none.

        More than 1,000 jobs are written in several short transactions, so that others can
        write in between. They still become visible all at once; if the process dies before
        that, none of them is created.

        When this returns, all of them survive any crash, and a power failure. Args and
        errors are those of `submit`.

        Args:
            commands: Lists of words, `Command`s and `Submission`s, in the order in which they
                start. A `Submission` has its own name, key, priority and so on, and may name
                others of the same call in `after`.
            reserved: As in `submit`.
            on_conflict: With `"return"`, the other job is returned in the place of each job whose
                key another one holds. With `"raise"`, none is created then.
            options: Apply to every command that is a list of words.

        Returns:
            The jobs in the order of the commands.
        """
        given = {
            "name": name,
            "data": data,
            "not_before": not_before,
            "priority": priority,
            "group": group,
            "expires": expires,
            "after": after,
            "run_if": run_if,
            "retries": retries,
            "on_complete": on_complete,
            "on_error": on_error,
            "on_stopped": on_stopped,
        }
        fields = [
            {"type": type, **one} for one in arguments.submitted_fields(commands, given, options)
        ]
        source = arguments.checked_env_from(env_from)
        if not fields:
            return []
        return self._create(
            fields,
            workspace_id,
            None,
            env_from=source,
            reserved=bool(reserved),
            on_conflict=on_conflict,
        )

    def submit_function(
        self,
        target: Callable[..., Any] | str,
        /,
        *args: Any,
        key: str | None = None,
        unique_for: float | None = None,
        on_conflict: Literal["return", "raise"] = "return",
        priority: int = 0,
        group: str | None = None,
        expires: float | datetime | None = None,
        after: Id | Iterable[Id] = (),
        run_if: Literal["complete", "ended", "failed"] = "complete",
        retries: Retries | int | None = None,
        on_complete: Hook = None,
        on_error: Hook = None,
        on_stopped: Hook = None,
        **kwargs: Any,
    ) -> Job:
        """
        Create a QUEUED job that calls a function in a fresh interpreter; see `result`.

        When this returns, the job survives any crash, and a power failure. What
        the function logs and prints becomes the job's log; an exception makes the
        job ERROR, with the traceback as its last lines.

        Args:
            target: A function or class at the top level of a module, or any other
                callable that can be pickled. Lambdas do not work, nor does anything
                defined in `__main__`. Or the text `package.module:function`, which is
                imported only when the job runs.
            args: Its positional arguments; they must be picklable.
            key: As in `submit`. If the function has a parameter of one of the names from `key`
                to `on_stopped`, that argument is refused here.
            unique_for: Seconds, as in `submit`.
            on_conflict, priority, group: As in `submit`.
            expires: Seconds, or a time with a time zone, as in `submit`.
            after, run_if, retries, on_complete, on_error, on_stopped: As in `submit`.
            kwargs: Its keyword arguments. To give the job a time-out, a workspace and so
                on, use `submit(function_command(...), type="FUNCTION", ...)`.

        Returns:
            The job as it was created, named after the function, or the job that holds the key.

        Raises:
            CommandError: The function can never be called like this; nothing was
                created. The message says why, without showing any argument.
            DuplicateKey: Another job holds the key, and `on_conflict` is `"raise"`.
            JobNotFound: `after` names an unknown job.
            ArgumentError: `after` or `retries` is of the wrong type, or not a sensible value.
        """
        waiting: dict[str, Any] = {
            "key": key,
            "unique_for": unique_for,
            "on_conflict": None if on_conflict == "return" else on_conflict,
            "priority": priority or None,
            "group": group,
            "expires": expires,
            "after": after or None,
            "run_if": None if run_if == "complete" else run_if,
            "retries": retries,
            "on_complete": on_complete,
            "on_error": on_error,
            "on_stopped": on_stopped,
        }
        given = {name: value for name, value in waiting.items() if value is not None}
        arguments.refuse_parameters(target, given)
        return self.submit(
            function_command(target, args, kwargs),
            name=describe(target),
            type=JobType.FUNCTION,
            **given,
        )

    def create_job(
        self,
        type: str = JobType.PIPELINE_RUN,  # noqa: A002 - the name of the field in Matatika's Jobs API
        *,
        pipeline_id: Id | None = None,
        workspace_id: Id | None = None,
        command: Runnable | None = None,
        name: str | None = None,
        data: Any = None,
        args: Sequence[str | bytes | os.PathLike[str]] = (),
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
        env_from: Literal["submitter", "worker"] = "worker",
        key: str | None = None,
        unique_for: float | None = None,
        on_conflict: Literal["return", "raise"] = "return",
        priority: int = 0,
        group: str | None = None,
        expires: float | datetime | None = None,
    ) -> Job:
        """
        Create a job of a type, optionally from a pipeline, as Matatika's Jobs API does.

        A job whose type has no executor in any manager is a task for the host: it is
        QUEUED until `start_job`, then RUNNING until `finish_job`. When this returns,
        the job survives any crash, and a power failure.

        Args:
            type: What kind of work it is; executors are registered by type.
            pipeline_id: Its pipeline, which defines what to run, and which can have no
                other job until this one is final.
            workspace_id: Its workspace; None: its pipeline's, else the default one.
            command: What to run instead of the pipeline's own command.
            name: A name of your choice.
            data: Your own small JSON, up to 64 KiB.
            args: Words that this run's command gets after its own; a script gets them as `$1`,
                `$2` and so on.
            env: Variables of this run, on top of those of its command. They are stored like
                those of a `Command`.
            timeout: Seconds until this run is stopped, in place of its command's own time-out.
            env_from: Which environment its command gets, as in `submit`.
            key: As in `submit`.
            unique_for: Seconds, as in `submit`.
            on_conflict, priority, group: As in `submit`.
            expires: Seconds, or a time with a time zone, as in `submit`.

        Returns:
            The job as it was created, QUEUED, or the job that holds the key.

        Raises:
            PipelineNotFound, WorkspaceNotFound: No pipeline or workspace has this id.
            PipelineAlreadyRunning: The pipeline has a QUEUED or RUNNING job; its id is `.job_id`.
            DuplicateKey: Another job holds the key, and `on_conflict` is `"raise"`.
            CommandError: The command could never run, or the data cannot be stored.
        """
        own = None if command is None else arguments.checked_command(command, {}).to_json()
        stored = arguments.checked_parameters(args, env, timeout)
        if stored is not None and own is None and pipeline_id is None:
            raise CommandError("args, env and timeout need a command, or a pipeline that has one")
        fields = {
            "type": type,
            "name": name,
            "data": arguments.checked_data(data),
            "command": own,
            "parameters": stored,
            **arguments.queue_fields(
                priority=priority, group=group, expires=expires, key=key, unique_for=unique_for
            ),
        }
        source = arguments.checked_env_from(env_from)
        return self._create(
            [fields], workspace_id, pipeline_id, env_from=source, on_conflict=on_conflict
        )[0]

    def retry_job(self, job_id: Id) -> Job:
        """
        Create a new job that repeats one that ended ERROR or STOPPED; the old one is unchanged.

        The new job starts without a pause, and takes over the rest: its retries, its hooks, its
        priority and group. If the old job used its submitter's environment, the new one uses the
        environment of this process, its own submitter: the old environment is no longer stored.

        When this returns, the new job survives any crash, and a power failure.

        Returns:
            The new job, QUEUED, with `attempt` one higher and `retry_of` set.

        Raises:
            JobNotFound: No job has this id.
            InvalidTransition: The job is neither ERROR nor STOPPED, or another job has retried it
                already; the message names that job.
            PipelineAlreadyRunning: Its pipeline has another QUEUED or RUNNING job.
            DuplicateKey: Another job holds its key.
        """
        row = self._reconciled(job_id, kill=True)
        if row.status not in lifecycle.RETRIABLE:
            raise InvalidTransition(row.id, row.status, "retry")
        environment = capture() if row.env_from == SUBMITTER else None
        return self._created(lambda: [self._creator.retry(row.id, environment)])[0]

    def update_job(
        self,
        job_id: Id,
        *,
        priority: int | Unset = UNSET,
        not_before: float | datetime | Unset | None = UNSET,
        name: str | Unset | None = UNSET,
        data: Any = UNSET,
        timeout: float | Unset | None = UNSET,
    ) -> Job:
        """
        Change a QUEUED job, or the `data` of any job; omitted arguments change nothing.

        The change is durable when this returns. All managers see it before they start another
        job. If the job has just been started, nothing is changed.

        Args:
            priority: Jobs with a higher priority start first.
            not_before: The earliest time at which it starts: seconds from now, or a time with
                a time zone. None: now.
            name: A name of your choice, or None.
            data: Your own small JSON, up to 64 KiB.
            timeout: Seconds until its command is stopped; None: no limit, or that of its
                pipeline.

        Returns:
            The job after the change.

        Raises:
            JobNotFound: No job has this id.
            InvalidTransition: It is not QUEUED, and more than `data` is given.
            CommandError: A value is invalid, or the job has no command that a `timeout` could
                limit; nothing was changed.
        """
        from jobcore.operations import queue_changes  # noqa: PLC0415 - loaded by those who need it

        changes = {
            "priority": priority,
            "not_before": not_before,
            "name": name,
            "data": data,
            "timeout": timeout,
        }
        self._reconciled(job_id)
        row = queue_changes.update_job(self._database, self._clock, job_id, changes)
        self._dispatcher.wake()
        return public(Job, row, self._clock.now())

    def _create(
        self,
        jobs: list[dict[str, Any]],
        workspace_id: Id | None,
        pipeline_id: Id | None,
        *,
        env_from: str,
        reserved: bool = False,
        started: bool = False,
        on_conflict: str = "raise",
    ) -> list[Job]:
        if reserved:
            if any(job.get("retries") is not None for job in jobs):
                raise CommandError(
                    "a reserved job has no retries: the environment of this process is not stored"
                )
            env_from = SUBMITTER  # this process starts it, so nothing needs to be stored
        wanted: dict[str, Any] = {
            "jobs": [{**job, "env_from": None if env_from == WORKER else env_from} for job in jobs],
            "workspace_id": workspace_id,
            "pipeline_id": pipeline_id,
            "environment": capture() if env_from == SUBMITTER and not reserved else None,
            "reserved": reserved,
            "started": started,
            "on_conflict": arguments.checked_on_conflict(on_conflict),
        }
        held = [job["key"] for job in jobs if job.get("key") is not None]
        if held:
            for holder in self._creator.uncertain_holders(held, workspace_id, pipeline_id):
                self._has_ended(holder)
        return self._created(lambda: self._creator.create_jobs(**wanted))

    def _created(self, create: Callable[[], list[dict[str, Any]]]) -> list[Job]:
        """Create jobs, and start what can start now."""
        self._start()
        try:
            rows = create()
        except PipelineAlreadyRunning as conflict:
            # The other job may have ended and not be settled yet: settle it and try again.
            if not self._has_ended(conflict.job_id):
                raise
            rows = create()
        if self._only_own:
            for row in rows:
                self._dispatcher.make_own(row["number"])
        self._dispatcher.wake()
        return [self._shown(row) for row in rows]

    def _has_ended(self, job_id: UUID) -> bool:
        try:
            return self._reconciled(job_id, kill=True).end_time is not None
        except JobNotFound:
            return True

    # --- tasks of the host --------------------------------------------------------

    def start_job(self, job_id: Id, *, owner: Literal["auto", "process"] | None = "auto") -> Job:
        """
        Move a QUEUED job to RUNNING, as a task that this program does itself.

        The change is durable when this returns. The job is RUNNING until any process calls
        `finish_job` or `stop_job`. If it has an owner and that process ends first, the job
        becomes ERROR with reason `lost`. A manager that runs jobs does that by itself; so
        do `get_job`, `wait`, `recover`, and `create_job` for the same pipeline.

        The owner is the process, not the manager: `close` does not end the task. A
        forked child does not own the tasks of its parent.

        Args:
            owner: `"process"`: this process owns the task. None: no process owns it, and
                the job stays RUNNING whichever process dies; for tasks that people do.
                `"auto"`: None for types that begin with `PROFILE_`, else `"process"`.

        Returns:
            The job, RUNNING.

        Raises:
            JobNotFound: No job has this id.
            InvalidTransition: It is not QUEUED, or another process has reserved it.
            ArgumentError: `owner` is not one of these values.
        """
        return public(
            Job,
            self._tasks.start(job_id, checks.one_of(owner, "owner", ("auto", "process", None))),
        )

    def task(
        self,
        type: str = JobType.TASK,  # noqa: A002 - the name of the field in Matatika's Jobs API
        *,
        job_id: Id | None = None,
        pipeline_id: Id | None = None,
        workspace_id: Id | None = None,
        name: str | None = None,
        data: Any = None,
    ) -> Task:
        """
        Return a context manager whose body is the job: for `with` and `async with`.

        When the block begins, the job is created as RUNNING in one step, or the given job
        is started. When the body ends, the job is COMPLETE; if the body raises, it is ERROR
        with the traceback as its last lines. Each change is durable. `Stopped` is raised in
        the body when the job is stopped; see `Task`.

        Args:
            type: What kind of work it is.
            job_id: A QUEUED job to start instead, or one that `claim_job` returned; then
                omit the other arguments.
            pipeline_id: Its pipeline, which can have no other job until this one is final.
            workspace_id: Its workspace; None: its pipeline's, else the default one.
            name: A name of your choice.
            data: Your own small JSON, up to 64 KiB.

        Raises:
            JobNotFound, PipelineNotFound, WorkspaceNotFound: Nothing has this id; raised when
                the block begins.
            InvalidTransition: The job is neither QUEUED nor a task of this process; raised
                when the block begins.
            PipelineAlreadyRunning: The pipeline has a QUEUED or RUNNING job; raised when the
                block begins.
            CommandError: The name or the data cannot be stored.
        """
        fields = {"type": type, "name": name, "data": arguments.checked_data(data), "command": None}

        def begin() -> Job:
            if job_id is not None:
                self._reconciled(job_id)
                return public(Job, self._tasks.take_up(job_id))
            return self._create([fields], workspace_id, pipeline_id, env_from=WORKER, started=True)[
                0
            ]

        return Task(begin, self._tasks, self._async_waiter)

    def claim_job(
        self,
        type: str | Collection[str],  # noqa: A002 - the field's name
        *,
        timeout: float | None = 0.0,
    ) -> Job | None:
        """
        Start the first QUEUED job of a type for your own worker, and return it.

        The claim is durable when this returns. However many processes claim at once, each
        job goes to exactly one of them. It is then a task of this process, as after
        `start_job`: work on it in `task(job_id=job.id)`, or end it with `finish_job`.
        Jobs that are reserved, paused or not yet due stay in the queue, and so do those whose
        limit is full.

        Args:
            type: The job type, or several.
            timeout: Seconds to wait for a job; None: as long as it takes.

        Returns:
            The job, RUNNING; None if there was none in time.

        Raises:
            ArgumentError: A type or `timeout` is invalid.
        """
        types = arguments.required_types(type)
        arguments.checked_timeout(timeout)
        row = self._claimer().claim(types, timeout)
        return None if row is None else self._shown(row)

    def claim_job_async(
        self,
        type: str | Collection[str],  # noqa: A002 - the field's name
        *,
        timeout: float | None = 0.0,
    ) -> Coroutine[Any, Any, Job | None]:
        """
        Do what `claim_job` does, in an event loop; args and errors are those of `claim_job`.

        The claim is durable when it returns. A caller that is cancelled while it waits has
        claimed nothing. If a claim is being written at that moment, its job is returned, and
        the cancellation takes effect at the caller's next await.

        Returns:
            The job, RUNNING; None if there was none in time.
        """
        types = arguments.required_types(type)
        arguments.checked_timeout(timeout)
        return self._claimer().claim_async(types, timeout)

    def _claimer(self) -> Claimer:
        from jobcore.operations.claiming import Claimer  # noqa: PLC0415 - loaded by those who need it

        return Claimer(self._tasks, self._waiter, self._async_waiter)

    def adopt_task(self, job_id: Id) -> Job:
        """
        Make this process the owner of a task, which another process or nobody owned before.

        When this returns, the change is durable: if this process ends before the job is
        final, the job is `lost`. The end of the previous owner no longer matters.

        Returns:
            The job, RUNNING.

        Raises:
            JobNotFound: No job has this id.
            InvalidTransition: It is not RUNNING, or a supervisor runs it. A task whose
                owner is dead is already ERROR.
        """
        self._reconciled(job_id)
        return public(Job, self._tasks.adopt(job_id))

    def finish_job(self, job_id: Id, exit_code: int = 0) -> Job:
        """
        Move a job that its host started to COMPLETE if `exit_code` is 0, else to ERROR.

        The new status is durable when this returns, and never changes again.

        Args:
            exit_code: The exit code that a process would have had, 0 to 255.

        Returns:
            The job, final.

        Raises:
            JobNotFound: No job has this id.
            InvalidTransition: It is not RUNNING, or it has a process, whose end decides.
            ArgumentError: `exit_code` is not between 0 and 255.
        """
        return public(Job, self._tasks.finish(job_id, exit_code))

    def append_log(
        self,
        job_id: Id,
        *lines: str | bytes,
        stream: Literal["output", "stdout", "stderr"] = "output",
    ) -> int:
        """
        Append lines to the log of a RUNNING job without a process; text is split at line ends.

        When this returns, the lines survive any crash. A power failure may undo those of the
        last few seconds; `finish_job` makes all of them durable.

        Args:
            lines: Texts, or bytes, which are stored unchanged. A missing final line end is
                added. Surrogate escapes, as `os.fsdecode` makes them, become the original
                bytes; any other lone surrogate becomes `?`.
            stream: The stream that the lines are shown with.

        Returns:
            How many lines the log then has.

        Raises:
            JobNotFound: No job has this id.
            InvalidTransition: It is not RUNNING, or a process writes its log.
            ArgumentError: A line is neither text nor bytes, or `stream` is another value.
        """
        return self._tasks.append(
            job_id, arguments.checked_lines(lines), arguments.checked_stream(stream)
        )

    def report_progress(
        self, job_id: Id, done: float, total: float | None = None, message: str | None = None
    ) -> Job:
        """
        Store the progress of a RUNNING job without a process; it replaces the last report.

        A job with a process reports its progress itself. A power failure may undo the
        reports of the last few seconds.

        Args:
            done: How much is done, in any unit; 0 or more.
            total: How much there is to do, in the same unit; None: not known.
            message: One line for people; it is cut after 1,000 characters.

        Returns:
            The job with its new `progress`.

        Raises:
            JobNotFound: No job has this id.
            InvalidTransition: It is not RUNNING, or a process runs it.
            ArgumentError: A number is negative or not finite, or `message` is not text.
        """
        given = arguments.checked_progress(done, total, message)
        return public(Job, self._tasks.report(job_id, *given))

    # --- limits -----------------------------------------------------------------------

    @property
    def slots(self) -> int:
        """
        How many jobs this manager runs at once. It can be changed at any time.

        With fewer slots, running jobs go on, and no job starts until enough of them have ended.

        Raises:
            SpawnError: No job could ever run in this process; only if there were no slots.
            ArgumentError: The new value is not an integer, 0 or more.
        """
        return self._slots

    @slots.setter
    def slots(self, slots: int) -> None:
        count = arguments.checked_slots(checks.count(slots, "slots")) or 0
        if count and not self._slots:
            require_host(**self._host)
        self._slots = count
        self._dispatcher.set_slots(count)
        self._start()

    def set_limit(
        self,
        group: str | None,
        slots: int | None,
        *,
        type: str | None = None,  # noqa: A002 - the field's name
    ) -> Limit:
        """
        Set how many jobs of a group, of a type or of the whole file may run at once.

        The limit is stored in the file, and applies to all managers and to `claim_job`. It counts
        every RUNNING job, including the tasks that `start_job` and `task` start, but does not
        refuse those. A job that exceeds the limit stays QUEUED until another one has ended. When
        this returns, no claim exceeds the new limit; running jobs go on.

        Args:
            group: The group; None with a type, or for the file.
            slots: The most jobs at once, 1 or more; None: any number.
            type: The job type; omit the group then.

        Returns:
            The limit, as `limits` shows it.

        Raises:
            ArgumentError: `slots` is not an integer, 1 or more, or there is a group and a type.
            CommandError: The group is not a valid name.
        """
        limit = self._limits().set_slots(group, type, slots)
        self._dispatcher.wake()
        return limit

    def limits(self) -> list[Limit]:
        """Return all limits and pauses, with the number of jobs that run and that are queued."""
        return self._limits().all()

    def pause(
        self,
        group: str | None = None,
        type: str | None = None,  # noqa: A002 - the field's name
    ) -> Limit:
        """
        Let no more jobs of a group, of a type or of the whole file start, until `resume`.

        The pause is stored in the file, and holds for all managers and for `claim_job`. When
        this returns, no further job starts; running jobs go on, and jobs can be submitted.
        `start_job` and `task` are not refused. `drain` does not wait for paused jobs.

        Args:
            group: The group; None with a type, or for the file.
            type: The job type; omit the group then.

        Returns:
            The limit, as `limits` shows it.

        Raises:
            ArgumentError: There is a group and a type.
            CommandError: The group is not a valid name.
        """
        return self._limits().pause(group, type)

    def resume(
        self,
        group: str | None = None,
        type: str | None = None,  # noqa: A002 - the field's name
    ) -> Limit:
        """
        Undo `pause` with the same arguments, so that the jobs start again.

        The change is durable when this returns. A job that is paused in several ways starts
        when all of them are resumed. Args and errors are those of `pause`.

        Returns:
            The limit, as `limits` shows it.
        """
        limit = self._limits().resume(group, type)
        self._dispatcher.wake()
        return limit

    def _limits(self) -> LimitOperations:
        from jobcore.operations.limits import LimitOperations  # noqa: PLC0415 - loaded by those who need it

        return LimitOperations(self._database, self._clock)

    # --- stopping, cancelling, deleting ---------------------------------------------

    def stop_job(self, job_id: Id, *, grace: float | None = None) -> Job:
        """
        Ask a RUNNING job to stop, and return at once.

        The returned job is still RUNNING: its command gets its stop signal, SIGTERM
        unless it has another, and all its processes are killed after the grace. The job
        may end by itself first, so wait for any final status, not for STOPPED. A second
        call is harmless; it can only shorten the grace. A job without a process is
        STOPPED at once. The stop request is durable: it is carried out even if this
        process dies.

        Args:
            grace: Seconds until the job is killed; 0: now. None: the command's own grace.

        Returns:
            The job as it is then.

        Raises:
            JobNotFound: No job has this id.
            JobNotRunning: It is not RUNNING. `cancel_job` also accepts a QUEUED job.
            CommandError: `grace` is not a number of seconds, 0 or more.
            StoreError: The stop request could not be stored, or could not reach the supervisor. If
                only disk space is lacking, or the database is locked, the supervisor still gets it,
                and the job ends as STOPPED.
        """
        checked = None if grace is None else checked_grace(grace)
        run = self._stopper.stop(self._run(job_id, kill=True), checked, "stop")
        return self._job(run)

    def cancel_job(self, job_id: Id, *, grace: float | None = None) -> Job:
        """
        Move a QUEUED job to STOPPED at once; ask a RUNNING one to stop, as `stop_job` does.

        When this returns, a job that was QUEUED never starts.

        Args:
            grace: Seconds until a RUNNING job is killed, as in `stop_job`.

        Returns:
            The job as it is then, STOPPED or still RUNNING.

        Raises:
            JobNotFound: No job has this id.
            InvalidTransition: It is final.
            CommandError: `grace` is not a number of seconds, 0 or more.
        """
        checked = None if grace is None else checked_grace(grace)
        run = self._stopper.cancel(self._run(job_id, kill=True), checked)
        return self._job(run)

    def delete_job(self, job_id: Id) -> None:
        """
        Remove a job with its log and history, stopping it first if necessary.

        The job disappears for all readers in the first step. This method returns when
        all of it is gone. If this process dies first, the next manager finishes the
        deletion.

        A job whose row is damaged can be removed too, as long as SQLite finds the row.

        Raises:
            JobNotFound: No job has this id.
            StoreError: The deletion could not be finished. If the job has already
                disappeared, the next manager finishes it.
        """
        try:
            run = self._run(job_id, kill=True)
        except DatabaseCorrupt:
            self._deleter().delete_damaged(job_id)
        else:
            self._deleter().delete(run)

    def stop_jobs(self, *, grace: float | None = None, **filters: Unpack[JobFilters]) -> list[Job]:
        """
        Ask all RUNNING jobs that match to stop, as `stop_job` does, and return at once.

        The requests are durable when this returns.

        Args:
            grace: Seconds until the jobs are killed, as in `stop_job`.
            filters: As in `list_jobs`; none: all jobs.

        Returns:
            These jobs, the oldest first. Those that had just ended are left out.

        Raises:
            WorkspaceNotFound, PipelineNotFound: No workspace or pipeline has this id.
            ArgumentError: A filter is unknown or invalid.
            CommandError: `grace` is not a number of seconds, 0 or more.
        """
        self._start()
        checked = None if grace is None else checked_grace(grace)
        return self._bulk().stop(self._wanted(filters), checked)

    def cancel_jobs(
        self, *, grace: float | None = None, **filters: Unpack[JobFilters]
    ) -> list[Job]:
        """
        Cancel all QUEUED jobs that match, and ask the RUNNING ones to stop, as `cancel_job` does.

        Many jobs are cancelled in short transactions, so that others can write in between. When
        this returns, a job that was QUEUED never starts.

        Args:
            grace: Seconds until RUNNING jobs are killed, as in `stop_job`.
            filters: As in `list_jobs`; none: all jobs.

        Returns:
            These jobs, STOPPED or still RUNNING. Those that had just ended are left out.

        Raises:
            WorkspaceNotFound, PipelineNotFound: No workspace or pipeline has this id.
            ArgumentError: A filter is unknown or invalid.
            CommandError: `grace` is not a number of seconds, 0 or more.
        """
        self._start()
        checked = None if grace is None else checked_grace(grace)
        return self._bulk().cancel(self._wanted(filters), checked)

    def delete_jobs(self, **filters: Unpack[JobFilters]) -> list[Job]:
        """
        Remove all jobs that match, with their logs and histories, stopping them first.

        They are removed in short transactions, so that others can write in between. All of them
        are gone when this returns. If this process dies first, the next manager finishes the
        deletions that had begun.

        Args:
            filters: As in `list_jobs`, at least one. To remove all jobs, give every status.

        Returns:
            These jobs as they were before. Those whose rows were damaged are removed, too, but
            not returned.

        Raises:
            WorkspaceNotFound, PipelineNotFound: No workspace or pipeline has this id.
            ArgumentError: There is no filter, or one is unknown or invalid.
        """
        if all(value is None for value in filters.values()):
            raise ArgumentError("delete_jobs needs a filter: give every status to remove all jobs")
        self._start()
        return self._bulk().delete(self._wanted(filters))

    def retry_jobs(self, **filters: Unpack[JobFilters]) -> list[Job]:
        """
        Create a new job for each that matches and has ended ERROR or STOPPED, as `retry_job` does.

        Jobs that were retried already are left out, so that a second call changes nothing, and so
        are those whose pipeline is running or whose key another job holds. The new jobs are
        created in short transactions; when this returns, they survive any crash.

        Args:
            filters: As in `list_jobs`; none: all jobs.

        Returns:
            The new jobs, QUEUED, in the order of the old ones.

        Raises:
            WorkspaceNotFound, PipelineNotFound: No workspace or pipeline has this id.
            ArgumentError: A filter is unknown or invalid.
        """
        wanted = self._wanted(filters)
        return self._created(lambda: self._bulk().retry(wanted))

    @overload
    def prune(
        self,
        older_than: float,
        *,
        status: Status | Collection[Status] = FINAL,
        keep: int | None = None,
        dry_run: Literal[False] = False,
        **filters: Unpack[FurtherFilters],
    ) -> int: ...

    @overload
    def prune(
        self,
        older_than: float,
        *,
        status: Status | Collection[Status] = FINAL,
        keep: int | None = None,
        dry_run: Literal[True],
        **filters: Unpack[FurtherFilters],
    ) -> list[Job]: ...

    def prune(
        self,
        older_than: float,
        *,
        status: Status | Collection[Status] = FINAL,
        keep: int | None = None,
        dry_run: bool = False,
        **filters: Unpack[FurtherFilters],
    ) -> int | list[Job]:
        """
        Remove old final jobs, with their logs, histories and results.

        A job that is not final is never touched. The jobs are removed in short transactions
        with pauses in between, so that others can write; all of them are gone when this
        returns. If this process dies first, the next manager finishes the removals that had
        begun, and the other jobs stay. Several calls may run at once. The file does not
        shrink: SQLite reuses the space. Records of skipped runs are removed by the same
        rule, unless `status` names only some of the final statuses, or `filters` are given.

        Args:
            older_than: Remove jobs that ended at least this many seconds ago, by this
                manager's clock.
            status: One final status, or several; by default all of them.
            keep: Keep this many of the newest jobs that match the filters, however long
                ago they ended.
            dry_run: Change nothing.
            filters: The other filters of `list_jobs`, such as `pipeline_id` or `type`.

        Returns:
            How many jobs this call removed. In a dry run, the jobs that it would remove, oldest
            first. Jobs whose rows cannot be read would be removed too, but are not returned;
            `list_damaged_rows` names them.

        Raises:
            WorkspaceNotFound, PipelineNotFound: No workspace or pipeline has this id.
            ArgumentError: A number is negative or invalid, a status is unknown or not final, or
                another filter is unknown or invalid.
        """
        from jobcore.operations.prune import Pruner  # noqa: PLC0415 - loaded by those who need it

        age = checks.seconds(older_than, "older_than", checks.OLDEST)
        statuses, newest = arguments.checked_final(status), checks.optional_count(keep, "keep")
        wanted = self._wanted({**filters, "status": statuses})
        pruner = Pruner(self._database, self._remover, self._clock)
        expired = pruner.choose(age, wanted, newest)
        if dry_run:
            damaged: dict[int, Exception] = {}
            return self._listings.formed(pruner.preview(expired, damaged.__setitem__), damaged)
        return pruner.prune(expired)

    def retention(self) -> list[Retention]:
        """
        Return the rules that `set_retention` stored, the oldest first; without rules, all jobs
        stay.
        """
        from jobcore.operations import retention  # noqa: PLC0415 - loaded by those who need it

        return retention.rules(self._database)

    def set_retention(
        self,
        keep: float | str | None = None,
        *,
        statuses: Status | Collection[Status] | None = None,
        count: int | None = None,
    ) -> list[Retention]:
        """
        Set how long the file keeps final jobs. The managers that run its queue remove the others.

        They look about once a minute, and remove jobs with logs, histories and results in
        small steps, as `prune` does; so an expired job may stay a few minutes. The rule is
        stored in the file, is durable when this returns, and replaces earlier ones for the
        same statuses.

        Args:
            keep: Seconds for which jobs are kept after their end, or a text such as `"30d"`.
                None: they are removed once they are not among the newest `count`.
            statuses: The final statuses that the rule is for; None: all.
            count: Keep this many of the newest of these jobs, however long ago they ended.
                With neither `keep` nor `count`, all are kept.

        Returns:
            All rules of the file.

        Raises:
            ArgumentError: A number is negative or invalid, or a status is unknown or not final.
        """
        from jobcore.operations import retention  # noqa: PLC0415 - loaded by those who need it

        return retention.set_rules(self._database, keep, statuses, count)

    def statistics(self, window: float = 86_400.0) -> Statistics:
        """
        Return numbers about the file: jobs, the queue, what ended lately, and sizes.

        It takes as long for a million jobs as for a thousand: of the jobs that ended in the
        window, the last 10,000 are read.

        Args:
            window: Seconds before now for the numbers about ended jobs; by default a day.

        Raises:
            ArgumentError: `window` is negative or not a number.
        """
        from jobcore.operations.statistics import take  # noqa: PLC0415 - loaded when it is needed

        return take(self._database, self._clock, checks.seconds(window, "window"))

    def backup(self, path: str | os.PathLike[str], *, replace: bool = False) -> Backup:
        """
        Copy the database while it is in use; the copy is complete and compact.

        It has all that was committed when the call began: jobs with logs, pipelines, stored
        environments. It lacks what running jobs wrote and no manager has imported yet. The
        copy and the directory `<path>.jobs` are for this user alone, and survive a power
        failure once this returns. A file that exists stays as it is if this fails.

        Args:
            path: The file to write. To restore a backup, move it and its directory to the
                place of the database, after removing the old ones.
            replace: Replace a file that exists.

        Returns:
            What is in the copy.

        Raises:
            ArgumentError: The file exists, or is the database itself.
        """
        from jobcore.operations.backup import back_up  # noqa: PLC0415 - loaded by those who need it

        return back_up(self._database, arguments.checked_path(path, "path"), replace=bool(replace))

    def export_jobs(self, job_ids: Iterable[Id], *, with_commands: bool = False) -> Iterator[str]:
        """
        Yield jobs with their logs as lines of JSON, which `import_jobs` reads.

        Each line is an object with one key: `export`, then for each job `job` with its facts and
        its result, `log` for consecutive lines of its log, and `end`. Each log
        contains the lines that were imported when its turn came. Nothing is written.

        Args:
            job_ids: The jobs, in the order in which they are exported. Those that were deleted
                meanwhile are left out.
            with_commands: Export commands, hooks and parameters, too, with the values of their
                environments: keep the result as safe as the database. Without it, an imported job
                cannot be retried.

        Raises:
            ArgumentError: `job_ids` is not an iterable.
        """
        from jobcore.operations import export  # noqa: PLC0415 - loaded by those who need it

        wanted = arguments.checked_ids(job_ids, "export_jobs")

        def lines() -> Iterator[str]:
            yield export.header(self._clock.now())
            for job_id in wanted:
                try:
                    log = self.logs(job_id, unfinished=False)
                    yield from export.records(
                        self._database, job_id, log, commands=bool(with_commands)
                    )
                except JobNotFound:
                    continue  # what was yielded of it has no end, so it is not imported

        return lines()

    def import_jobs(
        self,
        lines: Iterable[str | bytes],
        *,
        workspace_id: Id | None = None,
        with_pickles: bool = False,
    ) -> Imported:
        """
        Create the final jobs of an export, with their ids, times, logs, endings and results.

        Nothing is run, retried or triggered; their histories and events name this process. Jobs
        that the file has are left alone, so an import that was interrupted can be repeated. All
        jobs are durable when this returns. Jobs of a pipeline get the pipeline of the same
        name, if the workspace has one.

        Args:
            lines: What `export_jobs` yielded, or a file of it.
            workspace_id: The workspace of the jobs; None: the default one.
            with_pickles: Store pickled results, too. `result` unpickles them, which can run any
                code: do it only if you trust the export.

        Returns:
            How many jobs were created, existed already, and were left out.

        Raises:
            ArgumentError: A line is not part of an export; the message has its number. The
                jobs before it were created.
            PipelineAlreadyRunning: A job's pipeline is running; import it again later. The jobs
                before it were created.
            WorkspaceNotFound: No workspace has this id.
        """
        from jobcore.operations.export import (  # noqa: PLC0415 - loaded by those who need it
            Importer as ExportReader,
        )

        if isinstance(lines, (str, bytes)) or not isinstance(lines, Iterable):
            raise ArgumentError("lines must be an iterable of lines, such as an open file")
        reader = ExportReader(
            self._database, self._clock, workspace_id, with_pickles=bool(with_pickles)
        )
        return reader.take(lines)

    # --- reading ------------------------------------------------------------------

    def get_job(self, job_id: Id) -> Job:
        """
        Return the job as it is now, even if the process that ran it has died.

        If it has ended with much output that no manager has stored, this stores all of it first,
        which can take a second for 50 MB. Of a running job, it stores some of it.

        Raises:
            JobNotFound: No job has this id.
        """
        job = public(Job, self._reconciled(job_id), self._clock.now())
        return self._listings.with_limits([job])[0]

    def usage(self, job_id: Id) -> Usage | None:
        """
        Return the CPU time and the memory that the processes of a running job use now.

        It reads /proc, which takes a fraction of a millisecond for a few processes. It counts
        at most 10,000 processes, and waits neither for the job nor for a database lock.

        Returns:
            The usage; None if no process of the job can be seen from here: it does not run, it is
            a task of a host, or it runs in another container or on another machine.

        Raises:
            JobNotFound: No job has this id.
        """
        from jobcore.engine import usage  # noqa: PLC0415 - loaded by those who need it

        with self._database.read() as connection:
            run = job_rows.run_of(require_job(connection, job_id))
        return usage.try_to_measure(self._directories, run)

    def result(self, job_id: Id) -> Any:
        """
        Return the result of a COMPLETE job, which may be None.

        It is what its function returned, what the body of its task has set, or the JSON that its
        command wrote to the descriptor whose number is in `JOBCORE_RESULT_FD`.

        Any process can ask until the job is deleted. Values that JSON represents
        exactly are stored as JSON. All others are unpickled in this process, which
        imports their modules and can run any code: call this only if you trust the
        function and the database file. Errors of unpickling are raised unchanged, such
        as ImportError if a module is not installed here; the stored result is kept.

        Raises:
            JobNotFound: No job has this id.
            NoResult: The job is not COMPLETE, its command wrote no result, or its function
                ended the interpreter itself.
        """
        run = self._run(job_id)
        with self._database.read() as connection:
            stored = settlement.find_result(connection, run.number)
        if stored is None:
            job = self._job(run)  # again: it may have been deleted since
            raise NoResult(job.id, job.status)
        from jobcore.functions import encoding  # noqa: PLC0415 - loaded by those who need it

        try:
            return encoding.decode(*stored)
        except ValueError as error:
            if stored[0] != encoding.JSON:
                raise  # an error of the object's own unpickling
            raise DatabaseCorrupt(f"the result of job {job_id} is damaged") from error

    def list_jobs(
        self,
        *,
        workspace_id: Id | None = None,
        pipeline_id: Id | None = None,
        status: Status | Collection[Status] | None = None,
        type: str | Collection[str] | None = None,  # noqa: A002 - the field's name
        name: str | None = None,
        key: str | None = None,
        group: str | None = None,
        reason: Reason | Collection[Reason] | None = None,
        exit_code: int | Collection[int] | None = None,
        created_since: datetime | None = None,
        created_until: datetime | None = None,
        ended_since: datetime | None = None,
        ended_until: datetime | None = None,
        order: Literal["created", "started", "ended", "duration"] = "created",
        limit: int = 100,
        before: int | None = None,
    ) -> list[Job]:
        """
        Return a page of jobs, by default the newest first, as stored.

        With the filters `workspace_id`, `pipeline_id`, `status` and `type`, the cost depends on
        the size of the page, not on how many jobs there are. The others use an index if one
        of them selects few jobs; else the jobs are examined in turn until the page is full, at
        about a third of a second of CPU time for a million. `order="duration"` compares all
        ended jobs, which takes about a second for a million.

        Args:
            workspace_id: Only jobs of this workspace.
            pipeline_id: Only jobs of this pipeline.
            status: One status, or several, such as `STARTED`.
            type: One type, or several.
            name: A name, or a pattern for it: `*` stands for any text, `?` for one character,
                and `[a-c]` for one of these. Upper and lower case differ.
            key: Only jobs with this key.
            group: Only jobs of this group.
            reason: One reason, or several.
            exit_code: One exit code, or several.
            created_since: Created at or after this time; a time with a time zone, like the three
                others.
            created_until: Created before this time; a time with a time zone.
            ended_since: Ended at or after this time; a time with a time zone.
            ended_until: Ended before this time; a time with a time zone.
            order: `"created"`, `"started"` or `"ended"`: the last one first. `"duration"`: the
                longest first. Jobs that have not started or ended are left out of these.
            limit: Most jobs in the page.
            before: The `number` of the last job of the previous page; None: the first page.

        Raises:
            WorkspaceNotFound, PipelineNotFound: No workspace or pipeline has this id.
            ArgumentError: `limit` is negative, or `before`, the order or a filter is invalid.
        """
        from jobcore.operations.job_filters import checked_order  # noqa: PLC0415 - loaded by those who need it

        most, last = checks.count(limit, "limit"), arguments.checked_before(before)
        ordered = checked_order(order)
        wanted = self._wanted(
            {
                "workspace_id": workspace_id,
                "pipeline_id": pipeline_id,
                "status": status,
                "type": type,
                "name": name,
                "key": key,
                "group": group,
                "reason": reason,
                "exit_code": exit_code,
                "created_since": created_since,
                "created_until": created_until,
                "ended_since": ended_since,
                "ended_until": ended_until,
            }
        )
        if wanted.is_plain and not wanted.has_many_types and ordered == "created":
            return self._listings.jobs(wanted, most, last)
        return self._listings.search(wanted, most, last, ordered)

    def find_jobs(self, id_prefix: str, *, limit: int = 100) -> list[Job]:
        """
        Return the jobs whose ids begin with a prefix, in the order of their ids, as stored.

        Args:
            id_prefix: The first 1 to 32 hexadecimal digits of an id, in either case;
                hyphens are ignored.
            limit: Most jobs to return.

        Raises:
            ArgumentError: `id_prefix` is not the beginning of an id, or `limit` is negative.
        """
        first, last = arguments.checked_prefix(id_prefix)
        most = checks.count(limit, "limit")
        with self._database.read() as connection:
            numbers = job_rows.find_jobs(connection, first, last, limit=most)
        return sorted(self._listings.of(numbers), key=lambda job: job.id)

    def list_upcoming(self, *, limit: int = 100) -> list[Job]:
        """
        Return the QUEUED jobs that start next, in this order, as stored.

        First come those that could start now: jobs of higher priority, then older ones, whether
        their limits have room or not. Then come those that wait for a time. Jobs that are
        reserved, and those that wait for other jobs, are not returned. The cost depends on
        `limit` and on the number of groups, not on how many jobs there are.

        Args:
            limit: Most jobs to return.

        Raises:
            ArgumentError: `limit` is negative.
        """
        return self._listings.upcoming(checks.count(limit, "limit"))

    def list_upstream(self, job_id: Id) -> list[Job]:
        """
        Return the jobs that a job waits for, or has waited for, in the order of their creation.

        If one of them was retried, its last attempt is returned in its place, unless it had
        ended as asked before. Deleted jobs are left out.

        Raises:
            JobNotFound: No job has this id.
        """
        from jobcore.storage import dependencies  # noqa: PLC0415 - loaded by those who need it

        run = self._run(job_id)
        with self._database.read() as connection:
            numbers = dependencies.upstream_of(connection, run.number)
        return self._listings.of(numbers)

    def count_jobs(self, **filters: Unpack[JobFilters]) -> dict[Status, int]:
        """
        Return how many jobs there are of each status, as stored.

        The database keeps the counts, and each change of a job updates them. A call reads one
        row for each type in a workspace or pipeline, however many jobs there are. With other
        filters than `workspace_id`, `pipeline_id`, `status` and `type` it examines the jobs.

        Args:
            filters: As in `list_jobs`, such as `pipeline_id`, or `status`: one status, or several,
                such as `STARTED`.

        Returns:
            The count for each of the five statuses; 0 for those that `status` leaves out.

        Raises:
            WorkspaceNotFound, PipelineNotFound: No workspace or pipeline has this id.
            ArgumentError: A filter is unknown or invalid.
        """
        return self._listings.count(self._wanted(filters))

    def history(self, job_id: Id) -> list[Transition]:
        """
        Return the transitions of a job, oldest first.

        Raises:
            JobNotFound: No job has this id.
        """
        self._reconciled(job_id)
        return self._listings.history(job_id)

    def logs(
        self, job_id: Id, sequence: int = 0, limit: int | None = None, *, unfinished: bool = True
    ) -> Iterator[LogLine]:
        """
        Return an iterator of the lines from `sequence` on that the job has written by now.

        The last line may be unfinished, such as a prompt: it has no number yet. If the
        command has separate streams, there may be one unfinished line of each.

        Args:
            sequence: The number of the first line, from 0; if it is beyond the last line,
                the iterator is empty.
            limit: Most lines to return; None: all.
            unfinished: Whether to include unfinished lines; see `LogLine`.

        Raises:
            JobNotFound: No job has this id; at this call.
            JobDeleted: The job was deleted during iteration; at `next()`.
            ArgumentError: `sequence` or `limit` is negative or not a number; at this call.
        """
        return self._lines(job_id, sequence, limit, unfinished=unfinished)

    def _lines(
        self, job_id: Id, sequence: int, limit: int | None = None, *, unfinished: bool = False
    ) -> Iterator[LogLine]:
        first = checks.count(sequence, "sequence")
        most = checks.optional_count(limit, "limit")
        run, end, goal = self._run_to_read(job_id, unfinished=unfinished)
        return self._waiter.lines(run, first, most, end, goal)

    def tail(self, job_id: Id, n: int, *, unfinished: bool = True) -> Iterator[LogLine]:
        """
        Return an iterator of the last lines that the job has written by now.

        A long line that was cut counts as one and comes with all its pieces. Output that is
        not stored yet is stored first, which can take a second for 50 MB. Errors are those of
        `logs`, but `JobDeleted` may be raised at this call.

        Args:
            n: Most lines to return.
            unfinished: Whether to include unfinished lines; see `LogLine`.
        """
        most = checks.count(n, "n")
        run, end, goal = self._run_to_read(job_id, unfinished=unfinished)
        return self._waiter.last_lines(run, most, end, goal)

    def follow(
        self,
        job_id: Id,
        sequence: int = 0,
        timeout: float | None = None,
        *,
        unfinished: bool = True,
        on_wait: Callable[[], object] | None = None,
    ) -> Iterator[LogLine]:
        """
        Return an iterator of the lines from `sequence` on, as they come; it ends with the job.

        An unfinished line, such as a prompt or a progress bar, is returned without a number
        within a second, then again whenever it has changed, at most four times a second, and
        finally once with its number.

        An error ends the iterator. To continue, follow again from the number after the last
        numbered line.

        Args:
            sequence: The number of the first line, from 0.
            timeout: Seconds for the whole iteration; None: until the job ends.
            unfinished: Whether to include unfinished lines; see `LogLine`.
            on_wait: Called each time before it waits for more, for example to flush what was
                printed.

        Raises:
            JobNotFound: No job has this id; at this call.
            JobDeleted: The job was deleted during iteration; at `next()`.
            WaitTimeout: The time is over; at `next()`.
            SpawnError, StoreError: This manager cannot start or read it, see `wait`; at `next()`.
            ArgumentError: `sequence` is negative, or an argument is not a number; at this call.
        """
        first = checks.count(sequence, "sequence")
        arguments.checked_timeout(timeout)  # now, not at the first next()
        run = self._run(job_id)
        check = self._liveness.begin_wait(self)
        return self._waiter.follow(
            run, first, timeout, check, unfinished=unfinished, on_wait=on_wait or (lambda: None)
        )

    def log_text(self, job_id: Id, sequence: int = 0) -> Iterator[bytes]:
        """
        Return an iterator of the log as plain text; each item is a numbered line or piece.

        Args and errors are those of `logs`.
        """
        from jobcore import wire  # noqa: PLC0415 - loaded by those who need it, not at import

        return wire.text(self._lines(job_id, sequence))

    def log_ndjson(self, job_id: Id, sequence: int = 0) -> Iterator[bytes]:
        """
        Return an iterator of the numbered lines as NDJSON, as `wire.ndjson` makes it.

        Args and errors are those of `logs`.
        """
        from jobcore import wire  # noqa: PLC0415 - loaded by those who need it, not at import

        return wire.ndjson(self._lines(job_id, sequence))

    # --- waiting ------------------------------------------------------------------

    def wait(
        self,
        job_id: Id,
        timeout: float | None = None,
        *,
        until: Literal["ended", "started"] = "ended",
    ) -> Job:
        """
        Block until the job is final, and return it; its log is then complete.

        This waits for exactly this job, even if it is retried: see `wait_all` for retries.

        Args:
            timeout: Seconds to wait; None: as long as it takes. 0: check once.
            until: `"started"`: wait only until the job is no longer QUEUED. It may then be
                RUNNING or final, and its `start_time` is None if it was cancelled before.

        Returns:
            The job, final; with `until="started"`, as it is then.

        Raises:
            JobNotFound: No job has this id.
            JobDeleted: The job was deleted meanwhile.
            WaitTimeout: The job is not final after `timeout` seconds; it continues.
            SpawnError: The job is QUEUED, and this manager, which would run it, can never start
                jobs, or has failed to start any for 10 seconds. Or the interpreter is exiting.
            StoreError: Its row, its directory or its files could not be read for 10 seconds.
            ArgumentError: `timeout` is not a number, or `until` is another value.
        """
        arguments.checked_timeout(timeout)
        reached = checked_until(until)
        run = self._run(arguments.checked_one(job_id))
        return self._job(self._waiter.wait(run, timeout, self._liveness.begin_wait(self), reached))

    def wait_all(self, job_ids: Iterable[Id], timeout: float | None = None) -> list[Job]:
        """
        Block until all of these jobs are final, and return them in the given order.

        An id stands for the last attempt of its job: if the job is retried, this waits for
        the retry, and returns it in place of the job. A retry that someone makes after this
        has seen the end of the job does not count.

        Args:
            job_ids: The ids; they may repeat.
            timeout: Seconds to wait for all of them together; None: as long as it takes.

        Returns:
            The jobs, final.

        Raises:
            JobNotFound: One of the ids is unknown.
            JobDeleted, WaitTimeout, SpawnError, StoreError: As in `wait`, for one of the jobs.
            ArgumentError: `job_ids` is a single id or not a collection of ids, or `timeout`
                is not a number.
        """
        arguments.checked_timeout(timeout)
        ids = arguments.checked_ids(job_ids, "wait_all")
        jobs: dict[int, Job] = {}
        for job, places in self._completed(ids, timeout):
            jobs.update(dict.fromkeys(places, job))
        return [jobs[place] for place in range(len(ids))]

    def as_completed(self, job_ids: Iterable[Id], timeout: float | None = None) -> Iterator[Job]:
        """
        Return an iterator of these jobs, each as soon as it is final.

        Jobs that are already final come first. As in `wait_all`, an id stands for the last
        attempt of its job. Each job is returned once, even if several ids stand for it. One
        look finds all jobs that have ended, so you can wait for many thousands at once.

        An error ends the iterator. To continue, call this again with the ids of the jobs that
        it has not returned.

        Args:
            job_ids: The ids; they may repeat.
            timeout: Seconds for the whole iteration; None: as long as it takes.

        Raises:
            JobNotFound: One of the ids is unknown; at this call.
            JobDeleted, WaitTimeout, SpawnError, StoreError: As in `wait`, for one of the jobs;
                at `next()`.
            ArgumentError: As in `wait_all`; at this call.
        """
        arguments.checked_timeout(timeout)
        found = self._completed(arguments.checked_ids(job_ids, "as_completed"), timeout)
        return (job for job, _ in found)

    def _completed(self, ids: list[Id], timeout: float | None) -> Iterator[tuple[Job, list[int]]]:
        self._start()
        waiter = self._completion_waiter()
        return waiter.completed(waiter.begin(ids), timeout, self._liveness.begin_wait(self))

    def _completion_waiter(self) -> CompletionWaiter:
        from jobcore.operations.completion import CompletionWaiter  # noqa: PLC0415 - loaded by those who need it

        return CompletionWaiter(self._database, self._waiter)

    def drain(self, timeout: float | None = None) -> None:
        """
        Block until this manager has settled all jobs that it claimed, and no queued job is left
        that it could claim now.

        It waits for jobs whose limit is full, but neither for jobs that are not yet due nor for
        paused ones. If it leaves paused jobs, it logs a warning.

        A manager with `slots=0` claims nothing. It waits for the other managers: until no
        queued job could start now and no job's command runs. If no manager claims jobs, it
        waits until `timeout`.

        Args:
            timeout: Seconds to wait; None: as long as it takes.

        Raises:
            WaitTimeout: There is still work after `timeout` seconds.
            SpawnError, StoreError: This manager cannot start or read any of the jobs; see `wait`.
            ArgumentError: `timeout` is not a number.
        """
        self._waiter.drain(self._drained(), self._running_elsewhere, timeout)

    def wait_async(
        self,
        job_id: Id,
        timeout: float | None = None,
        *,
        until: Literal["ended", "started"] = "ended",
    ) -> Coroutine[Any, Any, Job]:
        """
        Await the end of the job, and return it: `wait` for an event loop.

        A waiting call holds no thread, so thousands can wait at once. If it is cancelled, the
        job continues. Args and errors are those of `wait`; a wrong argument is refused at this
        call, not when awaited.
        """
        arguments.checked_timeout(timeout)
        reached = checked_until(until)
        arguments.checked_one(job_id)
        return self._async_waiter.wait(
            lambda: self._run(job_id),
            timeout,
            self._liveness.begin_wait(self),
            self._job,
            reached,
        )

    def wait_all_async(
        self, job_ids: Iterable[Id], timeout: float | None = None
    ) -> Coroutine[Any, Any, list[Job]]:
        """
        Await the end of all of these jobs, and return them: `wait_all` for an event loop.

        Args and errors are those of `wait_all`; a wrong argument is refused at this call, not
        when awaited.
        """
        arguments.checked_timeout(timeout)
        ids = arguments.checked_ids(job_ids, "wait_all")
        return self._completions(ids, timeout).all(len(ids))

    def as_completed_async(
        self, job_ids: Iterable[Id], timeout: float | None = None
    ) -> AsyncIterator[Job]:
        """
        Return an asynchronous iterator of jobs as they end: `as_completed` for an event loop.

        You can stop iterating at any point: there is nothing to close. A cancelled `anext()`
        has consumed no job. The time counts from the first `anext()` on. Args and errors are
        those of `as_completed`; they come at `anext()`, and a wrong argument at this call.
        """
        arguments.checked_timeout(timeout)
        return self._completions(arguments.checked_ids(job_ids, "as_completed"), timeout)

    def _completions(self, ids: list[Id], timeout: float | None) -> Completions:
        from jobcore.operations.completion import Completions  # noqa: PLC0415 - as above

        waiter = self._completion_waiter()

        def begin() -> Waited:
            self._start()
            return waiter.begin(ids)

        return Completions(waiter, begin, timeout, self._liveness.begin_wait(self))

    def follow_async(
        self,
        job_id: Id,
        sequence: int = 0,
        timeout: float | None = None,
        *,
        unfinished: bool = True,
    ) -> AsyncIterator[LogLine]:
        """
        Return an asynchronous iterator of the lines from `sequence` on: `follow` for an event loop.

        You can stop iterating at any point: there is nothing to close. A cancelled
        `anext()` has consumed no line, so the next one continues without a gap. An error
        ends the iterator, as in `follow`. The time counts from the first `anext()` on. Args and
        errors are those of `follow`; they come at `anext()`, and a wrong argument at this call.
        """
        first = checks.count(sequence, "sequence")
        arguments.checked_timeout(timeout)
        check = self._liveness.begin_wait(self)
        return self._async_waiter.follow(
            lambda: self._run(job_id), first, timeout, check, unfinished=unfinished
        )

    def drain_async(self, timeout: float | None = None) -> Coroutine[Any, Any, None]:
        """
        Await what `drain` waits for, in an event loop.

        Args and errors are those of `drain`; a wrong argument is refused at this call, not when
        awaited.
        """
        arguments.checked_timeout(timeout)
        return self._async_waiter.drain(self._drained(), self._running_elsewhere, timeout)

    def recover(self) -> list[Job]:
        """
        Import the output of all running jobs now, and settle the jobs that have ended.

        When this returns, every job whose end is known is final, and its log is complete.

        Returns:
            The jobs that this call settled.

        Raises:
            DatabaseBusy: Another process held the write lock longer than the busy timeout.
                Jobs that were settled before that stay settled.
        """
        settled = self._recovery.sweep(everything=True)
        self._staging.remove_abandoned(everything=True)
        return self._jobs(settled)

    def refresh(self) -> None:
        """
        Import the output of this directory's running jobs, and settle those that have ended.

        What it settled is durable when this returns. Unlike `recover`, it kills nothing:
        if a supervisor died and left processes running, its job stays RUNNING. If this file
        is a copy, the jobs that were started in the original's directory stay as they are
        stored; see `list_copied_jobs`.
        """
        self._recovery.refresh()

    def list_copied_jobs(self) -> list[Job]:
        """
        Return the RUNNING jobs that were started in another directory: this file is a copy.

        The file shows them as they were when it was copied. `recover`, and any manager
        that runs jobs, settles them as lost without touching their processes.
        """
        return self._jobs(self._recovery.copied())

    def repair(self) -> list[Job]:
        """
        Make a database usable again whose directory `<database>.jobs` was removed.

        This makes a new directory, and settles the jobs that ran in the old one as lost. Their
        commands may continue; the last lines of their logs name the processes that do. Retries no
        longer wait for processes that an earlier attempt left running, and the stored counts are
        computed again. All of this is durable when this returns.

        Open the database with `slots=0` for this. This manager can use it afterwards; other
        managers that have it open must be closed and opened again.

        Returns:
            The jobs that this call settled.

        Raises:
            StoreMismatch: The directory belongs to another database: move it away first.
            StoreError: The directory cannot be made.
        """
        return self._jobs(self._recovery.repair())

    def check(self) -> list[Finding]:
        """
        Examine the file, its directories and the SQLite library, and change nothing.

        This reads every page of the file, which takes a while if it is large; others can
        write meanwhile. `jobcore doctor` does the same without opening a manager.

        Returns:
            What each check found. A finding whose `verdict` is `wrong` needs your action.
        """
        from jobcore.operations import doctor  # noqa: PLC0415 - loaded by those who need it, not at import

        examine = handed_over(doctor.examine)
        findings = examine(self._database.path, trust_directory=self._trust_directory)
        return findings + doctor.findings_of(self._liveness.failures() + self.list_damaged_rows())

    def list_damaged_rows(self) -> list[str]:
        """
        Return the damaged rows that this manager's listings have left out.

        `list_jobs`, `list_pipelines`, `list_workspaces`, `history`, `skips`, `count_jobs` and
        `events` skip a damaged row and return the others. They log the event `row damaged`
        when a row is first skipped, when the cause changes, and once an hour. `get_job` and
        similar methods raise `DatabaseCorrupt` for such a row.

        Returns:
            A line for each row, with its id and the cause, until the row can be read again.
        """
        return self._listings.left_out()

    # --- events -------------------------------------------------------------------

    def events(
        self,
        after: int | Literal["now"] | None = 0,
        *,
        limit: int | None = None,
        scan_limit: int | None = None,
        follow: bool = False,
        timeout: float | None = None,
        **filters: Unpack[EventFilters],
    ) -> Events:
        """
        Return an iterator of the transitions of all jobs, by any process, in commit order.

        Every transition is an event as soon as it is committed. Ids only grow: store the id
        of the last event you handled, continue from there, and you miss nothing. After a
        crash you see again the events that you handled but whose id you did not store.

        A job's events are deleted with the job: from the beginning of its deletion on they
        are no longer returned, and the deletion itself is not an event. Ids are never
        reused, so there are gaps. They belong to this file: after restoring it from a
        backup, begin again from 0.

        Reading does not update any job: a transition appears once a manager has written it.

        A filter by pipeline uses an index. Every other filter examines each event after
        `after`, at about 3 seconds of CPU time for a million: workspace and type are stored
        with the job, not with its history. To examine each event only once, store the
        iterator's attribute `after`, which moves on past events that do not match, and
        continue from there. `scan_limit` bounds the work of one call.

        Args:
            after: The id of the last event you saw. 0: return all events. "now" or None:
                skip the events that exist by now.
            limit: Most events to return.
            scan_limit: The most events to examine, whether they match or not. The iterator then
                ends, even if it has returned no event; continue from its `after`.
            follow: Continue with new events as they come. If false, the iterator ends with
                the last event that exists at this call.
            timeout: Seconds to follow, after which the iterator ends; None: for ever.
            filters: `workspace_id`, `pipeline_id`, `type`, `name`, `key` and `group` of the job,
                and `status`, `reason` and `exit_code` of the event, as in `list_jobs`. The status
                is the one that the transition leads to; both `start` and `stop` lead to RUNNING.
                The name is the job's present one.

        Raises:
            WorkspaceNotFound, PipelineNotFound: No workspace or pipeline has this id; at
                this call.
            ArgumentError: An argument is invalid, or `after` is larger than any id that this
                file has used; at this call.
            StoreError: The database can no longer be read; at `next()`.
        """
        known, most = arguments.checked_after(after), checks.optional_count(limit, "limit")
        scanned = checks.optional_count(scan_limit, "scan_limit")
        arguments.checked_timeout(timeout)  # now, not at the first next()
        wanted = self._in_place(self._event_filter(filters), filters)
        return Events(
            self._event_reader,
            wanted,
            known,
            limit=most,
            scan_limit=scanned,
            follow=follow,
            timeout=timeout,
        )

    def events_async(
        self,
        after: int | Literal["now"] | None = 0,
        *,
        limit: int | None = None,
        scan_limit: int | None = None,
        follow: bool = False,
        timeout: float | None = None,
        **filters: Unpack[EventFilters],
    ) -> AsyncEvents:
        """
        Return an asynchronous iterator of the transitions of all jobs: `events` for an event loop.

        It holds no thread while it waits. You can stop iterating at any point: there is
        nothing to close. A cancelled `anext()` has consumed no event. An error ends the
        iterator.

        Args:
            after: As in `events`, but "now" and None mean the time of the first `anext()`.
            limit, scan_limit, follow: As in `events`.
            timeout: Seconds to follow, from the first `anext()` on; then the iterator ends.
            filters: As in `events`.

        Raises:
            WorkspaceNotFound, PipelineNotFound: No workspace or pipeline has this id; at the
                first `anext()`.
            ArgumentError: An argument is invalid; at this call. `after` is larger than any id
                that this file has used; at the first `anext()`.
            StoreError: The database can no longer be read; at `anext()`.
        """
        known, most = arguments.checked_after(after), checks.optional_count(limit, "limit")
        scanned = checks.optional_count(scan_limit, "scan_limit")
        arguments.checked_timeout(timeout)
        checked = self._event_filter(filters)
        return AsyncEvents(
            self._event_reader,
            lambda: self._in_place(checked, filters),
            known,
            limit=most,
            scan_limit=scanned,
            follow=follow,
            timeout=timeout,
        )

    def subscribe(
        self,
        callback: Callable[[Event], object],
        **filters: Unpack[EventFilters],
    ) -> Callable[[], None]:
        """
        Call `callback` with each transition that this process makes through this manager.

        Each transition is delivered once, after its commit, in commit order, beginning with
        the first commit after this returns. Transitions that are rolled back are never
        delivered. Transitions of a job that has since been deleted are still delivered,
        including the one that the deletion caused; `get_job` then raises `JobNotFound`.

        A thread of the manager calls the callbacks one after the other, so a slow callback
        delays the others, but no job; waiting events are kept in memory. A callback may use
        the manager, end a subscription, or close the manager. An error in a callback is
        logged and has no other effect. A forked child inherits the subscriptions, and they
        deliver its own transitions.

        `close` waits up to about 5 seconds until all committed transitions are delivered;
        nothing is delivered after that. To see what other processes do, or to miss nothing
        if this process dies, read `events`.

        Args:
            callback: Gets the `Event`.
            filters: As in `events`.

        Returns:
            A function that ends the subscription. A callback that another thread is running
            at that moment finishes; no further call begins.

        Raises:
            WorkspaceNotFound, PipelineNotFound: No workspace or pipeline has this id.
            ArgumentError: The callback is not a plain function, or a filter is invalid.
            StoreError: The manager is closed.
        """
        called = arguments.checked_callback(callback)
        checked = self._event_filter(filters)
        return self._notifier.subscribe(called, self._in_place(checked, filters))

    # --- workspaces and pipelines ---------------------------------------------------

    def create_workspace(
        self, name: str, *, properties: Mapping[str, Any] | None = None
    ) -> Workspace:
        """
        Create a workspace, which holds pipelines and jobs.

        If this manager has an executor for WORKSPACE_INIT, a job of this type is
        created with it. Both are durable when this returns.

        Args:
            name: A name of your choice; several workspaces may have the same one.
            properties: Your own small JSON object.

        Returns:
            The workspace.

        Raises:
            CommandError: The name is not text, or the properties are not a JSON object.
        """
        self._start()
        made = Workspace.from_row(self._pipelines.create_workspace(name, properties))
        self._dispatcher.wake()
        return made

    def get_workspace(self, workspace_id: Id | None = None) -> Workspace:
        """
        Return a workspace; without an id, the default one, which is created on first use.

        Raises:
            WorkspaceNotFound: No workspace has this id.
        """
        if workspace_id is None:
            return Workspace.from_row(self._pipelines.default_workspace())
        with self._database.read() as connection:
            return public(Workspace, require_workspace(connection, workspace_id))

    def list_workspaces(
        self, *, limit: int | None = None, after: Id | None = None
    ) -> list[Workspace]:
        """
        Return a page of all workspaces, in the order of their creation.

        Args:
            limit: Most workspaces in the page, including damaged ones, which are left out;
                None: all.
            after: The last workspace of the previous page, or its id; None: the first page.
                A `Workspace` works even if it has been deleted since; its id does not.

        Raises:
            WorkspaceNotFound: No workspace has the id `after`.
            ArgumentError: `limit` is negative or not a number.
        """
        most = checks.optional_count(limit, "limit")
        return self._listings.workspaces(limit=most, after=after)

    def update_workspace(self, workspace_id: Id, **changes: Any) -> Workspace:
        """
        Change the `name` or the `properties` of a workspace; other fields stay.

        The change is durable when this returns.

        Args:
            changes: `name` or `properties`, as in `create_workspace`.

        Returns:
            The workspace after the change.

        Raises:
            WorkspaceNotFound: No workspace has this id.
            CommandError: The name is not text, or the properties are not a JSON object.
        """
        return Workspace.from_row(self._pipelines.update_workspace(workspace_id, changes))

    def delete_workspace(self, workspace_id: Id) -> None:
        """
        Remove a workspace with its pipelines and jobs; running ones are stopped first.

        The workspace disappears at once. If it has many pipelines and jobs, these disappear
        in short transactions, so that others can write in between. This method returns when
        all is gone. If this process dies first, the next manager finishes the deletion.

        Raises:
            WorkspaceNotFound: No workspace has this id.
        """
        self._start()
        self._deleter().delete_workspace(self._pipelines.mark_workspace_deleted(workspace_id))

    def create_pipeline(
        self,
        name: str,
        command: Runnable | None = None,
        *,
        workspace_id: Id | None = None,
        **fields: Any,
    ) -> Pipeline:
        """
        Create a pipeline: a command or a script that is run again and again.

        If this manager has an executor for PIPELINE_CONFIG, a job of this type is
        created with it, and the end of that job makes the pipeline READY or FAILED.
        Both are durable when this returns.

        Args:
            name: Its name, by which other pipelines refer to it in `triggered_by`. It is
                unique in the workspace, ignoring case.
            command: A list of words, or a `Command`.
            workspace_id: Its workspace; None: the default one.
            fields: `script` (for `/bin/sh -c`, instead of the command's argv),
                `cwd`, `env`, `timeout` (seconds for each job; None: no limit),
                `max_retries` (of a job that ended ERROR), `retries` (a number or `Retries`,
                instead of `max_retries`), `schedule` (cron with five
                fields, with six, seconds first, or a name such as `@hourly`),
                `time_zone` (of the schedule; UTC by default), `catch_up` (what happens to
                missed ticks, those that came while no manager with slots ran: `"skip"`, the
                default, records them in `skips`; `"last"` runs the last of them; `"all"` runs
                each, one after the other), `late_after` (seconds after which a tick counts as
                missed; 60 by default), `triggered_by` (names of pipelines in the same
                workspace: it runs each time one of them is COMPLETE, and renaming them changes
                nothing; or `deploy`, a task that your program does), `requires` (names of
                pipelines: it runs each time all of them have been COMPLETE), `group` (the group of
                its jobs), `paused` (whether its schedule is paused; it still runs on request and
                after its sources), `on_complete`, `on_error` and `on_stopped` (what runs after its
                jobs, as in `submit`), `properties` (your own small JSON object).

        Returns:
            The pipeline.

        Raises:
            CommandError, ScheduleError, PipelineCycle: It could never run, because for
                example it has nothing to run or names an unknown source; nothing was written.
            PipelineExists: Another pipeline of the workspace has this name.
            WorkspaceNotFound: No workspace has this id.
        """
        self._start()
        given = {"name": name, "command": command, **fields}
        made = Pipeline.from_row(self._pipelines.create_pipeline(given, workspace_id=workspace_id))
        self._dispatcher.wake()
        return made

    def get_pipeline(self, pipeline_id: Id) -> Pipeline:
        """
        Return a pipeline.

        Raises:
            PipelineNotFound: No pipeline has this id.
        """
        with self._database.read() as connection:
            return public(Pipeline, require_pipeline(connection, pipeline_id))

    def list_pipelines(
        self,
        *,
        workspace_id: Id | None = None,
        limit: int | None = None,
        after: Id | None = None,
    ) -> list[Pipeline]:
        """
        Return a page of all pipelines, or of those of a workspace, in the order of their creation.

        Args:
            workspace_id: Only pipelines of this workspace.
            limit: Most pipelines in the page, including damaged ones, which are left out;
                None: all.
            after: The last pipeline of the previous page, or its id; None: the first page.
                A `Pipeline` works even if it has been deleted since; its id does not.

        Raises:
            WorkspaceNotFound, PipelineNotFound: No workspace has this id, or no pipeline has
                the id `after`.
            ArgumentError: `limit` is negative or not a number.
        """
        most = checks.optional_count(limit, "limit")
        return self._listings.pipelines(workspace_id, limit=most, after=after)

    def update_pipeline(self, pipeline_id: Id, **changes: Any) -> Pipeline:
        """
        Change fields of a pipeline; the others stay. A FAILED pipeline is configured again.

        The change is durable when this returns, and applies to jobs that start after that.

        Args:
            changes: `name`, `command`, or any of the fields of `create_pipeline`.

        Returns:
            The pipeline after the change.

        Raises:
            PipelineNotFound: No pipeline has this id.
            PipelineAlreadyRunning: It is FAILED and has an active job; nothing was written.
            CommandError, ScheduleError, PipelineCycle: With these changes it could never run;
                nothing was written.
            PipelineExists: Another pipeline of the workspace has this name.
        """
        self._start()
        changed = Pipeline.from_row(self._pipelines.update_pipeline(pipeline_id, changes))
        self._dispatcher.wake()
        return changed

    def get_pipeline_state(self, pipeline_id: Id) -> Any:
        """
        Return the state that the next run of a pipeline starts with, or None.

        It is the JSON that the last COMPLETE run wrote to the descriptor whose number is in
        `JOBCORE_STATE_FD`, or what `set_pipeline_state` has stored since.

        Raises:
            PipelineNotFound: No pipeline has this id.
        """
        with self._database.read() as connection:
            state = settlement.state_of(connection, require_pipeline(connection, pipeline_id).id)
        return None if state is None else read_json(state)

    def set_pipeline_state(self, pipeline_id: Id, state: Any) -> None:
        """
        Set the state that the next run of a pipeline starts with.

        It is durable when this returns. A run that ends COMPLETE later, and hands on a
        state, replaces it.

        Args:
            state: A JSON value of up to 1 MiB; None: no state, as before the first run.

        Raises:
            PipelineNotFound: No pipeline has this id.
            CommandError: The state is not JSON, or too large.
        """
        text = None if state is None else arguments.checked_state(state)

        def change(connection: Connection) -> None:
            owner = require_pipeline(connection, pipeline_id).id
            settlement.set_state(connection, owner, text)

        self._database.write(change)

    def delete_pipeline(self, pipeline_id: Id) -> None:
        """
        Remove a pipeline with its jobs; a running one is stopped first.

        The pipeline no longer triggers others; `check` names those that it triggered. The
        pipeline and its active job disappear at once. If it has very many other jobs, these
        disappear in short transactions. This method returns when all is gone. If this
        process dies first, the next manager finishes the deletion.

        Raises:
            PipelineNotFound: No pipeline has this id.
        """
        self._start()
        self._deleter().delete_pipeline(self._pipelines.mark_pipeline_deleted(pipeline_id))

    def apply(
        self,
        mapping: Mapping[str, Any],
        *,
        workspace_id: Id | None = None,
        prune: bool = False,
        dry_run: bool = False,
    ) -> list[Change]:
        """
        Make the pipelines of a workspace equal to a description of them: all of it or nothing.

        Pipelines are known by their names, ignoring case. Those that are missing are created.
        The others get exactly the fields that are described, and the defaults of
        `create_pipeline` for the rest; a pause stays. Applying the same description again
        changes nothing. All changes are durable when this returns.

        Args:
            mapping: What `jobcore apply` reads from a file: `{"pipelines": {name: fields}}`.
                Durations may be texts such as `"5m"`.
            workspace_id: The workspace; None: the default one.
            prune: Delete the other pipelines of the workspace, with their jobs, as
                `delete_pipeline` does.
            dry_run: Change nothing; only return what would be changed.

        Returns:
            What was changed, in the order of the description; deletions come last.

        Raises:
            PipelineFileError: Something in the description is invalid, names an unknown
                source, or closes a cycle; nothing was written.
            PipelineAlreadyRunning: A pipeline that would change is FAILED and has an active
                job; nothing was written.
            WorkspaceNotFound: No workspace has this id.
        """
        from jobcore.operations.apply import (  # noqa: PLC0415 - its models are only for this
            PipelineApplier,
        )

        self._start()
        applied = PipelineApplier(self._database, self._clock, self._pipelines).apply(
            mapping, workspace_id=workspace_id, prune=bool(prune), dry_run=bool(dry_run)
        )
        self._dispatcher.wake()
        for deleted in applied.deleted:
            self._deleter().delete_pipeline(deleted)
        return applied.changes

    def skips(self, pipeline_id: Id, *, limit: int = 100) -> list[Skip]:
        """
        Return the runs of a pipeline that were due but did not take place, newest first.

        Args:
            limit: Most skips to return.

        Raises:
            PipelineNotFound: No pipeline has this id.
            ArgumentError: `limit` is negative or not a number.
        """
        return self._listings.skips(pipeline_id, checks.count(limit, "limit"))

    # --- closing ------------------------------------------------------------------

    def close(self) -> None:
        """
        Close the manager, as `on_exit` says; a second call is harmless.

        With `"detach"`, queued jobs wait for the next manager, and running jobs continue
        under their supervisors. With `"stop"`, this returns when the jobs that this manager
        started have ended, or one second after the longest grace of their commands. A
        manager that is garbage-collected without `close` ends its threads and emits a
        `ResourceWarning`.
        """
        if not self._database.is_of_this_process():
            self._dropped.detach()
            OPEN.discard(self)
            return  # C code forked this process: threads and connections belong to the parent
        try:
            if self._on_exit == "stop" and self in OPEN:
                self._dispatcher.stop_claiming()
                self._stop_own()
        finally:
            self._dispatcher.close()
            self._notifier.drain()  # while callbacks can still use the manager
            if self in OPEN:
                self._release_ownership()
            self._let_go()

    def _let_go(self) -> None:
        """End the threads and close all files, without unlocking or writing anything."""
        OPEN.discard(self)
        self._dropped.detach()
        self._dispatcher.close()
        self._directories.close()
        self._database.close()
        self._notifier.close()

    def __enter__(self) -> Self:
        """Return the manager itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the manager."""
        self.close()

    def _release_ownership(self) -> None:
        """Release this process's lock if no job needs it; otherwise it is held until the end."""
        try:
            name = self._ownership.current
            if name is None:
                return
            with self._database.read() as connection:
                is_used = any(run.owner == name for run in transitions.owned(connection))
            self._ownership.release(is_used=is_used)
        except StoreError:
            return  # it may still be needed

    def _stop_own(self) -> None:
        running = self._dispatcher.running()
        if not running:
            return  # always so when `close` is called again
        seconds = self._stopper.stop_all(running) + STOP_PATIENCE
        if self._dispatcher.exiting:
            self._waiter.wait_and_log_errors(running, seconds)
        else:
            self._dispatcher.wait_until_settled({run.number for run in running}, seconds)

    # --- shared by the methods ------------------------------------------------------

    def _start(self) -> None:
        if self._slots:
            self._dispatcher.start()

    def _reconciled(self, job_id: Id, *, kill: bool = False) -> Row[Any]:
        """Return the job's row, brought up to date with its job directory."""
        self._start()
        with self._database.read() as connection:
            row = require_job(connection, job_id)
        run = job_rows.run_of(row)
        if queue.is_expired(row, self._clock.now()):
            self._expiry.try_to_cancel(row.number)
        elif not run.supervised and not run.owned and not (row.unmet and not run.final):
            return row
        else:
            fresh = self._recovery.try_to_reconcile(run, kill=kill)
            if fresh is None or fresh.deleted_at is not None:
                raise JobNotFound(job_id)
        with self._database.read() as connection:
            return require_job(connection, job_id)

    def _run(self, job_id: Id, *, kill: bool = False) -> Run:
        return job_rows.run_of(self._reconciled(job_id, kill=kill))

    def _run_to_read(self, job_id: Id, *, unfinished: bool) -> tuple[Run, Unfinished | None, int]:
        """
        Return the job, its unfinished lines, and the offset up to which it has written.

        The last two are as of just before it was brought up to date.
        """
        self._start()
        with self._database.read() as connection:
            run = job_rows.run_of(require_job(connection, job_id))
        if not run.supervised:
            return self._run(job_id), None, 0
        end = self._recovery.unfinished(run) if unfinished else None
        goal = self._recovery.written(run)
        return self._run(job_id), end, goal

    def _running_elsewhere(self) -> list[Run]:
        """Return the running jobs that `drain` of a manager without slots waits for."""
        if self._slots:
            return []
        with self._database.read() as connection:
            return list(transitions.supervised(connection))

    def _drained(self) -> Callable[[], bool]:
        return self._liveness.is_drained(starts=self._slots > 0)

    def _jobs(self, found: Iterable[Run]) -> list[Job]:
        return self._listings.of(run.number for run in found)

    def _job(self, run: Run) -> Job:
        with self._database.read() as connection:
            row = job_rows.get_job(connection, run.number)
        if row is None or row.deleted_at is not None:
            raise JobDeleted(run.id)
        return public(Job, row)

    def _shown(self, row: Any) -> Job:
        """Return the public form of a job's row, or of its values by column."""
        return Job.from_row(row, self._clock.now())

    def _event_filter(self, filters: Mapping[str, Any]) -> JobFilter:
        """Return the filter for these arguments of `events`, without an owner."""
        from jobcore.operations.job_filters import OF_EVENTS, checked_filters  # noqa: PLC0415 - loaded by those who need it

        return checked_filters(filters, OF_EVENTS, "events")

    def _wanted(self, filters: Mapping[str, Any]) -> JobFilter:
        """Return the filter for these arguments of `list_jobs`."""
        from jobcore.operations.job_filters import checked_filters  # noqa: PLC0415 - loaded by those who need it

        return self._in_place(checked_filters(filters), filters)

    def _in_place(self, checked: JobFilter, filters: Mapping[str, Any]) -> JobFilter:
        """Return a filter with its workspace and its pipeline."""
        place = filters.get("workspace_id"), filters.get("pipeline_id")
        with self._database.read() as connection:
            return job_filter(connection, *place, checked)

    def _deleter(self) -> Deleter:
        from jobcore.operations.deletion import Deleter  # noqa: PLC0415 - loaded by those who need it

        return Deleter(self._database, self._stopper, self._waiter, self._remover, self._clock)

    def _bulk(self) -> BulkOperations:
        from jobcore.operations.bulk import BulkOperations  # noqa: PLC0415 - loaded by those who need it

        return BulkOperations(
            self._database,
            self._clock,
            self._listings,
            self._recovery,
            self._stopper,
            self._remover,
            self._deleter(),
        )
