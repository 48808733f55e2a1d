"""
Threads of jobcore's own that make calls for the threads of a host.

A signal handler may raise between any two bytecodes of the main thread, and a
debugger or a time-out library may raise in any thread of the host. What must not
be torn (a write transaction, a lock, a job directory) therefore does not run
there: the host's thread hands over a call and waits for its outcome. An
exception that ends the waiting withdraws a call that has not begun, and waits a
little for one that has.

Handing over is one call in C, `SimpleQueue.put`, which a signal handler may
interrupt and repeat. Each waiter waits for a lock of its own, made by
`_thread`. `threading.Event`, `Condition` and `queue.Queue` are written in Python:
an exception in the middle of them leaves their locks held.
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
from jobcore.embedding.forking import GATE
from jobcore.embedding.interrupts import is_over
from jobcore.errors import DatabaseBusy, StoreError

try:
    from _queue import Empty, SimpleQueue  # not `queue`'s, which gevent replaces
except ImportError:  # pragma: no cover - a Python without its C modules
    from queue import Empty, SimpleQueue

#: Seconds that a caller waits for a free thread, unless it says otherwise.
PATIENCE = 30.0
#: Threads that do the directory work of callers at once: a file system may not answer.
HANDS_MOST = 32
#: Seconds without a call after which a thread ends.
IDLE = 1.0
#: Seconds that an interrupted call waits for one that has begun.
GRACE = 1.0
#: Seconds beyond a caller's patience in which the thread may still answer.
ANSWER = 0.1
#: Seconds between two looks whether the thread that is waited for is alive.
LOOK = 0.5
#: Seconds until a started thread must have begun to run, first and last.
START_FIRST, START_LAST = 0.5, 4.0
#: Seconds that closing and forking wait for an idle thread to end.
END = 5.0

P = ParamSpec("P")
T = TypeVar("T")

#: Who has a call: the thread that makes it, or the caller that has withdrawn it.
_BEGUN, _WITHDRAWN = "begun", "withdrawn"

#: The threads of jobcore's own, by `get_ident`. A signal handler raises in none of them.
_OWN: set[int] = set()


def threads_run() -> bool:
    """
    Tell whether a thread that is started here runs while its starter waits.

    Not where gevent or eventlet have replaced threads by their own, and not under
    uWSGI without `enable-threads`, where threads stand still between requests.
    """
    if not isinstance(_thread.start_new_thread, BuiltinFunctionType):
        return False
    options = getattr(sys.modules.get("uwsgi"), "opt", None)
    if not isinstance(options, dict):
        return True
    names = {name.decode() if isinstance(name, bytes) else str(name) for name in options}
    return bool(names & {"enable-threads", "threads"})


def is_own_thread() -> bool:
    """Tell whether the calling thread is one of jobcore's own."""
    return _thread.get_ident() in _OWN


def begin_own_thread() -> None:
    """Count the calling thread among jobcore's own until `end_own_thread`."""
    _OWN.add(_thread.get_ident())


def end_own_thread() -> None:
    """Count the calling thread no longer; its number may be used again."""
    _OWN.discard(_thread.get_ident())


def forget_own_threads() -> None:
    """Begin anew in a forked child, which has none of its parent's threads."""
    _OWN.clear()


class Call(Generic[T]):
    """
    A call that a thread makes for another.

    Attributes:
        holder: Whether it has begun or was withdrawn, under the one key "". A dict, because
            `setdefault` decides between the two in one atomic step.
        deadline: When the caller's patience ends, by the monotonic clock.
        about: What it is about, for the note on an exception that interrupts it.
        done: Whether there is an outcome; set once, before the caller is woken.
        error: What the call has raised.
        events: Events for the host's log, which the caller's thread logs.
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
        """Take the call for the thread that makes it; False: its caller has withdrawn it."""
        # Whoever is interrupted in this may call it again: the answer stays the same.
        return self.holder.setdefault("", _BEGUN) is _BEGUN

    def withdraw(self) -> bool:
        """Take the call back; False: it has begun."""
        return self.holder.setdefault("", _WITHDRAWN) is _WITHDRAWN

    @property
    def has_begun(self) -> bool:
        """Whether a thread has taken it."""
        return self.holder.get("") is _BEGUN

    @property
    def is_withdrawn(self) -> bool:
        """Whether its caller has taken it back."""
        return self.holder.get("") is _WITHDRAWN

    @property
    def is_late(self) -> bool:
        """Whether the caller's patience is over."""
        return time.monotonic() >= self.deadline

    def make(self, *arguments: Any) -> None:
        """Make the call in the caller's context, and keep what it returned."""
        self.events.clear()  # of a try that was rolled back
        with telemetry.collected(self.events):
            self._result = self._context.run(self._function, *arguments)

    def fail(self, error: BaseException) -> None:
        """Keep the error that is the outcome, and wake the caller."""
        self.error = error
        self.answer()

    def answer(self) -> None:
        """Wake the caller."""
        if not self.done:
            self.done = True
            self.answered.release()

    def outcome(self) -> T:
        """Return what the call has returned, or raise what it has raised."""
        for event in self.events:
            telemetry.log(event)
        if self.error is not None:
            try:
                raise self.error
            finally:
                self.error = None  # or it would refer to itself by its own traceback
        return cast("T", self._result)

    def tell(self, interrupt: BaseException) -> None:
        """Note on the exception that has interrupted the caller what became of the call."""
        what = f" ({self.about})" if self.about else ""
        if not self.done:
            note = f"jobcore: outcome unknown: the interrupted call may still take effect{what}"
        elif self.error is None:
            note = f"jobcore: the interrupted call was completed{what}"
        else:
            note = f"jobcore: the interrupted call had failed: {self.error!r}{what}"
        if hasattr(interrupt, "add_note"):
            interrupt.add_note(note)
        else:  # before Python 3.11, as PEP 678 has it for those who print notes themselves
            notes = getattr(interrupt, "__notes__", [])
            interrupt.__notes__ = [*notes, note]  # type: ignore[attr-defined]


class _Seat:
    """
    The place of one thread.

    Attributes:
        started: When it was taken, by the monotonic clock.
        idle: Whether it waits for a call.
        call: What it has taken from the queue.
        ident, native: The thread's numbers for Python and for the system; 0 before it runs.
        pid: Of the process that it is in.
    """

    __slots__ = ("_fate", "call", "ident", "idle", "native", "pid", "started")

    def __init__(self) -> None:
        self.started = time.monotonic()
        self._fate: dict[str, bool] = {}
        self.idle = False
        self.call: Call[Any] | None = None
        self.ident = 0
        self.native = 0
        self.pid = os.getpid()

    def take(self) -> bool:
        """Have the thread run; False: it began too late, and was given up."""
        return self._fate.setdefault("", True)

    def give_up(self) -> bool:
        """Wait no longer for the thread to begin; False: it runs."""
        return not self._fate.setdefault("", False)

    @property
    def is_dead(self) -> bool:
        """Whether the thread has run, and there is none any more."""
        return self.ident != 0 and self.ident not in sys._current_frames()  # noqa: SLF001 - the documented way to them

    @property
    def running(self) -> bool:
        """Whether the thread has begun to run."""
        return self._fate.get("", False)


class Worker:
    """
    Makes calls in up to `most` threads, each started when it is needed.

    Any thread may call `call`, also in a signal handler or a finaliser.

    Args:
        name: For error texts and debuggers.
        serve: Makes one call that was taken from the queue; None: as it is. It may
            take more with `take`, and raises nothing.
        at_end: The last act of a thread.
        most: Threads at once.
        shared: It is told of forks itself, since it has no owner that would tell it.
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
        self._known = False  # to the interpreter's exit, and to forks
        self._closed: str | None = None  # what callers are told then
        self._start_patience = START_FIRST
        self.forget()

    def forget(self) -> None:
        """Begin anew, in a forked child: there is no thread, and nobody waits."""
        self._queue: SimpleQueue[Call[Any] | None] = SimpleQueue()
        self._returned: deque[Call[Any]] = deque()
        self._seats: dict[int, _Seat] = {}
        self._inline: dict[str, tuple[int, FrameType]] = {}
        self._parked = False

    # --- for callers ------------------------------------------------------------------

    def call(self, function: Callable[[], T], *, patience: float = PATIENCE, about: str = "") -> T:
        """
        Have a thread call `function`, and return what it returns.

        One of jobcore's own threads calls it itself: nothing interrupts that.

        Args:
            function: Called with the caller's context variables.
            patience: Seconds until it must have begun.
            about: What it is about, for the note on an exception that interrupts it.

        Raises:
            DatabaseBusy: It has not begun in time, and will not.
        """
        if is_own_thread():
            return function()
        return self.hand_over(Call(function, patience, about))

    def hand_over(self, call: Call[T]) -> T:
        """
        Have a thread make a call, and return what it returns.

        What interrupts the waiting withdraws the call or, where it has begun, waits
        for its end, `GRACE` seconds at the most; then it goes on, with a note.

        Raises:
            DatabaseBusy: It has not begun in time, and will not.
        """
        # What ends the waiting calls nothing but C: where the stack is full there is no
        # room for a call in Python, and a call that is not withdrawn is made later.
        queue = self._queue
        try:
            queue.put(call)
            self._require_thread()
            while not call.done:
                left = call.deadline + ANSWER - time.monotonic()
                if left <= 0 and call.withdraw():
                    break
                call.answered.acquire(True, min(left, LOOK) if left > 0 else LOOK)
                if not call.done:
                    self._look_after(call, queue)
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
                    call.tell(interrupt)
                    break
                except BaseException:  # noqa: BLE001, S112 - another Ctrl-C: the first one is raised
                    continue
            raise
        if not call.done:
            raise DatabaseBusy(f"{self._name}: other calls kept it busy")
        return call.outcome()

    def is_inside(self) -> bool:
        """Tell whether the calling thread is in the middle of making a call."""
        me = _thread.get_ident()
        holder = self._inline.get("")
        return any(seat.ident == me for seat in list(self._seats.values())) or (
            holder is not None and holder[0] == me and not is_over(holder[1])
        )

    def _require_thread(self) -> None:
        """Have a thread that takes calls: an idle one, or one more, up to `most`."""
        if self._closed is not None:
            self._refuse_waiting(self._closed)
            return
        if self._parked:
            if self._shared:  # a fork comes: it waits for callers, which must not wait for it
                self._make_waiting_calls_here()
            return
        if sys.is_finalizing() and any(not one.idle for one in list(self._seats.values())):
            # The thread stands still, in the middle of something, and will not go on.
            raise DatabaseBusy(f"{self._name}: the interpreter exits")
        if sys.is_finalizing() or not threads_run():
            self._make_waiting_calls_here()
            return
        for number in range(self._most):
            seat = self._seats.get(number)
            if seat is None:
                self._start(number)
                return
            if seat.idle:
                return

    def _start(self, number: int) -> None:
        if not self._known:
            self._known = True
            _rest_at_exit(self)
            if self._shared:
                GATE.watch(self)
        seat = _Seat()
        if self._seats.setdefault(number, seat) is not seat:
            return  # another caller is starting it
        try:
            _thread.start_new_thread(self._run, (number, seat))
        except RuntimeError:
            # No more threads, or the interpreter is about to end. A thread of
            # before may still run; else the call is made in the caller's.
            self._vacate(number, seat)
            if not any(seat.running for seat in list(self._seats.values())):
                self._make_waiting_calls_here()

    def _vacate(self, number: int, seat: _Seat) -> None:
        if self._seats.get(number) is seat:
            self._seats.pop(number, None)

    def _look_after(self, call: Call[Any], queue: SimpleQueue[Call[Any] | None]) -> None:
        """Find out why a call has no answer yet; mostly because it takes so long."""
        if queue is not self._queue:
            # In a forked child: what was handed over before is its parent's.
            call.begin()
            call.fail(StoreError(f"{self._name}: this process was forked in the middle of a call"))
            return
        now = time.monotonic()
        for number, seat in list(self._seats.items()):
            if seat.pid != os.getpid() or seat.is_dead:
                # Forked by code that runs no hooks, or ended from outside at the very end.
                _OWN.discard(seat.ident)
                self._vacate(number, seat)
            elif now - seat.started > self._start_patience and seat.give_up():
                # Its starter was interrupted, or threads do not run here.
                self._vacate(number, seat)
                if self._start_patience >= START_LAST:
                    self._make_waiting_calls_here()
                    return
                self._start_patience *= 2
        if call.has_begun and not call.done and not self._seats and not self._inline:
            call.fail(StoreError(f"{self._name}: the thread was ended; outcome unknown"))
            return
        self._require_thread()

    # --- where no thread runs ----------------------------------------------------------

    def _make_waiting_calls_here(self) -> None:
        """Make the calls that wait in this thread: gevent's, or one of an interpreter that ends."""
        frame = sys._getframe()  # noqa: SLF001 - it tells whether who has the turn is still there
        me = (_thread.get_ident(), frame)
        deadline = time.monotonic() + PATIENCE
        while self._inline.setdefault("", me) is not me:
            holder = self._inline.get("")
            if holder is not None and is_over(holder[1]):
                self._inline.clear()  # an interrupt came between two steps
            elif (holder is not None and holder[0] == me[0]) or time.monotonic() > deadline:
                raise DatabaseBusy(f"{self._name}: this thread is in the middle of a call")
            else:
                time.sleep(0.001)
        was_own = is_own_thread()
        begin_own_thread()  # or a call inside of one would be handed over to this thread
        try:
            while (call := self.take(0)) is not None:
                self._serve(call)
        finally:
            if not was_own:
                end_own_thread()
            self._inline.clear()

    # --- the thread --------------------------------------------------------------------

    def _run(self, number: int, seat: _Seat) -> None:
        try:
            seat.ident, seat.native = _thread.get_ident(), _thread.get_native_id()
            if not seat.take():
                return  # it was given up, and another thread has its place
            self._start_patience = START_FIRST
            begin_own_thread()
            while self._seats.get(number) is seat:
                try:
                    if not self._step(seat):
                        return
                except BaseException as error:  # noqa: BLE001 - raised from outside into this thread
                    telemetry.event(logging.ERROR, "thread interrupted", error=repr(error))
                    if seat.call is not None:
                        self.break_off([seat.call], error)
        finally:
            for _ in range(100):
                try:
                    self._leave(number, seat)
                    break
                except BaseException:  # noqa: BLE001, S112 - raised from outside: the seat must get free
                    continue

    def _leave(self, number: int, seat: _Seat) -> None:
        """Give up the place of this thread; again is harmless."""
        try:
            self._at_end()
        finally:
            end_own_thread()
            self._vacate(number, seat)
        if not (self._parked or (self._queue.empty() and not self._returned)):
            self._require_thread()  # a call came at the very end

    def _step(self, seat: _Seat) -> bool:
        """Make one call; False: there was none for a while, or the thread is to end."""
        seat.idle = True
        seat.call = call = None if self._parked else self.take(IDLE)
        seat.idle = False
        if call is None:
            return False
        if self._parked:
            self._returned.append(call)
            return False
        if self._most > 1 and not self._queue.empty():
            self._require_thread()
        self._serve(call)
        seat.call = None
        return True

    def break_off(self, calls: list[Call[Any]], error: BaseException) -> None:
        """Tell those whose calls have no outcome that an exception has ended the work on them."""
        for call in calls:
            what = "outcome unknown" if call.has_begun else "not made"
            if call.begin() and not call.done:
                call.fail(StoreError(f"{self._name}: {what}: {error!r}"))

    def take(self, seconds: float) -> Call[Any] | None:
        """Return the next call; None: there is none within so many seconds, or it is to end."""
        try:
            return self._returned.popleft()
        except IndexError:
            pass
        try:
            return self._queue.get(True, seconds) if seconds > 0 else self._queue.get(False)
        except Empty:
            return None

    def give_back(self, call: Call[Any]) -> None:
        """Have a call that has not begun taken again later."""
        self._returned.append(call)

    @property
    def parked(self) -> bool:
        """Whether no call is to begin now: the thread is to end, soon."""
        return self._parked

    # --- forks and the end -------------------------------------------------------------

    def park(self, patience: float = END, *, idle_only: bool = False) -> bool:
        """
        Let no further call begin, and have the threads end.

        Args:
            patience: Seconds to wait for that.
            idle_only: Do not wait for those in the middle of a call.

        Returns:
            Whether all have ended.
        """
        self._parked = True
        deadline = time.monotonic() + patience
        me = _thread.get_ident()
        ended: list[int] = []
        while seats := self._own_seats():
            if sys.is_finalizing():
                break  # they stand still
            self._give_up_late_ones()
            for seat in seats:
                if seat.native not in ended:
                    ended.append(seat.native)
                    self._queue.put(None)
            if me in _OWN and all(seat.native == _thread.get_native_id() for seat in seats):
                break
            if idle_only and not any(seat.idle or not seat.running for seat in seats):
                break
            if time.monotonic() > deadline:
                break
            time.sleep(0.0005)
        for native in ended:
            if native != _thread.get_native_id():
                _wait_for_end(native)
        return not self._own_seats()

    def _give_up_late_ones(self) -> None:
        """Wait for no thread that never begins, as where an interrupt came before its start."""
        for number, seat in list(self._seats.items()):
            if time.monotonic() - seat.started > START_FIRST and seat.give_up():
                self._vacate(number, seat)

    def _own_seats(self) -> list[_Seat]:
        """Return the threads of this process: a child that C code has forked has none."""
        return [seat for seat in list(self._seats.values()) if seat.pid == os.getpid()]

    def close(self, reason: str, patience: float = END) -> bool:
        """Refuse every further call with this reason, and end as `park` does."""
        self._closed = reason
        ended = self.park(patience)
        self._refuse_waiting(reason)
        return ended

    def close_soon(self, reason: str) -> None:
        """Refuse every further call; the threads end after those that they make now."""
        self._closed = reason
        self._parked = True

    def _refuse_waiting(self, reason: str) -> None:
        while (call := self.take(0)) is not None:
            if call.begin():
                call.fail(StoreError(reason))

    def resume(self) -> None:
        """Let calls begin again."""
        self._parked = False
        if not self._queue.empty() or self._returned:
            self._require_thread()

    # --- the fork of the host, and the interpreter's exit ---------------------------------

    def before_fork(self) -> None:
        """Have idle threads end; others go on, as a host's do."""
        self.park(idle_only=True)

    def after_fork_in_parent(self) -> None:
        """Let calls begin again."""
        self.resume()

    def after_fork_in_child(self) -> None:
        """Begin anew."""
        forget_own_threads()
        self.forget()

    def rest(self) -> None:
        """Let what is under way come to its end; later calls are still made."""
        if self._closed is None:
            try:
                self.park()
            finally:
                self.resume()


def handed_over(function: Callable[P, T]) -> Callable[P, T]:
    """
    Return a function that one of jobcore's own threads runs, whoever calls it.

    For what opens or locks files of jobs: an exception in the caller's thread leaves
    no descriptor open and nothing half done.
    """

    @functools.wraps(function)
    def hand_over(*args: P.args, **options: P.kwargs) -> T:
        if is_own_thread():
            return function(*args, **options)
        return HANDS.call(functools.partial(function, *args, **options))

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


def _rest_at_exit(worker: Worker) -> None:
    """At the interpreter's exit, let calls under way come to their end."""
    reference = weakref.ref(worker)

    def rest() -> None:
        alive = reference()
        if alive is not None:
            alive.rest()

    atexit.register(rest)
    weakref.finalize(worker, atexit.unregister, rest).atexit = False


def _wait_for_end(native: int) -> None:
    """Wait until the system has no such thread any more: Python counts threads before a fork."""
    deadline = time.monotonic() + ANSWER
    while native and os.path.exists(f"/proc/self/task/{native}"):
        if time.monotonic() > deadline:
            return
        time.sleep(0.0001)


#: Does the directory work of all callers in this process. Nothing of it belongs to a
#: manager, so it is never closed.
HANDS = Worker("jobcore-hands", most=HANDS_MOST, shared=True)
