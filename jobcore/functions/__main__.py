"""
The fresh interpreter that calls one function and stores what it returns.

It is what the command of a function's job runs, so all here is loaded without
jobcore itself, from the standard library alone. The function must not notice
it: no module of ours stays in sight, no path to ours, and an exception ends
the interpreter as it ends any program, with the function's own frames alone.
"""

from __future__ import annotations

import atexit
import binascii
import io
import json
import logging
import os
import re
import sys
import threading
from collections.abc import Coroutine

from jobcore.functions import encoding, names, result_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from types import FrameType, TracebackType
    from typing import Any
else:
    import _signal

#: In the environment of the interpreter, for its eyes only: the job's directory.
DIRECTORY = "JOBCORE_FUNCTION"

#: Of the payload: what it says, and how.
VERSION = 1

#: What a shell makes of the end by a signal, and so does a program that handles it.
_BY_SIGNAL = 128
#: Seconds after a fork until a SIGTERM is sent again that came in the middle of it.
_SOON = 0.01

#: A path that belongs to an installation of Python rather than to a program.
_INSTALLED = r"/lib(64)?/python\d|/(site|dist)-packages(/|$)|/python\d+\.zip$"


def main() -> None:
    """Call the function that standard input names, and return once its value is stored."""
    payload = _take_payload()
    directory = os.environ.pop(DIRECTORY)
    identity = result_file.identify(directory)
    me = os.getpid()
    _leave_no_trace()
    sys.path[:] = merged_path(payload["path"], payload["python"], sys.path)
    flush_each_line()
    log_from_info_up()
    termination = Termination()
    try:
        value = _call(payload)
        if os.getpid() != me:
            return  # a child that the function forked, and that came back: not the job's own
        _store(payload["name"], value, directory, identity)
        termination.expect_exit()
    except BaseException as error:
        if os.getpid() == me:
            termination.finish(error)
            termination.expect_exit()
        _hide_own_frames()
        raise  # for Python to end with it as always, SystemExit and KeyboardInterrupt included


def this_python() -> list[str]:
    """Return what tells an installation of Python, with all that is in it, from another one."""
    return [str(sys.implementation.cache_tag), sys.prefix, sys.exec_prefix]


def merged_path(sent: list[str], python: list[str], own: list[str]) -> list[str]:
    """
    Return where to look for modules: where the submitter does, then where this interpreter does.

    Args:
        sent: The submitter's.
        python: The submitter's installation. Where it is another one, nothing
            of it is of any use here, its standard library least of all.
        own: This interpreter's.
    """
    if python != this_python():
        sent = [entry for entry in sent if not re.search(_INSTALLED, entry)]
    return [*sent, *(entry for entry in own if entry not in sent)]


def flush_each_line() -> None:
    """
    Have each line of stdout handed over as a whole once it ends, as those of stderr are.

    PYTHONUNBUFFERED would write text and newline one by one, so that processes which the
    function forks would mix their lines, and at twice the cost.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)


def log_from_info_up() -> None:
    """
    Let records from INFO up arrive on stderr, as long as nobody configures logging.

    What Python does then is print warnings, by a last resort that takes no part
    in any configuration; it only gets a lower level and says who speaks. The
    root's level has to go down with it, but only until the root gets a handler:
    from then on all is as if nothing had been done here.
    """
    root, last = logging.getLogger(), logging.lastResort
    if root.handlers or root.level != logging.WARNING or last is None:
        return  # configured by a `sitecustomize`
    provisional = _Level(logging.INFO)

    def add_handler(handler: logging.Handler) -> None:
        vars(root).pop("addHandler", None)  # the class's own comes to light
        if root.level is provisional:  # not where it has been set, to INFO perhaps
            root.setLevel(logging.WARNING)
        root.addHandler(handler)

    root.setLevel(provisional)
    vars(root)["addHandler"] = add_handler
    last.setLevel(logging.INFO)
    last.setFormatter(logging.Formatter(logging.BASIC_FORMAT))


class Termination:
    """
    SIGTERM as `sys.exit`: what the function has in `finally`, `with` and `atexit` is done.

    It counts once, so that a second one does not interrupt the cleaning up, and not at all once
    `atexit` handlers run. Children that the function forks still end by SIGTERM.
    """

    def __init__(self) -> None:
        self._exit: SystemExit | None = None
        self._exiting = False
        self._forking = False
        self._postponed = False  # it came during a fork, whose hooks can raise nothing
        self._masks = threading.local()
        self._handler = self._end  # one object, to be known again
        _signal.signal(_signal.SIGTERM, self._handler)
        os.register_at_fork(
            before=self._hold, after_in_parent=self._release, after_in_child=self._restore
        )

    def expect_exit(self) -> None:
        """
        Have no stop interrupt what `atexit` runs. Call this when the function has ended.

        Until then it still ends the waiting for threads. Handlers run in reverse order, so this
        one runs before those of the function.
        """
        atexit.register(self._begin_exit)

    def finish(self, error: BaseException) -> None:
        """
        End this process by SIGTERM if that has ended the function; otherwise do nothing.

        Its parent sees the signal, as with any program that does not handle it.
        """
        if self._exit is None or error is not self._exit:
            return
        _clear_frames(error)
        try:
            # As the interpreter does at its end, and in its order.
            threading._shutdown()  # type: ignore[attr-defined]  # noqa: SLF001
            atexit._run_exitfuncs()  # noqa: SLF001
            for stream in (sys.stdout, sys.stderr):
                if stream is not None:
                    stream.flush()
        finally:
            _signal.signal(_signal.SIGTERM, _signal.SIG_DFL)
            os.kill(os.getpid(), _signal.SIGTERM)

    def _end(self, _number: int, _frame: FrameType | None) -> None:
        if self._forking:
            self._postponed = True
        elif self._exit is None and not self._exiting:
            self._exit = SystemExit(_BY_SIGNAL + _signal.SIGTERM)
            raise self._exit

    def _begin_exit(self) -> None:
        self._exiting = True
        if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
            # Not SIG_IGN, which programs that the handlers start would inherit.
            _signal.signal(_signal.SIGINT, self._handler)

    def _hold(self) -> None:
        # A child forgets what comes before its hooks: what is blocked waits for them.
        self._forking = True
        self._masks.before = _signal.pthread_sigmask(_signal.SIG_BLOCK, (_signal.SIGTERM,))

    def _release(self) -> None:
        _signal.pthread_sigmask(_signal.SIG_SETMASK, self._masks.before)
        self._forking = False
        if self._postponed:
            self._postponed = False
            again = threading.Timer(_SOON, os.kill, (os.getpid(), _signal.SIGTERM))
            again.daemon = True
            again.start()

    def _restore(self) -> None:
        if _signal.getsignal(_signal.SIGTERM) is self._handler:
            _signal.signal(_signal.SIGTERM, _signal.SIG_DFL)
        self._forking = self._postponed = False  # that was the parent's
        _signal.pthread_sigmask(_signal.SIG_SETMASK, self._masks.before)


def _clear_frames(error: BaseException) -> None:
    """
    Let go of what the ended frames of a function hold, so that a generator of theirs is closed.

    Without its traceback alone they live on in Python 3.10, whose state of handled
    exceptions has another reference to it.
    """
    step = error.__traceback__
    while step is not None:
        try:
            step.tb_frame.clear()
        except RuntimeError:
            pass  # it is executed: ours
        step = step.tb_next
    error.__traceback__ = error.__context__ = None


class _Level(int):
    """A level that is told from all others, the same number included; elsewhere it is a number."""

    def __reduce__(self) -> tuple[type[int], tuple[int]]:
        return int, (int(self),)


def _take_payload() -> dict[str, Any]:
    """Read standard input to its end, and put nothing in its place."""
    data = bytearray()
    while chunk := os.read(0, 1 << 20):
        data += chunk
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    os.dup2(null, 0)
    os.close(null)
    payload: dict[str, Any] = json.loads(data)
    if payload["version"] > VERSION:
        sys.exit("jobcore: this function was submitted by a newer jobcore than the one that runs")
    return payload


def _leave_no_trace() -> None:
    """Take out of sight what is ours: the function may import the real jobcore, or none."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "jobcore"]:
        del sys.modules[name]
    del sys.argv[1:]


def _call(payload: dict[str, Any]) -> Any:
    arguments = payload["arguments"]
    if payload["encoding"] == encoding.PICKLE:
        arguments = encoding.decode(encoding.PICKLE, binascii.a2b_base64(arguments))
    target, args, kwargs = arguments
    if target is None:
        target = names.locate(payload["name"])
    value = target(*args, **kwargs)
    if isinstance(value, Coroutine):
        import asyncio  # noqa: PLC0415 - slow to load, and most functions need it not

        value = asyncio.run(value)
    return value


def _store(name: str, value: Any, directory: str, identity: tuple[int, int]) -> None:
    try:
        form, data = encoding.encode(value)
    except encoding.Unstorable as error:
        raise TypeError(f"{name} returned what cannot be stored: {error}") from None
    if len(data) > result_file.LARGEST:
        raise ValueError(
            f"{name} returned what takes {len(data)} bytes, and at most {result_file.LARGEST} are "
            "stored: write it to a file, and return the path"
        )
    try:
        result_file.write(directory, identity, form, data)
    except OSError as error:
        raise OSError(
            error.errno, f"what {name} returned could not be stored: {error.strerror}"
        ) from None


def _hide_own_frames() -> None:
    """Have the traceback that Python is about to print begin where the function's own code does."""
    show = sys.excepthook
    caller = sys._getframe(2)  # noqa: SLF001 - the line that called `main`
    own = [id(caller.f_globals), id(globals()), id(vars(names)), id(vars(encoding))]

    def show_rest(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        while trace is not None and id(trace.tb_frame.f_globals) in own:
            trace = trace.tb_next
        show(kind, error.with_traceback(trace), trace)

    sys.excepthook = show_rest
