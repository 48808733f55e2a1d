"""
A named daemon thread that sleeps in `poll` until a descriptor, a wake-up or a deadline.

It starts when it is needed and ends with `close`. A forked child, which has none of its
parent's threads, starts its own.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import threading
import time
from collections.abc import Callable, Iterable

from jobcore import tuning
from jobcore.embedding import failpoints, telemetry
from jobcore.embedding.locks import GATE, Lock
from jobcore.embedding.worker import (
    DIRECTORY_WORKER,
    begin_own_thread,
    call_at_exit,
    end_own_thread,
)
from jobcore.errors import SpawnError

#: Seconds of rest after a turn that raised an error, which it should not.
ERROR_PAUSE = 1.0
#: How often to try to wake the thread if the write to its pipe fails.
WAKE_ATTEMPTS = 3


class Loop:
    """
    A thread that calls `turn` repeatedly.

    Any thread may call `start`, `wake`, `is_inside` and `close`; only `turn` may call `wait`
    and `sleep`.

    Attributes:
        closing: Whether the thread should end; a long turn checks this between its steps.
        exiting: Whether the interpreter's exit has closed it. `atexit` handlers that were
            registered earlier may still run after that.

    Args:
        name: The name of the thread.
        turn: The work. It sleeps in `wait`, and should raise nothing.
        end: Called last in the thread, after `close`.
    """

    _starting: Lock
    _thread: threading.Thread | None
    _pid: int  # of the process that started the thread
    _pipe: tuple[int, int] | None  # device and inode of its pipe

    def __init__(
        self, name: str, turn: Callable[[], None], end: Callable[[], None] = lambda: None
    ) -> None:
        self._name = name
        self._turn = turn
        self._end = end
        self.exiting = False
        self.closing = False
        self._crashed = False
        self._logged = "", 0.0  # the last logged error of a turn, and when
        self.forget()
        call_at_exit(self, Loop._exit)

    def forget(self) -> None:
        """Start over in a forked child, which lacks the thread and whose gate closed the pipe."""
        self._starting = Lock()
        self._thread = None

    def start(self) -> None:
        """
        Start the thread, unless it runs or was closed.

        Raises:
            SpawnError: The system has no thread or no descriptors left. Nothing stays open.
        """
        if self._thread is None and not self.closing:
            DIRECTORY_WORKER.call(self._start)

    def _start(self) -> None:
        with self._starting:
            if self._thread is None and not self.closing:
                try:
                    with GATE:
                        pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
                        GATE.register(*pipe)
                except OSError as error:
                    raise SpawnError(self._cannot_start(error), error.errno) from error
                # A daemon thread, so that the interpreter's exit does not wait for jobs.
                thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:
                    GATE.close(*pipe)
                    # Python gives no errno; pthread_create fails with this one for lack of threads.
                    raise SpawnError(self._cannot_start(error), errno.EAGAIN) from error
                self._pid = os.getpid()
                self.reader, self.writer = pipe
                self._pipe = _identity(pipe[0])
                self._thread = thread

    def _cannot_start(self, error: Exception) -> str:
        return f"the thread {self._name} cannot be started: {error}"

    def wake(self) -> None:
        """Wake the thread. Raises nothing, because callers have already done their part."""
        if self._thread is None:
            return  # if the thread is just starting, its first turn is still to come
        with self._starting:  # otherwise the descriptor may have been closed and reused
            for _ in range(WAKE_ATTEMPTS if self._thread is not None and self._has_pipe() else 0):
                try:
                    os.write(self.writer, b"!")
                    return
                except BlockingIOError:
                    return  # the pipe is full: a wake-up is pending already
                except OSError as error:
                    _log_error(error)

    def is_inside(self) -> bool:
        """Tell whether the caller is the thread itself."""
        return self._thread is threading.current_thread()

    @property
    def runs(self) -> bool:
        """Whether the thread runs in this process."""
        return self._thread is not None and self._pid == os.getpid()

    def end_without_waiting(self) -> None:
        """End the thread after the current turn, without waiting for it."""
        self.closing = True
        self.wake()

    def close(self, timeout: float | None = None) -> None:
        """
        End the thread after the current turn; harmless if it has ended or never started.

        A call inside the thread returns at once, and the thread ends after the turn.

        Args:
            timeout: Seconds to wait for the end; a turn that takes longer is not interrupted.
        """
        self.closing = True
        thread = self._thread
        if thread is None or self._pid != os.getpid() or thread is threading.current_thread():
            return  # never started; or C code forked, and the thread is the parent's
        self.wake()
        thread.join(timeout)
        if self._crashed:
            self._finish()

    def _exit(self) -> None:
        """Close at the interpreter's exit, and let the current turn finish."""
        self.exiting = True
        self.close(tuning.EXIT_PATIENCE)

    def wait(self, descriptors: Iterable[int], seconds: float | None) -> list[int]:
        """
        Sleep until a descriptor is readable, `wake` is called, or the time is up.

        Returns:
            The descriptors that are readable.

        Raises:
            OSError: Other code of this process has closed the thread's pipe.
        """
        if not self._has_pipe():
            raise OSError(errno.EBADF, "other code closed the pipe of this thread by its number")
        poller = select.poll()
        poller.register(self.reader, select.POLLIN)
        for descriptor in descriptors:
            poller.register(descriptor, select.POLLIN)
        timeout = None  # as long as it takes
        if seconds is not None:
            # Round up: a poll that returned just before the deadline would be repeated in a spin.
            timeout = int(seconds * 1000) + 1 if seconds > 0 else 0
        ready = [one for one, _ in poller.poll(timeout)]
        if self.reader in ready:
            ready.remove(self.reader)
            if self._has_pipe():
                self._empty()
        return ready

    def sleep(self, seconds: float) -> None:
        """Sleep for `seconds`, or until `wake` is called."""
        if not self._has_pipe():
            time.sleep(seconds)  # `poll` would return at once
            return
        poller = select.poll()  # not select(), which only handles descriptors below 1024
        poller.register(self.reader, select.POLLIN)
        try:
            poller.poll(seconds * 1000)
        except OSError:  # RLIMIT_NOFILE was set to 0 meanwhile
            time.sleep(seconds)

    def _has_pipe(self) -> bool:
        """
        Tell whether the descriptors are still those of the pipe.

        A host may close a descriptor by its number, as `os.closerange` does, and reuse the number.
        """
        return _identity(self.reader) == _identity(self.writer) == self._pipe

    def _empty(self) -> None:
        try:
            while len(os.read(self.reader, 4096)) == 4096:
                pass
        except BlockingIOError:
            pass

    def _run(self) -> None:
        begin_own_thread()
        try:
            self._turn_until_closed()
        finally:
            end_own_thread()

    def _turn_until_closed(self) -> None:
        with self._starting:
            pass  # wait until `_start` has stored thread and pipe
        while not self.closing:
            try:
                self._turn()
            except failpoints.Crashed:
                self._crashed = True  # its descriptors are closed with the rest of its host
                return
            except BaseException as error:  # noqa: BLE001 - nothing may end the thread but `close`
                self._log_some(error)
                self.sleep(ERROR_PAUSE)
        self._finish()

    def _log_some(self, error: BaseException) -> None:
        """Log an error of a turn: a new one at once, a repeated one once an hour."""
        now = time.monotonic()
        if repr(error) != self._logged[0] or now - self._logged[1] >= tuning.LOG_EVERY:
            self._logged = repr(error), now
            _log_error(error)

    def _finish(self) -> None:
        try:
            self._end()
        except BaseException as error:  # noqa: BLE001 - the descriptors must still be closed
            _log_error(error)
        with self._starting:
            if self._thread is not None:
                self._thread = None
                if self._has_pipe():
                    GATE.close(self.reader, self.writer)
                else:
                    GATE.unregister(self.reader, self.writer)


def _identity(descriptor: int) -> tuple[int, int] | None:
    try:
        facts = os.fstat(descriptor)
    except OSError:
        return None
    return facts.st_dev, facts.st_ino


def _log_error(error: BaseException) -> None:
    try:
        telemetry.event(logging.ERROR, "background step failed", error=repr(error))
    except Exception:  # noqa: BLE001, S110 - the host's logging itself fails
        pass
