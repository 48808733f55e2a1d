"""`Task`: a job that the host does itself, as the body of a `with` block."""

from __future__ import annotations

import logging
import os
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TextIO, TypeVar, cast

from jobcore.embedding import telemetry
from jobcore.errors import ArgumentError, InvalidTransition, JobNotFound, Stopped, StoreError
from jobcore.functions import encoding
from jobcore.models import Job
from jobcore.operations.arguments import (
    checked_line_prefix,
    checked_lines,
    checked_progress,
    checked_stream,
)
from jobcore.operations.async_backend import Interruption, in_thread, in_thread_to_its_end
from jobcore.operations.task_operations import TaskOperations
from jobcore.storage.transitions import Run
from jobcore.supervisor import result_file

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

    from jobcore.operations.task_output import TaskWriter
    from jobcore.operations.waiting_async import AsyncWaiter

Answer = TypeVar("Answer")


class _Block:
    """
    The beginning and the end of a task's block.

    Args:
        begin: Starts the job, and returns it.
        waiter: Waits for a stop, in an event loop.
    """

    def __init__(
        self, begin: Callable[[], Job], operations: TaskOperations, waiter: AsyncWaiter
    ) -> None:
        self._begin = begin
        self._operations = operations
        self._waiter = waiter
        self._job: Job | None = None
        self._pid = 0  # of the process that entered the block
        self._result: Any = None
        self._encoded: tuple[str, bytes] | None = None
        self._interruption: Interruption | None = None
        self._writers: list[TaskWriter] = []

    def __enter__(self) -> Self:
        """Start the job."""
        self._start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the job as COMPLETE, or as ERROR if the body raised."""
        self._end(error)

    async def __aenter__(self) -> Self:
        """Start the job, and watch for a stop."""
        _, cancelled = await in_thread_to_its_end(self._start)
        if cancelled is not None:  # the body will not run
            await in_thread_to_its_end(self._end, cancelled)
            raise cancelled
        self._interruption = Interruption()
        self._interruption.begin(self._wait_for_stop)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the job as COMPLETE, or as ERROR if the body raised."""
        assert self._interruption is not None  # noqa: S101 - for the type checker alone
        if await self._interruption.end(error):
            await in_thread_to_its_end(self._check)  # the job is over, so this raises Stopped
        _, cancelled = await in_thread_to_its_end(self._end, error)
        if cancelled is not None and not isinstance(error, type(cancelled)):
            raise cancelled

    async def _wait_for_stop(self) -> bool:
        def begin() -> Run:
            return self._operations.find_running(self._running.id)

        try:
            await self._waiter.wait(begin, None, lambda _run: None, lambda _run: None)
        except StoreError as error:
            telemetry.event(logging.WARNING, "stop not awaited", error=str(error))
            return False
        except (JobNotFound, InvalidTransition):
            return True
        return True

    def _start(self) -> None:
        if self._job is not None:
            raise RuntimeError("a task can be used for one with block only")
        self._pid = os.getpid()
        self._job = self._begin()

    def _end(self, error: BaseException | None) -> None:
        if os.getpid() != self._pid:
            return  # a child forked in the body leaves the block too, but must not end the job
        if error is None:
            self._close_writers()
            self._while_running(self._finish, 0)
            return
        try:
            self._close_writers()
            self._while_running(self._finish, 1, _lines_of(error))
        except (StoreError, Stopped) as unrecorded:
            # The body may also have raised the `Stopped` of another task.
            if not (isinstance(error, Stopped) and error.job_id == self._running.id):
                # Only log this error: the caller should see the one that the body raised.
                telemetry.event(
                    logging.ERROR, "end of a task not recorded", job=str(self._running.id),
                    error=str(unrecorded),
                )  # fmt: skip

    def _close_writers(self) -> None:
        for writer in self._writers:
            writer.close()

    def _finish(self, job_id: Any, exit_code: int, lines: tuple[str, ...] = ()) -> None:
        self._operations.finish(job_id, exit_code, lines=lines, result=self._encoded)

    def _while_running(self, step: Callable[..., Answer], *arguments: Any) -> Answer:
        job = self._running
        try:
            return step(job.id, *arguments)
        except InvalidTransition as error:
            status = error.job_status
        except JobNotFound:
            status = None
        raise Stopped(job.id, status)

    def _check(self) -> None:
        self._while_running(self._operations.find_running)

    @property
    def _running(self) -> Job:
        if self._job is None:
            raise RuntimeError("a task has a job only inside its with block")
        return self._job


class Task(_Block):
    """
    A job whose work is the body of a `with` or `async with` block; see `JobManager.task`.

    The job is RUNNING during the body and COMPLETE after it. If the body raises an
    exception, the job becomes ERROR with exit code 1, its log ends with the traceback, and
    the exception is re-raised. This process owns the job: if it ends first, the job is
    `lost`.

    If the job is stopped, cancelled, deleted, or finished by another process, the next
    `log`, `progress` or `check` raises `Stopped`, and otherwise the end of the block does. In
    `async with`, the body is also cancelled within about a quarter of a second, and the block
    then raises `Stopped` instead of the cancellation. The job's status is not changed.

    Use an object for one block only. Its methods can be called from any thread.
    """

    @property
    def job(self) -> Job:
        """
        The job as it was when the block began, RUNNING.

        Raises:
            RuntimeError: The block has not begun.
        """
        return self._running

    @property
    def result(self) -> Any:
        """
        The value that `JobManager.result` returns once the job is COMPLETE; set it in the body.

        It is encoded when it is set, so later changes have no effect: as JSON if that is
        exact, else pickled.

        Raises:
            ArgumentError: It cannot be stored, or is larger than 4 MiB; when it is set.
        """
        return self._result

    @result.setter
    def result(self, value: Any) -> None:
        try:
            encoded = encoding.encode(value)
        except encoding.Unstorable as error:
            raise ArgumentError(f"the result cannot be stored: {error}") from error
        if len(encoded[1]) > result_file.LARGEST:
            raise ArgumentError(f"the result is larger than {result_file.LARGEST} bytes")
        self._result, self._encoded = value, encoded

    def log(
        self, *lines: str | bytes, stream: Literal["output", "stdout", "stderr"] = "output"
    ) -> int:
        """
        Append lines to the job's log, as `JobManager.append_log` does.

        Args:
            lines: Texts, or bytes, which are stored unchanged.
            stream: The stream that the lines are shown with.

        Returns:
            How many lines the log then has.

        Raises:
            Stopped: The job is over.
            ArgumentError: A line is neither text nor bytes, or `stream` is another value.
        """
        number = checked_stream(stream)
        return self._while_running(self._operations.append, checked_lines(lines), number)

    def handler(
        self,
        level: int | str = logging.NOTSET,
        *,
        stream: Literal["output", "stdout", "stderr"] = "output",
    ) -> logging.Handler:
        """
        Return a handler for `logging` that appends each record to the job's log.

        Add it to a logger, and remove it when the block ends; after that it does nothing.
        Records of jobcore's own logger are left out. Each record is stored when the call that
        logs it returns. That takes longer than writing to a file, so give a level for programs
        that log much.

        Args:
            level: The least level of the records, as in `logging`.
            stream: The stream that the lines are shown with.

        Raises:
            ArgumentError: `stream` is another value.
        """
        from jobcore.operations.task_output import TaskLogHandler  # noqa: PLC0415 - loaded by those who need it

        checked_stream(stream)
        return TaskLogHandler(lambda text: self.log(text, stream=stream), level)

    def writer(
        self, stream: Literal["output", "stdout", "stderr"] = "stdout", *, prefix: str = ""
    ) -> TextIO:
        """
        Return a text file whose lines become lines of the job's log.

        It fits `print(file=...)` and `contextlib.redirect_stdout`. A line is stored when it
        ends; the end of the block closes the writer and stores a last line without a newline.
        A write raises `Stopped` if the job is over.

        Args:
            stream: The stream that the lines are shown with.
            prefix: A text that each line begins with, such as `"tap | "`, to tell several
                writers apart.

        Raises:
            ArgumentError: `stream` is another value, or `prefix` is not a text without a newline.
        """
        from jobcore.operations.task_output import TaskWriter  # noqa: PLC0415 - as above

        checked_stream(stream)
        made = TaskWriter(lambda text: self.log(text, stream=stream), checked_line_prefix(prefix))
        self._writers.append(made)
        return cast("TextIO", made)

    def progress(self, done: float, total: float | None = None, message: str | None = None) -> None:
        """
        Store the job's progress, as `JobManager.report_progress` does.

        Args:
            done: How much is done, in any unit; 0 or more.
            total: How much there is to do, in the same unit; None: not known.
            message: One line for people.

        Raises:
            Stopped: The job is over.
            ArgumentError: A number is negative or not finite, or `message` is not text.
        """
        self._while_running(self._operations.report, *checked_progress(done, total, message))

    def check(self) -> None:
        """
        Return if the job is still RUNNING, without writing anything.

        Raises:
            Stopped: The job is over.
        """
        self._check()

    async def log_async(
        self, *lines: str | bytes, stream: Literal["output", "stdout", "stderr"] = "output"
    ) -> int:
        """
        Do what `log` does, in an event loop; args and errors are those of `log`.

        Returns:
            How many lines the log then has.
        """
        return await in_thread(lambda: self.log(*lines, stream=stream))

    async def progress_async(
        self, done: float, total: float | None = None, message: str | None = None
    ) -> None:
        """Do what `progress` does, in an event loop; args and errors are those of `progress`."""
        await in_thread(self.progress, done, total, message)

    async def check_async(self) -> None:
        """Do what `check` does, in an event loop; errors are those of `check`."""
        await in_thread(self.check)


def _lines_of(error: BaseException) -> tuple[str, ...]:
    """Return the traceback as lines."""
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    return tuple(text.splitlines())
