"""
The program of a function job: it calls one function and stores the return value.

It runs in a fresh interpreter, without the rest of jobcore, and uses the standard library
only. The function must not notice it. No module or path of jobcore stays visible, and an
exception ends the interpreter like any other program, with a traceback that shows only
the function's own frames.
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

from jobcore.functions import encoding, names
from jobcore.functions.encoding import DIRECTORY, VERSION, this_python
from jobcore.supervisor import result_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from types import FrameType, TracebackType
    from typing import Any
else:
    import _signal

#: A shell reports the end by signal N as exit code 128 + N.
_BY_SIGNAL = 128
#: Seconds after a fork until a SIGTERM that arrived during the fork is sent again.
_AFTER_FORK = 0.01

#: Matches paths that belong to an installation of Python, not to a program.
_INSTALLED = r"/lib(64)?/python\d|/(site|dist)-packages(/|$)|/python\d+\.zip$"


def main() -> None:
    """Call the function that the payload on stdin names; return when its value is stored."""
    payload = take_payload()
    prepare(payload)
    make_call(payload)


def prepare(payload: dict[str, Any]) -> None:
    """Make this interpreter the one that a function expects: its path, its output, its log."""
    _hide_jobcore()
    sys.path[:] = merged_path(payload["path"], payload["python"], sys.path)
    flush_each_line()
    log_from_info_up()


def make_call(payload: dict[str, Any]) -> None:
    """Make a call in its process, in the environment of its job."""
    directory = os.environ.pop(DIRECTORY)
    identity = result_file.identify(directory)
    me = os.getpid()
    handler = SigtermHandler()
    try:
        value = _call(payload)
        if os.getpid() != me:
            return  # the function forked, and this is the child
        _store(payload["name"], value, directory, identity)
        handler.expect_exit()
    except BaseException as error:
        if os.getpid() == me:
            handler.finish(error)
            handler.expect_exit()
        _hide_own_frames()
        raise  # Python ends as usual, also for SystemExit and KeyboardInterrupt


def merged_path(sent: list[str], python: list[str], own: list[str]) -> list[str]:
    """
    Return the module search path: the submitter's entries, then this interpreter's.

    Args:
        sent: The submitter's `sys.path`.
        python: The submitter's installation. If it is another one, its entries are left
            out, because its standard library and packages do not fit this interpreter.
        own: This interpreter's `sys.path`.
    """
    if python != this_python():
        sent = [entry for entry in sent if not re.search(_INSTALLED, entry)]
    return [*sent, *(entry for entry in own if entry not in sent)]


def flush_each_line() -> None:
    """
    Make stdout line-buffered, as stderr is.

    PYTHONUNBUFFERED would not do: it writes text and newline separately. Processes that the
    function forks would mix their lines, and printing would cost twice as much.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)


def log_from_info_up() -> None:
    """
    Write log records from INFO up to stderr, unless the function configures logging.

    Without any configuration Python prints warnings through `logging.lastResort`, which
    takes no part in later configuration. This lowers its level and makes it print level and
    logger name. The root's level must be lowered as well, but only until the root gets a
    handler. From then on everything is as if this function had not been called.
    """
    root, last = logging.getLogger(), logging.lastResort
    if root.handlers or root.level != logging.WARNING or last is None:
        return  # logging is configured already, as by a `sitecustomize`
    provisional = _Level(logging.INFO)

    def add_handler(handler: logging.Handler) -> None:
        vars(root).pop("addHandler", None)  # uncover the method of the class
        if root.level is provisional:  # `is`: the function may have set INFO itself
            root.setLevel(logging.WARNING)
        root.addHandler(handler)

    root.setLevel(provisional)
    vars(root)["addHandler"] = add_handler
    last.setLevel(logging.INFO)
    last.setFormatter(logging.Formatter(logging.BASIC_FORMAT))


class SigtermHandler:
    """
    Handles SIGTERM like `sys.exit`, so that `finally`, `with` and `atexit` of the function run.

    Only the first SIGTERM counts, so that a second one does not interrupt the clean-up. Once
    `atexit` handlers run, it is ignored. In children that the function forks, SIGTERM has its
    default effect.
    """

    def __init__(self) -> None:
        self._exit: SystemExit | None = None
        self._exiting = False
        self._forking = False
        self._postponed = False  # SIGTERM arrived during a fork, whose hooks cannot raise
        self._masks = threading.local()
        self._handler = self._end  # keep one object, to compare it with `getsignal`
        _signal.signal(_signal.SIGTERM, self._handler)
        os.register_at_fork(
            before=self._hold, after_in_parent=self._release, after_in_child=self._restore
        )

    def expect_exit(self) -> None:
        """
        Ignore SIGTERM once `atexit` handlers run. Call this when the function has ended.

        Before that, Python waits for threads, and SIGTERM still ends that wait. Handlers run
        in reverse order of registration, so this one runs before those of the function.
        """
        atexit.register(self._begin_exit)

    def finish(self, error: BaseException) -> None:
        """
        End this process by SIGTERM if SIGTERM has ended the function; otherwise do nothing.

        So the parent sees a process that was ended by the signal, as for any other program.
        """
        if self._exit is None or error is not self._exit:
            return
        _clear_frames(error)
        try:
            # The same steps, in the same order, as in a normal exit of the interpreter.
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
            # Not SIG_IGN: programs that the handlers start would inherit it.
            _signal.signal(_signal.SIGINT, self._handler)

    def _hold(self) -> None:
        # A child discards a signal that Python has noted before the child's hooks run. A
        # blocked signal stays pending until then.
        self._forking = True
        self._masks.before = _signal.pthread_sigmask(_signal.SIG_BLOCK, (_signal.SIGTERM,))

    def _release(self) -> None:
        _signal.pthread_sigmask(_signal.SIG_SETMASK, self._masks.before)
        self._forking = False
        if self._postponed:
            self._postponed = False
            again = threading.Timer(_AFTER_FORK, os.kill, (os.getpid(), _signal.SIGTERM))
            again.daemon = True
            again.start()

    def _restore(self) -> None:
        if _signal.getsignal(_signal.SIGTERM) is self._handler:
            _signal.signal(_signal.SIGTERM, _signal.SIG_DFL)
        self._forking = self._postponed = False  # the postponed signal was for the parent
        _signal.pthread_sigmask(_signal.SIG_SETMASK, self._masks.before)


def _clear_frames(error: BaseException) -> None:
    """
    Clear the function's ended frames, so that generators in them are closed.

    Deleting the traceback from the exception is not enough: Python 3.10 has another
    reference to it in its state of handled exceptions.
    """
    step = error.__traceback__
    while step is not None:
        try:
            step.tb_frame.clear()
        except RuntimeError:
            pass  # still running: it is one of our frames
        step = step.tb_next
    error.__traceback__ = error.__context__ = None


class _Level(int):
    """A log level whose identity can be tested; it pickles as a plain int."""

    def __reduce__(self) -> tuple[type[int], tuple[int]]:
        return int, (int(self),)


def take_payload() -> dict[str, Any]:
    """Return the payload from stdin, and replace stdin by `/dev/null`."""
    data = bytearray()
    while chunk := os.read(0, 1 << 20):
        data += chunk
    empty_stdin()
    return read_payload(data)


def empty_stdin() -> None:
    """Replace stdin by `/dev/null`."""
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    os.dup2(null, 0)
    os.close(null)


def read_payload(data: bytes | bytearray) -> dict[str, Any]:
    """
    Return the payload in these bytes.

    Raises:
        SystemExit: It is from a newer jobcore.
    """
    payload: dict[str, Any] = json.loads(data)
    if payload["version"] > VERSION:
        sys.exit("jobcore: this function was submitted by a newer jobcore than the one that runs")
    return payload


def _hide_jobcore() -> None:
    """Remove jobcore's modules and arguments, so that the function can import the real jobcore."""
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
        import asyncio  # noqa: PLC0415 - slow to load, and most functions do not need it

        value = asyncio.run(value)
    return value


def _store(name: str, value: Any, directory: str, identity: tuple[int, int]) -> None:
    try:
        form, data = encoding.encode(value)
    except encoding.Unstorable as error:
        raise TypeError(f"{name} returned a value that cannot be stored: {error}") from None
    if len(data) > result_file.LARGEST:
        raise ValueError(
            f"{name} returned a value of {len(data)} bytes, more than "
            f"{result_file.LARGEST}: write it to a file, and return the path"
        )
    try:
        result_file.write(directory, identity, form, data)
    except OSError as error:
        raise OSError(
            error.errno, f"the return value of {name} could not be stored: {error.strerror}"
        ) from None


def _hide_own_frames() -> None:
    """Make the traceback that Python will print begin with the function's own code."""
    show = sys.excepthook
    own = [id(vars(names)), id(vars(encoding))]
    frame: FrameType | None = sys._getframe()  # noqa: SLF001
    while frame is not None:  # up to the program itself
        own.append(id(frame.f_globals))
        frame = frame.f_back

    def show_rest(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        while trace is not None and id(trace.tb_frame.f_globals) in own:
            trace = trace.tb_next
        show(kind, error.with_traceback(trace), trace)

    sys.excepthook = show_rest
