"""
Interpreter: whether this process can run jobs, and what it names as `python` is one.

In a frozen program, and in one that embeds Python, `sys.executable` is the program
itself: started as a supervisor it would start itself, and that one itself again.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from jobcore.errors import SpawnError
from jobcore.worker import threads_run

#: In the environment of what is started as an interpreter: the pid of its host.
MARK = "JOBCORE_STARTED_AS_PYTHON_BY"
#: Seconds within which an interpreter has to answer when it is asked whether it is one.
PATIENCE = 10.0

_REMEDY = "name a Python interpreter with `python=`, or run the jobs by `jobcore work`"
#: What only an interpreter answers, and what supervisors need beside it.
_QUESTION, _ANSWER = "print(6007 * 9001, end='', flush=True); import ctypes", b"54069007"


def require_host(python: str | None, *, own_launcher: bool) -> None:
    """
    Refuse a process in which no job could ever run.

    Args:
        python: The interpreter for supervisors; None: that of this process.
        own_launcher: Whether supervisors are started by a launcher of the host's.

    Raises:
        SpawnError: Why, and what to do.
    """
    replaced = _replaced_threads()
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
    if os.environ.get(MARK):
        raise SpawnError(
            f"process {os.environ[MARK]} has started this program as if it was a Python "
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
    """Tell whether this process can import ctypes, without doing so."""
    try:
        return importlib.util.find_spec("_ctypes") is not None
    except ValueError:  # it is kept from being imported
        return False


def _without_ctypes(python: str) -> SpawnError:
    return SpawnError(
        f"{python!r} was built without ctypes, which supervisors need: install libffi and build "
        "it anew, or name another Python interpreter with `python=`",
        lasting=True,
    )


def _replaced_threads() -> str | None:
    """Return the library that has put something else in the place of threads, or None."""
    # Not imported for that: who has called them has them loaded.
    gevent: Any = sys.modules.get("gevent.monkey")
    if gevent is not None and (
        gevent.is_module_patched("threading") or gevent.is_module_patched("_thread")
    ):
        return "gevent"
    eventlet: Any = sys.modules.get("eventlet.patcher")
    if eventlet is not None and eventlet.is_monkey_patched("thread"):
        return "eventlet"
    return None


def require(python: str) -> None:
    """
    Refuse what is not a Python interpreter. It is asked once; the one of this process never.

    Raises:
        SpawnError: It is not one, cannot be started, or does not answer.
    """
    found = _find(python)
    if found is None:
        return  # whoever starts it is told
    path, facts = found
    if not _is_own(facts) and not _answers(path, facts.st_dev, facts.st_ino, facts.st_mtime_ns):
        raise SpawnError(f"{path!r} is not a Python interpreter: {_REMEDY}", lasting=True)


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
    """Tell whether this is the file that this process runs, and one named as interpreters are."""
    try:
        name = os.path.basename(os.readlink("/proc/self/exe"))
        own = os.stat("/proc/self/exe")
    except OSError:
        return False  # without /proc it is asked
    return name.startswith(("python", "pypy")) and os.path.samestat(facts, own)


@lru_cache(maxsize=16)
def _answers(python: str, _device: int, _inode: int, _changed: int) -> bool:
    """Ask a file, which is the same as long as these are, whether it is an interpreter."""
    import subprocess  # noqa: PLC0415 - a host that runs nothing need not load it

    try:
        with unhooked():
            done = subprocess.run(
                [python, "-I", "-S", "-c", _QUESTION],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env=marked(),
                timeout=PATIENCE,
                check=False,
            )
    except subprocess.TimeoutExpired as error:
        raise SpawnError(
            f"{python!r} does not answer as a Python interpreter within {PATIENCE:g} s: {_REMEDY}"
        ) from error
    except (OSError, RuntimeError, ValueError) as error:
        number = error.errno if isinstance(error, OSError) else None
        raise SpawnError(f"{python!r} cannot be started: {error}; {_REMEDY}", number) from error
    if done.stdout == _ANSWER and done.returncode != 0:
        raise _without_ctypes(python)
    return done.stdout == _ANSWER


def marked() -> dict[str, str]:
    """Return the environment for what is started as an interpreter, with the mark."""
    return {**os.environ, MARK: str(os.getpid())}


@contextmanager
def unhooked() -> Iterator[None]:
    """
    Keep a debugger's hooks from what this thread starts.

    debugpy, as pydevd, rewrites the command lines of Python child processes, so that it
    gets into them: a supervisor would wait for the debugger, and not know its arguments.
    """
    pydevd: Any = sys.modules.get("_pydev_bundle.pydev_monkey")
    skip = getattr(pydevd, "skip_subprocess_arg_patch", None)
    if skip is None:
        yield
        return
    with skip():
        yield
