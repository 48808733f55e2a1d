"""
Prepares everything that a job needs before it is claimed, and follows it after the claim.

Directory, lock and request are made first. If space or descriptors are lacking, that fails
while the job is still QUEUED, and it stays QUEUED.
"""

from __future__ import annotations

import logging
import marshal
import math
import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from sqlalchemy import Row

from jobcore import tuning
from jobcore.clock import Clock
from jobcore.command import Command, encode
from jobcore.embedding import failpoints, telemetry
from jobcore.embedding.locks import GATE
from jobcore.engine import orphans
from jobcore.engine.executors import Executor
from jobcore.engine.job_directories import Directories, Prepared
from jobcore.engine.postponement import in_words
from jobcore.errors import CommandError, StoreError
from jobcore.functions.call import is_interpreter, warm_interpreter
from jobcore.lifecycle import Reason
from jobcore.models import ClaimedJob
from jobcore.storage import environments, filesystem, permissions, settlement, transitions
from jobcore.storage.database import Database
from jobcore.storage.transitions import Run
from jobcore.supervisor import (
    PROTOCOL_VERSION,
    frames,
    job_directory,
    messages,
    result_file,
)

if TYPE_CHECKING:
    from jobcore.engine.supervisor_pool import Supervisor

#: The stored environments of submitters, by name. Under None: this process's environment.
Environments = dict[str | None, Mapping[bytes, bytes] | None]


#: The files in the job directory with the results of other jobs, and the pipeline's state.
UPSTREAM, STATE = "upstream.json", "state.json"

#: The variables that only some jobs have.
_OPTIONAL_VARIABLES = (
    b"JOBCORE_PIPELINE_ID", b"JOBCORE_RESULT_FD", b"JOBCORE_STATE", b"JOBCORE_STATE_FD",
    b"JOBCORE_UPSTREAM",
)  # fmt: skip

#: Seconds until a failed send or settlement is tried again.
RETRY = 0.05


class Start:
    """A prepared start: everything that the supervisor needs, and the values for the claim."""

    __slots__ = (
        "boot_id", "calls_function", "command", "cookie", "failure", "grace_ms", "group",
        "has_environment", "job_id", "most_warm", "number", "parameters", "prepared", "timeout_ms",
        "token", "type", "warm",
    )  # fmt: skip

    def __init__(
        self, row: Row[Any], prepared: Prepared, boot_id: str | None, cookie: str, token: str
    ) -> None:
        self.number: int = row.number
        self.type: str = row.type
        self.group: str | None = row.group_name
        # As read: the claim fails if they have changed since.
        self.command: str | None = row.command
        self.parameters: str | None = row.parameters
        self.has_environment = row.environment is not None  # its submitter's, in the database
        self.job_id = row.id
        self.prepared = prepared
        self.boot_id = boot_id
        self.cookie = cookie
        self.token = token
        self.grace_ms: int | None = None
        self.timeout_ms: int | None = None
        self.calls_function = False
        self.warm: tuple[str, ...] | None = None  # the command line of a warm interpreter for it
        self.most_warm = 0  # how many supervisors may have that
        self.failure: str | None = None  # why the host must end it after the claim


class Claim:
    """
    A job that this manager has claimed and not settled, and what to do about it next.

    Attributes:
        run: The job as last read from the database.
        token: Names its run. The one in the row may be damaged later.
        start: Its prepared start, until that is sent; then None.
        claimed: When it was claimed, by the monotonic clock.
        supervisor: Its supervisor; None before the start is sent, and after it has ended.
        accepted: Whether its supervisor has taken it.
        ended: Whether it has ended, so that its directory should hold an exit record.
        due: When to look into its directory, by the monotonic clock.
    """

    __slots__ = (
        "_next_import", "_slot", "accepted", "claimed", "due", "ended", "run", "start",
        "supervisor", "token",
    )  # fmt: skip

    def __init__(self, run: Run, start: Start) -> None:
        self.run = run
        self.token = start.token
        self.start: Start | None = start
        self.claimed = time.monotonic()
        self.supervisor: Supervisor | None = None
        self.accepted = False
        self.ended = False
        self.due = float("inf")
        self._next_import = self.claimed + tuning.FIRST_IMPORT
        self._slot, start.prepared.slot = start.prepared.slot, -1

    def note(self, notice: messages.Notice) -> None:
        """Record what its supervisor reports."""
        self.accepted = True
        if notice.kind == messages.ENDED:
            self.end()
        elif notice.kind == messages.HELD:
            _log_held(self.run, notice.number)
        elif notice.kind == messages.OUTPUT:
            much = notice.number - self.run.spool_offset >= tuning.IMPORT_BYTES
            self.due = min(self.due, 0.0 if much else self._next_import)

    @property
    def is_connected(self) -> bool:
        """Whether its supervisor has taken it, and reports to this process."""
        return self.supervisor is not None and self.accepted

    def begin_import(self, now: float) -> None:
        """Record that an import begins. The next one is due only when there is a reason."""
        self._next_import = now + tuning.IMPORT_PAUSE
        self.due = now + RETRY if self.ended else float("inf")

    def postpone(self, seconds: float) -> None:
        """Postpone it for `seconds`, because it could not be read, written or sent."""
        if seconds > 0:
            self.due = time.monotonic() + seconds

    def end(self) -> None:
        """Mark it as ended, so that the next round settles it."""
        self.ended = True
        self.supervisor = None
        self.due = 0.0

    def release(self) -> None:
        """Close its descriptors; if it was not sent, its free lock shows that it never started."""
        if self.start is not None:
            self.start.prepared.close()
            self.start = None
        if self._slot >= 0:
            slot, self._slot = self._slot, -1
            GATE.close(slot)


def _log_held(run: Run, number: int) -> None:
    """Log that the command must wait until its output can be written, or that it continues."""
    if number:
        telemetry.event(
            logging.WARNING, "output held back", job=str(run.id), why=os.strerror(number)
        )
    else:
        telemetry.event(logging.INFO, "output written again", job=str(run.id))


class Launch:
    """
    Prepares starts.

    Args:
        executors: By job type.
    """

    def __init__(
        self,
        database: Database,
        directories: Directories,
        clock: Clock,
        executors: Mapping[str, Executor],
    ) -> None:
        self._database = database
        self._directories = directories
        self._clock = clock
        self._executors = executors
        self._boot_id = filesystem.boot_id()

    def prepare(
        self, row: Row[Any], pipeline: Row[Any] | None, found: Environments
    ) -> Start | None:
        """
        Prepare the start of a QUEUED job; None: another process is doing that.

        If its executor fails, the job does not stay QUEUED: it is claimed, and ended with that
        failure.

        Args:
            found: The environments that were read in this round, to which this adds.

        Raises:
            StoreError, OSError: There is no space or no descriptor, the row or the directory
                cannot be read, or processes of the attempt that it repeats still run. Nothing
                stays open.
        """
        if row.retry_of is not None:
            self._require_nothing_left(row)
        base = self._environment(row.environment, found)
        token = uuid4().hex
        prepared = self._directories.prepare(row.id.hex, token)
        if prepared is None:
            return None
        start = Start(row, prepared, self._boot_id, uuid4().hex, token)
        try:
            if failpoints.armed:
                failpoints.reach(failpoints.DIRECTORY_PREPARED, self._database)
            self._fill(start, row, pipeline, base)
            if failpoints.armed:
                failpoints.reach(failpoints.REQUEST_PREPARED, self._database)
        except BaseException:
            prepared.close()
            raise
        return start

    def _require_nothing_left(self, row: Row[Any]) -> None:
        """Refuse to start a retry while processes of the attempt that it repeats run."""
        with self._database.read() as connection:
            cookie = transitions.cookie_of_left(connection, row.retry_of, self._boot_id)
        left = orphans.find(cookie) if cookie else []
        if left:
            raise StoreError(
                f"processes {', '.join(map(str, left))} of job {row.retry_of}, which this job "
                "repeats, still run: end them, or have them ignored by "
                f"`{filesystem.repair_command(self._database.path)}`"
            )

    def _environment(self, name: str | None, found: Environments) -> Mapping[bytes, bytes] | None:
        """Return the environment that a job inherits; None: it is missing."""
        if name not in found:
            if name is None:
                found[None] = _own_environment()
            else:
                with self._database.read() as connection:
                    found[name] = environments.find(connection, name)
        return found[name]

    def _fill(
        self,
        start: Start,
        row: Row[Any],
        pipeline: Row[Any] | None,
        base: Mapping[bytes, bytes] | None,
    ) -> None:
        """Make the request from the executor's command, or note why that is impossible."""
        if base is None:
            # Another process may just have started the job; then the claim will fail.
            start.failure = "the environment of its submitter is not stored"
            return
        given = self._hand_over(row, start.prepared)
        job = ClaimedJob.from_rows(row, pipeline, start.prepared.path)
        try:
            command = self._executors[row.type].command(job)
            if not isinstance(command, Command):
                raise TypeError(
                    f"the executor returned {type(command).__name__} instead of a Command"
                )
            start.calls_function = is_interpreter(command)
            if start.calls_function:
                start.warm, start.most_warm = warm_interpreter(command)
            if row.parameters is not None:
                from jobcore import parameters  # noqa: PLC0415 - only for jobs that have some

                command = parameters.apply(
                    row.parameters, command, calls_function=start.calls_function
                )
            start.grace_ms = round(command.grace * 1000)
            if command.timeout is not None:
                start.timeout_ms = math.ceil(command.timeout * 1000)
            output = command.stdout_to
            if output is not None and permissions.is_part_of(str(output), self._database.path):
                # The supervisor would empty it.
                raise CommandError(f"stdout_to is the database or a part of it: {str(output)!r}")
            environment = _environment(row, command, start.cookie, base, self._database.path)
            fields = _fields(row, command, start, {**environment, **given})
        except BaseException as error:  # noqa: BLE001 - a host's executor may even raise SystemExit
            start.failure = in_words(error)
            return
        try:
            job_directory.write_all(start.prepared.request, encode_request(fields))
        except OSError:
            raise  # no space: the job stays QUEUED
        except Exception as error:  # noqa: BLE001 - a value that cannot be sent
            start.failure = in_words(error)

    def _hand_over(self, row: Row[Any], prepared: Prepared) -> dict[bytes, bytes]:
        """
        Write what other jobs hand to this one into its directory; return its variables for that.

        Raises:
            StoreError, OSError: It cannot be read or written now.
        """
        if row.run_if is None and row.pipeline_id is None:
            return {}  # most jobs: save each start a read
        with self._database.read() as connection:
            results = settlement.results_for(connection, row.number)
            state = None
            if row.pipeline_id is not None:
                state = settlement.state_of(connection, row.pipeline_id) or "{}"
        given = {}
        if results:
            # Put together as bytes: the results are JSON, and may be long.
            items = [
                b'"%s": %s' % (str(one).encode(), text or b"null") for one, text in results.items()
            ]
            given[b"JOBCORE_UPSTREAM"] = UPSTREAM, b"{%s}\n" % b", ".join(items)
        if state is not None:
            given[b"JOBCORE_STATE"] = STATE, state.encode() + b"\n"
        variables = {}
        for variable, (name, content) in given.items():
            job_directory.replace_file(prepared.directory, name, content, sync=False)
            variables[variable] = os.fsencode(os.path.join(prepared.path, name))
        return variables

    def write_verdict(self, start: Start, reason: Reason, why: str) -> None:
        """
        Write the exit record of a claimed job without a supervisor, with a line that says why.

        Raises:
            OSError: It could not be written; its free lock will show that it never started.
        """
        directory = start.prepared.directory
        now_ns = self._clock.now() * 1000
        payload = f"cannot start: {why}\n".encode("utf-8", "replace")
        data = frames.encode_header(frames.SYSTEM, 0, 0, payload.count(b"\n"), now_ns, payload)
        spool = job_directory.make_file(
            f"{job_directory.SPOOL}0", os.O_WRONLY | os.O_TRUNC, directory
        )
        try:
            job_directory.write_all(spool, data + payload)
        finally:
            os.close(spool)
        job_directory.write_exit(
            directory,
            job_directory.ExitRecord(
                token=start.token,
                reason=str(reason),
                spool_end=len(data) + len(payload),
                next_sequence=payload.count(b"\n"),
                ended_ns=now_ns,
            ),
        )
        if failpoints.armed:
            failpoints.reach(failpoints.ENDED_HERE, self._database)


def _own_environment() -> dict[bytes, bytes]:
    """Return a copy of this process's environment, which may change at any time."""
    # To copy the mapping under it takes a thirtieth of the time, and is one atomic step.
    under = getattr(os.environb, "_data", None)
    return dict(under if isinstance(under, dict) else os.environb)


def _fields(
    row: Row[Any],
    command: Command,
    start: Start,
    environment: dict[bytes, bytes],
) -> dict[str, Any]:
    """Return the request as the supervisor reads it: bytes and numbers, fully evaluated."""
    stdin: tuple[str, bytes] | None = None
    if isinstance(command.stdin, bytes):
        stdin = ("data", command.stdin)
    elif command.stdin is not None:
        stdin = ("file", encode(str(command.stdin)))
    # A function returns its result.
    hands_over = [] if start.calls_function else [result_file.RESULT]
    if row.pipeline_id is not None:
        hands_over.append(result_file.STATE)
    return {
        "version": PROTOCOL_VERSION,
        "token": start.token,
        "job": row.id.hex,
        "argv": list(map(encode, command.words)),
        "env": environment,
        "cwd": encode(str(command.cwd or "/")),
        "stdin": stdin,
        "timeout": command.timeout,
        "grace": command.grace,
        "linger": command.linger,
        "stop_signal": int(command.stop_signal),
        "stop_group": command.stop_scope == "group",
        "output_limit": command.output_limit,
        "separate_streams": command.separate_streams,
        "stdout_to": None if command.stdout_to is None else encode(str(command.stdout_to)),
        "pty": command.pty,
        "hands_over": hands_over,
        "redact": [encode(str(value)) for value in command.redact],
        "umask": command.umask,
        "warm": None if start.warm is None else list(map(encode, start.warm)),
    }


def _environment(
    row: Row[Any], command: Command, cookie: str, base: Mapping[bytes, bytes], database: str
) -> dict[bytes, bytes]:
    """Return the command's environment: the base, its own variables, then those of the job."""
    environment = dict(base) if command.inherit_env else {}
    # The command's own `env` can override these two.
    environment[b"JOBCORE_DB"] = os.fsencode(database)
    if command.pty:
        environment.setdefault(b"TERM", b"xterm")
    if command.unbuffered:
        environment[b"PYTHONUNBUFFERED"] = b"1"
    else:
        environment.pop(b"PYTHONUNBUFFERED", None)
    environment.update((encode(name), encode(value)) for name, value in command.env.items())
    environment[orphans.COOKIE.encode()] = cookie.encode()
    environment[b"JOBCORE_JOB_ID"] = str(row.id).encode()
    environment[b"JOBCORE_ATTEMPT"] = str(row.attempt).encode()
    environment[b"JOBCORE_WORKSPACE_ID"] = str(row.workspace_id).encode()
    for name in _OPTIONAL_VARIABLES:
        environment.pop(name, None)  # it may be that of a job this host runs in
    if row.pipeline_id is not None:
        environment[b"JOBCORE_PIPELINE_ID"] = str(row.pipeline_id).encode()
    return environment


def encode_request(fields: dict[str, Any]) -> bytes:
    """Return what a supervisor reads from the file with the request."""
    return marshal.dumps(fields, 2)
