"""
Starts supervisors, after a check that `python=` names a Python interpreter.

In a frozen program, and in one that embeds Python, `sys.executable` is the program itself. If
that were started as a supervisor, it would start itself again and again.
"""

from __future__ import annotations

import errno
import importlib.util
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from jobcore import tuning
from jobcore.embedding.locks import GATE
from jobcore.embedding.worker import threads_run
from jobcore.errors import SpawnError

#: The variable that holds the pid of the host, in every process that is started as an
#: interpreter.
STARTED_VARIABLE = "JOBCORE_STARTED_AS_PYTHON_BY"

_REMEDY = "name a Python interpreter with `python=`, or run the jobs by `jobcore work`"
#: A program that only an interpreter can run, and its output. It imports ctypes, which
#: supervisors need.
_PROGRAM, _ANSWER = "print(6007 * 9001, end='', flush=True); import ctypes", b"54069007"
#: Seconds between two looks for the end of a process that has closed its output.
_END_PAUSE = 0.01

#: The identity of a file: path, device, inode and time of change.
_File = tuple[str, int, int, int]
#: The files that were checked, and whether each is an interpreter.
_KNOWN: dict[_File, bool] = {}
_MOST_KNOWN = 16


def require_host(python: str | None, *, own_launcher: bool) -> None:
    """
    Raise an error if no job could ever run in this process.

    Args:
        python: The interpreter for supervisors; None: that of this process.
        own_launcher: Whether the host has its own launcher for supervisors.

    Raises:
        SpawnError: No job could run. The message gives the cause and the remedy.
    """
    replaced = _thread_replacement()
    if replaced is not None:
        raise SpawnError(
            f"{replaced} has replaced the threads of this process, and jobs need real ones: use "
            "JobManager(slots=0) here, and run the jobs by `jobcore work` in another process",
            lasting=True,
        )
    if not threads_run():
        raise SpawnError(
            "uWSGI lets no threads run here, and jobs need them: set `enable-threads = true`, or "
            "use JobManager(slots=0) here, and run the jobs by `jobcore work` in another process",
            lasting=True,
        )
    if own_launcher:
        return
    if os.environ.get(STARTED_VARIABLE):
        raise SpawnError(
            f"process {os.environ[STARTED_VARIABLE]} started this program as if it were a Python "
            f"interpreter: {_REMEDY}",
            lasting=True,
        )
    if python is None and getattr(sys, "frozen", False):
        raise SpawnError(
            f"this is a frozen program, and {sys.executable!r} is not a Python interpreter: "
            f"{_REMEDY}",
            lasting=True,
        )
    if python is None and not sys.executable:
        raise SpawnError(f"this process knows no Python interpreter: {_REMEDY}", lasting=True)
    if python is None and not _has_ctypes():
        raise _without_ctypes(sys.executable)


def _has_ctypes() -> bool:
    """Tell whether this process can import ctypes, without importing it."""
    try:
        return importlib.util.find_spec("_ctypes") is not None
    except ValueError:  # the host prevents its import
        return False


def _without_ctypes(python: str) -> SpawnError:
    return SpawnError(
        f"{python!r} was built without ctypes, which supervisors need: install libffi and build "
        "it again, or name another Python interpreter with `python=`",
        lasting=True,
    )


def _thread_replacement() -> str | None:
    """Return the library that has replaced threads by something else, or None."""
    # Do not import them: a program that called them has loaded them.
    gevent: Any = sys.modules.get("gevent.monkey")
    if gevent is not None and (
        gevent.is_module_patched("threading") or gevent.is_module_patched("_thread")
    ):
        return "gevent"
    eventlet: Any = sys.modules.get("eventlet.patcher")
    if eventlet is not None and eventlet.is_monkey_patched("thread"):
        return "eventlet"
    return None


def check_interpreter(python: str) -> InterpreterCheck | None:
    """
    Begin to check whether this is a Python interpreter; None: no check is needed.

    Each process checks a file once. It never checks the interpreter that it runs on itself.

    Raises:
        SpawnError: It is known not to be an interpreter, or cannot be started.
    """
    found = _find(python)
    if found is None:
        return None  # starting it will raise the error
    path, facts = found
    if _is_own(facts):
        return None
    file = path, facts.st_dev, facts.st_ino, facts.st_mtime_ns
    known = _KNOWN.get(file)
    if known is None:
        return InterpreterCheck(file)
    if not known:
        raise _no_interpreter(path)
    return None


def _no_interpreter(path: str) -> SpawnError:
    return SpawnError(f"{path!r} is not a Python interpreter: {_REMEDY}", lasting=True)


def _find(python: str) -> tuple[str, os.stat_result] | None:
    folders = [""] if os.sep in python else os.get_exec_path()
    for folder in folders:
        path = os.path.join(folder, python)
        try:
            facts = os.stat(path)
        except OSError:
            continue
        if os.access(path, os.X_OK):
            return path, facts
    return None


def _is_own(facts: os.stat_result) -> bool:
    """Tell whether this is the file that this process runs, with a name of an interpreter."""
    try:
        name = os.path.basename(os.readlink("/proc/self/exe"))
        own = os.stat("/proc/self/exe")
    except OSError:
        return False  # without /proc, check it
    return name.startswith(("python", "pypy")) and os.path.samestat(facts, own)


class InterpreterCheck:
    """
    A check whether a file is an interpreter; its process may never answer.

    Args:
        file: Its path, device, inode and time of change.

    Attributes:
        due: When to call `has_answered` again at the latest, by the monotonic clock.

    Raises:
        SpawnError: It cannot be started. Nothing stays open.
    """

    def __init__(self, file: _File) -> None:
        import subprocess  # noqa: PLC0415 - a host that runs nothing need not load it

        self._file = file
        self._answer = b""
        self._reader = -1
        self._deadline = self.due = time.monotonic() + tuning.INTERPRETER_PATIENCE
        try:
            with GATE, _without_debugger():
                self._reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
                GATE.register(self._reader)
                try:
                    self._process = subprocess.Popen(
                        [file[0], "-I", "-S", "-c", _PROGRAM],
                        stdin=subprocess.DEVNULL,
                        stdout=writer,
                        stderr=subprocess.DEVNULL,
                        cwd="/",
                        env=_marked_environment(),
                    )
                finally:
                    os.close(writer)
        except (OSError, RuntimeError, ValueError) as error:
            self._close_reader()
            number = error.errno if isinstance(error, OSError) else None
            raise SpawnError(
                f"{file[0]!r} cannot be started: {error}; {_REMEDY}", number
            ) from error

    def fileno(self) -> int:
        """Return the descriptor of its output, to poll for reading; -1: the output is closed."""
        return self._reader

    def listen(self) -> None:
        """Read its output, without blocking."""
        while self._reader >= 0:
            try:
                said = os.read(self._reader, 4096)
            except BlockingIOError:
                return
            self._answer += said
            if not said or not _ANSWER.startswith(self._answer):
                self._close_reader()

    def has_answered(self) -> bool:
        """
        Tell whether it is an interpreter; False: not known yet, call again when `due`.

        Raises:
            SpawnError: It is not one, it has no ctypes, or it has not answered in time.
        """
        self.listen()
        now = time.monotonic()
        if not _ANSWER.startswith(self._answer):
            code: int | None = 1  # a wrong answer: do not wait for its end
        else:
            code = self._process.poll() if self._reader < 0 else None
        if code is None and now < self._deadline:
            # It ends just after its output does, but no descriptor reports that.
            self.due = self._deadline if self._reader >= 0 else now + _END_PAUSE
            return False
        self.close()
        path = self._file[0]
        if code is None:
            raise SpawnError(
                f"{path!r} does not answer as a Python interpreter within "
                f"{tuning.INTERPRETER_PATIENCE:g} s: {_REMEDY}"
            )
        if self._answer == _ANSWER and code != 0:
            raise _without_ctypes(path)
        while len(_KNOWN) >= _MOST_KNOWN:
            _KNOWN.pop(next(iter(_KNOWN)), None)
        known = _KNOWN[self._file] = self._answer == _ANSWER
        if not known:
            raise _no_interpreter(path)
        return True

    def close(self) -> None:
        """End the check, and kill the process if it still runs. A second call is harmless."""
        self._close_reader()
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def forget(self) -> None:
        """Forget it in a forked child: it is the parent's, and the gate has closed the pipe."""
        self._reader = -1
        self._process.returncode = 0  # otherwise its destructor would warn

    def _close_reader(self) -> None:
        if self._reader >= 0:
            reader, self._reader = self._reader, -1
            GATE.close(reader)


def _marked_environment() -> dict[str, str]:
    """Return the environment for a process that is started as an interpreter."""
    return {**os.environ, STARTED_VARIABLE: str(os.getpid())}


@contextmanager
def _without_debugger() -> Iterator[None]:
    """
    Keep a debugger out of the processes that this thread starts.

    debugpy, through pydevd, rewrites the command lines of Python child processes to debug them
    too. A supervisor would then wait for the debugger, and not understand its arguments.
    """
    pydevd: Any = sys.modules.get("_pydev_bundle.pydev_monkey")
    skip = getattr(pydevd, "skip_subprocess_arg_patch", None)
    if skip is None:
        yield
        return
    with skip():
        yield


# An empty module replaces the package, because its `__init__` would import all of jobcore.
# Submodules are imported as usual, from .pyc files.
STUB = """\
import sys
package = type(sys)("jobcore")
package.__path__ = [sys.argv[2]]
sys.modules["jobcore"] = package
from jobcore.supervisor.__main__ import main
main(int(sys.argv[1]))
"""

# In a frozen program, jobcore is in no directory. The named interpreter has its own jobcore.
_STUB_ELSEWHERE = (
    """\
import sys
from importlib.util import find_spec
sys.argv[2] = find_spec("jobcore").submodule_search_locations[0]
"""
    + STUB
)

_KEEPER_STUB, _KEEPER_STUB_ELSEWHERE = (
    one.replace("jobcore.supervisor.__main__", "jobcore.supervisor.keeper")
    for one in (STUB, _STUB_ELSEWHERE)
)

#: The arguments that identify a supervisor: of a host of this version, of a frozen program, and
#: of a version from before the package was renamed; then those of a keeper, which a supervisor
#: has that was forked from it.
STUBS = (
    STUB,
    _STUB_ELSEWHERE,
    STUB.replace("jobcore.supervisor.__main__", "jobcore.supervision.supervisor"),
    _KEEPER_STUB,
    _KEEPER_STUB_ELSEWHERE,
)

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def _command(python: str, descriptor: int, stub: str, stub_elsewhere: str) -> list[str]:
    """Return the command line of a supervisor or a keeper."""
    is_there = os.path.isdir(os.path.join(_PACKAGE, "supervisor"))
    words = ("-S", "-c", stub) if is_there else ("-c", stub_elsewhere)
    return [python, "-I", *words, str(descriptor), _PACKAGE]


class Launcher(Protocol):
    """
    Starts the supervisors that run jobs; tests can replace it.

    The manager that needs a supervisor calls it in its own thread, while no other thread may
    fork: return at once. The supervisor sends a notice when it is ready.
    """

    def start(self, descriptor: int) -> int | None:
        """
        Start a supervisor that uses this end of a socket pair.

        The host has the other end. The protocol is internal to jobcore.

        Args:
            descriptor: This end. The caller closes it when this returns: keep a copy, or pass
                it to a process.

        Returns:
            The pid of a child of this process that only starts the supervisor and ends, for
            the pool to reap; None: there is nothing to reap.

        Raises:
            SpawnError, OSError: No supervisor could be started, and nothing keeps the
                descriptor.
        """


class ProcessLauncher:
    """
    Starts each supervisor as a separate process, which outlives its host.

    Args:
        python: The interpreter for supervisors; None: that of this process.

    Attributes:
        python: The interpreter.
    """

    def __init__(self, python: str | None = None) -> None:
        self.python = python or sys.executable

    def prepare(self) -> InterpreterCheck | None:
        """
        Begin to check whether `python` is an interpreter; None: no check is needed.

        Raises:
            SpawnError: It is not an interpreter, or it cannot be started.
        """
        if not self.python:
            raise SpawnError("this process knows no Python interpreter: name one with `python=`")
        return check_interpreter(self.python)

    def start(self, descriptor: int) -> int:
        """Start a supervisor, and return the pid of the process that forks it and ends."""
        return self._start(_command(self.python, descriptor, STUB, _STUB_ELSEWHERE), descriptor)

    def start_keeper(self, descriptor: int) -> int:
        """Start a keeper, and return the pid of the process that forks it and ends."""
        stubs = _KEEPER_STUB, _KEEPER_STUB_ELSEWHERE
        return self._start(_command(self.python, descriptor, *stubs), descriptor)

    def _start(self, command: list[str], descriptor: int) -> int:
        import subprocess  # noqa: PLC0415 - a host that runs nothing need not load it

        try:
            with _without_debugger():
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    cwd="/",
                    env=_marked_environment(),
                    close_fds=True,
                    pass_fds=(descriptor,),
                )
        except OSError as error:
            raise SpawnError(
                f"no supervisor could be started with {self.python!r}: {error.strerror or error}"
                f"{_remedy(error)}",
                error.errno,
            ) from error
        except (RuntimeError, ValueError) as error:  # interpreter exit, or a NUL in the name
            raise SpawnError(f"no supervisor could be started: {error}") from error
        # The pool reaps it. Without this, its destructor would warn and keep it.
        process.returncode = 0
        return process.pid


def _remedy(error: OSError) -> str:
    """Return what to change if the interpreter itself is the cause, else nothing."""
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ENOEXEC, errno.ELOOP):
        return "; name an interpreter that can be run, by JobManager(python=...)"
    return ""
