"""
Threads of jobcore that make calls on behalf of the host's threads.

A signal handler may raise between any two bytecodes of the main thread, and a debugger or a
timeout library may raise in any thread of the host. Operations that must not be interrupted
(write transactions, locks, job directories) therefore do not run there. The host's thread
hands over a call and waits for its outcome. An exception that ends the wait withdraws a call
that has not begun, and waits a short time for one that has.

A call is handed over by `SimpleQueue.put`, which is written in C, so a signal handler can
interrupt and repeat it. Each waiter waits for its own lock from `_thread`.
`threading.Event`, `Condition` and `queue.Queue` are written in Python, and an exception in
the middle of them leaves their locks held.
"""

from __future__ import annotations

import _thread
import atexit
import functools
import logging
import os
import sys
import time
import weakref
from collections import deque
from collections.abc import Callable
from contextvars import Context, copy_context
from types import BuiltinFunctionType, FrameType
from typing import Any, Generic, ParamSpec, TypeVar, cast

from jobcore.embedding import telemetry
from jobcore.embedding.locks import GATE, ForkAware, is_over
from jobcore.errors import DatabaseBusy, StoreError

try:
    from _queue import Empty, SimpleQueue  # not from `queue`, where gevent replaces it
except ImportError:  # pragma: no cover - a Python without its C modules
    from queue import Empty, SimpleQueue

#: Seconds that a caller waits for a free thread by default.
PATIENCE = 30.0
#: Maximum number of threads for directory work. Several, because a file system may hang.
MOST_DIRECTORY_THREADS = 32
#: Seconds without a call after which a thread ends.
IDLE = 1.0
#: Seconds that an interrupted caller waits for a call that has begun.
GRACE = 1.0
#: Seconds after a caller's deadline in which the thread may still answer.
ANSWER_TIME = 0.1
#: Seconds between two checks whether the thread that makes a call is alive.
CHECK_INTERVAL = 0.5
#: Seconds within which a started thread must begin to run: the first limit and the last.
START_FIRST, START_LAST = 0.5, 4.0
#: Seconds that closing and forking wait for an idle thread to end.
END_PATIENCE = 5.0

#: How errors and notes describe a call that may or may not have taken effect.
OUTCOME_UNKNOWN = "outcome unknown"

P = ParamSpec("P")
T = TypeVar("T")

#: The state of a call: a thread makes it, or its caller has withdrawn it.
_BEGUN, _WITHDRAWN = "begun", "withdrawn"

#: Jobcore's own threads, by `get_ident`. Signal handlers do not raise in them.
_OWN_THREADS: set[int] = set()


def threads_run() -> bool:
    """
    Tell whether a new thread runs while the thread that started it waits.

    That is not so if gevent or eventlet have replaced threads by greenlets, or under uWSGI
    without `enable-threads`, which suspends threads between requests.
    """
    if not isinstance(_thread.start_new_thread, BuiltinFunctionType):
        return False
    options = getattr(sys.modules.get("uwsgi"), "opt", None)
    if not isinstance(options, dict):
        return True
    names = {name.decode() if isinstance(name, bytes) else str(name) for name in options}
    return bool(names & {"enable-threads", "threads"})


def is_own_thread() -> bool:
    """Tell whether the calling thread is one of jobcore's threads."""
    return _thread.get_ident() in _OWN_THREADS


def begin_own_thread() -> None:
    """Register the calling thread as one of jobcore's, until `end_own_thread`."""
    _OWN_THREADS.add(_thread.get_ident())


def end_own_thread() -> None:
    """Unregister the calling thread, whose number may be reused."""
    _OWN_THREADS.discard(_thread.get_ident())


def outcome_unknown(where: str, why: str) -> StoreError:
    """Return the error for an interrupted call, which may have taken effect."""
    return StoreError(f"{where}: {OUTCOME_UNKNOWN}: {why}")


class Call(Generic[T]):
    """
    A call that one thread makes for another.

    Attributes:
        holder: Whether the call has begun or was withdrawn, under the only key, "". A dict,
            because `setdefault` decides between the two in one atomic step.
        deadline: Monotonic time after which the caller no longer waits for the begin.
        about: The subject of the call, for the note on an exception that interrupts it.
        done: Whether there is an outcome. Set once, before the caller is woken.
        error: The exception that the call raised, or None.
        events: Log events, which the caller's thread logs.
    """

    __slots__ = (
        "_context",
        "_function",
        "_result",
        "about",
        "answered",
        "deadline",
        "done",
        "error",
        "events",
        "holder",
    )  # fmt: skip

    def __init__(self, function: Callable[..., T], patience: float, about: str = "") -> None:
        self._function = function
        self._context: Context = copy_context()
        self.holder: dict[str, str] = {}
        self._result: T | None = None
        self.deadline = time.monotonic() + patience
        self.about = about
        self.done = False
        self.error: BaseException | None = None
        self.events: list[telemetry.Event] = []
        self.answered = _thread.allocate_lock()
        self.answered.acquire()

    def begin(self) -> bool:
        """Mark the call as begun, before making it; False: its caller has withdrawn it."""
        # Idempotent, so a thread that is interrupted here can call it again.
        return self.holder.setdefault("", _BEGUN) is _BEGUN

    def withdraw(self) -> bool:
        """Withdraw the call; False: it has begun."""
        return self.holder.setdefault("", _WITHDRAWN) is _WITHDRAWN

    @property
    def has_begun(self) -> bool:
        """Whether a thread has begun to make the call."""
        return self.holder.get("") is _BEGUN

    @property
    def is_withdrawn(self) -> bool:
        """Whether the caller has withdrawn the call."""
        return self.holder.get("") is _WITHDRAWN

    @property
    def is_late(self) -> bool:
        """Whether the deadline has passed."""
        return time.monotonic() >= self.deadline

    def make(self, *arguments: Any) -> None:
        """Make the call with the caller's context variables, and store its result."""
        self.events.clear()  # events of an attempt that was rolled back
        with telemetry.Collected(self.events):
            self._result = self._context.run(self._function, *arguments)

    def fail(self, error: BaseException) -> None:
        """Set an error as the outcome, and wake the caller."""
        self.error = error
        self.answer()

    def answer(self) -> None:
        """Wake the caller."""
        if not self.done:
            self.done = True
            self.answered.release()

    def outcome(self) -> T:
        """Log the events, then return the call's result or raise its exception."""
        for event in self.events:
            telemetry.log(event)
        if self.error is not None:
            try:
                raise self.error
            finally:
                self.error = None  # breaks the reference cycle through the traceback
        return cast("T", self._result)

    def add_note(self, interrupt: BaseException) -> None:
        """Add a note on the call's outcome to the exception that interrupted the caller."""
        what = f" ({self.about})" if self.about else ""
        if not self.done:
            note = f"jobcore: {OUTCOME_UNKNOWN}: the interrupted call may still take effect{what}"
        elif self.error is None:
            note = f"jobcore: the interrupted call was completed{what}"
        else:
            note = f"jobcore: the interrupted call had failed: {self.error!r}{what}"
        if hasattr(interrupt, "add_note"):
            interrupt.add_note(note)
        else:  # before Python 3.11: set the attribute of PEP 678, for tools that print it
            notes = getattr(interrupt, "__notes__", [])
            interrupt.__notes__ = [*notes, note]  # type: ignore[attr-defined]


class _WorkerThread:
    """
    The place of one thread of a worker.

    Attributes:
        started: Monotonic time at which the thread was started.
        idle: Whether the thread waits for a call.
        call: The call that the thread has taken from the queue.
        ident, native: The thread's ids of Python and of the kernel; 0 before it runs.
        pid: The process that the thread is in.
    """

    __slots__ = ("_begun", "call", "ident", "idle", "native", "pid", "started")

    def __init__(self) -> None:
        self.started = time.monotonic()
        self._begun: dict[str, bool] = {}
        self.idle = False
        self.call: Call[Any] | None = None
        self.ident = 0
        self.native = 0
        self.pid = os.getpid()

    def take(self) -> bool:
        """Mark the thread as running; False: it began too late, and was given up."""
        return self._begun.setdefault("", True)

    def give_up(self) -> bool:
        """Stop waiting for the thread to begin; False: it is running."""
        return not self._begun.setdefault("", False)

    @property
    def is_dead(self) -> bool:
        """Whether the thread has run and has ended."""
        return self.ident != 0 and self.ident not in sys._current_frames()  # noqa: SLF001 - the documented way to them

    @property
    def running(self) -> bool:
        """Whether the thread has begun to run."""
        return self._begun.get("", False)


class Worker(ForkAware):
    """
    Makes calls in up to `most` threads, which are started when needed.

    Any thread can use `call`, even in a signal handler or a finaliser.

    Args:
        name: For error texts and debuggers.
        serve: Makes one call from the queue; None: simply make it. It may take more calls
            with `take`, and must not raise.
        at_end: Called by a thread before it ends.
        most: Maximum number of threads at once.
        shared: Whether the worker registers its own fork hooks, because it has no owner
            that would call it.
    """

    def __init__(
        self,
        name: str,
        serve: Callable[[Call[Any]], None] | None = None,
        at_end: Callable[[], None] = lambda: None,
        *,
        most: int = 1,
        shared: bool = False,
    ) -> None:
        self._name = name
        self._serve = serve or _serve_one
        self._at_end = at_end
        self._most = most
        self._shared = shared
        self._hooks_installed = False  # whether the hooks for exit and forks are installed
        self.closed: str | None = None  # once closed, the error text for callers
        self.start_patience = START_FIRST
        self.forget()

    def forget(self) -> None:
        """Reset all state in a forked child, which has no threads and no waiting calls."""
        self.queue: SimpleQueue[Call[Any] | None] = SimpleQueue()
        self._returned: deque[Call[Any]] = deque()
        self.threads: dict[int, _WorkerThread] = {}
        self._inline: dict[str, tuple[int, FrameType]] = {}
        self._suspended = False

    # --- for callers ------------------------------------------------------------------

    def call(self, function: Callable[[], T], *, patience: float = PATIENCE, about: str = "") -> T:
        """
        Call `function` in a thread of this worker, and return its result.

        In one of jobcore's own threads it is called directly, because nothing interrupts those.

        Args:
            function: Called with the caller's context variables.
            patience: Seconds within which the call must begin.
            about: The subject of the call, for the note on an exception that interrupts it.

        Raises:
            DatabaseBusy: The call did not begin in time, and was withdrawn.
        """
        if is_own_thread():
            return function()
        return self.hand_over(Call(function, patience, about))

    def hand_over(self, call: Call[T]) -> T:
        """
        Have a thread make a call, and return its result.

        An exception that interrupts the wait withdraws the call. If the call has begun, it
        waits up to `GRACE` seconds for the outcome, and is raised with a note on that.

        Raises:
            DatabaseBusy: The call did not begin in time, and was withdrawn.
        """
        # The handler withdraws the call by C functions only. With a full stack, a call of a
        # Python function would fail there, and a call that is not withdrawn is made later.
        queue = self.queue
        try:
            queue.put(call)
            self._require_thread()
            while not call.done:
                left = call.deadline + ANSWER_TIME - time.monotonic()
                if left <= 0 and call.withdraw():
                    break
                pause = min(left, CHECK_INTERVAL) if left > 0 else CHECK_INTERVAL
                call.answered.acquire(True, pause)
                if not call.done:
                    self._check_progress(call, queue)
        except BaseException as interrupt:
            until = time.monotonic() + GRACE
            tries = 0
            while tries < 100:
                tries += 1
                try:
                    if call.holder.setdefault("", _WITHDRAWN) is _WITHDRAWN:
                        break
                    while not call.done and (left := until - time.monotonic()) > 0:
                        call.answered.acquire(True, left)
                    call.add_note(interrupt)
                    break
                except BaseException:  # noqa: BLE001, S112 - another Ctrl-C: raise the first one
                    continue
            raise
        if not call.done:
            raise DatabaseBusy(f"{self._name}: other calls kept it busy")
        return call.outcome()

    def is_inside(self) -> bool:
        """Tell whether the calling thread is making a call of this worker."""
        me = _thread.get_ident()
        holder = self._inline.get("")
        return any(thread.ident == me for thread in list(self.threads.values())) or (
            holder is not None and holder[0] == me and not is_over(holder[1])
        )

    def _require_thread(self) -> None:
        """Ensure that a thread takes the waiting calls: an idle one, or a new one up to `most`."""
        if self.closed is not None:
            self._refuse_waiting(self.closed)
            return
        if self._suspended:
            if self._shared:  # a fork waits for this caller, so the caller must not wait for it
                self._make_waiting_calls_here()
            return
        if sys.is_finalizing() and any(not one.idle for one in list(self.threads.values())):
            # The interpreter has stopped the thread in the middle of its work, for good.
            raise DatabaseBusy(f"{self._name}: the interpreter exits")
        if sys.is_finalizing() or not threads_run():
            self._make_waiting_calls_here()
            return
        for number in range(self._most):
            thread = self.threads.get(number)
            if thread is None:
                self._start(number)
                return
            if thread.idle:
                return

    def _start(self, number: int) -> None:
        if not self._hooks_installed:
            self._hooks_installed = True
            call_at_exit(self, Worker.rest)  # wait for the calls in progress
            if self._shared:
                GATE.watch(self)
        thread = _WorkerThread()
        if self.threads.setdefault(number, thread) is not thread:
            return  # another caller is starting it
        try:
            _thread.start_new_thread(self._run, (number, thread))
        except RuntimeError:
            # The system allows no more threads, or the interpreter is about to exit. If no
            # earlier thread runs, make the calls in the caller's thread.
            self._free_slot(number, thread)
            if not any(thread.running for thread in list(self.threads.values())):
                self._make_waiting_calls_here()

    def _free_slot(self, number: int, thread: _WorkerThread) -> None:
        if self.threads.get(number) is thread:
            self.threads.pop(number, None)

    def _check_progress(self, call: Call[Any], queue: SimpleQueue[Call[Any] | None]) -> None:
        """Check why a call has no outcome yet. Usually it just takes long."""
        if queue is not self.queue:
            # This is a forked child, and the call belongs to its parent.
            call.begin()
            call.fail(StoreError(f"{self._name}: this process was forked in the middle of a call"))
            return
        now = time.monotonic()
        for number, thread in list(self.threads.items()):
            if thread.pid != os.getpid() or thread.is_dead:
                # C code forked without running hooks, or an exception from outside ended it.
                _OWN_THREADS.discard(thread.ident)
                self._free_slot(number, thread)
            elif now - thread.started > self.start_patience and thread.give_up():
                # The thread that started it was interrupted, or threads do not run here.
                self._free_slot(number, thread)
                if self.start_patience >= START_LAST:
                    self._make_waiting_calls_here()
                    return
                self.start_patience *= 2
        if call.has_begun and not call.done and not self.threads and not self._inline:
            call.fail(outcome_unknown(self._name, "the thread was ended"))
            return
        self._require_thread()

    # --- where no thread runs ----------------------------------------------------------

    def _make_waiting_calls_here(self) -> None:
        """Make the waiting calls in this thread, as under gevent or while the interpreter exits."""
        frame = sys._getframe()  # noqa: SLF001 - shows others whether this call is still running
        me = (_thread.get_ident(), frame)
        deadline = time.monotonic() + PATIENCE
        while self._inline.setdefault("", me) is not me:
            holder = self._inline.get("")
            if holder is not None and is_over(holder[1]):
                self._inline.clear()  # the holder was interrupted before it could clear it
            elif (holder is not None and holder[0] == me[0]) or time.monotonic() > deadline:
                raise DatabaseBusy(f"{self._name}: this thread is in the middle of a call")
            else:
                time.sleep(0.001)
        was_own = is_own_thread()
        begin_own_thread()  # so that a nested call is made directly, and not handed over
        try:
            while (call := self.take(0)) is not None:
                self._serve(call)
        finally:
            if not was_own:
                end_own_thread()
            self._inline.clear()

    # --- the thread --------------------------------------------------------------------

    def _run(self, number: int, thread: _WorkerThread) -> None:
        try:
            thread.ident, thread.native = _thread.get_ident(), _thread.get_native_id()
            if not thread.take():
                return  # it began too late: another thread has its place
            self.start_patience = START_FIRST
            begin_own_thread()
            while self.threads.get(number) is thread:
                try:
                    if not self._step(thread):
                        return
                except BaseException as error:  # noqa: BLE001 - injected into this thread
                    telemetry.event(logging.ERROR, "thread interrupted", error=repr(error))
                    if thread.call is not None:
                        self.fail_all([thread.call], error)
        finally:
            for _ in range(100):
                try:
                    self._leave(number, thread)
                    break
                except BaseException:  # noqa: BLE001, S112 - injected: the place must be freed
                    continue

    def _leave(self, number: int, thread: _WorkerThread) -> None:
        """Unregister this thread and free its place. Idempotent."""
        try:
            self._at_end()
        finally:
            end_own_thread()
            self._free_slot(number, thread)
        if not (self._suspended or (self.queue.empty() and not self._returned)):
            self._require_thread()  # a call came while the thread was ending

    def _step(self, thread: _WorkerThread) -> bool:
        """Make one call; False: there was none for `IDLE` seconds, or the thread must end."""
        thread.idle = True
        thread.call = call = None if self._suspended else self.take(IDLE)
        thread.idle = False
        if call is None:
            return False
        if self._suspended:
            self._returned.append(call)
            return False
        if self._most > 1 and not self.queue.empty():
            self._require_thread()
        self._serve(call)
        thread.call = None
        return True

    def fail_all(self, calls: list[Call[Any]], error: BaseException) -> None:
        """Fail the calls that have no outcome, because an exception has ended the work on them."""
        for call in calls:
            has_begun = call.has_begun
            if call.begin() and not call.done:
                call.fail(
                    outcome_unknown(self._name, repr(error))
                    if has_begun
                    else StoreError(f"{self._name}: the call was not made: {error!r}")
                )

    def take(self, seconds: float) -> Call[Any] | None:
        """Return the next call; None: none came within `seconds`, or the thread must end."""
        try:
            return self._returned.popleft()
        except IndexError:
            pass
        try:
            return self.queue.get(True, seconds) if seconds > 0 else self.queue.get(False)
        except Empty:
            return None

    def give_back(self, call: Call[Any]) -> None:
        """Return a call that has not begun, to be taken again first."""
        self._returned.append(call)

    @property
    def suspended(self) -> bool:
        """Whether no call may begin, because the threads are to end."""
        return self._suspended

    # --- forks and the end -------------------------------------------------------------

    def suspend(self, patience: float = END_PATIENCE, *, idle_only: bool = False) -> bool:
        """
        Let no further call begin, and wait until the threads have ended.

        Args:
            patience: Seconds to wait.
            idle_only: Do not wait for threads that are making a call.

        Returns:
            Whether all threads have ended.
        """
        self._suspended = True
        deadline = time.monotonic() + patience
        me = _thread.get_ident()
        ended: list[int] = []
        while threads := self._own_threads():
            if sys.is_finalizing():
                break  # the interpreter has stopped the threads
            self._give_up_late_ones()
            for thread in threads:
                if thread.native not in ended:
                    ended.append(thread.native)
                    self.queue.put(None)
            if me in _OWN_THREADS and all(
                thread.native == _thread.get_native_id() for thread in threads
            ):
                break
            if idle_only and not any(thread.idle or not thread.running for thread in threads):
                break
            if time.monotonic() > deadline:
                break
            time.sleep(0.0005)
        for native in ended:
            if native != _thread.get_native_id():
                _wait_for_end(native)
        return not self._own_threads()

    def _give_up_late_ones(self) -> None:
        """Free the places of threads that never began, such as after an interrupted start."""
        for number, thread in list(self.threads.items()):
            if time.monotonic() - thread.started > START_FIRST and thread.give_up():
                self._free_slot(number, thread)

    def _own_threads(self) -> list[_WorkerThread]:
        """Return the threads of this process. A child forked by C code has none."""
        return [thread for thread in list(self.threads.values()) if thread.pid == os.getpid()]

    def close(self, reason: str, patience: float = END_PATIENCE) -> bool:
        """Refuse every further call with this reason, and end the threads as `suspend` does."""
        self.closed = reason
        ended = self.suspend(patience)
        self._refuse_waiting(reason)
        return ended

    def close_without_waiting(self, reason: str) -> None:
        """Refuse every further call; the threads end after their current calls."""
        self.closed = reason
        self._suspended = True

    def _refuse_waiting(self, reason: str) -> None:
        while (call := self.take(0)) is not None:
            if call.begin():
                call.fail(StoreError(reason))

    def resume(self) -> None:
        """Allow calls to begin again."""
        self._suspended = False
        if not self.queue.empty() or self._returned:
            self._require_thread()

    # --- the fork of the host, and the interpreter's exit ---------------------------------

    def before_fork(self) -> None:
        """End idle threads. Busy ones continue during the fork, like threads of the host."""
        self.suspend(idle_only=True)

    def after_fork_in_parent(self) -> None:
        """Allow calls to begin again."""
        self.resume()

    def after_fork_in_child(self) -> None:
        """Reset all state."""
        _OWN_THREADS.clear()  # the child does not have its parent's threads
        self.forget()

    def rest(self) -> None:
        """Wait for the calls in progress. Later calls are still made."""
        if self.closed is None:
            try:
                self.suspend()
            finally:
                self.resume()


def handed_over(function: Callable[P, T]) -> Callable[P, T]:
    """
    Decorate a function so that it always runs in one of jobcore's own threads.

    Use it for functions that open or lock files of jobs. An exception in the caller's
    thread then leaves no descriptor open and nothing half done.
    """

    @functools.wraps(function)
    def hand_over(*args: P.args, **options: P.kwargs) -> T:
        if is_own_thread():
            return function(*args, **options)
        return DIRECTORY_WORKER.call(functools.partial(function, *args, **options))

    return hand_over


def _serve_one(call: Call[Any]) -> None:
    """Make one call, unless it was withdrawn."""
    if not call.begin():
        return
    try:
        call.make()
    except BaseException as error:  # noqa: BLE001 - for the caller
        call.fail(error)
    else:
        call.answer()


def call_at_exit(owner: T, action: Callable[[T], object]) -> None:
    """Call `action` with `owner` at the interpreter's exit, unless `owner` is gone by then."""
    reference = weakref.ref(owner)

    def call() -> None:
        alive = reference()
        if alive is not None:
            action(alive)

    atexit.register(call)
    weakref.finalize(owner, atexit.unregister, call).atexit = False


def _wait_for_end(native: int) -> None:
    """Wait until the kernel thread is gone, because Python counts kernel threads at a fork."""
    deadline = time.monotonic() + ANSWER_TIME
    while native and os.path.exists(f"/proc/self/task/{native}"):
        if time.monotonic() > deadline:
            return
        time.sleep(0.0001)


#: Does the directory work of all callers in this process. It belongs to no manager, so it is
#: never closed.
DIRECTORY_WORKER = Worker("jobcore-directories", most=MOST_DIRECTORY_THREADS, shared=True)
