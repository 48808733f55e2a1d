"""Worker: calls that another thread makes, and what interrupts the waiting for them."""

from __future__ import annotations

import _thread
import contextvars
import signal
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from jobcore import DatabaseBusy, StoreError
from jobcore.embedding import worker
from jobcore.embedding.worker import Worker, handed_over, is_own_thread, threads_run
from tests.opcodes import every_bytecode, sampled
from tests.processes import PATIENCE, in_child, run_python, until

SOON = 5.0  # seconds


@pytest.fixture
def one_worker():
    """Return a worker with one thread, which ends with the test."""
    made = Worker("test-worker")
    yield made
    made.close("over")


class Task:
    """Counts how often it was begun and ended."""

    def __init__(self):
        self.begun = self.ended = 0

    def __call__(self):
        """Run once."""
        self.begun += 1
        self.ended += 1
        return "done"


def test_call_returns_what_the_function_returns(one_worker):
    """The function runs in another thread, with the caller's context variables."""
    variable = contextvars.ContextVar("variable")
    variable.set("the caller's")

    found = one_worker.call(lambda: (variable.get(), threading.get_ident(), is_own_thread()))

    assert found == ("the caller's", found[1], True)
    assert found[1] != threading.get_ident()
    assert not is_own_thread()


def test_each_waiter_gets_its_own_error(one_worker):
    """What the function raises is raised in the caller's thread, once."""
    errors = []
    for _ in range(2):
        with pytest.raises(ZeroDivisionError) as caught:
            one_worker.call(lambda: 1 // 0)
        errors.append(caught.value)

    assert errors[0] is not errors[1]


def test_call_that_was_taken_and_not_begun_fails_at_once():
    """An exception from outside into the thread leaves no caller waiting for its patience."""
    taken = []

    def serve(call):
        taken.append(call)
        if len(taken) == 1:
            raise SystemExit
        call.begin()
        call.make()
        call.answer()

    made = Worker("test-worker", serve)
    with pytest.raises(StoreError, match=r"test-worker: the call was not made: SystemExit\(\)"):
        made.call(lambda: None, patience=10 * PATIENCE)

    assert made.call(lambda: "made") == "made"
    made.close("over")


def test_call_inside_a_call_is_made_at_once(one_worker):
    """A call that a call makes does not wait for its own thread."""
    assert one_worker.call(lambda: one_worker.call(lambda: "inner", patience=SOON)) == "inner"


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_exception_before_any_bytecode_of_a_call_leaves_nothing(one_worker, error):
    """The call is made entirely or never, and the next ones are made at once."""
    kept, task = [], Task()
    one_worker.call(task)

    def call():
        one_worker.call(task, about="job 1")

    for where, raised in every_bytecode(call, error=error):
        kept.append(raised)  # with all its frames
        before = task.ended
        begun = time.monotonic()
        assert in_thread(lambda: one_worker.call(task, patience=SOON)) == "done", where
        assert time.monotonic() - begun < SOON, where
        assert (task.begun, task.ended) == (before + 1, before + 1), where

    assert len(kept) > 50


@sampled
@pytest.mark.parametrize("first", [True, False], ids=["first call", "call after the thread ended"])
def test_exception_while_the_thread_is_started_leaves_no_call_waiting(
    monkeypatch, first, most, least
):
    """A thread that was not started, or only half, is started again."""
    monkeypatch.setattr(worker, "START_FIRST", 0.05)
    monkeypatch.setattr(worker, "CHECK_INTERVAL", 0.02)
    monkeypatch.setattr(worker, "IDLE", 0.001)
    made, tried = [], 0

    def call():
        fresh = Worker("test-worker")
        made.append(fresh)
        if not first:
            fresh.call(str)
            while fresh.threads:
                time.sleep(0)
        fresh.call(str)

    for where, _ in every_bytecode(call, most=most, never=(threading.__file__, __file__)):
        tried += 1
        if made:
            assert in_thread(lambda: made[-1].call(lambda: 1, patience=SOON)) == 1, where
            made.pop().close("over")
    for one in made:
        one.close("over")

    assert tried >= least


def test_interrupt_withdraws_a_call_that_has_not_begun(one_worker):
    """It never runs, and the exception has no note."""
    task, go, busy = Task(), threading.Event(), threading.Event()
    blocker = threading.Thread(
        target=one_worker.call, args=(lambda: (busy.set(), go.wait(PATIENCE)),)
    )
    blocker.start()
    assert busy.wait(PATIENCE)
    caught = interrupted(lambda: one_worker.call(task))
    go.set()
    blocker.join()
    one_worker.call(str)

    assert task.begun == 0
    assert getattr(caught, "__notes__", []) == []


def test_interrupt_waits_for_a_call_that_has_begun(one_worker):
    """It comes to its end, and the exception says so."""
    task = Task()
    caught = interrupted(lambda: one_worker.call(lambda: (time.sleep(0.3), task()), about="job 1"))

    assert task.ended == 1
    assert caught.__notes__ == ["jobcore: the interrupted call was completed (job 1)"]


def test_interrupt_of_a_long_call_notes_an_unknown_outcome(one_worker, monkeypatch):
    """The caller waits for a moment and no longer."""
    monkeypatch.setattr(worker, "GRACE", 0.1)
    go = threading.Event()
    caught = interrupted(lambda: one_worker.call(lambda: go.wait(PATIENCE), about="job 1"))
    go.set()

    (note,) = caught.__notes__
    assert "outcome unknown" in note
    assert "job 1" in note


def test_call_that_does_not_begin_in_time_is_busy(one_worker):
    """The caller's patience counts from the call, and the call never runs."""
    task, go, busy = Task(), threading.Event(), threading.Event()
    blocker = threading.Thread(
        target=one_worker.call, args=(lambda: (busy.set(), go.wait(PATIENCE)),)
    )
    blocker.start()
    assert busy.wait(PATIENCE)
    with pytest.raises(DatabaseBusy, match="kept it busy"):
        one_worker.call(task, patience=0.05)
    go.set()
    blocker.join()
    one_worker.call(str)

    assert task.begun == 0


def test_idle_thread_ends_and_is_started_again(one_worker, monkeypatch):
    """Without calls there is no thread."""
    monkeypatch.setattr(worker, "IDLE", 0.01)
    first = one_worker.call(threading.get_native_id)
    until(lambda: not one_worker.threads, "the end of the thread")

    assert one_worker.call(lambda: "again") == "again"
    assert first != threading.get_native_id()


def test_thread_survives_an_injected_exception(one_worker):
    """An exception that C code raises in it, as by `PyThreadState_SetAsyncExc`, ends one call."""
    import ctypes  # noqa: PLC0415 - needed here alone

    def strike():
        ident = threading.get_ident()
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(ident), ctypes.py_object(KeyboardInterrupt)
        )
        for _ in range(1000):
            pass

    for _ in range(20):
        with pytest.raises((KeyboardInterrupt, StoreError)):
            one_worker.call(strike)
        assert one_worker.call(lambda: 1, patience=SOON) == 1


def test_thread_that_is_struck_while_it_ends_gives_up_its_place(one_worker, monkeypatch):
    """An exception at its very end does not prevent later calls."""
    monkeypatch.setattr(worker, "IDLE", 0.01)
    struck = []

    def strike():
        if not struck:
            struck.append(1)
            raise KeyboardInterrupt

    monkeypatch.setattr(one_worker, "_at_end", strike)
    one_worker.call(lambda: None)
    until(lambda: struck and not one_worker.threads, "the end of the thread")

    assert one_worker.call(lambda: 1, patience=SOON) == 1


def test_slot_of_a_dead_thread_is_reused(one_worker, monkeypatch):
    """One that ended without giving up its place is not waited for."""
    monkeypatch.setattr(worker, "IDLE", 0.01)
    monkeypatch.setattr(worker, "CHECK_INTERVAL", 0.01)
    ends = []
    monkeypatch.setattr(one_worker, "_leave", lambda *_: ends.append(1))
    one_worker.call(lambda: None)
    until(lambda: ends and all(thread.is_dead for thread in one_worker.threads.values()), "its end")
    monkeypatch.undo()
    monkeypatch.setattr(worker, "CHECK_INTERVAL", 0.01)

    assert one_worker.call(lambda: 1, patience=SOON) == 1


def test_place_of_a_thread_that_never_began_keeps_no_fork_waiting(monkeypatch):
    """An interrupt came before it was started, while another thread makes the calls."""
    monkeypatch.setattr(worker, "START_FIRST", 0.01)
    one_worker = Worker("test-worker", most=2)

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(_thread, "start_new_thread", interrupt)
        with pytest.raises(KeyboardInterrupt):
            one_worker._start(0)
    one_worker._start(1)

    assert one_worker.suspend(PATIENCE)
    assert one_worker.threads == {}
    one_worker.close("over")


def test_thread_that_begins_too_late_makes_no_call(one_worker, monkeypatch):
    """Its place was given to another one, and two would write at once."""
    began, start = [], _thread.start_new_thread
    monkeypatch.setattr(_thread, "start_new_thread", lambda *call: began.append(call))
    monkeypatch.setattr(worker, "threads_run", lambda: True)
    monkeypatch.setattr(worker, "CHECK_INTERVAL", 0.01)
    one_worker.start_patience = 0.01
    caller = threading.Thread(target=one_worker.call, args=(lambda: None,))
    caller.start()
    until(lambda: len(began) > 1, "the second thread")
    run, (number, late) = began[0]
    run(number, late)
    current = one_worker.threads.get(number)
    run, arguments = began[-1]
    start(run, arguments)
    caller.join()

    assert late is not current
    assert not late.running


def test_stack_that_is_full_leaves_no_call_waiting(one_worker):
    """Wherever the last Python call does not fit any more, the next call is made."""
    task = Task()

    def behind(calls):
        return behind(calls - 1) if calls else one_worker.call(task)

    for calls in range(sys.getrecursionlimit() - 200, sys.getrecursionlimit(), 1):
        try:
            behind(calls)
        except RecursionError:
            before = task.ended
            one_worker.call(task)
            assert task.ended == task.begun == before + 1


def test_forked_child_makes_calls_in_its_own_thread(one_worker):
    """A fork forgets the thread, and the parent goes on."""
    one_worker.call(str)

    def child():
        one_worker.after_fork_in_child()
        return one_worker.call(lambda: "child")

    assert in_child(child) == "child"
    assert one_worker.call(lambda: "parent") == "parent"


def test_call_that_a_fork_interrupts_is_refused_in_the_child(one_worker):
    """A call that was handed over before a fork is made in the parent; the child does not wait."""
    go, answers = threading.Event(), []

    def fork(*_):
        answers.append(in_child_of_handler())

    def in_child_of_handler():
        import os  # noqa: PLC0415

        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            one_worker.after_fork_in_child()
            child.append(writer)
            return None
        os.close(writer)
        text = os.read(reader, 1000)
        os.close(reader)
        os.waitpid(pid, 0)
        go.set()
        return text

    child = []
    before = signal.signal(signal.SIGALRM, fork)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        try:
            one_worker.call(lambda: go.wait(PATIENCE))
        except StoreError as error:
            if child:
                import os  # noqa: PLC0415

                os.write(child[0], str(error).encode())
                os._exit(0)
            raise
    finally:
        signal.signal(signal.SIGALRM, before)

    assert answers == [b"test-worker: this process was forked in the middle of a call"]


def test_signal_handler_can_make_a_call(one_worker):
    """The call of a handler that interrupts a waiter is made, or raises DatabaseBusy."""
    told = []

    def handler(*_):
        try:
            told.append(one_worker.call(lambda: "handler", patience=0.05))
        except DatabaseBusy:
            told.append("busy")

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        one_worker.call(lambda: time.sleep(0.5))
    finally:
        signal.signal(signal.SIGALRM, before)

    assert told == ["busy"]


@pytest.mark.parametrize(
    ("name", "replaced"),
    [
        ("start_new_thread", lambda *_: pytest.fail("a thread was started")),
        ("uwsgi", SimpleNamespace(opt={b"master": True})),
    ],
)
def test_where_threads_do_not_run_the_caller_makes_the_call(
    one_worker, monkeypatch, name, replaced
):
    """Under gevent, and under uWSGI without `enable-threads`, nothing waits for a thread."""
    if name == "uwsgi":
        monkeypatch.setitem(sys.modules, name, replaced)
    else:
        monkeypatch.setattr(_thread, name, replaced)

    assert not threads_run()
    assert one_worker.call(threading.get_ident) == threading.get_ident()
    assert not is_own_thread()


def test_thread_that_never_runs_is_not_waited_for(one_worker, monkeypatch):
    """After a bounded time the caller makes the call itself."""
    monkeypatch.setattr(worker, "START_FIRST", 0.01)
    monkeypatch.setattr(worker, "START_LAST", 0.02)
    monkeypatch.setattr(worker, "CHECK_INTERVAL", 0.02)
    monkeypatch.setattr(worker, "threads_run", lambda: True)
    monkeypatch.setattr(_thread, "start_new_thread", lambda *_: 1)
    one_worker.start_patience = 0.01

    assert one_worker.call(threading.get_ident) == threading.get_ident()


def test_system_without_a_thread_left_makes_the_call_in_the_caller(one_worker, monkeypatch):
    """`can't start new thread` is no reason to fail."""

    def refuse(*_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(worker, "threads_run", lambda: True)
    monkeypatch.setattr(_thread, "start_new_thread", refuse)

    assert one_worker.call(threading.get_ident) == threading.get_ident()


def test_closed_worker_refuses_every_call(one_worker):
    """Waiting callers get the error, too."""
    go, busy, told = threading.Event(), threading.Event(), []
    blocker = threading.Thread(
        target=one_worker.call, args=(lambda: (busy.set(), go.wait(PATIENCE)),)
    )

    def wait():
        with pytest.raises(StoreError, match="it is closed"):
            one_worker.call(str)
        told.append("refused")

    waiter = threading.Thread(target=wait)
    blocker.start()
    assert busy.wait(PATIENCE)
    waiter.start()
    until(lambda: not one_worker.queue.empty(), "the second call")
    closer = threading.Thread(target=one_worker.close, args=("it is closed", PATIENCE))
    closer.start()
    until(lambda: one_worker.closed is not None, "the call of close")
    go.set()
    for thread in (closer, blocker, waiter):
        thread.join(PATIENCE)
    with pytest.raises(StoreError, match="it is closed"):
        one_worker.call(str)

    assert told == ["refused"]


def test_calls_at_exit_and_in_finalisers_end():
    """Writes from `atexit` handlers and from `__del__` at the very end work or raise at once."""
    said = run_python(
        """
import atexit
atexit.register(lambda: print("first registered", worker.call(lambda: 1, patience=5)))
from jobcore.embedding.worker import Worker
worker = Worker("test-worker")

class Last:
    def __del__(self):
        try:
            print("finaliser", worker.call(lambda: 2, patience=5))
        except Exception as error:
            print("finaliser raised", type(error).__name__)

last = Last()
last.itself = last
worker.call(str)
atexit.register(lambda: print("last registered", worker.call(lambda: 3, patience=5)))
"""
    )

    lines = said.splitlines()
    assert lines[:2] == ["last registered 3", "first registered 1"]
    assert lines[2:] in (["finaliser 2"], ["finaliser raised DatabaseBusy"], [])


def test_decorated_function_runs_in_a_thread_of_jobcores_own():
    """Called by such a thread it runs there."""
    outer = handed_over(lambda: (threading.get_ident(), inner()))
    inner = handed_over(threading.get_ident)
    found = outer()

    assert found[0] == found[1] != threading.get_ident()


def in_thread(function):
    """Return what a function returns in a thread of its own; fail if it does not end."""
    found = []
    thread = threading.Thread(target=lambda: found.append(function()), daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert found, "it did not end"
    return found[0]


def interrupted(call):
    """Return the KeyboardInterrupt by which a call ends that a signal interrupts."""
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(KeyboardInterrupt) as caught:
            call()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return caught.value
