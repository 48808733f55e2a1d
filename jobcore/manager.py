"""Manager: the facade, the only class that a reader must know. It delegates."""

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

from jobcore import lifecycle
from jobcore.clock import Clock, SystemClock, seconds_of
from jobcore.command import checked_grace
from jobcore.embedding.worker import handed_over
from jobcore.engine.dispatcher import Dispatcher, usable_processors
from jobcore.engine.executors import Executor, default_executors
from jobcore.engine.importer import Importer
from jobcore.engine.interpreter import require_host
from jobcore.engine.job_directories import Directories
from jobcore.engine.ownership import Ownership
from jobcore.engine.postponement import Postponement
from jobcore.engine.recovery import Recovery
from jobcore.engine.remover import Remover
from jobcore.engine.scheduler import Scheduler
from jobcore.engine.stopper import Stopper
from jobcore.engine.supervisor_pool import Launcher, ProcessLauncher, SupervisorPool
from jobcore.errors import (
    ArgumentError,
    DatabaseCorrupt,
    InvalidTransition,
    JobDeleted,
    JobNotFound,
    NoResult,
    PipelineAlreadyRunning,
    StoreError,
    shown,
)
from jobcore.functions import encoding
from jobcore.functions.call import describe, function_command
from jobcore.lifecycle import FINAL, Status
from jobcore.models import Event, Finding, Job, LogLine, Pipeline, Skip, Transition, Workspace
from jobcore.operations import dropped
from jobcore.operations.arguments import (
    checked_after,
    checked_age,
    checked_before,
    checked_busy_timeout,
    checked_callback,
    checked_database,
    checked_executors,
    checked_final,
    checked_ids,
    checked_keep,
    checked_limit,
    checked_lines,
    checked_one,
    checked_owner,
    checked_patience,
    checked_prefix,
    checked_progress,
    checked_python,
    checked_sequence,
    checked_slots,
    checked_statuses,
    checked_types,
    require_methods,
    required_types,
)
from jobcore.operations.bookkeeping import Bookkeeper
from jobcore.operations.deadline import Patience
from jobcore.operations.deletion import Deleter
from jobcore.operations.events import Events, Feed
from jobcore.operations.lookup import (
    Id,
    Listings,
    public,
    require_job,
    require_pipeline,
    require_workspace,
)
from jobcore.operations.pipelines import Curator
from jobcore.operations.prune import Pruner
from jobcore.operations.staging import Staging
from jobcore.operations.submission import (
    Creator,
    Runnable,
    checked_command,
    checked_commands,
    checked_data,
    checked_env_from,
    checked_moment,
)
from jobcore.operations.subscriptions import Notifier
from jobcore.operations.tasks import Task
from jobcore.operations.waiting import Follower
from jobcore.operations.waiting_async import Awaiter
from jobcore.storage import settlement, store, transitions
from jobcore.storage.database import Database
from jobcore.storage.environments import SUBMITTER, WORKER, capture
from jobcore.storage.history import Filter
from jobcore.storage.log_segments import Unfinished
from jobcore.storage.transitions import Run

if TYPE_CHECKING:
    import os
    from datetime import datetime
    from types import TracebackType

    from sqlalchemy import Connection, Row
    from typing_extensions import Self

    from jobcore.operations.claiming import Claimer

#: Seconds beyond a command's grace that `on_exit="stop"` waits for its end.
STOP_PATIENCE = 1.0

#: The managers of this process that are not closed; `jobcore.testing` finds them here.
OPEN: weakref.WeakSet[JobManager] = weakref.WeakSet()


class JobManager:
    """
    Jobs whose status, exit code and numbered log lines are true, in one SQLite file.

    Any number of managers, in any number of processes, may have the same file
    open. All methods may be called from any thread, and after a fork.

    What a method has changed is committed when it returns: it survives any crash
    and a power failure, unless the method says otherwise. Every method may raise
    `StoreError`, where the database could not do it; then nothing was changed, but
    that a stop, a cancellation or a deletion may have begun: ask for it once more.
    A wrong argument is an `ArgumentError`, which is a `ValueError`; so is a list in the place
    of an id, while a text that is not a UUID is an id that nothing has. Times are UTC; a
    list, a model or a text that is returned is a copy.

    In an event loop (asyncio, trio, or anyio on either) await the forms that end in
    `_async`. Call all others in a thread, as `await asyncio.to_thread(jobs.submit,
    command)`: each has transactions to make, and may have to wait for another
    process's. No child watcher and no signal handler is needed or installed.

    Args:
        database: The file; it is made if it is not there, mode 0600. One that others
            could read, as a backup, is made this user's alone; one that they could write
            is refused, and so is a directory in which they could create a file. Beside it,
            `<database>.jobs` holds what running jobs have not handed over yet.
        slots: Jobs at once under this manager. Running jobs of managers that were closed
            or died count, one manager each. None: one per CPU; 0:
            bookkeeping only, nothing is run by it, and it has no thread but that of its
            writes, which ends when it is idle, and one for the callbacks of `subscribe`,
            while there are any.
        executors: By job type. A manager claims only jobs of types it has one for.
        clock: Tells the time; None: the machine's. One that can be moved is a `MovableClock`.
        on_exit: For `close()` and the `with` block. `"detach"`: running jobs
            live on, and the next manager that opens the database settles them.
            `"stop"`: jobs that this manager started are stopped.
        busy_timeout: Seconds to wait for another process's write transaction.
        python: The interpreter for supervisors, and for functions unless you
            name the executors; None: `sys.executable`.
        launcher: Starts supervisors; None: as processes, with `python`.
        only_own: Claim only jobs that were created through this manager.
        trust_directory: Use the database although another user can create files in its
            directory, and so run commands as this user. The environment variable
            JOBCORE_TRUST_DIRECTORY, which names such a directory, means the same.

    Raises:
        StoreError: One of its kinds says what is wrong with the file.
        SpawnError: The system has no thread left for it, or no job could ever run in this
            process: gevent or eventlet have replaced its threads, or it is a frozen program
            and no `python` is named.
        ArgumentError: An argument is not what it must be: no file such as ":memory:", a
            number of slots below 0, a time-out of NaN seconds, ...
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
    ) -> None:
        if on_exit not in ("detach", "stop"):
            raise ArgumentError(f'on_exit is "detach" or "stop", not {shown(on_exit)}')
        if clock is not None:
            require_methods(clock, "clock", "now", "monotonic")
        if launcher is not None:
            require_methods(launcher, "launcher", "start")
            if python is not None:
                raise ArgumentError("python is for jobcore's own launcher: give one of both")
        path, patience = checked_database(database), checked_busy_timeout(busy_timeout)
        count, interpreter = checked_slots(slots), checked_python(python)
        self._on_exit = on_exit
        self._slots = usable_processors() if count is None else count
        if self._slots:
            require_host(interpreter, own_launcher=launcher is not None)
        self._executors = checked_executors(
            default_executors(interpreter) if executors is None else executors
        )
        self._clock = clock or SystemClock()
        self._only_own = only_own
        self._trust_directory = bool(trust_directory)
        open_database = handed_over(Database)
        self._database = open_database(
            path,
            busy_timeout=patience,
            trust_directory=self._trust_directory,
            runs_jobs=self._slots > 0,
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
            # A want of descriptors or threads: nothing of it is to stay behind.
            OPEN.discard(self)
            self._database.close()
            raise

    def _assemble(self, launcher: Launcher) -> None:
        """Make the parts that do the work; none of them begins to."""
        self._listings = Listings(self._database, self._clock)
        self._feed = Feed(self._database, self._listings.leave_out("event"))
        # Before the dispatcher, so that an interpreter's exit ends it after that.
        self._notifier = Notifier(self._database)
        self._directories = directories = Directories(self._database.path, self._database)
        self._ownership = ownership = Ownership(directories)
        importer = Importer(self._database, directories, self._clock)
        postponed = Postponement(seconds_of(self._clock))
        self._staging = staging = Staging(self._database, ownership)
        self._creator = Creator(self._database, staging, self._clock, ownership)
        self._curator = Curator(self._database, self._clock, self._executors)
        self._bookkeeper = Bookkeeper(self._database, self._clock, ownership)
        self._stopper = Stopper(self._database, directories, self._clock)
        remover = Remover(self._database, directories, self._clock, postponed)
        self._recovery = Recovery(
            self._database,
            directories,
            importer,
            self._stopper,
            remover,
            self._clock,
            ownership,
            postponed,
        )
        self._follower = Follower(self._database, self._recovery)
        self._awaiter = Awaiter(self._follower)
        self._deleter = Deleter(self._database, self._stopper, self._follower, remover, self._clock)
        self._pruner = Pruner(self._database, remover, self._clock)
        self._dispatcher = Dispatcher(
            database=self._database,
            directories=directories,
            importer=importer,
            pool=SupervisorPool(launcher),
            clock=self._clock,
            executors=self._executors,
            slots=self._slots,
            only_own=self._only_own,
            ownership=ownership,
            reconcile=self._recovery.reconcile_dead,
            chores={
                "schedules": Scheduler(self._database, self._clock, postponed).tick,
                "sweep": self._recovery.sweep,
                "batches": staging.remove_of_dead,
            },
            in_steps=self._recovery.is_unfinished,
            postponed=postponed,
        )

    # --- creating -----------------------------------------------------------------

    def submit(
        self,
        command: Runnable,
        *,
        name: str | None = None,
        data: Any = None,
        workspace_id: Id | None = None,
        pipeline_id: Id | None = None,
        type: str = "COMMAND",  # noqa: A002 - the name of the field in Matatika's Jobs API
        not_before: datetime | None = None,
        env_from: Literal["submitter", "worker"] = "worker",
        reserved: bool = False,
        **options: Any,
    ) -> Job:
        """
        Create a QUEUED job that runs `command` in the next free slot, in the order of creation.

        When this returns, the job survives any crash, a power failure too.

        Args:
            command: A list of words, or a `Command`.
            name: What you call it.
            data: Your own small JSON, up to 64 KiB.
            workspace_id: Its workspace; None: the default one.
            pipeline_id: Its pipeline; it then holds it until it is final.
            type: Managers with an executor for this type run it.
            not_before: Do not start it before; needs a time zone.
            env_from: Whose environment the command gets, beside its own `env`.
                `"worker"`: that of the process that starts the job. `"submitter"`: that
                of this process, as it is now. It is stored in the database, mode 0600,
                until no job that may still start needs it, and shown nowhere. Left out:
                `JOBCORE_*`, `NOTIFY_SOCKET`, `LISTEN_*`, `INVOCATION_ID`,
                `SSH_AUTH_SOCK`, `DISPLAY`, `PWD`, `SHLVL` and `_`.
            reserved: Only this process may start it, so it gets the environment of this
                process. If this process ends before, the job is cancelled.
            options: Further arguments of `Command`: `timeout`, `cwd`, `env`, ...

        Returns:
            The job as it was created.

        Raises:
            CommandError: It could never run, or its data cannot be stored; nothing was created.
            WorkspaceNotFound, PipelineNotFound: There is no such one.
            PipelineAlreadyRunning: The pipeline has a QUEUED or RUNNING job.
        """
        fields = {
            "type": type,
            "name": name,
            "data": checked_data(data),
            "command": checked_command(command, options).to_json(),
            "not_before": checked_moment(not_before),
        }
        source = checked_env_from(env_from)
        return self._create(
            [fields], workspace_id, pipeline_id, env_from=source, reserved=bool(reserved)
        )[0]

    def submit_many(
        self,
        commands: Sequence[Runnable],
        *,
        name: str | None = None,
        data: Any = None,
        workspace_id: Id | None = None,
        type: str = "COMMAND",  # noqa: A002 - the name of the field in Matatika's Jobs API
        env_from: Literal["submitter", "worker"] = "worker",
        **options: Any,
    ) -> list[Job]:
        """
        Create many jobs: all of them, or none.

        More than 1,000 are written in short steps, so that others can write meanwhile, and
        appear together. A process that dies before that leaves none.

        When this returns, all survive any crash, a power failure too. Args and
        errors are those of `submit`.

        Args:
            commands: Lists of words and `Command`s, in the order in which they run.
            options: They hold for every command that is a list of words.

        Returns:
            The jobs in the order of the commands.
        """
        checked = checked_data(data)
        fields = [
            {
                "type": type,
                "name": name,
                "data": checked,
                "command": command.to_json(),
            }
            for command in checked_commands(commands, options)
        ]
        source = checked_env_from(env_from)
        return self._create(fields, workspace_id, None, env_from=source) if fields else []

    def submit_function(
        self, target: Callable[..., Any] | str, /, *args: Any, **kwargs: Any
    ) -> Job:
        """
        Create a QUEUED job that calls a function in a fresh interpreter; see `result`.

        When this returns, the job survives any crash, a power failure too. What
        the function logs and prints are the job's lines; an exception makes the
        job ERROR, with the traceback as its last lines.

        Args:
            target: A function or class at the top level of a module, or anything
                else that can be pickled and called; not a lambda, nor what the
                program itself, `__main__`, defines. Or the text
                `package.module:function`, which is looked for only when the job runs.
            args: Its arguments, of any types that can be pickled.
            kwargs: Its arguments by name. Where the job is to have a time-out, a
                workspace, ...: `submit(function_command(...), type="FUNCTION", ...)`.

        Returns:
            The job as it was created, with the function's name as its own.

        Raises:
            CommandError: It could never be called so; nothing was created. The
                message says why, and shows no argument.
        """
        return self.submit(
            function_command(target, args, kwargs), name=describe(target), type="FUNCTION"
        )

    def create_job(
        self,
        type: str = "PIPELINE_RUN",  # noqa: A002 - the name of the field in Matatika's Jobs API
        *,
        pipeline_id: Id | None = None,
        workspace_id: Id | None = None,
        command: Runnable | None = None,
        name: str | None = None,
        data: Any = None,
        env_from: Literal["submitter", "worker"] = "worker",
    ) -> Job:
        """
        Create a job as Matatika's Jobs API does: of a type, perhaps from a pipeline.

        A type for which no manager has an executor is a task for the host: it
        stays QUEUED until `start_job` and `finish_job`. When this returns, the
        job survives any crash, a power failure too.

        Args:
            type: What kind of work it is; executors are registered by it.
            pipeline_id: Its pipeline, which says what to run; it holds it until it is final.
            workspace_id: Its workspace; None: its pipeline's, else the default one.
            command: What to run instead of what its pipeline says.
            name: What you call it.
            data: Your own small JSON, up to 64 KiB.
            env_from: Whose environment its command gets, as in `submit`.

        Returns:
            The job as it was created, QUEUED.

        Raises:
            PipelineNotFound, WorkspaceNotFound: There is no such one.
            PipelineAlreadyRunning: The pipeline has a QUEUED or RUNNING job; its id is `.job_id`.
            CommandError: The command could never run, or the data cannot be stored.
        """
        own = None if command is None else checked_command(command, {}).to_json()
        fields = {
            "type": type,
            "name": name,
            "data": checked_data(data),
            "command": own,
        }
        source = checked_env_from(env_from)
        return self._create([fields], workspace_id, pipeline_id, env_from=source)[0]

    def retry_job(self, job_id: Id) -> Job:
        """
        Create a new job like one that ended ERROR or STOPPED; that one stays as it is.

        Where that one got its submitter's environment, the new one gets that of this
        process, which submits it: the earlier one is not stored any more.

        When this returns, the new one survives any crash, a power failure too.

        Returns:
            The new job, QUEUED, with `attempt` + 1 and `retry_of`.

        Raises:
            JobNotFound: No job has this id.
            InvalidTransition: It is not ERROR or STOPPED.
            PipelineAlreadyRunning: Its pipeline has another job by now.
        """
        row = self._reconciled(job_id, kill=True)
        if row.status not in lifecycle.RETRIABLE:
            raise InvalidTransition(row.id, row.status, "retry")
        again = store.next_attempt(row)
        source = again.pop("env_from") or WORKER
        return self._create([again], row.workspace_id, row.pipeline_id, env_from=source)[0]

    def _create(
        self,
        jobs: list[dict[str, Any]],
        workspace_id: Id | None,
        pipeline_id: Id | None,
        *,
        env_from: str,
        reserved: bool = False,
        started: bool = False,
    ) -> list[Job]:
        self._start()
        if reserved:
            env_from = SUBMITTER  # which starts it, so there is no need to store anything
        wanted: dict[str, Any] = {
            "jobs": [{**job, "env_from": None if env_from == WORKER else env_from} for job in jobs],
            "workspace_id": workspace_id,
            "pipeline_id": pipeline_id,
            "environment": capture() if env_from == SUBMITTER and not reserved else None,
            "reserved": reserved,
            "started": started,
        }
        try:
            rows = self._creator.create_jobs(**wanted)
        except PipelineAlreadyRunning as conflict:
            # Its job may be final in truth: see, and try once more.
            if not self._has_ended(conflict.job_id):
                raise
            rows = self._creator.create_jobs(**wanted)
        if self._only_own:
            for row in rows:
                self._dispatcher.make_own(row.number)
        self._dispatcher.wake()
        return [Job.from_row(row) for row in rows]

    def _has_ended(self, job_id: UUID) -> bool:
        try:
            return self._reconciled(job_id, kill=True).end_time is not None
        except JobNotFound:
            return True

    # --- bookkeeping --------------------------------------------------------------

    def start_job(self, job_id: Id, *, owner: Literal["auto", "process"] | None = "auto") -> Job:
        """
        Move a QUEUED job to RUNNING for a task that this program does itself.

        The move is durable when this returns. The job is RUNNING until `finish_job` or
        `stop_job`, by any process. If it has an owner and that process ends before, the
        job becomes ERROR with reason `lost` at the next look: by a manager that runs
        jobs, or in `get_job`, `wait`, `recover` or `create_job` for its pipeline.

        The owner is the process, not the manager: `close` does not end the task. A
        forked child does not own the tasks of its parent.

        Args:
            owner: `"process"`: this process owns the task. None: no process does, and
                the job stays RUNNING whatever dies: for tasks that people do. `"auto"`:
                None for types that begin with `PROFILE_`, else this process.

        Returns:
            The job, RUNNING.

        Raises:
            JobNotFound: No job has this id.
            InvalidTransition: It is not QUEUED, or another process has reserved it.
            ArgumentError: `owner` is something else.
        """
        return public(Job, self._bookkeeper.start(job_id, checked_owner(owner)))

    def task(
        self,
        type: str = "TASK",  # noqa: A002 - the name of the field in Matatika's Jobs API
        *,
        job_id: Id | None = None,
        pipeline_id: Id | None = None,
        workspace_id: Id | None = None,
        name: str | None = None,
        data: Any = None,
    ) -> Task:
        """
        Return a context manager that makes its body a job: for `with` and `async with`.

        At the beginning of the block the job is created and RUNNING in one step, or the
        given one is started. It is COMPLETE at the end of the body, or ERROR with the
        traceback as its last lines. All of that is durable. `Stopped` is raised in the
        body when the job is stopped; see `Task`.

        Args:
            type: What kind of work it is.
            job_id: A QUEUED job to start instead, or one that `claim_job` has returned;
                then the other arguments are not given.
            pipeline_id: Its pipeline, which it holds until it is final.
            workspace_id: Its workspace; None: its pipeline's, else the default one.
            name: What you call it.
            data: Your own small JSON, up to 64 KiB.

        Raises:
            JobNotFound, PipelineNotFound, WorkspaceNotFound: It is not there as the block begins.
            InvalidTransition: The job is neither QUEUED nor a task of this process; as the
                block begins.
            PipelineAlreadyRunning: The pipeline has a QUEUED or RUNNING job; as the block
                begins.
            CommandError: The name or the data cannot be stored.
        """
        fields = {"type": type, "name": name, "data": checked_data(data), "command": None}

        def begin() -> Job:
            if job_id is not None:
                self._reconciled(job_id)
                return public(Job, self._bookkeeper.take_up(job_id))
            return self._create([fields], workspace_id, pipeline_id, env_from=WORKER, started=True)[
                0
            ]

        return Task(begin, self._bookkeeper, self._awaiter)

    def claim_job(
        self,
        type: str | Collection[str],  # noqa: A002 - the field's name
        *,
        timeout: float | None = 0.0,
    ) -> Job | None:
        """
        Start the oldest QUEUED job of a type for a worker of your own, and return it.

        The claim is durable when this returns. However many processes claim at once, each
        job is returned to one of them. It is then a task of this process, as after
        `start_job`: work on it in `task(job_id=job.id)`, or end it with `finish_job`.
        Jobs that are reserved or not yet due are left in the queue.

        Args:
            type: The job type, or several.
            timeout: Seconds to wait for one; None: as long as it takes.

        Returns:
            The job, RUNNING; None: there was none in time.

        Raises:
            ArgumentError: A type or `timeout` is not what it must be.
        """
        types = required_types(type)
        checked_patience(timeout)
        row = self._claimer().claim(types, timeout)
        return None if row is None else Job.from_row(row)

    def claim_job_async(
        self,
        type: str | Collection[str],  # noqa: A002 - the field's name
        *,
        timeout: float | None = 0.0,
    ) -> Coroutine[Any, Any, Job | None]:
        """
        Await what `claim_job` does, in an event loop; args and errors are those of `claim_job`.

        The claim is durable when it returns. A caller that is cancelled while it waits has
        claimed nothing. If a job was being claimed at that moment, it is returned, and the
        cancellation takes effect at the caller's next await.

        Returns:
            The job, RUNNING; None: there was none in time.
        """
        types = required_types(type)
        checked_patience(timeout)
        return self._claimer().claim_async(types, timeout)

    def _claimer(self) -> Claimer:
        from jobcore.operations.claiming import Claimer  # noqa: PLC0415 - loaded by those who need it

        return Claimer(self._bookkeeper, self._follower, self._awaiter)

    def adopt_task(self, job_id: Id) -> Job:
        """
        Make this process the owner of a task, which another process or none owned before.

        When this returns, the job is `lost` if this process ends before it is final,
        and not if the previous owner does.

        Returns:
            The job, RUNNING.

        Raises:
            JobNotFound: No job has this id.
            InvalidTransition: It is not RUNNING, or a supervisor runs it. A task whose
                owner is dead is ERROR already.
        """
        self._reconciled(job_id)
        return public(Job, self._bookkeeper.adopt(job_id))

    def finish_job(self, job_id: Id, exit_code: int = 0) -> Job:
        """
        Move a job that its host started to COMPLETE if `exit_code` is 0, else to ERROR.

        The verdict is durable when this returns, and nothing changes it any more.

        Args:
            exit_code: What a process would have exited with, 0 to 255.

        Returns:
            The job, final.

        Raises:
            JobNotFound: No job has this id.
            InvalidTransition: It is not RUNNING, or a process runs it, whose end decides.
            ArgumentError: `exit_code` is not between 0 and 255.
        """
        return public(Job, self._bookkeeper.finish(job_id, exit_code))

    def append_log(self, job_id: Id, *lines: str | bytes) -> int:
        """
        Append lines to a RUNNING job that has no process; text is split at line ends.

        They survive any crash when this returns. A power failure may undo the last few
        seconds' lines, until `finish_job` makes all of them durable.

        Args:
            lines: Text, or bytes as they are; each that ends without a line end is given
                one. Text that `os.fsdecode` made of bytes becomes these, and any other half
                of a surrogate `?`.

        Returns:
            How many lines its log then has.

        Raises:
            JobNotFound: No job has this id.
            InvalidTransition: It is not RUNNING, or a process writes its log.
            ArgumentError: A line is neither text nor bytes.
        """
        return self._bookkeeper.append(job_id, checked_lines(lines))

    def report_progress(
        self, job_id: Id, done: float, total: float | None = None, message: str | None = None
    ) -> Job:
        """
        Say how far a RUNNING job is that has no process, in place of what was said before.

        A job with a process says so itself. A power failure may undo the last
        few seconds' reports.

        Args:
            done: How much is done, in whatever you count; 0 or more.
            total: Of how much; None: not known.
            message: One line for people; a longer one than 1,000 characters is cut.

        Returns:
            The job with its new `progress`.

        Raises:
            JobNotFound: No job has this id.
            InvalidTransition: It is not RUNNING, or a process runs it.
            ArgumentError: A number is negative or not finite, or the message is no text.
        """
        said = checked_progress(done, total, message)
        return public(Job, self._bookkeeper.report(job_id, *said))

    # --- stopping, cancelling, deleting ---------------------------------------------

    def stop_job(self, job_id: Id, *, grace: float | None = None) -> Job:
        """
        Ask a running job to stop, and return at once.

        The returned job is still RUNNING: its command gets SIGTERM now, and all
        its descendants are killed after its grace. It may also end by itself
        first, so wait for any final status, not for STOPPED. Asking again is
        harmless; the grace only ever shrinks. A job without a process is
        STOPPED at once. The wish is durable: it is carried out also where this
        process dies.

        Args:
            grace: Seconds until it is killed; 0: now. None: its command's own.

        Returns:
            The job as it stands then.

        Raises:
            JobNotFound: No job has this id.
            JobNotRunning: It is not RUNNING. `cancel_job` takes a QUEUED one, too.
            CommandError: The grace is not a number of seconds, 0 or more.
            StoreError: The wish could not be stored, or not be written for the
                supervisor. Where there was no space it is told all the same, and the
                job ends as one that was stopped.
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
            The job as it stands then, STOPPED or still RUNNING.

        Raises:
            JobNotFound: No job has this id.
            InvalidTransition: It is final.
            CommandError: The grace is not a number of seconds, 0 or more.
        """
        checked = None if grace is None else checked_grace(grace)
        run = self._stopper.cancel(self._run(job_id, kill=True), checked)
        return self._job(run)

    def delete_job(self, job_id: Id) -> None:
        """
        Remove a job with its log and history, stopping it first if need be.

        From its first step on nobody sees the job any more. Returns when all of
        it is gone; where this process dies before, the next manager finishes it.

        A job whose row is damaged is removed as well, as long as SQLite finds the row.

        Raises:
            JobNotFound: No job has this id.
            StoreError: It could not be finished. Where the job is not seen any more,
                the next manager finishes it.
        """
        try:
            run = self._run(job_id, kill=True)
        except DatabaseCorrupt:
            self._deleter.delete_damaged(job_id)
        else:
            self._deleter.delete(run)

    @overload
    def prune(
        self,
        older_than: float,
        *,
        status: Status | Collection[Status] = FINAL,
        keep: int | None = None,
        workspace_id: Id | None = None,
        pipeline_id: Id | None = None,
        dry_run: Literal[False] = False,
    ) -> int: ...

    @overload
    def prune(
        self,
        older_than: float,
        *,
        status: Status | Collection[Status] = FINAL,
        keep: int | None = None,
        workspace_id: Id | None = None,
        pipeline_id: Id | None = None,
        dry_run: Literal[True],
    ) -> list[Job]: ...

    def prune(
        self,
        older_than: float,
        *,
        status: Status | Collection[Status] = FINAL,
        keep: int | None = None,
        workspace_id: Id | None = None,
        pipeline_id: Id | None = None,
        dry_run: bool = False,
    ) -> int | list[Job]:
        """
        Remove final jobs, with log, history and result, that ended long enough ago.

        A job that is not final is never touched. They go some at a time, in short
        transactions with rests in between, so others can write meanwhile; all of
        them are gone when this returns. Where this process dies before, those
        begun are finished by the next manager, and the others stay. Several may
        prune at once. The file does not shrink: its room is used again. Records of skipped
        runs go likewise, unless `status` names only some of the final ones.

        Args:
            older_than: Seconds since their end, at least, by this manager's clock.
            status: One final status, or several; all unless said otherwise.
            keep: Of the jobs that the filters name, the newest this many stay,
                however long ago they ended.
            workspace_id: Only of this workspace.
            pipeline_id: Only of this pipeline.
            dry_run: Change nothing.

        Returns:
            How many jobs this call removed; in a dry run those that it would
            remove, oldest first. A job that cannot be read would be removed, too;
            `list_damaged_rows` names it.

        Raises:
            WorkspaceNotFound, PipelineNotFound: There is no such one.
            ArgumentError: A number is negative or not a number, or a status unknown or not final.
        """
        expired = self._pruner.choose(
            checked_age(older_than),
            checked_final(status),
            workspace_id=workspace_id,
            pipeline_id=pipeline_id,
            keep=checked_keep(keep),
        )
        if dry_run:
            damaged: dict[int, Exception] = {}
            return self._listings.formed(
                self._pruner.preview(expired, damaged.__setitem__), damaged
            )
        return self._pruner.prune(expired)

    # --- reading ------------------------------------------------------------------

    def get_job(self, job_id: Id) -> Job:
        """
        Return the job as it stands in truth, whoever runs it and whether they live.

        Raises:
            JobNotFound: No job has this id.
        """
        return public(Job, self._reconciled(job_id))

    def result(self, job_id: Id) -> Any:
        """
        Return what the function of a COMPLETE job returned; None is a value like others.

        Any process can ask, as long as the job is not deleted. What JSON keeps
        exactly is stored so. All else is unpickled in this process, which
        imports what the value is made of, and runs what whoever wrote it
        wanted: trust it as you trust the function, and the file. What that
        raises comes through, ImportError where a module is not found here,
        say, and the result stays as it is.

        Raises:
            JobNotFound: No job has this id.
            NoResult: The job is not COMPLETE, ran no function, or one that
                ended the interpreter by itself.
        """
        run = self._run(job_id)
        with self._database.read() as connection:
            stored = settlement.find_result(connection, run.number)
        if stored is None:
            job = self._job(run)  # as it is now: deleted, perhaps
            raise NoResult(job.id, job.status)
        try:
            return encoding.decode(*stored)
        except ValueError as error:
            if stored[0] != encoding.JSON:
                raise  # that of whoever made the object
            raise DatabaseCorrupt(f"the result of job {job_id} is damaged") from error

    def list_jobs(
        self,
        *,
        workspace_id: Id | None = None,
        pipeline_id: Id | None = None,
        status: Status | Collection[Status] | None = None,
        type: str | Collection[str] | None = None,  # noqa: A002 - the field's name
        limit: int = 100,
        before: int | None = None,
    ) -> list[Job]:
        """
        Return a page of jobs, newest first, as stored.

        A page costs what it shows, however many jobs there are.

        Args:
            workspace_id: Only of this workspace.
            pipeline_id: Only of this pipeline.
            status: One, or several such as `STARTED`.
            type: One, or several.
            limit: Jobs in the page.
            before: The `number` of the last job of the page before; None: the first page.

        Raises:
            WorkspaceNotFound, PipelineNotFound: There is no such one.
            ArgumentError: `limit` is negative, or `before`, a status or a type is invalid.
        """
        most, older_than = checked_limit(limit), checked_before(before)
        filters = _kinds(status, type)
        with self._database.read() as connection:
            filters |= _places(connection, workspace_id, pipeline_id)
        return self._listings.jobs(most, older_than, **filters)

    def find_jobs(self, id_prefix: str, *, limit: int = 100) -> list[Job]:
        """
        Return the jobs whose id begins so, in the order of their ids, as stored.

        Args:
            id_prefix: The first digits of an id, 1 to 32 of them, in either case; hyphens
                do not count.
            limit: Jobs at most.

        Raises:
            ArgumentError: `id_prefix` is not the beginning of an id, or `limit` is negative.
        """
        first, last = checked_prefix(id_prefix)
        most = checked_limit(limit)
        with self._database.read() as connection:
            numbers = store.find_jobs(connection, first, last, limit=most)
        return sorted(self._listings.of(numbers), key=lambda job: job.id)

    def count_jobs(
        self,
        *,
        workspace_id: Id | None = None,
        pipeline_id: Id | None = None,
        status: Status | Collection[Status] | None = None,
        type: str | Collection[str] | None = None,  # noqa: A002 - the field's name
    ) -> dict[Status, int]:
        """
        Return how many jobs there are of each status, as stored.

        The counts are stored, and changed by the statement that changes a job: a call reads a
        row for each type in a workspace or pipeline, however many jobs there are.

        Args:
            workspace_id: Only of this workspace.
            pipeline_id: Only of this pipeline.
            status: One, or several such as `STARTED`.
            type: One, or several.

        Returns:
            The count by status, for all five; 0 also for those that were not asked for.

        Raises:
            WorkspaceNotFound, PipelineNotFound: There is no such one.
            ArgumentError: A status is unknown, or a type is not text.
        """
        filters = _kinds(status, type)
        with self._database.read() as connection:
            filters |= _places(connection, workspace_id, pipeline_id)
        return self._listings.count(**filters)

    def history(self, job_id: Id) -> list[Transition]:
        """
        Return what happened to the job, oldest first.

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

        The last one may be a line that the job has not finished, such as a prompt: it has
        no number yet. Where two streams are kept apart there may be one of each.

        Args:
            sequence: The number of the first line, from 0; beyond the last there is none.
            limit: Lines at most; None: all.
            unfinished: Whether unfinished lines are among them; see `LogLine`.

        Raises:
            JobNotFound: No job has this id; at this call.
            JobDeleted: It was deleted while you read; at `next()`.
            ArgumentError: `sequence` or `limit` is negative, or no number; at this call.
        """
        return self._lines(job_id, sequence, limit, unfinished=unfinished)

    def _lines(
        self, job_id: Id, sequence: int, limit: int | None = None, *, unfinished: bool = False
    ) -> Iterator[LogLine]:
        first, most = checked_sequence(sequence), None if limit is None else checked_limit(limit)
        run, end = self._run_and_unfinished(job_id) if unfinished else (self._run(job_id), None)
        return self._follower.lines(run, first, most, end)

    def tail(self, job_id: Id, n: int, *, unfinished: bool = True) -> Iterator[LogLine]:
        """
        Return an iterator of the last lines that the job has written by now.

        A long line that was cut counts once and comes with all of its pieces. Errors are
        those of `logs`, and a job that was deleted meanwhile may be told at this call.

        Args:
            n: How many lines, at most.
            unfinished: Whether unfinished lines are among them; see `LogLine`.
        """
        most = checked_limit(n)
        run, end = self._run_and_unfinished(job_id) if unfinished else (self._run(job_id), None)
        return self._follower.last_lines(run, most, end)

    def follow(
        self,
        job_id: Id,
        sequence: int = 0,
        timeout: float | None = None,
        *,
        unfinished: bool = True,
    ) -> Iterator[LogLine]:
        """
        Return an iterator of the lines from `sequence` on, as they come; it ends with the job.

        A line that the job does not finish at once, such as a prompt or a progress bar, comes
        without a number within a second, again each time it has changed, at most four
        times a second, and then once with its number.

        It ends, too, with whatever it raises: to go on, follow from the number behind the
        last numbered line.

        Args:
            sequence: The number of the first line, from 0.
            timeout: Seconds for the whole of it; None: until it ends.
            unfinished: Whether unfinished lines are among them; see `LogLine`.

        Raises:
            JobNotFound: No job has this id; at this call.
            JobDeleted: It was deleted while you read; at `next()`.
            WaitTimeout: The time was over; at `next()`.
            SpawnError, StoreError: It cannot go on here, see `wait`; at `next()`.
            ArgumentError: `sequence` is negative, or one of them is not a number; at this call.
        """
        first = checked_sequence(sequence)
        checked_patience(timeout)  # not only at the first next()
        run = self._run(job_id)
        check = self._dispatcher.begin_wait(self)
        return self._follower.follow(run, first, timeout, check, unfinished=unfinished)

    def log_text(self, job_id: Id, sequence: int = 0) -> Iterator[bytes]:
        """
        Return an iterator of the log as plain text, a numbered line or a piece of one each.

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

    def wait(self, job_id: Id, timeout: float | None = None) -> Job:
        """
        Block until the job is final, and return it; its log is complete then.

        Args:
            timeout: Seconds to wait; None: as long as it takes. 0: only look.

        Returns:
            The job, final.

        Raises:
            JobNotFound: No job has this id.
            JobDeleted: It was deleted meanwhile.
            WaitTimeout: It is not final after `timeout` seconds; it goes on.
            SpawnError: It is QUEUED, and this manager, which would run it, fails to start
                jobs for 10 seconds or cannot start any; or the interpreter exits.
            StoreError: Its row, its directory or its files cannot be read for 10 seconds.
            ArgumentError: `timeout` is no number.
        """
        checked_patience(timeout)
        run = self._run(checked_one(job_id))
        self._follower.wait(run, timeout, self._dispatcher.begin_wait(self))
        return self._job(run)

    def wait_all(self, job_ids: Iterable[Id], timeout: float | None = None) -> list[Job]:
        """
        Block until all of these jobs are final, and return them in the order of the ids.

        Args:
            job_ids: The jobs; the same one may be among them more than once.
            timeout: Seconds to wait for all of them; None: as long as it takes.

        Returns:
            The jobs, final.

        Raises:
            JobNotFound: No job has one of these ids.
            JobDeleted, WaitTimeout, SpawnError, StoreError: As `wait` raises them for one.
            ArgumentError: `job_ids` is one id, or no ids, or `timeout` is no number.
        """
        patience = Patience(timeout)
        waited = [self._run(one) for one in checked_ids(job_ids)]
        check = self._dispatcher.begin_wait(self)
        return [self._job(self._follower.wait(run, patience, check)) for run in waited]

    def drain(self, timeout: float | None = None) -> None:
        """
        Block until nothing is queued that this manager could claim now, and nothing runs
        that it claimed.

        With `slots=0` it claims nothing: then this waits for the managers that do, until
        nothing is queued that may start now, and no command of any job runs. Where there
        is no such manager it waits until the time is over.

        Args:
            timeout: Seconds to wait; None: as long as it takes.

        Raises:
            WaitTimeout: That is not so after `timeout` seconds.
            SpawnError, StoreError: Nothing of it can go on here; see `wait`.
            ArgumentError: `timeout` is no number.
        """
        self._follower.drain(self._drained(), self._running_elsewhere, timeout)

    def wait_async(self, job_id: Id, timeout: float | None = None) -> Coroutine[Any, Any, Job]:
        """
        Await the end of the job, and return it: `wait` for an event loop.

        No thread is held while it waits, so thousands may. When it is cancelled, the job goes on.

        Args:
            timeout: Seconds to wait; None: as long as it takes.

        Raises:
            JobNotFound: No job has this id.
            JobDeleted: It was deleted meanwhile.
            WaitTimeout: It is not final after `timeout` seconds; it goes on.
            SpawnError, StoreError: It cannot go on here; see `wait`.
            ArgumentError: `timeout` is no number; at this call, not when it is awaited.
        """
        checked_patience(timeout)
        checked_one(job_id)
        return self._awaiter.wait(
            lambda: self._run(job_id), timeout, self._dispatcher.begin_wait(self), self._job
        )

    def wait_all_async(
        self, job_ids: Iterable[Id], timeout: float | None = None
    ) -> Coroutine[Any, Any, list[Job]]:
        """
        Await the end of all of these jobs, and return them: `wait_all` for an event loop.

        Args:
            job_ids: The jobs; the same one may be among them more than once.
            timeout: Seconds to wait for all of them; None: as long as it takes.

        Raises:
            JobNotFound: No job has one of these ids.
            JobDeleted, WaitTimeout, SpawnError, StoreError: As `wait_async` raises them for one.
            ArgumentError: `job_ids` is one id, or no ids, or `timeout` is no number; at this
                call, not when it is awaited.
        """
        checked_patience(timeout)
        ids = checked_ids(job_ids)
        return self._awaiter.wait_all(
            lambda: [self._run(one) for one in ids],
            timeout,
            self._dispatcher.begin_wait(self),
            self._job,
        )

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

        Leave it where you like: there is nothing to close. An `anext()` that is
        cancelled has taken no line, so the next one goes on without a gap. It ends with
        whatever it raises, as `follow` does: the next `anext()` is the end.

        Args:
            sequence: The number of the first line, from 0.
            timeout: Seconds for the whole of it, from the first `anext()` on; None:
                until it ends.
            unfinished: As for `follow`.

        Raises:
            JobNotFound: No job has this id; at the first `anext()`.
            JobDeleted: It was deleted while you read; at `anext()`.
            WaitTimeout: The time was over; at `anext()`.
            SpawnError, StoreError: It cannot go on here, see `wait`; at `anext()`.
            ArgumentError: `sequence` is negative, or one of them is not a number; at this call.
        """
        first = checked_sequence(sequence)
        checked_patience(timeout)
        check = self._dispatcher.begin_wait(self)
        return self._awaiter.follow(
            lambda: self._run(job_id), first, timeout, check, unfinished=unfinished
        )

    def drain_async(self, timeout: float | None = None) -> Coroutine[Any, Any, None]:
        """
        Await what `drain` waits for, in an event loop.

        Args:
            timeout: Seconds to wait; None: as long as it takes.

        Raises:
            WaitTimeout: That is not so after `timeout` seconds.
            SpawnError, StoreError: Nothing of it can go on here; see `wait`.
            ArgumentError: `timeout` is no number; at this call, not when it is awaited.
        """
        checked_patience(timeout)
        return self._awaiter.drain(self._drained(), self._running_elsewhere, timeout)

    def recover(self) -> list[Job]:
        """
        Bring in, now, what every running job has written; settle and resolve what has ended.

        When this returns, every job whose end is known is final, and its log is complete.

        Returns:
            The jobs that this settled.

        Raises:
            DatabaseBusy: Another process kept the write lock longer than the busy timeout.
                What was settled before stays so.
        """
        settled = self._recovery.sweep(everything=True)
        self._staging.remove_of_dead(everything=True)
        return self._jobs(settled)

    def refresh(self) -> None:
        """
        Bring in what the running jobs of this directory have written, and settle the ended.

        What it settled is durable when this returns. Unlike `recover` this kills
        nothing: where a supervisor died and left processes behind, its job stays
        RUNNING. Jobs that were started in another directory, of which this file is
        a copy, stay as they are stored; see `list_copied_jobs`.
        """
        self._recovery.refresh()

    def list_copied_jobs(self) -> list[Job]:
        """
        Return the RUNNING jobs that were not started in this directory: this file is a copy.

        What is stored of them is what was true when it was copied. `recover`, and any
        manager that runs jobs, settles them as lost, and does not touch their processes.
        """
        return self._jobs(self._recovery.copied())

    def repair(self) -> list[Job]:
        """
        Make a file usable whose directory of job directories was removed, by this manager too.

        A new one is made, and all of this is durable when this returns. What ran in
        the old one is settled as lost, though its commands may run on: the jobs' last
        lines say which processes still do. Retries no longer wait for processes that an
        earlier attempt left behind, and the jobs are counted anew. Open such a file with
        `slots=0`. Other managers that have it open have to be opened again.

        Returns:
            The jobs that this settled.

        Raises:
            StoreMismatch: The directory belongs to another database: move it away first.
            StoreError: It cannot be made.
        """
        from jobcore.engine import repair  # noqa: PLC0415 - loaded by those who need it, not at import

        return self._jobs(repair.repair(self._database, self._directories, self._recovery))

    def check(self) -> list[Finding]:
        """
        Examine the file, its directories and the SQLite in use, and change nothing.

        It reads every page of the file, so it takes a while for a large one;
        others can write meanwhile. `jobcore doctor` does the same for a file that
        no manager opens.

        Returns:
            What each check found; one whose `verdict` is `wrong` needs a person.
        """
        from jobcore.operations import doctor  # noqa: PLC0415 - loaded by those who need it, not at import

        examine = handed_over(doctor.examine)
        findings = examine(self._database.path, trust_directory=self._trust_directory)
        return findings + doctor.findings_of(self._dispatcher.failures() + self.list_damaged_rows())

    def list_damaged_rows(self) -> list[str]:
        """
        Return what this manager's listings have left out: rows that cannot be read.

        One damaged row does not keep `list_jobs`, `list_pipelines`, `list_workspaces`,
        `history`, `skips`, `count_jobs` and `events` from the others. The log has an event
        `row damaged` when that begins, when its cause changes, and once an hour. `get_job`
        and its like raise `DatabaseCorrupt` for such a row.

        Returns:
            A line for each, with its id and the cause, until it could be read again.
        """
        return self._listings.left_out()

    # --- events -------------------------------------------------------------------

    def events(
        self,
        after: int | Literal["now"] | None = 0,
        *,
        limit: int | None = None,
        follow: bool = False,
        timeout: float | None = None,
        workspace_id: Id | None = None,
        pipeline_id: Id | None = None,
        status: Status | Collection[Status] | None = None,
        type: str | Collection[str] | None = None,  # noqa: A002 - the field's name
    ) -> Iterator[Event]:
        """
        Return an iterator of what happened to all jobs, whoever did it, in the one order of
        the commits.

        Every transition is an event, from the commit on that made it true. Whoever
        sees one sees all before it that there will ever be, so a reader that stores
        the id of the last event it has dealt with, and goes on behind it, leaves none
        out; those that it dealt with and did not store yet come once more.

        A job's events go with the job: from the beginning of its deletion on they are
        not read any more, and that it was deleted is no event. Ids are never used again,
        so there are holes. They count in this file: a reader of one that was
        restored from a backup begins anew.

        Reading looks after no job: a transition is here when a manager has written it.

        Those of one pipeline are read from an index. Every other filter looks at each event
        after `after`, about 3 seconds of CPU time for a million, so pass the last id you saw.
        No index serves them: workspace and type are stored with the job, not with its history.

        Args:
            after: The id of the last event that was seen; 0: none; "now" or None: all there
                are by now.
            limit: Events at the most.
            follow: Go on with events as they come. Else the iterator ends with the
                last one that there is at this call.
            timeout: Seconds for which it follows; then it ends, wherever it has got to.
                None: for ever.
            workspace_id: Only of jobs of this workspace.
            pipeline_id: Only of jobs of this pipeline.
            status: Only what led to it; one, or several such as `FINAL`. RUNNING is
                what both `start` and `stop` lead to.
            type: Only of jobs of this type; one, or several.

        Raises:
            WorkspaceNotFound, PipelineNotFound: There is no such one; at this call.
            ArgumentError: An argument is not what it must be, or no event of this file has
                had the id `after` yet; at this call.
            StoreError: The database cannot be read any more; at `next()`.
        """
        known, most = checked_after(after), None if limit is None else checked_limit(limit)
        checked_patience(timeout)  # not only at the first next()
        filters = _kinds(status, type)
        with self._database.read() as connection:
            filters |= _places(connection, workspace_id, pipeline_id)
        return self._feed.read(
            known, Filter.of(**filters), limit=most, follow=follow, timeout=timeout
        )

    def events_async(
        self,
        after: int | Literal["now"] | None = 0,
        *,
        limit: int | None = None,
        follow: bool = False,
        timeout: float | None = None,
        workspace_id: Id | None = None,
        pipeline_id: Id | None = None,
        status: Status | Collection[Status] | None = None,
        type: str | Collection[str] | None = None,  # noqa: A002 - the field's name
    ) -> AsyncIterator[Event]:
        """
        Return an asynchronous iterator of what happened to all jobs: `events` for an event loop.

        No thread is held while it waits. Leave it where you like: there is nothing to close.
        An `anext()` that is cancelled has taken no event. It ends with whatever it raises.

        Args:
            after: As in `events`, but that "now" and None mean the first `anext()`.
            limit, follow: As in `events`.
            timeout: Seconds for which it follows, from the first `anext()` on; then it ends.
            workspace_id, pipeline_id, status, type: As in `events`.

        Raises:
            WorkspaceNotFound, PipelineNotFound: There is no such one; at the first `anext()`.
            ArgumentError: An argument is not what it must be; at this call. No event of this
                file has had the id `after` yet; at the first `anext()`.
            StoreError: The database cannot be read any more; at `anext()`.
        """
        known, most = checked_after(after), None if limit is None else checked_limit(limit)
        checked_patience(timeout)
        kinds = _kinds(status, type)

        def begin() -> Filter:
            with self._database.read() as connection:
                return Filter.of(**kinds, **_places(connection, workspace_id, pipeline_id))

        return Events(self._feed, begin, known, limit=most, follow=follow, timeout=timeout)

    def subscribe(
        self,
        callback: Callable[[Event], object],
        *,
        workspace_id: Id | None = None,
        pipeline_id: Id | None = None,
        status: Status | Collection[Status] | None = None,
        type: str | Collection[str] | None = None,  # noqa: A002 - the field's name
    ) -> Callable[[], None]:
        """
        Have `callback` called with each transition that this process makes through this manager.

        Each is told once, after its commit, in the order of the commits, beginning
        with those that are committed after this returns. What was rolled back is not
        told. What happened is told though the job be deleted since, its end by that
        deletion included; `get_job` then has it no more.

        Callbacks are called one after the other in a thread of the manager, so a slow
        one delays the others and no job; what waits for it is kept in memory. They may
        use the manager, end a subscription, or close the manager. What one raises is
        logged, and nothing else comes of it. A forked child has the subscriptions,
        and is told of its own transitions.

        `close` waits until all was told that is committed, at the most some 5 seconds,
        and nothing is told after that. For what other processes do, and for what must
        not be missed when this process dies, read `events`.

        Args:
            callback: Gets the `Event`.
            workspace_id, pipeline_id, status, type: As in `events`.

        Returns:
            What ends it. A call of the callback that is under way in another thread
            comes to its end; no further one begins.

        Raises:
            WorkspaceNotFound, PipelineNotFound: There is no such one.
            ArgumentError: The callback is not a plain function, or a filter is invalid.
            StoreError: The manager is closed.
        """
        checked = checked_callback(callback)
        filters = _kinds(status, type)
        with self._database.read() as connection:
            filters |= _places(connection, workspace_id, pipeline_id)
        return self._notifier.subscribe(checked, Filter.of(**filters))

    # --- workspaces and pipelines ---------------------------------------------------

    def create_workspace(
        self, name: str, *, properties: Mapping[str, Any] | None = None
    ) -> Workspace:
        """
        Create a workspace, which governs pipelines and jobs.

        Where this manager has an executor for WORKSPACE_INIT, such a job is
        created along with it. Both are durable when this returns.

        Args:
            name: What you call it; it need not be the only one of this name.
            properties: Your own small JSON object.

        Returns:
            The workspace.

        Raises:
            CommandError: The name is no text, or the properties are no JSON.
        """
        self._start()
        made = Workspace.from_row(self._curator.create_workspace(name, properties))
        self._dispatcher.wake()
        return made

    def get_workspace(self, workspace_id: Id | None = None) -> Workspace:
        """
        Return a workspace; without an id the default one, made on first use.

        Raises:
            WorkspaceNotFound: No workspace has this id.
        """
        if workspace_id is None:
            return Workspace.from_row(self._curator.default_workspace())
        with self._database.read() as connection:
            return public(Workspace, require_workspace(connection, workspace_id))

    def list_workspaces(
        self, *, limit: int | None = None, after: Workspace | Id | None = None
    ) -> list[Workspace]:
        """
        Return a page of all workspaces, in the order of their creation.

        Args:
            limit: Workspaces in the page, less those that cannot be read; None: all.
            after: The last workspace of the page before, or its id; None: the first page. The
                workspace itself is a place though it be deleted meanwhile, its id is not.

        Raises:
            WorkspaceNotFound: There is no such one.
            ArgumentError: `limit` is negative, or no number.
        """
        most = None if limit is None else checked_limit(limit)
        return self._listings.workspaces(limit=most, after=after)

    def update_workspace(self, workspace_id: Id, **changes: Any) -> Workspace:
        """
        Change `name` or `properties` of a workspace; what is not named stays.

        The change is durable when this returns.

        Args:
            changes: `name` or `properties`, as in `create_workspace`.

        Returns:
            The workspace as it then is.

        Raises:
            WorkspaceNotFound: No workspace has this id.
            CommandError: The name is no text, or the properties are no JSON.
        """
        return Workspace.from_row(self._curator.update_workspace(workspace_id, changes))

    def delete_workspace(self, workspace_id: Id) -> None:
        """
        Remove a workspace with its pipelines and jobs; running ones are stopped first.

        The workspace disappears at once. Where many pipelines and jobs belong to it, these
        do so in short steps, so that others can write meanwhile. Returns when all is gone;
        where this process dies before, the next manager finishes it.

        Raises:
            WorkspaceNotFound: No workspace has this id.
        """
        self._start()
        self._deleter.delete_workspace(self._curator.mark_workspace_deleted(workspace_id))

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

        Where this manager has an executor for PIPELINE_CONFIG, such a job is
        created along with it, and its ending makes the pipeline READY or FAILED.
        Both are durable when this returns.

        Args:
            name: What others name it by in `triggered_by`; no other pipeline of its
                workspace has it, whatever the case.
            command: A list of words, or a `Command`.
            workspace_id: Its workspace; None: the default one.
            fields: `script` (for `/bin/sh -c`, instead of the command's argv),
                `cwd`, `env`, `timeout` (seconds for each job; None: no limit),
                `max_retries` (of a job that ended ERROR), `schedule` (cron with
                five fields, or six, seconds first, or `@hourly` and its family),
                `time_zone` (of the schedule, else UTC), `catch_up` (what becomes of
                ticks that came while no manager with slots ran: `"skip"`, the
                default: they are recorded in `skips`; `"last"`: the last of them
                runs; `"all"`: each runs, one after the other), `late_after` (seconds
                after which a tick is such a one; 60 by default), `triggered_by` (names of
                pipelines of the same workspace, after whose COMPLETE it runs, also
                when they are renamed; or `deploy`, your own task), `properties` (your
                own small JSON object).

        Returns:
            The pipeline.

        Raises:
            CommandError, ScheduleError, PipelineCycle: It could never run so, as one with nothing
                to run, or one that names an unknown source; nothing was written.
            PipelineExists: Another pipeline of the workspace has this name.
            WorkspaceNotFound: No workspace has this id.
        """
        self._start()
        said = {"name": name, "command": command, **fields}
        made = Pipeline.from_row(self._curator.create_pipeline(said, workspace_id=workspace_id))
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
        after: Pipeline | Id | None = None,
    ) -> list[Pipeline]:
        """
        Return a page of all pipelines, or of those of a workspace, in the order of their creation.

        Args:
            workspace_id: Only of this workspace.
            limit: Pipelines in the page, less those that cannot be read; None: all.
            after: The last pipeline of the page before, or its id; None: the first page. The
                pipeline itself is a place though it be deleted meanwhile, its id is not.

        Raises:
            WorkspaceNotFound, PipelineNotFound: There is no such one.
            ArgumentError: `limit` is negative, or no number.
        """
        most = None if limit is None else checked_limit(limit)
        return self._listings.pipelines(workspace_id, limit=most, after=after)

    def update_pipeline(self, pipeline_id: Id, **changes: Any) -> Pipeline:
        """
        Change a pipeline; what is not named stays. A FAILED one is configured again.

        The change is durable when this returns, and holds for jobs that start
        from then on.

        Args:
            changes: `name`, `command`, or one of the fields of `create_pipeline`.

        Returns:
            The pipeline as it then is.

        Raises:
            PipelineNotFound: No pipeline has this id.
            PipelineAlreadyRunning: It is FAILED and has an active job; nothing was written.
            CommandError, ScheduleError, PipelineCycle: It could never run so; nothing was written.
            PipelineExists: Another pipeline of the workspace has this name.
        """
        self._start()
        changed = Pipeline.from_row(self._curator.update_pipeline(pipeline_id, changes))
        self._dispatcher.wake()
        return changed

    def delete_pipeline(self, pipeline_id: Id) -> None:
        """
        Remove a pipeline with its jobs; a running one is stopped first.

        It triggers nothing any more: `check` names the pipelines that ran after it.
        The pipeline and its active job disappear at once, and very many other jobs in short
        steps. Returns when all is gone; where this process dies before, the next manager
        finishes it.

        Raises:
            PipelineNotFound: No pipeline has this id.
        """
        self._start()
        self._deleter.delete_pipeline(self._curator.mark_pipeline_deleted(pipeline_id))

    def skips(self, pipeline_id: Id, *, limit: int = 100) -> list[Skip]:
        """
        Return the runs of a pipeline that were to be and were not, newest first.

        Args:
            limit: How many at most.

        Raises:
            PipelineNotFound: No pipeline has this id.
            ArgumentError: `limit` is negative, or no number.
        """
        return self._listings.skips(pipeline_id, checked_limit(limit))

    # --- closing ------------------------------------------------------------------

    def close(self) -> None:
        """
        Let go of the database, as `on_exit` says; again is harmless.

        With `"detach"` queued jobs wait for the next manager, and running ones
        go on under their supervisors. With `"stop"` this returns when the jobs
        that this manager started have ended, or their grace and a second are over.
        A manager that is dropped instead ends its threads, and warns (`ResourceWarning`).
        """
        if not self._database.is_of_this_process():
            self._dropped.detach()
            OPEN.discard(self)
            return  # C code has forked this process: threads and connections are the parent's
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
        """End the threads and close what is open: nothing is unlocked, and nothing written."""
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
        """Close it."""
        self.close()

    def _release_ownership(self) -> None:
        """Let go of this process's lock where nothing needs it; else it is held to the end."""
        try:
            name = self._ownership.current
            if name is None:
                return
            with self._database.read() as connection:
                is_used = any(run.owner == name for run in transitions.owned(connection))
            self._ownership.release(is_used=is_used)
        except StoreError:
            return  # whether it is needed is not known

    def _stop_own(self) -> None:
        running = self._dispatcher.running()
        if not running:
            return  # also when closed before
        seconds = self._stopper.stop_all(running) + STOP_PATIENCE
        if self._dispatcher.exiting:
            self._follower.wait_softly(running, seconds)
        else:
            self._dispatcher.wait_until_settled({run.number for run in running}, seconds)

    # --- what the verbs share -------------------------------------------------------

    def _start(self) -> None:
        if self._slots:
            self._dispatcher.start()

    def _reconciled(self, job_id: Id, *, kill: bool = False) -> Row[Any]:
        """Return the job's row, brought up to what its directory says; see `Recovery.reconcile`."""
        self._start()
        with self._database.read() as connection:
            row = require_job(connection, job_id)
        run = store.run_of(row)
        if not run.supervised and not run.owned:
            return row
        fresh = self._recovery.reconcile_softly(run, kill=kill)
        if fresh is None or fresh.deleted_at is not None:
            raise JobNotFound(job_id)
        with self._database.read() as connection:
            return require_job(connection, job_id)

    def _run(self, job_id: Id, *, kill: bool = False) -> Run:
        return store.run_of(self._reconciled(job_id, kill=kill))

    def _run_and_unfinished(self, job_id: Id) -> tuple[Run, Unfinished | None]:
        """Return the job, and what it had not finished just before it was brought up to date."""
        self._start()
        with self._database.read() as connection:
            run = store.run_of(require_job(connection, job_id))
        unfinished = self._recovery.unfinished(run) if run.supervised else None
        return self._run(job_id), unfinished

    def _running_elsewhere(self) -> list[Run]:
        """Return the jobs that a manager without slots waits for in a drain."""
        if self._slots:
            return []
        with self._database.read() as connection:
            return list(transitions.supervised(connection))

    def _drained(self) -> Callable[[], bool]:
        return self._dispatcher.is_drained(starts=self._slots > 0)

    def _jobs(self, found: Iterable[Run]) -> list[Job]:
        return self._listings.of(run.number for run in found)

    def _job(self, run: Run) -> Job:
        with self._database.read() as connection:
            row = store.get_job(connection, run.number)
        if row is None or row.deleted_at is not None:
            raise JobDeleted(run.id)
        return public(Job, row)


def _kinds(
    status: Status | Collection[Status] | None, kind: str | Collection[str] | None
) -> dict[str, Any]:
    """Return the filters that need no database: a mistake in them is to cost no connection."""
    return {"statuses": checked_statuses(status), "types": checked_types(kind)}


def _places(
    connection: Connection, workspace_id: Id | None, pipeline_id: Id | None
) -> dict[str, Any]:
    """Return the filters whose workspace and pipeline have to be there."""
    places: dict[str, Any] = {"workspace_id": None, "pipeline_id": None}
    if workspace_id is not None:
        places["workspace_id"] = require_workspace(connection, workspace_id).id
    if pipeline_id is not None:
        places["pipeline_id"] = require_pipeline(connection, pipeline_id).id
    return places
