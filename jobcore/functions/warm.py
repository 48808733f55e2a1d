"""
The warm interpreter: it has loaded the modules of functions, and forks a process for each call.

It is a child of the supervisor, which asks it through a socket. It forks a process only for a
call with the environment and the search path that it has itself, and only while the files of its
modules have not changed. If a module has left a thread, a child process or an open descriptor
behind, which processes cannot share, it reports that it is unusable, and ends.
"""

from __future__ import annotations

import _socket
import atexit
import ctypes
import gc
import marshal
import os
import struct
import sys
import time
from functools import partial

from jobcore.functions.__main__ import (
    empty_stdin,
    make_call,
    merged_path,
    prepare,
    read_payload,
    take_payload,
)
from jobcore.supervisor import process_tree, spawn, warm

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Callable
    from typing import Any
else:
    import _signal

_LENGTH = len(warm.PLACEHOLDER)
_SIZE = 64  # bytes; more than a message to the interpreter has
_MOST_DESCRIPTORS = 16
_MOST_REFUSED = 2  # calls in a row that the interpreter does not fit, until it makes room
#: Nanoseconds by which a file system's clock may be late.
_CLOCK_LAG = 20_000_000
_FLUSH_FAILED = 120  # Python's exit code then
_MOST_WORDS = 500  # characters of a reason

_libc = ctypes.CDLL(None)
_libc.getenv.restype = ctypes.c_void_p


def serve() -> Callable[[], None]:
    """Load the modules, and fork for each call; return, in a forked process, what calls."""
    interpreter = os.getpid()
    call = None
    try:
        call = WarmInterpreter(sys.argv[2:]).run()
    finally:
        if call is None:
            # The supervisor is gone, or this is unusable: there is nothing to clean up. The
            # process of a call must not look as if it had made the call.
            os._exit(0 if os.getpid() == interpreter else 1)
    return call


class WarmInterpreter:
    """
    The state of this process.

    Args:
        modules: The names of the modules to load.
    """

    def __init__(self, modules: list[str]) -> None:
        self._modules = modules
        self._socket = _socket.socket(fileno=warm.DESCRIPTOR)
        # Where `/proc` reads the variable that identifies the processes of a job.
        self._cookie = _libc.getenv(warm.COOKIE)
        self._env = _without_job(_first_environment())
        self._name = _rename(warm.NAME)
        self._own = sys.path[:]
        self._path: list[str] = []
        self._files: dict[str, tuple[int, int, int, int]] = {}
        self._refused = 0  # calls since the last one that it has forked for

    def run(self) -> Callable[[], None] | None:
        """Serve the supervisor until it is gone; in a forked process, return what calls."""
        exit_last = _Exit()  # before any module registers a handler, which must run earlier
        why = self._load()
        if why:
            self._send(warm.UNUSABLE, why[:_MOST_WORDS].encode("utf-8", "replace"))
            return None
        # Calls share this memory as long as the garbage collector does not write to it.
        gc.collect()
        gc.freeze()
        self._send(warm.READY, warm.VERSION)
        while self._refused < _MOST_REFUSED:  # else the next one may fit better
            payload = self._serve_one()
            if payload is not None:
                return partial(exit_last.after, partial(make_call, payload))
        return None

    # --- loading ---

    def _load(self) -> str:
        """Load the modules; return why the interpreter is of no use, or an empty text."""
        started = time.time_ns() - _CLOCK_LAG
        # Until it is known that no process is left: the supervisor's children are those of jobs.
        spawn.make_subreaper()
        prepare(take_payload())  # only its path counts: no other call may see its arguments
        self._path = sys.path[:]
        opened = _descriptors()
        for name in self._modules:
            try:
                __import__(name)
            except BaseException as error:  # noqa: BLE001 - a module may even exit
                # Other errors may contain a secret, and the line is in the log of another job.
                words = f": {error}" if isinstance(error, (ImportError, SystemExit)) else ""
                return f"{name} cannot be imported: {type(error).__name__}{words}"
        why = self._left_behind(opened)
        if why:
            return f"the import of {', '.join(self._modules)} {why}"
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        _libc.fflush(None)  # else each call would write what C libraries have buffered
        self._files = _files()
        if any(changed > started for _, _, changed, _ in self._files.values()):
            return "the file of a module has just changed"
        return ""

    def _left_behind(self, opened: set[int]) -> str:
        """Return what the modules have left that processes cannot share, or an empty text."""
        if _threads() > 1:
            return "left a thread running"
        if _end_children():
            return "left a process running"
        spawn.make_subreaper(on=False)
        left = _descriptors() - opened
        if left:
            files = sorted(os.readlink(f"/proc/self/fd/{one}") for one in left)
            return f"left open: {', '.join(files)}"
        if self._cookie is None or ctypes.string_at(self._cookie, _LENGTH) != warm.PLACEHOLDER:
            return "changed the memory of the environment"
        return ""

    # --- calls ---

    def _serve_one(self) -> dict[str, Any] | None:
        """Wait for a call, and fork for it; return, in the forked process, its payload."""
        data, ancillary, _, _ = self._socket.recvmsg(
            _SIZE, _socket.CMSG_SPACE(4 * _MOST_DESCRIPTORS), _socket.MSG_CMSG_CLOEXEC
        )
        if not data:
            self._refused = _MOST_REFUSED  # the supervisor is gone
            return None
        descriptors: list[int] = []
        for _, _, content in ancillary:
            descriptors += struct.unpack(f"{len(content) // 4}i", content)
        body, go, report, *given = descriptors
        fields = marshal.loads(_content(body))  # noqa: S302 - from the supervisor
        places: dict[int, int] = dict(zip(fields["given"], given, strict=True))
        payload = self._fitting(fields, places)
        if payload is None:
            self._refused += 1
            self._send(warm.REFUSED)
        elif self._fork():
            start = spawn.Start(places, report, fields["oom_score"], 0, fields["parent"])
            try:
                self._become(fields, go, start)
            except OSError as error:  # no descriptor is free, for example
                spawn.report_failure(start, spawn.EXEC, error.errno or 0)
            return payload
        for descriptor in descriptors:
            os.close(descriptor)
        return None

    def _fitting(self, fields: dict[str, Any], places: dict[int, int]) -> dict[str, Any] | None:
        """Return the payload of a call; None: a fresh interpreter would differ from this one."""
        if not self._is_current():
            self._refused = _MOST_REFUSED
            return None
        env = fields["env"]
        if _without_job(env) != self._env or len(env[warm.COOKIE]) != _LENGTH:
            return None
        try:
            payload = read_payload(_content(places[0]))
            path = merged_path(payload["path"], payload["python"], self._own)
        except (SystemExit, ValueError, KeyError, TypeError):
            return None  # a fresh interpreter finds out what is wrong with it
        if path != self._path:
            return None
        self._refused = 0
        return payload

    def _is_current(self) -> bool:
        """Tell whether no file of a module has changed, and no thread has begun."""
        try:
            return _threads() == 1 and all(
                _identify(path) == facts for path, facts in self._files.items()
            )
        except OSError:
            return False

    def _fork(self) -> bool:
        """Fork a child of the supervisor; True: this is the child."""
        # A process that is forked in between, and ends, leaves its child to the supervisor.
        middle = os.fork()
        if middle == 0:
            try:
                pid = os.fork()
                if pid == 0:
                    return True
                self._send(warm.FORKED, b"%d" % pid)
            except BaseException:  # noqa: BLE001 - this process must not go on
                os._exit(1)
            os._exit(0)
        # Once it is reaped, its child is the supervisor's, which is a subreaper.
        _, status = os.waitpid(middle, 0)
        self._send(warm.HANDED_OVER if status == 0 else warm.REFUSED)
        return False

    def _become(self, fields: dict[str, Any], go: int, start: spawn.Start) -> None:
        """Become the process of a call, as a fresh interpreter is one."""
        self._socket.close()
        if os.read(go, 1) != warm.GO:
            os._exit(0)  # the supervisor has given up, or is gone
        spawn.take_place(start)
        _rename(self._name)
        if start.oom_score is not None:
            spawn.set_oom_score(start.oom_score)
        os.umask(fields["umask"])
        try:
            os.chdir(fields["cwd"])
        except OSError as error:
            spawn.report_failure(start, spawn.CHDIR, error.errno or 0)
        empty_stdin()
        for name in list(os.environb):
            if name.startswith(warm.OF_JOB):
                del os.environb[name]
        env = fields["env"]
        os.environb.update({name: env[name] for name in env if name.startswith(warm.OF_JOB)})
        ctypes.memmove(self._cookie, env[warm.COOKIE], _LENGTH)
        # Python seeds its own generator in a forked process.
        numpy = sys.modules.get("numpy.random")
        if numpy is not None:
            numpy.seed()
        os.close(start.report)  # last: from here on, the call counts as started

    def _send(self, kind: bytes, rest: bytes = b"") -> None:
        self._socket.send(kind + rest, _socket.MSG_NOSIGNAL)


class _Exit:
    """
    Ends the process of a call when the handlers of `atexit` have run.

    Python would then free all that was loaded, object by object. That takes longer than most
    calls, and would copy the memory that they share.
    """

    def __init__(self) -> None:
        self._code: int | None = None  # negative: a signal
        atexit.register(self._leave)

    def after(self, call: Callable[[], None]) -> None:
        """Make a call, and note with which code Python will end; errors are raised again."""
        try:
            call()
        except SystemExit as error:
            code = error.code
            self._code = code & 0xFF if isinstance(code, int) else int(code is not None)
            raise
        except KeyboardInterrupt:
            self._code = -_signal.SIGINT
            raise
        except BaseException:
            self._code = 1
            raise
        self._code = 0

    def _leave(self) -> None:
        code = self._code
        if code is None:
            return  # it will be ended by a signal
        for stream in (sys.stdout, sys.stderr):
            try:
                if stream is not None:
                    stream.flush()
            except (OSError, ValueError):
                code = _FLUSH_FAILED
        _libc.fflush(None)
        if code < 0:
            _signal.signal(-code, _signal.SIG_DFL)
            os.kill(os.getpid(), -code)
        os._exit(code)


def _without_job(env: dict[bytes, bytes]) -> dict[bytes, bytes]:
    return {name: value for name, value in env.items() if not name.startswith(warm.OF_JOB)}


def _rename(name: bytes) -> bytes:
    """Give this process a name, as `ps` shows it, and return its former one."""
    with open("/proc/self/comm", "r+b", buffering=0) as file:
        former = file.read().strip()
        file.write(name)
    return former


def _threads() -> int:
    return len(os.listdir("/proc/self/task"))


def _first_environment() -> dict[bytes, bytes]:
    """Return the environment that this process got. Python itself may have added to it since."""
    with open("/proc/self/environ", "rb") as file:
        entries = [one.partition(b"=") for one in file.read().split(b"\0") if one]
    return {name: value for name, _, value in entries}


def _content(descriptor: int) -> bytes:
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0)


def _descriptors() -> set[int]:
    found = {int(name) for name in os.listdir("/proc/self/fd")}
    return {one for one in found if _is_open(one)}  # without the one that `listdir` has used


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def _end_children() -> bool:
    """Kill and reap all children of this process; tell whether there were any."""
    found = False
    while True:
        for pid in process_tree.children():
            os.kill(pid, _signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return found
        found = True


def _files() -> dict[str, tuple[int, int, int, int]]:
    """Return the files of the loaded modules; one stands for all of the standard library."""
    library = os.path.dirname(os.__file__) + "/"
    paths = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    found = [
        path
        for path in paths
        if isinstance(path, str) and (not path.startswith(library) or "-packages/" in path)
    ]
    return {path: _identify(path) for path in (os.__file__, *found) if os.path.exists(path)}


def _identify(path: str) -> tuple[int, int, int, int]:
    facts = os.stat(path)
    return facts.st_dev, facts.st_ino, facts.st_mtime_ns, facts.st_size
